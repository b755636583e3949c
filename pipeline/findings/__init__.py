"""Statistics of finished runs."""
