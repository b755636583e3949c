"""The text of a cache's card: Markdown with the YAML head that the Hugging Face hub expects.

The code in it runs as printed, from the folder above the cache. Names come from documents that
anybody may have written: what Markdown or HTML would read as anything but text is escaped.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ...cache_schemas.codings import Fidelity
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.layout import ROWS_TABLE
from ...cache_schemas.manifest import BatchFigures, CorpusRecord, RunRecord, TeacherManifest
from ..messages import (
    batches_in_words,
    budget_in_words,
    counted,
    fidelity_in_words,
    requests_in_words,
    size,
)

MARK = "<!-- made by `armada cache card`; the next run replaces this file -->"

_BODY = """{head}{mark}

# {title}

{summary}

{overview}

{teachers}
## Corpora

{corpora}

## Open it

With [armada](https://arxiv.org/abs/2603.10877), where `{name}` is this
folder:

```python
{with_armada}
```

With Zarr alone; empty rows are NaN, or 0 for integers:

```python
{with_zarr}
```

The keys of the rows, with pyarrow; a key is a hash of a text, the texts are not in here:

```python
{with_pyarrow}
```

Is it whole, and this very cache?

```
armada cache verify {name} --expect-digest {digest}
```
"""


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """Facts about one teacher; `picture` is a file beside the card."""

    manifest: TeacherManifest
    rows: int
    shards: int
    bytes: int
    runs: tuple[RunRecord, ...]
    picture: str | None
    coloured_by: str | None
    fidelity: Mapping[str, Fidelity]
    """Coded feature -> what coding cost it."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """All facts of a card; `name` is that of the folder."""

    title: str
    name: str
    licence: str | None
    digest: str
    teachers: tuple[TeacherFacts, ...]


def card(facts: CardFacts) -> str:
    """The text of README.md."""
    first = facts.teachers[0]
    return _BODY.format(
        head=_head(facts),
        mark=MARK,
        title=plain(facts.title),
        summary=_summary(facts),
        overview=overview(facts),
        teachers="\n".join(_teacher_section(teacher) for teacher in facts.teachers),
        corpora=_corpora_table(facts.teachers),
        name=_folder_name(facts.name),
        with_armada=_with_armada(facts, first),
        with_zarr=_with_zarr(facts, first),
        with_pyarrow=_with_pyarrow(facts, first),
        digest=facts.digest,
    )


def _folder_name(name: str) -> str:
    """The folder's name in commands and code; a stand-in for one that would have to be quoted."""
    return name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) else "cache"


def _head(facts: CardFacts) -> str:
    configs = [
        {
            "config_name": teacher.manifest.fingerprint[:12],
            "data_files": f"{_folder(teacher)}/tables/{ROWS_TABLE}/*.parquet",
        }
        for teacher in facts.teachers
        if teacher.rows
    ]
    head: dict[str, Any] = {
        "pretty_name": _on_one_line(facts.title),
        "license": _on_one_line(facts.licence or "unknown"),
        "tags": ["armada", "knowledge-distillation", "teacher-features"],
        "size_categories": [_size_category(max(teacher.rows for teacher in facts.teachers))],
        "configs": configs,
    }
    # Readers of heads look for the next line of dashes: no value may have lines of its own.
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def _size_category(rows: int) -> str:
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    index = next((n for n in range(len(steps)) if rows < 1000 * 10**n), None)
    if index is None:
        return "n>1T"
    return f"{steps[index - 1]}<n<{steps[index]}" if index else "n<1K"


def _folder(teacher: TeacherFacts) -> str:
    return f"teachers/{teacher.manifest.fingerprint}"


def _summary(facts: CardFacts) -> str:
    count = len(facts.teachers)
    rows = max(teacher.rows for teacher in facts.teachers)
    who = "a frozen teacher" if count == 1 else f"{count} frozen teachers"
    return (
        f"Answers of {who} to {rows:,} texts, kept so that students can be trained without "
        f"{'it' if count == 1 else 'them'}. Each was run once on each text."
    )


def overview(facts: CardFacts) -> str:
    """The cache as a whole."""
    return _table(("this cache", ""), _overview(facts))


def _overview(facts: CardFacts) -> Iterator[tuple[str, str]]:
    teachers = facts.teachers
    yield "teachers", str(len(teachers))
    yield "answers", f"{sum(teacher.rows for teacher in teachers):,}"
    yield "shards", f"{sum(teacher.shards for teacher in teachers):,}"
    yield "size", size(sum(teacher.bytes for teacher in teachers))
    yield "cost", cost([run for teacher in teachers for run in teacher.runs])
    yield "digest", f"`{facts.digest}`"


def cost(runs: Iterable[RunRecord]) -> str:
    """Hours of teacher time on each kind of hardware."""
    seconds: dict[str, float] = {}
    runs = list(runs)
    for run in runs:
        on = _hardware(run)
        seconds[on] = seconds.get(on, 0.0) + sum(run.teacher_seconds.values())
    parts = [f"{_hours(total)} on {on}" for on, total in seconds.items() if total]
    if requests := [run.requests for run in runs if run.requests is not None]:
        parts.append(requests_in_words(*requests))
    return "; ".join(parts) or "not recorded"


