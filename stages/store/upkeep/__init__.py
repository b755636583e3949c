"""Caches that stay whole, and become one: verify, repair, clear away, merge."""
