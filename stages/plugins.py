"""One small registry: a name leads to a 'module:attribute' that is imported only when chosen.

Other people's packages join through entry points of the registry's group:

    [project.entry-points."armada.teachers"]
    my_teacher = "my_package.teacher:MyTeacher"

A name that two packages claim is an error. A plug-in's own ImportError passes through unchanged.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..cache_schemas.errors import JobError


@dataclass(frozen=True, slots=True)
class Registry:
    """Names of one kind of plug-in: `group` for entry points, `built_in` name -> reference."""

    group: str
    kind: str
    built_in: Mapping[str, str]

    def names(self) -> list[str]:
        """All known names, sorted."""
        return sorted({*self.built_in, *(entry.name for entry in entry_points(group=self.group))})

    def is_built_in(self, name: str) -> bool:
        """Whether a name is ours, and no other package claims it."""
        return name in self.built_in and not any(
            entry.name == name for entry in entry_points(group=self.group)
        )

    def load(self, name: str) -> Any:
        """The plug-in of that name. Raises JobError for an unknown or doubly claimed name."""
        candidates = [entry for entry in entry_points(group=self.group) if entry.name == name]
        if name in self.built_in:
            candidates.insert(0, EntryPoint(name, self.built_in[name], self.group))
        if not candidates:
            raise JobError(self._unknown(name))
        if len(candidates) > 1:
            claims = ", ".join(entry.value for entry in candidates)
            raise JobError(f"{self.kind} {name!r} is claimed by {claims}; uninstall all but one")
        module, _, attribute = candidates[0].value.partition(":")
        package = __package__ if module.startswith(".") else None
        return getattr(import_module(module, package), attribute)

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        return f"{self.kind} {name!r} is unknown{hint} known are {', '.join(self.names())}"
