"""The version, in one place; nothing is imported for it."""

__version__ = "0.1.0"
