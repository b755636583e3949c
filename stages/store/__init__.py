"""Where the bytes are: the one place that reads and writes cache files. No torch."""
