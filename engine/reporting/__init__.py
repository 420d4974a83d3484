"""What a person sees of a run: terminal, page, plots, model card, metrics and trackers."""
