"""LoRA and what trains beside it: which weights it is put on, how it starts, and what else is trained with it."""
