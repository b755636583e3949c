"""Templates of prompts: what stands for the text columns of a row.

    {text}        all of them
    {1}, {2}      single ones, in the order of `text_column`
    {question}    single ones by the name of the column

Names are numbers to everything but a job (`by_number`): an example has segments without names, and
two corpora whose columns are called differently have the same prompts, fingerprint and keys. A
template with {text} or with numbers is what it was before there were names: whatever else stands in
braces is a part of the prompt.
"""

import re
from collections.abc import Collection, Iterator, Sequence

from ...cache_schemas.errors import JobError

TEXT = "{text}"
JOINT = "\n\n"
"""Between segments of one text; those that are blank are left out."""

_NUMBER = re.compile(r"\{([1-9]\d?)\}")
_NAME = re.compile(r"\{([^\W\d][\w .-]*)\}")


def check_template(template: str) -> str:
    """The template of a prompt. Raises ValueError for one without a text."""
    if TEXT not in template and not _NUMBER.search(template):
        raise ValueError(f"has no {TEXT}, so all prompts would be the same")
    return template


def fill_template(template: str, segments: Sequence[str]) -> str:
    """The prompt that a template makes of segments: of all together as {text}, or of single ones as
    {1}, {2}, ... Raises JobError for a number that is above theirs."""
    if TEXT in template:
        return template.replace(TEXT, JOINT.join(part for part in segments if part.strip()))
    if (highest := columns_of(template)) > len(segments):
        raise JobError(
            f"template {template!r}: has {{{highest}}}, and a prompt has {len(segments)} text "
            f"columns; use {{1}} to {{{len(segments)}}}"
        )
    return _NUMBER.sub(lambda found: segments[int(found[1]) - 1], template)


def one_text(template: str, segments: Sequence[str]) -> str:
    """The same for a text that is embedded or drawn: in it {text} is the segments joined by a
    space."""
    if numbers_of(template):
        return fill_template(template, segments)
    return template.replace(TEXT, " ".join(segment for segment in segments if segment))


def columns_of(template: str) -> int:
    """The least number of segments that a template takes."""
    return 1 if TEXT in template else max(numbers_of(template), default=0)


def numbers_of(template: str) -> set[int]:
    """The numbers of single segments in a template."""
    return set() if TEXT in template else set(map(int, _NUMBER.findall(template)))


def by_number(template: str, columns: Sequence[str], kept: Collection[str] = ()) -> str:
    """A template that names columns, with their numbers. `kept`: names that stand for something
    else."""
    if TEXT in template or numbers_of(template):
        return template
    numbers = {name: at for at, name in enumerate(columns, 1) if name not in kept}

    def number(found: re.Match[str]) -> str:
        return f"{{{numbers[found[1]]}}}" if found[1] in numbers else found[0]

    return _NAME.sub(number, template)


def doubts(
    template: str, columns: Sequence[str], prompt: int, kept: Collection[str] = ()
) -> Iterator[str]:
    """What a template with numbers may not do as it is meant: names that it leaves as they are, and
    the first `prompt` columns, of which prompts are made, that it leaves out."""
    for name in dict.fromkeys(_NAME.findall(template.replace(TEXT, ""))):
        if name in kept:
            continue
        if name in columns:
            yield (
                f"{{{name}}} stays as it is beside "
                + (f"{TEXT}, which is all text columns" if TEXT in template else "numbers")
                + "; name all columns in one way"
            )
        else:
            yield f"{{{name}}} is no text column ({', '.join(columns)}), and stays as it is"
    if numbers := numbers_of(template):
        for at, name in enumerate(columns[:prompt], 1):
            if at not in numbers:
                yield (
                    f"text column {name} is not in it, so no prompt has it: add {{{at}}}, or leave "
                    "the column out"
                )
