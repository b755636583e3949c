"""Inspecting, checking, merging and sharing caches: `armada cache ...`."""
