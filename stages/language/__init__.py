"""Texts as tokens, hidden states as logits: what teachers and students that are language models
share."""