def _hours(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 36 else f"{seconds / 3600:.2f} hours"


def _hardware(run: RunRecord) -> str:
    """The device that the seconds were measured on."""
    device = run.hardware.get("device", "an unknown device")
    if device.startswith("cuda"):
        return f"one GPU ({plain(run.hardware.get('gpu', device))})"
    return f"{plain(device)} ({plain(run.hardware.get('processor', 'unknown processor'))})"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _teacher_section(teacher: TeacherFacts) -> str:
    """One teacher: identity, features, plot."""
    spec, manifest = teacher.manifest.spec, teacher.manifest
    parts = [f"## Teacher {plain(spec.kind)}, {plain(spec.name)}"]
    if manifest.extends is not None:
        parts.append(f"Adds features to those of teacher `{manifest.extends[:12]}`.")
    parts.append(_table(("this teacher", ""), _teacher_rows(teacher)))
    parts.append(_table(("feature", "shape", "type", "meaning"), _features(manifest)))
    if teacher.picture is not None:
        by = f", coloured by {plain(teacher.coloured_by)}" if teacher.coloured_by else ""
        parts.append(f"![two main components of the features{by}]({teacher.picture})")
    return "\n\n".join(parts) + "\n"


def _teacher_rows(teacher: TeacherFacts) -> Iterator[tuple[str, str]]:
    settings = teacher.manifest.spec.settings.items()
    yield "fingerprint", f"`{teacher.manifest.fingerprint}`"
    yield "settings", "; ".join(f"{plain(k)} = {plain(str(v))}" for k, v in settings) or "none"
    yield (
        "answers",
        f"{teacher.rows:,} in {counted(teacher.shards, 'shard')}, {size(teacher.bytes)}",
    )
    for name, measured in teacher.fidelity.items():
        yield f"fidelity of {name}", fidelity_in_words(measured)
    yield "cost", cost(teacher.runs)
    if budgets := [run.budget for run in teacher.runs if run.budget is not None]:
        yield "budget", "; ".join(dict.fromkeys(map(budget_in_words, budgets)))
    if batches := [run.batches for run in teacher.runs if run.batches is not None]:
        yield "batches", batches_in_words(BatchFigures.together(batches))


def _features(manifest: TeacherManifest) -> Iterator[tuple[str, str, str, str]]:
    for feature in manifest.spec.features:
        shape = " x ".join(map(str, feature.shape)) or "one number"
        shape += f", for each of its {feature.axis}" if feature.axis else ""
        meaning = plain(feature.description)
        if feature.labels:
            classes = ", ".join(plain(label) for label in feature.labels[:10])
            more = f" and {len(feature.labels) - 10} more" if len(feature.labels) > 10 else ""
            meaning = f"{meaning} ({classes}{more})".strip()
        yield plain(feature.name), shape, feature.dtype, meaning


def _corpora_table(teachers: Sequence[TeacherFacts]) -> str:
    """The corpora of all teachers, each once."""
    corpora: dict[CorpusRecord, list[str]] = {}
    for teacher in teachers:
        for run in teacher.runs:
            for corpus in run.corpora:
                by = corpora.setdefault(corpus, [])
                if teacher.manifest.fingerprint[:12] not in by:
                    by.append(teacher.manifest.fingerprint[:12])
    if not corpora:
        return "Not recorded."
    rows = (
        (
            plain(corpus.name),
            f"{corpus.rows:,}",
            f"{corpus.unique_examples:,}",
            plain(corpus.licence) or "not declared",
            ", ".join(f"`{teacher}`" for teacher in by),
        )
        for corpus, by in corpora.items()
    )
    return _table(("corpus", "rows", "unique texts", "licence, as declared", "teachers"), rows)


def _with_armada(facts: CardFacts, teacher: TeacherFacts) -> str:
    feature = teacher.manifest.spec.features[0]
    return "\n".join(
        [
            "from armada import open_cache",
            "",
            f'cache = open_cache("{_folder_name(facts.name)}", '
            f'teacher="{teacher.manifest.fingerprint[:12]}")',
            *(_read_rows if feature.axis is None else _read_places)(feature, teacher.rows),
        ]
    )


def _read_rows(feature: FeatureSpec, rows: int) -> Iterator[str]:
    yield f'feature = cache["{feature.name}"]'
    yield f"print(feature.shape, feature[:2])  # {rows} rows of {list(feature.shape)}"
    yield '# By text: feature[cache.lookup(["a red bird", "two dogs"])]'


def _read_places(feature: FeatureSpec, rows: int) -> Iterator[str]:
    yield f'feature = cache.ragged("{feature.name}")'
    yield (
        f"print(len(feature), feature[0].shape)  # {rows} texts, {list(feature.shape)} for each of "
        f"their {feature.axis}"
    )
    yield '# By text: feature.gather(cache.lookup(["a red bird", "two dogs"]))'


def _with_zarr(facts: CardFacts, teacher: TeacherFacts) -> str:
    feature = teacher.manifest.spec.features[0].name
    return "\n".join(
        [
            "import zarr",
            "",
            f'path = "{_folder_name(facts.name)}/{_folder(teacher)}/{feature}"',
            'array = zarr.open_array(path, mode="r")',
            "print(array.shape, array[:2])",
        ]
    )


def _with_pyarrow(facts: CardFacts, teacher: TeacherFacts) -> str:
    return "\n".join(
        [
            "import pyarrow.dataset as ds",
            "",
            f'path = "{_folder_name(facts.name)}/{_folder(teacher)}/tables/{ROWS_TABLE}"',
            'rows = ds.dataset(path, format="parquet").to_table()',
            "print(rows.num_rows, rows.column_names)",
        ]
    )


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$:])", r"\\\1", _on_one_line(text))


def _on_one_line(text: str) -> str:
    """Text without line breaks or other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
