"""How the states of a transformer become one vector a text, and folders that declare it."""
