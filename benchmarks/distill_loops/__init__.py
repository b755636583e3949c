"""The loops that `benchmarks/distill.py` times, and what they train on."""
