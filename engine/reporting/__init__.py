"""Show a run to people: terminal, page, plots, model card, metrics and trackers."""
