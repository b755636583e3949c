"""The token-level loss of stage 2, worked out without the logits as a whole."""
