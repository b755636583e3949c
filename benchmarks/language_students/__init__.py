"""Of `language_models.py`: the rows of its table, and the caches that students learn from."""
