"""Training blocks: which passages share one, and how they lie in it."""
