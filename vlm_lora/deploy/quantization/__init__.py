"""Weights in 4 or 8 bits after training, by llm-compressor in an environment of its own."""
