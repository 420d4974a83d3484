"""Predict a run without starting it: sizes, memory and work, coverage and mapping of every source."""
