"""A small visual world to see both stages work in."""
