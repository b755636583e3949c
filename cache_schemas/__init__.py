"""The data model of a cache: keys, specs, fingerprints, manifests. No I/O of arrays; see README.md
here."""
