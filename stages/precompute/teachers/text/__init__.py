"""Parts of the teachers that read text: tokens, language models, CLIP sources."""
