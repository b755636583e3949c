"""Parts of the teachers that draw: pipelines on disk, pipelines in memory, the recipe, encoders."""
