"""The quickstart's models and corpus, and the script that made both from Python's own standard library."""
