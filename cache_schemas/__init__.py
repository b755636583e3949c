"""What a cache is: keys, specs, fingerprints, manifests. No I/O of arrays; see README.md here."""
