"""The page of families, as Markdown: who can be what, and why not."""

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version

from .roles import ABSENT, NOT_BUILT, ROLES, YES, Outcomes

READS_NO_TEXT, NOT_TRIED = "not text; use a text model", "?"

_PAGE = """# Models

Which families of transformers can be teachers and students. Each was made tiny from its own
configuration, saved, and tried from the folder in every role; this page is written by
`python benchmarks/models.py --results models.jsonl --page docs/models.md`, not by hand.

transformers {version}: {tried} families that read texts, {other} that read none, {not_built} that
could not be made tiny.

- **teachers**: `encoder`, `classifier` and `causal_lm` (also generating text), with their default
  options;
- **students**: of `task=classification`, of `objective=feature`, of `task=language`; trained for an
  epoch, saved and, with labels or as a language model, evaluated;
- **yes**: works; **-**: transformers has no such class of the family, and the refusal says so; a
  number: refused with the line below; **?**: not tried yet.

What is refused of a family here may be open to a checkpoint of it that is configured otherwise.

{table}

## Why not

{reasons}

## Families that read no text

{no_text}

## Families that were not tried

The sizes of these depend on each other in ways of their own, so that no tiny one was made.

{absent}
"""


def make_page(results: Mapping[str, Outcomes]) -> str:
    """The whole page. `results`: family -> role -> outcome."""
    tried = {name: results[name] for name in sorted(results) if is_tried(results[name])}
    no_text = [name for name in sorted(results) if _reads_no_text(results[name])]
    not_built = sorted(results.keys() - tried.keys() - set(no_text))
    reasons = _reasons(tried)
    return _PAGE.format(
        version=version("transformers"),
        tried=len(tried),
        other=len(no_text),
        not_built=len(not_built),
        table="\n".join(_table(tried, reasons)),
        reasons="\n".join(f"{number}. {reason}" for reason, number in reasons.items()),
        no_text=_listed(no_text),
        absent=_listed(not_built),
    )


def is_tried(outcomes: Outcomes) -> bool:
    """Whether a family has a row of the table: it was made, and reads texts in some role."""
    made = [o for o in outcomes.values() if o != ABSENT and not o.startswith(NOT_BUILT)]
    return bool(made) and not _reads_no_text(outcomes)


def _reads_no_text(outcomes: Outcomes) -> bool:
    there = [outcome for outcome in outcomes.values() if outcome != ABSENT]
    return any(READS_NO_TEXT in outcome for outcome in there)


def cell(outcome: str) -> str:
    """What the table says of an outcome, but for the number of a reason: its reason."""
    if outcome in (YES, ABSENT):
        return {YES: "yes", ABSENT: "-"}[outcome]
    if outcome.startswith(NOT_BUILT):
        return NOT_TRIED
    return reason_of(outcome)


def reason_of(line: str) -> str:
    """A line that refuses a model without the names of classes, so that equal reasons are one."""
    line = re.sub(r"^(student|source)( FOLDER)?: ", "", line)
    line = re.sub(r"\b(an?|A) ([\w.-]+) (as a reader|sees|is an|is no)", r"\1 model \3", line)
    line = re.sub(r"\b[A-Z]\w+(Model|Encoder|LM|Config|Output\w*|For\w+)\b", "the model", line)
    line = re.sub(r"model type '[^']+'", "the model type", line)
    return line.replace("|", r"\|")


def _reasons(tried: Mapping[str, Outcomes]) -> dict[str, int]:
    cells = (cell(outcomes.get(role, NOT_BUILT)) for outcomes in tried.values() for role in ROLES)
    told = dict.fromkeys(each for each in cells if each not in ("yes", "-", NOT_TRIED))
    return {reason: number for number, reason in enumerate(told, 1)}


def _table(tried: Mapping[str, Outcomes], reasons: Mapping[str, int]) -> Iterator[str]:
    yield f"| family | {' | '.join(ROLES)} |"
    yield f"| --- |{' --- |' * len(ROLES)}"
    for family, outcomes in tried.items():
        cells = [cell(outcomes.get(role, NOT_BUILT)) for role in ROLES]
        yield f"| {family} | {' | '.join(str(reasons.get(each, each)) for each in cells)} |"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) + "."


def rows_of(page: str) -> dict[str, dict[str, str]]:
    """Family -> role -> cell of a page, its number put back into words."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    lines = re.findall(r"^\| ([^|]+) \| (.*) \|$", page, re.MULTILINE)
    return {
        family: {
            role: reasons.get(each, each)
            for role, each in zip(ROLES, cells.split(" | "), strict=True)
        }
        for family, cells in lines
        if family not in ("family", "---")
    }
