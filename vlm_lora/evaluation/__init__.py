"""Perplexity and generated answers."""
