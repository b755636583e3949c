"""The faults that a cache has to survive."""
