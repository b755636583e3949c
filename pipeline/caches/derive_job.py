"""The keys of `cache derive`, and the feature and the texts that they name, checked."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from ...cache_schemas.errors import CacheError, CorpusError, JobError, MissingKeysError
from ...cache_schemas.features import FeatureSpec, StoredDtype
from ...cache_schemas.keys import IntArray, KeyArray, first_occurrences, key_words, keys_to_array
from ...cache_schemas.manifest import RowsPerShard
from ...stages.corpus.corpus import Corpus, read_corpus
from ...stages.corpus.labels import MISSING, label_space, label_values
from ...stages.deriving import table_key
from ...stages.store.format.manifests import read_part
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import Cache
from ..answers import missing_keys
from ..jobs import Corpora, LocalFolder, Names, TextFormatKeys

Rule = Literal["class-means", "moments", "pca", "clusters"]

NEEDS: dict[str, tuple[str, ...]] = {
    "components": ("pca",),
    "clusters": ("clusters",),
    "label_column": ("class-means",),
}
"""Key -> the rules that need it, and no other reads."""

MOST_CLUSTERS = 2**16


class DeriveJob(TextFormatKeys):
    """Keys of a `derive`."""

    cache: LocalFolder = Field(description="folder of the cache that holds the feature")
    rule: Rule = Field(description="class-means, moments, pca or clusters")
    teacher: str | None = Field(
        default=None, description="fingerprint of the teacher, or a prefix no other one shares"
    )
    feature: str | None = Field(
        default=None, description="feature to derive from; may be left out if there is one"
    )
    output: LocalFolder | None = Field(
        default=None, description="folder of the cache to write to; default the same one"
    )
    corpus: Corpora = Field(
        default=(),
        description="files or folders of the texts to derive from; default: all of the teacher's",
    )
    text_column: Names = Field(
        default=(), description="columns that hold the text segments, in order"
    )
    label_column: str | None = Field(
        default=None, description="column of classes, for rule=class-means"
    )
    components: int | None = Field(
        default=None, ge=1, le=2**16, description="number of principal components"
    )
    centred: bool = Field(
        default=True,
        description="components of what is left without the mean; false: of the feature as it is, "
        "all of which together are a rotation of it (rule=pca)",
    )
    clusters: int | None = Field(
        default=None, ge=2, le=MOST_CLUSTERS, description="number of clusters"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the first cluster centres")
    iterations: int = Field(
        default=100, ge=1, description="most iterations of k-means, each a pass over the feature"
    )
    store_dtype: StoredDtype = Field(
        default="float32", description="dtype of the derived feature: float32 or float16"
    )
    rows_per_shard: RowsPerShard | None = Field(
        default=None, description="maximum rows of a shard; a multiple of 64"
    )
    skip_bad_rows: bool = Field(
        default=False, description="leave invalid rows, and texts with several labels, out"
    )

    @model_validator(mode="after")
    def _has_what_its_rule_needs(self) -> "DeriveJob":
        for key, rules in NEEDS.items():
            if self.rule in rules and getattr(self, key) is None:
                about = DeriveJob.model_fields[key].description
                raise ValueError(f"rule={self.rule}: job key {key!r} is missing ({about})")
            if self.rule not in rules and getattr(self, key) is not None:
                raise ValueError(f"job key {key!r}: is for rule={rules[0]}; leave it out")
        if self.rule != "pca" and not self.centred:
            raise ValueError("job key 'centred': is for rule=pca; leave it out")
        for key in ("seed", "iterations"):
            if self.rule != "clusters" and key in self.model_fields_set:
                raise ValueError(f"job key {key!r}: is for rule=clusters; leave it out")
        if bool(self.corpus) != bool(self.text_column):
            absent = "text_column" if self.corpus else "corpus"
            raise ValueError(f"job key {absent!r} is missing; a corpus needs both")
        if self.rule == "class-means" and not self.corpus:
            raise ValueError("rule=class-means: job key 'corpus' is missing (texts with labels)")
        return self


@dataclass(frozen=True, slots=True)
class Texts:
    """Distinct texts in the order of their keys: keys [N, 16], rows of the parent's cache [N], and
    classes [N] with their names, if the rule reads labels."""

    keys: KeyArray
    rows: Rows
    classes: IntArray | None = None
    names: tuple[str, ...] = ()
    corpus: Corpus | None = None
    unlabelled: int = 0


def feature_of(job: DeriveJob, parent: Cache) -> FeatureSpec:
    """The feature to derive from. Raises JobError for one that is not there, or none of numbers."""
    known = [n for n in parent.features if _is_numbers(parent.feature_spec(n))]
    name = job.feature or ("logits" if job.rule == "moments" and "logits" in known else None)
    if name is None and len(known) == 1:
        name = known[0]
    if name not in known:
        problem = "is missing" if name is None else f"{name!r} is not one of numbers of whole texts"
        raise JobError(
            f"job key 'feature': {problem}; teacher {parent.teacher.fingerprint[:12]} has "
            f"{', '.join(known) or 'none'}"
        )
    return parent.feature_spec(name)


def _is_numbers(spec: FeatureSpec) -> bool:
    return spec.axis is None and spec.coding is None and not spec.whole


def all_texts(job: DeriveJob, parent: Cache, spec: FeatureSpec) -> Texts:
    """All texts of the corpus, or of the teacher. Raises MissingKeysError for texts that are not
    cached, CacheError for a teacher that was pulled in part."""
    if job.corpus:
        corpus = _read(job)
        keys = corpus.keys()
        rows = _found(parent, corpus, keys, spec)
        return _in_order(keys, rows, np.arange(len(keys)), corpus=corpus)
    part = read_part(parent.path, parent.teacher.fingerprint)
    missing = part.next_shard - len(parent.commits) if part else 0
    if missing > 0:
        raise CacheError(
            f"cache {parent.path}: lacks {missing} of {part.next_shard if part else 0} shards of "
            f"teacher {parent.teacher.fingerprint[:12]}, and a rule is about all rows; pull the "
            "rest, or name the texts with --corpus"
        )
    keys = _without_table(parent, parent.keys)
    rows = parent.find(keys, spec.name)
    if lacking := int((rows < 0).sum()):
        raise MissingKeysError(
            f"feature {spec.name!r}: {lacking} of {len(keys)} texts of teacher "
            f"{parent.teacher.fingerprint[:12]} do not have it yet; run `armada precompute` with "
            "add_features=true on them, or name others with --corpus",
            np.flatnonzero(rows < 0).tolist(),
        )
    if not len(keys):
        raise CacheError(f"cache {parent.path}: has no rows to derive from")
    return _in_order(keys, rows, np.arange(len(keys)))


def _without_table(parent: Cache, keys: KeyArray) -> KeyArray:
    """Keys but for those of statistics of a parent that is derived itself."""
    settings = parent.teacher.spec.settings
    if parent.teacher.spec.parent is None:
        return keys
    classes = settings.get("classes")
    names = [
        "mean",
        "deviation",
        *map(str, range(len(classes) if isinstance(classes, tuple) else 0)),
    ]
    own = parent.find(keys_to_array(table_key(str(settings.get("rule")), name) for name in names))
    kept = np.setdiff1d(np.arange(len(keys)), own)
    return keys[kept]


def labelled_texts(job: DeriveJob, parent: Cache, spec: FeatureSpec) -> Texts:
    """The texts of a corpus that have a label, each with one class. Raises CorpusError for texts
    with several, MissingKeysError for texts that are not cached."""
    corpus = _read(job)
    space = label_space(corpus)
    if space.task != "classification":
        held = "numbers, not classes" if space.regression else "several classes per text"
        raise JobError(f"rule=class-means: label_column {job.label_column!r} holds {held}")
    classes = label_values(corpus, space)
    keys = corpus.keys()
    corpus, keys, classes = _without_conflicts(job, corpus, keys, classes)
    labelled = np.flatnonzero(classes != MISSING)
    if not len(labelled):
        raise CorpusError(f"corpus {corpus.sources[0]}: no row has a label")
    names = space.names or tuple(map(str, range(space.num_labels)))
    rows = _found(parent, corpus.take(labelled), keys[labelled], spec)
    unlabelled = len(first_occurrences(keys)) - len(first_occurrences(keys[labelled]))
    texts = _in_order(keys[labelled], rows, classes[labelled], corpus=corpus)
    return Texts(texts.keys, texts.rows, texts.classes, names, corpus, unlabelled)


def _without_conflicts(
    job: DeriveJob, corpus: Corpus, keys: KeyArray, classes: IntArray
) -> tuple[Corpus, KeyArray, IntArray]:
    """Without the rows of texts that have several labels, which have no class of their own."""
    labelled = np.flatnonzero(classes != MISSING)
    words = keys[labelled].view("V16")[:, 0]
    _, text_of = np.unique(words, return_inverse=True)
    text_of = text_of.reshape(-1)
    lowest = np.full(int(text_of.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    highest = np.full(len(lowest), -1)
    np.minimum.at(lowest, text_of, classes[labelled])
    np.maximum.at(highest, text_of, classes[labelled])
    torn = labelled[(lowest < highest)[text_of]]
    if not len(torn):
        return corpus, keys, classes
    if not job.skip_bad_rows:
        raise CorpusError(
            f"{corpus.where(int(torn[0]))}: its text has another label in another row ({len(torn)} "
            "such rows), so it has no class of its own; leave them out with skip_bad_rows=true"
        )
    kept = np.setdiff1d(np.arange(len(keys)), torn)
    return corpus.without(torn, "has several labels"), keys[kept], classes[kept]


def _read(job: DeriveJob) -> Corpus:
    return read_corpus(
        job.corpus,
        job.text_column,
        label_column=job.label_column,
        skip_bad_rows=job.skip_bad_rows,
        form=job.file_format,
    )


def _found(parent: Cache, corpus: Corpus, keys: KeyArray, spec: FeatureSpec) -> Rows:
    rows = parent.find(keys, spec.name)
    if len(missing := np.flatnonzero(rows < 0)):
        raise missing_keys(parent, corpus, missing, [spec.name])
    return rows


def _in_order(keys: KeyArray, rows: Rows, classes: IntArray, corpus: Corpus | None = None) -> Texts:
    """Each text once, by its key."""
    first = first_occurrences(keys)
    high, low = key_words(keys[first])
    order = first[np.lexsort((low, high))]
    return Texts(keys[order], rows[order], classes[order], corpus=corpus)
