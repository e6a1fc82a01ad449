"""Losses, gradients and weights that are not finite: found, named, and never saved."""
