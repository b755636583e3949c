"""Paths and URLs as people write them: whose home `~` is, and what of a URL may be shown.

A URL may hold a password (`s3://user:password@host`) or a key (`?token=`, `?X-Amz-Signature=`).
Whatever is written or logged goes through `shown`: job files, reports, cards, error lines.
"""

import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import ValidatorFunctionWrapHandler, WrapValidator

from .errors import JobError, shown_url

__all__ = ["InMemory", "Source", "expand_home", "shown", "shown_url"]


def expand_home(path: str) -> str:
    """A path with `~` or `~user` at its start written out; raises JobError for an unknown user."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = re.split(r"[/\\]", path)[0]
        raise JobError(f"{path}: there is no user {user}; write ./{path} for a name with a ~")
    return expanded


class InMemory(str):
    """The name of a table in memory, along with the table: stands where a file could be named."""

    table: Any

    def __new__(cls, name: str, table: Any) -> "InMemory":
        named = super().__new__(cls, name)
        named.table = table
        return named

    def __reduce__(self) -> tuple[type["InMemory"], tuple[str, Any]]:
        return InMemory, (str(self), self.table)


def _source(value: Any, check: ValidatorFunctionWrapHandler) -> str:
    return value if isinstance(value, InMemory) else expand_home(check(value))


Source = Annotated[str, WrapValidator(_source)]
"""A key of a job that names a file, a folder, a URL, an id of a hub, or a table in memory."""


def shown(value: Any) -> Any:
    """A document as plain data, all of its texts by `shown_url`."""
    if isinstance(value, Mapping):
        return {key: shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown(each) for each in value]
    return shown_url(str(value)) if isinstance(value, str | PurePath) else value
