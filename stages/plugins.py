"""One small registry: a name leads to a 'module:attribute' that is imported only when chosen.

Other people's packages join through entry points of the registry's group:

    [project.entry-points."armada.teachers"]
    my_teacher = "my_package.teacher:MyTeacher"

A name that two packages claim is an error. A plug-in's own ImportError passes through unchanged.
"""

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from ..cache_schemas.errors import JobError


@dataclass(frozen=True, slots=True)
class Registry:
    """Names of one kind of plug-in: `group` for entry points, `built_in` name -> reference, and
    `built_in_options` that of its options, in modules that import nothing heavy."""

    group: str
    kind: str
    built_in: Mapping[str, str]
    built_in_options: Mapping[str, str]

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self.built_in, *_installed(self.group, *sys.path).names})

    def load(self, name: str) -> Any:
        """The plug-in of that name. Raises JobError for an unknown or doubly claimed name."""
        return _imported(self._reference(name))

    def options(self, name: str) -> Any:
        """The options of the plug-in of that name; one of ours is not imported for them. Raises
        what `load` raises."""
        reference = self._reference(name)
        if reference == self.built_in.get(name):
            return _imported(self.built_in_options[name])
        return _imported(reference).Options

    def _reference(self, name: str) -> str:
        claims = [entry.value for entry in _installed(self.group, *sys.path) if entry.name == name]
        if name in self.built_in:
            claims.insert(0, self.built_in[name])
        if not claims:
            raise JobError(self._unknown(name))
        if len(claims) > 1:
            raise JobError(
                f"{self.kind} {name!r} is claimed by {', '.join(claims)}; uninstall all but one"
            )
        return claims[0]

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        return f"{self.kind} {name!r} is unknown{hint} known are {', '.join(self.names())}"


@cache
def _installed(group: str, *path: str) -> EntryPoints:
    """Plug-ins of other packages in the folders of `sys.path`; to read all takes 10 ms."""
    return entry_points(group=group)


def _imported(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    package = __package__ if module.startswith(".") else None
    return getattr(import_module(module, package), attribute)
