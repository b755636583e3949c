"""Single files of a cache: written whole or not at all, locked, checked, never through a link."""
