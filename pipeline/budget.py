"""The texts of a corpus that a budget is spent on: a job and its corpus -> rows, and their record.

What a rule looks at is read here and checked: classes of a column, a feature of another teacher in
the same cache, predictions of a student. The rules themselves are in
`stages/choosing.py`.
"""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from ..cache_schemas.errors import JobError
from ..cache_schemas.keys import IntArray, KeyArray, first_occurrences
from ..cache_schemas.manifest import BudgetRecord
from ..stages.choosing import (
    balanced,
    in_random_order,
    k_center,
    k_means_pp,
    most_uncertain,
)
from ..stages.corpus.corpus import Corpus
from ..stages.corpus.labels import MISSING, label_space, label_values
from ..stages.corpus.several_labels import SUM_TOLERANCE
from ..stages.store.reading.reader import open_cache
from .precompute_job import PrecomputeJob


def choose_rows(
    job: PrecomputeJob, corpus: Corpus, keys: KeyArray
) -> tuple[IntArray, BudgetRecord]:
    """The rows of the budget, ascending, each text once. `keys`: those of all rows [N, 16].

    Raises JobError for a budget beyond the corpus, and for what its rule cannot use."""
    unique = first_occurrences(keys)
    count = _count(job, len(unique))
    own = keys[unique]
    shuffled = in_random_order(own, job.budget_seed)
    based_on = ""
    if job.budget_rule == "random":
        order = shuffled
    elif job.budget_rule == "balanced":
        order = balanced(_classes(job, corpus)[unique], shuffled, MISSING)
        based_on = f"column {job.label_column}"
    elif job.budget_rule == "uncertainty":
        probabilities, digest = _probabilities(job, corpus)
        order = most_uncertain(probabilities[unique], shuffled)
        based_on = f"predictions {digest}"
    else:
        points, based_on = _points(job, own)
        if job.budget_rule == "k-center":
            order = k_center(points, count, shuffled)
        else:
            order = k_means_pp(points, count, shuffled, job.budget_seed)
    rows = np.sort(unique[order[:count]])
    record = BudgetRecord(
        rule=job.budget_rule,
        seed=job.budget_seed,
        based_on=based_on,
        chosen=count,
        of=len(unique),
        keys_digest=_digest(np.sort(keys[rows].view("V16")[:, 0]).tobytes()),
    )
    return rows, record


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _count(job: PrecomputeJob, unique: int) -> int:
    budget = job.budget
    assert budget is not None
    if isinstance(budget, float):
        return max(1, round(budget * unique))
    if budget > unique:
        raise JobError(
            f"budget {budget}: the corpus has {unique} distinct texts; set at most as many, or "
            "leave budget out for all"
        )
    return budget


def _classes(job: PrecomputeJob, corpus: Corpus) -> npt.NDArray[Any]:
    space = label_space(corpus)
    if space.task != "classification":
        raise JobError(
            f"budget_rule=balanced: label_column {job.label_column!r} holds "
            f"{'numbers, not classes' if space.regression else 'several classes per text'}; choose "
            "another rule"
        )
    return label_values(corpus, space)


def _points(job: PrecomputeJob, keys: KeyArray) -> tuple[npt.NDArray[Any], str]:
    """The points [N, D] of distinct texts, and where they are from."""
    assert job.budget_feature is not None
    teacher, _, name = job.budget_feature.partition("/")
    cache = open_cache(job.cache, teacher)
    known = [each for each in cache.features if cache.feature_spec(each).axis is None]
    if name not in known:
        raise JobError(
            f"budget_feature: teacher {cache.teacher.fingerprint[:12]} has no feature {name!r} of "
            f"whole texts; it has {', '.join(known) or 'none'}"
        )
    rows = cache.find(keys, name)
    if lacking := int((rows < 0).sum()):
        raise JobError(
            f"budget_feature: {lacking} of {len(keys)} distinct texts have no {name!r} of teacher "
            f"{cache.teacher.fingerprint[:12]}; run `armada precompute` with that teacher on the "
            "corpus first"
        )
    points = np.asarray(cache[name].gather(rows)).reshape(len(rows), -1)
    return points, f"{cache.teacher.fingerprint[:12]}/{name}"


def _probabilities(job: PrecomputeJob, corpus: Corpus) -> tuple[npt.NDArray[Any], str]:
    """Predicted probabilities [N, K] of the rows of a corpus, and a digest of their file."""
    file = job.budget_predictions
    assert file is not None
    what = f"budget_predictions {file}"
    if not file.is_file():
        raise JobError(
            f"{what}: is no file; write one with `armada predict RUN --corpus ... --output FILE`"
        )
    table = _read_table(file, what)
    if "probabilities" not in table.column_names:
        raise JobError(
            f"{what}: has no column 'probabilities', but {', '.join(table.column_names)}; name the "
            "predictions of a student of classes"
        )
    name = "row" if corpus.ids is None else (job.id_column or "id")
    own = corpus.number_of_row + 1 if corpus.ids is None else corpus.ids.to_pylist()
    theirs = table[str(name)].to_pylist() if name in table.column_names else []
    if list(own) != theirs:
        raise JobError(
            f"{what}: holds {len(table)} rows, which are not the {len(corpus)} of the corpus in "
            "their order; run `armada predict` on the same files"
        )
    rows = [np.asarray(each, dtype=np.float64) for each in table["probabilities"].to_pylist()]
    if len({each.shape for each in rows}) != 1 or not np.isfinite(found := np.stack(rows)).all():
        raise JobError(f"{what}: column 'probabilities' is not one list of numbers for each row")
    if (np.abs(found.sum(axis=1) - 1) > SUM_TOLERANCE).any():
        raise JobError(
            f"{what}: column 'probabilities' does not add up to 1 in each row; name the "
            "predictions of a student of one class per text"
        )
    return found, _digest(file.read_bytes())


def _read_table(file: Path, what: str) -> pa.Table:
    readers: Mapping[str, Any] = {".parquet": pq.read_table, ".jsonl": pyarrow.json.read_json}
    if file.suffix not in readers:
        raise JobError(f"{what}: is neither .parquet nor .jsonl, which `armada predict` writes")
    try:
        return readers[file.suffix](file)
    except (pa.ArrowException, OSError) as cause:
        raise JobError(f"{what}: cannot be read: {str(cause).splitlines()[0]}") from cause
