"""Imports of the libraries that a run needs, and a process that ends.

torch, transformers and what these import are a million objects, which stay until the process ends.
Python searches them for garbage while they are imported, again and again later, and once more at
the end: for a short run that was a third of its processor time.
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_imports() -> Iterator[None]:
    """No search for garbage within the block, and none of later ones goes through what the block
    imported. For processes of armada's own: also garbage that is there already is kept."""
    known, collecting = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        if len(sys.modules) > known:
            gc.freeze()


@atexit.register  # runs after those that are registered later
def _let_bindings_end() -> None:
    """The bindings of triton, from 3.9 on, complain on stderr of all that no search has given back,
    in dozens of lines after the one that a user is to read."""
    if "triton" in sys.modules:
        gc.unfreeze()


def end_without_search() -> None:
    """Let this process end without a last search for garbage: its memory is given back anyway."""
    atexit.register(gc.freeze)
