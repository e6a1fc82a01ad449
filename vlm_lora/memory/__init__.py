"""The memory plan: what a training step will need on each device, before any weight is read."""
