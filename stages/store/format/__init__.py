"""The format on disk: Zarr shards, Parquet tables, and the JSON documents that vouch for them."""
