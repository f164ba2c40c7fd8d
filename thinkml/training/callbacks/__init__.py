"""Callbacks: early stopping, checkpoints, loggers, and whatever else follows a run."""
