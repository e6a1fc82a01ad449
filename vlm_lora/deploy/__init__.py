"""Models on their way out of a run's folder: merged, and proven to be what was trained."""
