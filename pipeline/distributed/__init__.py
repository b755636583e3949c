"""One job on many processes: a client that deals out shards, and workers that ask."""
