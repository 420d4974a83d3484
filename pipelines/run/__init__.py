"""A run from preflight to report: ``engine.run``."""
