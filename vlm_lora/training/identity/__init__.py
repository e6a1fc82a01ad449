"""What a run is: its command, settings, versions, code, rows, base model and machine, kept as `run.json`."""
