"""Rows of each file format, with the place that they came from."""
