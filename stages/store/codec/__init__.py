"""Rows of bytes for a teacher's predictions of tokens; the law of the bytes is in the modules
here."""
