"""Evaluation: bits per byte, tasks, merges and ensembles of the run's models."""
