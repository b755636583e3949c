"""Storage: the only package that reads and writes cache files. No torch.

files/     single files: atomic, locked, checked          (knows nothing of the others)
format/    what is in them: Zarr shards, tables, documents
codec/     encoding of a token's row of bytes: top-k, draws
reading/   texts -> rows -> numbers, mapped               writing/  reservations, commits
upkeep/    verify, repair, merge                          transfer/ push, pull, mirrors
"""
