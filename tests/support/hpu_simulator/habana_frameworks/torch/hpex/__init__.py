"""Fused kernels, by their formulas."""
