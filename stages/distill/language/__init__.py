"""Students that are causal language models: they learn tokens, from texts and from teachers."""
