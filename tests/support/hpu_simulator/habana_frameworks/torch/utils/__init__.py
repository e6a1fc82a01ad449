"""Helpers of the vendor."""
