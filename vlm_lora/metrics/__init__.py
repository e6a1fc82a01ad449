"""Scores of generated answers: which metrics there are, which suit the data, and what a set of answers scores."""
