"""`python core_only.py HIDDEN < COMMANDS`: armada where some packages are not installed.

Whoever imports one of the packages (names joined by commas) or asks for it finds none, as after an
installation without extras. Commands come as lists of words in JSON; how each ended goes to
standard output, in JSON too. A command of one word is Python's to run.
"""

import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.machinery import ModuleSpec
from typing import Any


class Hiding:
    """A finder of modules that does not find some."""

    def __init__(self, finder: Any, hidden: frozenset[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._hidden:
            return None
        found: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def run(words: Sequence[str]) -> dict[str, Any]:
    """How a command ended: its exit code, and what it printed."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if len(words) == 1:
                exec(words[0], {})
            else:
                from armada.cli import main

                main(list(words))
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        except Exception as error:
            code = getattr(error, "exit_code", 1)
            print(f"{type(error).__name__}: {error}", file=err)
    return {"words": words, "code": code, "out": out.getvalue(), "err": err.getvalue()}


if __name__ == "__main__":
    names = frozenset(sys.argv[1].split(","))
    sys.meta_path[:] = [Hiding(finder, names) for finder in sys.meta_path]
    print(json.dumps([run(words) for words in json.load(sys.stdin)]))
