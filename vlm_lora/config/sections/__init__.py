"""Sections of a run's configuration that have a file of their own, and how their values are checked."""
