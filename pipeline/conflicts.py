"""Conflicts between the teachers of a run: how far their predictions of the training texts agree,
and how alike their features are.

In: cached logits of the classes from several teachers, and features of whole texts, as they are in
the caches, whatever the controls. Out: plain figures for `metrics.json`. Every row of logits is
read once more, in file-order blocks; of features at most CKA_TEXTS rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from ..stages.corpus.labels import MISSING, LabelValues
from ..stages.distill.measures import linear_cka
from ..stages.distill.teacher_answers import CKA_TEXTS
from .student_data import StudentData

BLOCK_ROWS = 16_384
_NONE = np.empty(0, dtype=np.int64)

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Conflicts:
    """Sums over rows that all of the teachers have."""

    names: tuple[str, ...]
    rows: int = 0
    labelled: int = 0
    right: dict[str, int] = field(default_factory=dict)
    sums: dict[tuple[str, str], Floats] = field(default_factory=dict)

    def add(self, logits: Mapping[str, npt.NDArray[Any]], labels: LabelValues) -> None:
        """Count rows: logits [B, K] of each teacher, and labels [B]."""
        log_p = {
            name: log_softmax(each.astype(np.float64), axis=1) for name, each in logits.items()
        }
        chosen = {name: each.argmax(axis=1) for name, each in log_p.items()}
        known = labels != MISSING
        self.rows += len(labels)
        self.labelled += int(known.sum())
        for name in self.names:
            right = int((chosen[name] == labels)[known].sum())
            self.right[name] = self.right.get(name, 0) + right
        for one, other in combinations(self.names, 2):
            p, q = np.exp(log_p[one]), np.exp(log_p[other])
            apart = log_p[one] - log_p[other]
            found = np.array(
                [
                    (chosen[one] == chosen[other]).sum(),
                    (p * apart).sum(),
                    -(q * apart).sum(),
                    np.abs(p - q).sum() / 2,
                ],
                dtype=np.float64,
            )
            self.sums[one, other] = self.sums.get((one, other), np.zeros(4)) + found

    def figures(self) -> dict[str, Any]:
        """Accuracy of each teacher, and of each pair the share of rows with the same class, both
        Kullback-Leibler divergences in nats, and the total variation, at temperature 1."""
        accuracy = {n: self.right[n] / self.labelled if self.labelled else None for n in self.names}
        pairs = []
        for (one, other), sums in self.sums.items():
            same, kl, reverse_kl, variation = (sums / self.rows).tolist()
            pairs.append(
                {
                    "teachers": [one, other],
                    "agreement": same,
                    "kl": kl,
                    "reverse_kl": reverse_kl,
                    "total_variation": variation,
                }
            )
        return {"rows": self.rows, "accuracy": accuracy, "pairs": pairs}


def teacher_conflicts(data: StudentData, names: tuple[str, ...]) -> dict[str, Any] | None:
    """The conflicts between sources `names` of class logits, and between all features of different
    teachers; None if there are none, or if no row has each of them."""
    logits, features = _of_logits(data, names), _of_features(data)
    if logits is None and features is None:
        return None
    none: dict[str, Any] = {"rows": 0, "accuracy": {}, "pairs": []}
    return (logits or none) | ({"features": features} if features else {})


def _of_features(data: StudentData) -> dict[str, Any] | None:
    """Linear CKA of each pair of features of different teachers, over texts that all of them have:
    1 if they are alike, up to a rotation and a factor."""
    whole = {
        name: source
        for name, source in data.sources.items()
        if name in data.rows_of_texts
        and source.spec.axis is None
        and np.dtype(source.spec.dtype).kind == "f"
    }
    pairs = [
        (one, other)
        for one, other in combinations(whole, 2)
        if whole[one].teacher.fingerprint != whole[other].teacher.fingerprint
    ]
    rows = next(iter(_blocks(data, tuple(whole))), _NONE) if pairs else _NONE
    if len(rows) < 2:
        return None
    count = min(CKA_TEXTS, len(rows))
    # Rows of remote shards side by side: each shard may have to be downloaded once more.
    chosen = np.arange(count) if data.from_afar else np.linspace(0, len(rows) - 1, count).round()
    places = rows[chosen.astype(np.int64)]
    features = {
        name: np.asarray(source.feature.gather(data.rows_of_texts[name][places]))
        for name, source in whole.items()
    }
    flat = {name: each.reshape(count, -1) for name, each in features.items()}
    return {
        "rows": count,
        "pairs": [{"teachers": list(p), "cka": linear_cka(flat[p[0]], flat[p[1]])} for p in pairs],
    }


def _of_logits(data: StudentData, names: tuple[str, ...]) -> dict[str, Any] | None:
    if len(names) < 2 or data.space.task != "classification":
        return None
    found = Conflicts(names)
    for places in _blocks(data, names):
        logits = {
            name: data.sources[name].feature.gather(data.rows_of_texts[name][places])
            for name in names
        }
        found.add(logits, _classes(data.train.labels[places]))
    return found.figures() if found.rows else None


def _blocks(data: StudentData, names: tuple[str, ...]) -> Iterator[npt.NDArray[np.int64]]:
    rows = data.rows_of_texts
    whole = np.flatnonzero(np.logical_and.reduce([rows[name] >= 0 for name in names]))
    ordered = whole[np.argsort(rows[names[0]][whole], kind="stable")]
    for start in range(0, len(ordered), BLOCK_ROWS):
        yield ordered[start : start + BLOCK_ROWS]


def _classes(labels: LabelValues) -> LabelValues:
    """Classes, of labels that are probabilities the likeliest ones."""
    if labels.ndim == 1:
        return labels
    return np.where(np.isnan(labels[:, 0]), MISSING, np.nan_to_num(labels).argmax(axis=1))
