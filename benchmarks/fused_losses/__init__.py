"""Ways to the same token-level loss, and how their time, memory and errors are measured."""
