"""From texts to rows to numbers: one mapping of all shards, read like one array."""
