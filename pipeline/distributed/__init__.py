"""One job on many processes: a client that assigns shards, and workers that compute them."""
