"""Properties of tokenizers, read from the tokenizers themselves."""
