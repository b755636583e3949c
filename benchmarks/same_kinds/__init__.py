"""Kinds of run and kinds of store whose results two versions of armada should agree on."""
