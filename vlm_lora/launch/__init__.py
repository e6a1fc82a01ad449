"""What to start where: torchrun, DeepSpeed, mpirun, Slurm, machines, placement, signals, the children's stderr."""
