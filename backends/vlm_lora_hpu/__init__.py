"""What both roads to Intel Gaudi share; by itself it is no backend."""
