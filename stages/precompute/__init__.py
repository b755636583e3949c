"""Stage 1: ask a frozen teacher once about every text of a corpus and keep its answers."""
