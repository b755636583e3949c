"""Shards between places: what a remote cache holds, and how its shards get here and there."""
