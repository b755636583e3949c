"""Caches as things to look at, check, join and pass on: `armada cache ...`."""
