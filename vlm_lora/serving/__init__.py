"""Servers of models: which folder each loads as it is, and by which command."""
