"""Boxes in text: how each family's makers count and write them, and what was written back in pixels."""
