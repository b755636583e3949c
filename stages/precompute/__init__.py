"""Stage 1: compute a frozen teacher's features once for every text of a corpus, and cache them."""
