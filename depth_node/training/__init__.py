"""Training of depth networks: torch and lightning live here and in `export`, nowhere else."""
