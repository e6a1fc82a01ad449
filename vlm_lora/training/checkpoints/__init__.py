"""Saved checkpoints: what they hold, how they are written, kept, read and compared."""
