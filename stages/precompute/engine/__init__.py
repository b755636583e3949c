"""Teachers in an engine: a process of its own beside armada's."""
