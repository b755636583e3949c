"""What tokenizers do to texts, read off the tokenizers themselves."""
