"""Corpora: files of rows become examples with text segments, keys, ids and labels."""
