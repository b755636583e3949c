"""Teachers behind an OpenAI-compatible endpoint: what is sent, what a reply means, and how it is
asked."""
