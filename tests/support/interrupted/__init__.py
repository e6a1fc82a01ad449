"""Runs that are interrupted again and again: what `kill_runs.py`, `signal_runs.py` and `soak.py` share.

Every start is a fork of one process that has imported everything and begun nothing, or as many as there are ranks. It
costs about a second.
"""
