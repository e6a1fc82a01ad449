"""Packing: several rows in one sequence, each as if it stood alone."""
