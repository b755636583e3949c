"""Ways to compute a teacher's features, ours and others, for `benchmarks/precompute.py`."""
