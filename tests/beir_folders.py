"""BEIR folders of a few texts."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_beir(
    folder: Path,
    passages: Mapping[str, tuple[str, str]],
    queries: Mapping[str, str],
    judged: Iterable[tuple[str, str, object]],
    split: str = "test",
) -> Path:
    """Passages: id -> title and text. Queries: id -> text. Judgements: ids and a grade."""
    (folder / "qrels").mkdir(parents=True)
    write_lines(
        folder / "corpus.jsonl",
        (
            {"_id": name, "title": title, "text": text, "metadata": {}}
            for name, (title, text) in passages.items()
        ),
    )
    write_lines(
        folder / "queries.jsonl",
        ({"_id": name, "text": text, "metadata": {}} for name, text in queries.items()),
    )
    write_qrels(folder, judged, split)
    return folder


def write_qrels(
    folder: Path, judged: Iterable[tuple[str, str, object]], split: str = "test"
) -> None:
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
