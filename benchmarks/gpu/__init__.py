"""`python -m benchmarks.gpu`: everything that one CUDA GPU can tell, in eight minutes."""
