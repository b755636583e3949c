"""Reading: texts to rows to numbers, with all shards as one array."""
