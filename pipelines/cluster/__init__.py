"""Ray for one run: session, placement, metrics and errors."""
