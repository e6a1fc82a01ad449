"""What each metric counts, as plain functions; none of them needs a model, and the modules of `evaluate` call them."""
