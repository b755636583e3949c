"""Shards between locations: what a remote cache holds, and how its shards get here and there."""
