"""Text embeddings: pooling and further layers, and folders that declare them."""
