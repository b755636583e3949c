"""The result of a run, and what the metadata of a file says about where its rows come from: key
`armada` of its schema, as JSON. Neither dates nor paths of a machine are in it, so that the same
job writes the same file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...stages.corpus.corpus import CorpusStream, corpus_name
from ..environment import library_versions
from .generators import Generator
from .job import CorpusJob
from .judges import Judge

KEY = b"armada"


@dataclass(frozen=True, slots=True)
class RuleCount:
    """What a rule did: responses that it rejected, and those that were left."""

    name: str
    rejected: int
    left: int


@dataclass(frozen=True, slots=True)
class GeneratorCount:
    """Responses of a generator, those of them that are kept, prompts that it has none to."""

    name: str
    responses: int
    kept: int
    lacking_prompts: int


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """Result of a run: prompts, and those of them that have a response that is kept; rows that are
    written, None if it was dry."""

    output: str | None
    prompts: int
    kept_prompts: int
    generators: tuple[GeneratorCount, ...]
    rules: tuple[RuleCount, ...]
    kept: int
    written: int | None
    skipped: tuple[str, ...]

    @property
    def responses(self) -> int:
        """Responses of all generators."""
        return sum(each.responses for each in self.generators)


def provenance(
    job: CorpusJob,
    stream: CorpusStream,
    generators: Sequence[Generator],
    shares: Sequence[float],
    judges: Sequence[Judge],
    report: CorpusReport,
) -> str:
    """The document. `parents` are those of the corpora of prompts that have one."""
    parents = parents_of(job.corpus)
    counts = {each.name: each for each in report.generators}
    document = {
        "command": "corpus",
        "version": library_versions()["armada-kd"],
        "corpora": [corpus_name(source) for source in job.corpus],
        "corpus_rows": stream.rows,
        "parents": parents,
        "round": 1 + max((parent["round"] for parent in parents), default=0),
        "text_columns": list(job.text_column),
        "generators": [
            {"name": each.name, **each.document()}
            | ({"share": shares[at]} if shares else {})
            | {"responses": counts[each.name].responses, "kept": counts[each.name].kept}
            for at, each in enumerate(generators)
        ],
        "rules": [
            judge.document() | {"rejected": count.rejected, "left": count.left}
            for judge, count in zip(judges, report.rules, strict=False)
        ],
        "shares_rejected": report.rules[-1].rejected if shares else 0,
        "write": job.write,
        "seed": job.seed,
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True)


def parents_of(sources: Sequence[str]) -> list[dict[str, Any]]:
    """Name, digest and round of each file of corpora that was written by `corpus` or `mine`."""
    files = [file for source in sources for file in _files(source)]
    return list(filter(None, map(parent_of, files)))


def _files(source: str) -> list[str]:
    """The Parquet files of a folder; any other source is itself."""
    folder = Path(source)
    return sorted(map(str, folder.glob("*.parquet"))) if folder.is_dir() else [source]


def parent_of(source: str) -> dict[str, Any] | None:
    """Name, digest and round of a file that was written by `corpus` or `mine`; None for any
    other."""
    if not source.endswith(".parquet"):
        return None
    try:
        found = (pq.read_schema(source).metadata or {}).get(KEY, b"null")
        document = json.loads(found)
    except (OSError, ValueError, pa.ArrowException):  # of a URL, say, which is read as a corpus
        return None
    if not isinstance(document, dict) or not isinstance(document.get("round"), int):
        return None
    digest = hashlib.blake2b(found, digest_size=16).hexdigest()
    return {"name": corpus_name(source), "digest": digest, "round": document["round"]}
