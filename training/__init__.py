"""Checkpoints, the log, the run folder, device, signals and processes of a training."""
