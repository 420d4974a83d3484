"""The quickstart's models and corpus, and the script that makes both from Python's standard library."""
