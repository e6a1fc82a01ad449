"""In which order rows are asked for: shuffled, in their own order, or grouped by length."""
