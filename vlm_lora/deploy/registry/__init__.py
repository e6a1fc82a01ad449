"""MLflow's registry of models: what is registered there, and what is found again by name."""
