"""Chats as a tokenizer's own template writes them.

What is written depends on the turns and the settings alone: a template that reads the clock is
given a fixed date instead, one that draws is refused, and options that it does not read are, too.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from ...cache_schemas.errors import JobError

DEFAULT_DATE = "2025-01-01"
"""What the clock of templates says, unless it is told; any fixed date would do."""

_CLOCK = "strftime_now"
_DRAWS = frozenset({"random"})


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The chat template of a tokenizer under some options, on a date (ISO 8601)."""

    tokenizer: Any
    options: Mapping[str, Any]
    date: str

    def check(self) -> None:
        """Raises JobError for a template that is missing or draws, and options it does not read."""
        read = _read(self._source())
        if read.draws:
            raise JobError(
                f"text_format chat: the chat template draws ({', '.join(sorted(read.draws))}), so "
                "it writes the same chat otherwise each time; use plain"
            )
        taken = {*inspect.signature(self.tokenizer.apply_chat_template).parameters} - {
            *("tools", "documents", "kwargs")
        }
        for name in self.options:
            if name in taken | {"messages", _CLOCK}:
                raise JobError(f"template_options: {name!r} is not for options; leave it out")
            if name not in read.variables:
                near = difflib.get_close_matches(name, read.variables, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                known = sorted(read.variables - {"messages", "add_generation_prompt"})
                raise JobError(
                    f"template_options: the chat template reads no {name!r}{hint}; it reads "
                    f"{', '.join(known) or 'none'}"
                )

    @property
    def reads_clock(self) -> bool:
        """Whether what is written depends on the date."""
        return _read(self._source()).clock

    def render(self, turns: Sequence[Mapping[str, Any]], *, ask: bool = False) -> str:
        """The turns as one string; `ask`: with what asks for an answer behind them."""
        options = {**self.options, "tokenize": False, "add_generation_prompt": ask}
        if self.reads_clock:
            options["chat_template"] = _dated(self._source(), self.date)
        try:
            return str(self.tokenizer.apply_chat_template(list(turns), **options))
        except Exception as cause:  # whatever a template raises
            raise JobError(
                f"text_format chat: the chat template refuses "
                f"{', '.join(str(turn['role']) for turn in turns)}: "
                f"{' '.join(str(cause).split()):.200} ({turns[-1]['content'][:40]!r})"
            ) from cause

    def _source(self) -> str:
        try:
            return str(self.tokenizer.get_chat_template(tools=self.options.get("tools")))
        except ValueError as cause:
            raise JobError(
                "text_format chat: the tokenizer has no chat template; use plain, or a tokenizer "
                "that has one"
            ) from cause


@dataclass(frozen=True, slots=True)
class _Read:
    """The variables that a template reads, whether the clock, and the filters by which it draws."""

    variables: frozenset[str]
    clock: bool
    draws: frozenset[str]


@lru_cache(maxsize=16)
def _read(source: str) -> _Read:
    from jinja2 import TemplateError, meta, nodes

    try:
        tree = _compiled(source).environment.parse(source)
    except TemplateError as cause:
        raise JobError(f"text_format chat: the chat template cannot be read: {cause}") from cause
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    return _Read(
        frozenset(meta.find_undeclared_variables(tree)),
        any(node.name == _CLOCK for node in tree.find_all(nodes.Name)),
        frozenset(filters & _DRAWS),
    )


def _compiled(source: str) -> Any:
    """The template that transformers renders, which compiles each source once."""
    from transformers.utils import chat_template_utils

    return chat_template_utils._compile_jinja_template(source)


def _dated(source: str, date: str) -> str:
    """The source of a template that writes the same with that date on the clock, and is nobody
    else's."""
    # The newline that a comment swallows.
    marked = f"{{# on {date} #}}" + ("\n" if source.startswith("\n") else "") + source
    clock: Callable[[str], str] = datetime.fromisoformat(date).strftime
    _compiled(marked).globals[_CLOCK] = clock
    return marked
