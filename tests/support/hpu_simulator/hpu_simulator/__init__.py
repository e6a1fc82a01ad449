"""A CPU-backed `hpu` device that optimum-habana, unmodified, trains on. See README.md for what it models."""
