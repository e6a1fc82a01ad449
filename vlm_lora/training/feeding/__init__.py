"""How a run's rows reach its trainer: in which order, from which source, by how many workers."""
