"""What `store.py` measures, and how the figures are shown."""
