"""Making durable what a library wrote without asking the disk to keep it."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Wait until all files of `folder`, and their names, are on disk."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
