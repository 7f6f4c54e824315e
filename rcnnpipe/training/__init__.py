"""Schedules, the training loop and its checkpoints."""
