"""The two stages and what they share: corpora, plug-ins and the store between them."""
