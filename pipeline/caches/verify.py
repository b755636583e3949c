"""`armada cache verify`: is a cache what was committed, and the one that was expected?"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...cache_schemas.errors import JobError
from ...stages.store.upkeep.survey import Damage, survey_cache
from ...stages.store.upkeep.verify import Verification, shards_of, verify
from ..messages import CountProgress, counted, duration, size
from ..show import show_json


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was found; `expected` is the digest that the cache was to have, if one was given."""

    path: Path
    found: Verification
    expected: str | None

    @property
    def whole(self) -> bool:
        """Whether nothing is damaged and the cache is the expected one."""
        return not self.found.damages and self.expected in (None, self.found.digest)


def run_verify(
    path: Path,
    teacher: str | None = None,
    *,
    sample: int | None = None,
    quick: bool = False,
    seed: int | None = None,
    expect_digest: str | None = None,
    quiet: bool = False,
) -> VerifyReport:
    """Check a cache, or one teacher of it: all shards in full, a sample of them, or sizes only."""
    if quick and sample is not None:
        raise JobError("--quick and --sample: --quick reads no shard at all; give one of them")
    if expect_digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", expect_digest):
        raise JobError(f"--expect-digest {expect_digest}: is not 64 hexadecimal digits")
    survey = survey_cache(path)
    total = len(shards_of(survey, teacher))
    with CountProgress("verify", "shards", total, quiet) as progress:
        found = verify(survey, teacher, 0 if quick else sample, seed, progress.advance)
    return VerifyReport(path, found, expect_digest and expect_digest.lower())


def show_verify(report: VerifyReport, as_json: bool) -> None:
    """One line for each damage, then a summary."""
    if as_json:
        show_json(as_document(report))
        return
    for damage in report.found.damages:
        print(f"damaged: {damage}")
    for line in _summary(report):
        print(line)


def as_document(report: VerifyReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "whole": report.whole,
        "expected_digest": report.expected,
        **asdict(report.found),
        "damages": [_as_document(damage, report.path) for damage in report.found.damages],
    }


def _as_document(damage: Damage, path: Path) -> dict[str, Any]:
    return asdict(damage) | {"file": damage.file.relative_to(path).as_posix()}


def _summary(report: VerifyReport) -> Iterator[str]:
    found = report.found
    parts = [counted(found.teachers, "teacher"), counted(found.shards, "shard")]
    parts += [counted(found.rows, "row"), counted(found.files, "file"), size(found.bytes)]
    yield ", ".join(parts)
    yield _how_much(found)
    if found.leftovers or found.in_the_making:
        yield (
            f"{counted(found.leftovers, 'file')} without a commit, "
            f"{counted(found.in_the_making, 'shard')} in the making: no damage; what dead writers "
            "left, `armada cache gc` removes"
        )
    yield from _verdict(report)


def _how_much(found: Verification) -> str:
    rate = f"{duration(found.seconds)}, {size(found.read_bytes / max(found.seconds, 1e-9))}/s"
    if found.read_shards == found.shards:
        return f"all files read and compared ({rate})"
    if found.read_shards == 0:
        return f"sizes compared, no file read ({duration(found.seconds)})"
    read = f"{counted(found.read_shards, 'shard')} read and compared"
    return f"{read} ({size(found.read_bytes)}, {rate}), of the others the sizes"


def _verdict(report: VerifyReport) -> Iterator[str]:
    digest = report.found.digest
    yield f"digest {digest or 'unknown: not all documents can be read'}"
    if report.expected not in (None, digest):
        yield f"not the expected cache: its digest is not {report.expected}"
    damages = report.found.damages
    if damages:
        shards = sum(damage.kind == "shard" for damage in damages)
        yield (
            f"damaged: {counted(shards, 'shard')}, {counted(len(damages) - shards, 'document')}; "
            "`armada cache repair` drops what is damaged, so that it can be computed again"
        )
    elif report.whole:
        yield "whole"
