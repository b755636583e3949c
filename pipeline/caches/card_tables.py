"""The tables of a cache's card: what it holds, its teachers, their features and corpora.

Names come from documents that anybody may have written: what Markdown or HTML would read as
anything but text is escaped.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...cache_schemas.fidelity import Fidelity
from ...cache_schemas.manifest import CorpusRecord, RunRecord, TeacherManifest
from ..messages import counted, fidelity_in_words, size


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What the card says of one teacher; `picture` is a file beside the card."""

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
    """What the card says; `name` is the folder's."""

    title: str
    name: str
    licence: str | None
    digest: str
    teachers: tuple[TeacherFacts, ...]


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&!$:])", r"\\\1", on_one_line(text))


def on_one_line(text: str) -> str:
    """Text without line breaks or other control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


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
    for run in runs:
        on = _hardware(run)
        seconds[on] = seconds.get(on, 0.0) + sum(run.teacher_seconds.values())
    parts = [f"{_hours(total)} on {on}" for on, total in seconds.items() if total]
    return "; ".join(parts) or "not recorded"


def _hours(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 36 else f"{seconds / 3600:.2f} hours"


def _hardware(run: RunRecord) -> str:
    """What the seconds were spent on: one device."""
    device = run.hardware.get("device", "an unknown device")
    if device.startswith("cuda"):
        return f"one GPU ({plain(run.hardware.get('gpu', device))})"
    return f"{plain(device)} ({plain(run.hardware.get('processor', 'unknown processor'))})"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def teacher_section(teacher: TeacherFacts) -> str:
    """One teacher: who it is, its features, their picture."""
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


def corpora_table(teachers: Sequence[TeacherFacts]) -> str:
    """What the teachers were asked about, each corpus once."""
    asked: dict[CorpusRecord, list[str]] = {}
    for teacher in teachers:
        for run in teacher.runs:
            for corpus in run.corpora:
                by = asked.setdefault(corpus, [])
                if teacher.manifest.fingerprint[:12] not in by:
                    by.append(teacher.manifest.fingerprint[:12])
    if not asked:
        return "Not recorded."
    rows = (
        (
            plain(corpus.name),
            f"{corpus.rows:,}",
            f"{corpus.unique_examples:,}",
            plain(corpus.licence) or "not declared",
            ", ".join(f"`{teacher}`" for teacher in by),
        )
        for corpus, by in asked.items()
    )
    return _table(("corpus", "rows", "unique texts", "licence, as declared", "asked"), rows)
