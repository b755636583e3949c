"""Rows of bytes for a teacher's answers to tokens; the law of the bytes is in the modules here."""
