"""Retrieval: exact search among embeddings, its measures, and BEIR folders. Below both stages."""
