"""Which column is what, and why."""
