"""Ray for one run: the session, placement, metrics and errors."""
