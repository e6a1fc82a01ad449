"""Every row once before training: what it is, what is wrong with it, and what a run does about that."""
