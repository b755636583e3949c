"""Students that are causal language models: they learn words, from texts and from teachers."""
