"""Families, loading, LoRA, and the objective."""
