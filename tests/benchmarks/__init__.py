"""Speed as ratios measured in one run: ``python -m tests.benchmarks.NAME`` prints one JSON line a figure."""
