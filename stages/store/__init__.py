"""Where the bytes are: the one place that reads and writes cache files. No torch.

files/     single files: atomic, locked, checked          (knows nothing of the others)
format/    what is in them: Zarr shards, tables, documents
codec/     what a token's row of bytes says: top-k, draws
reading/   texts -> rows -> numbers, mapped               writing/  reservations, commits
upkeep/    verify, repair, merge                          transfer/ push, pull, mirrors
"""
