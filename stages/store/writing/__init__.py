"""Many writers, one store: reservations, shards on their way, commits; and removals."""
