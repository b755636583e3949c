"""Grids of distill runs against one cache."""
