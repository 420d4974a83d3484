"""A whole run, from preflight to report: `engine.run`."""
