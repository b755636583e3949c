"""The contract of teachers, as tests.

A subclass names a teacher, and for each of its options a value: one that changes outputs, or one
that must not. The tests run the teacher as stage 1 does, in batches of one bucket, under inference
mode, and compare what would be stored.
"""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from ...cache_schemas.errors import TeacherOutputError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, example_key, keys_to_array
from ...cache_schemas.manifest import TeacherManifest
from ...cache_schemas.teachers import TeacherSpec
from ..corpus.corpus import read_corpus
from ..corpus.hub_datasets import in_memory
from ..precompute.batching import BatchCounts, BatchSizes
from ..precompute.precompute import EncodingRun, precompute
from ..precompute.teachers import TEACHERS
from ..precompute.teachers.base import Answers, Example, Prepared, Teacher
from ..store.reading.reader import Cache, open_cache
from ..store.writing.writer import CacheWriter, Work

TEXTS = (
    "A red bird sings",
    "two dogs",
    "",
    " ",
    "na\u00efve caf\u00e9 \u2014 \u6771\u4eac \U0001f642",
    "e\u0301te\u0301, with marks of their own, and a \u200b that has no width",
    "\u05e9\u05dc\u05d5\u05dd",
    "one\ttab, one\nline, {text} and {0}",
    "it goes on and on, " * 60,
)
"""Short and long ones, none at all, and what makes tokenizers stumble."""

PAIRS = (("a red bird", "sings"), ("two dogs", ""), ("a", "much longer second part of a pair"))

_NONE: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """Cached values of one example."""

    features: Mapping[str, npt.NDArray[Any]]
    truncated: bool


class _CutError(Exception):
    """Stands for whatever ends a run in the middle."""


class _CutInTheMiddle(BatchSizes):
    """Ends a run before its second half is computed. Batches that are under way are stored after
    an error, so that one raised behind the first batch could come too late for a few texts."""

    def batches_of(self, prepared: Prepared, counts: BatchCounts) -> Iterator[IntArray]:
        for number, batch in enumerate(super().batches_of(prepared, counts)):
            if 2 * number >= len(prepared):
                raise _CutError
            yield batch


class TeacherTests:
    """Subclass it under a name that begins with Test; needs `teacher`, and a value in `changing`,
    `unchanging` or a name in `untried` for each option. A teacher whose source is made by a
    fixture overrides the fixture `source` instead."""

    teacher: ClassVar[str]
    """KIND:SOURCE, as in a job."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Under which it is tested."""
    changing: ClassVar[Mapping[str, Any]] = {}
    """Option -> a value that changes an output or the list of features."""
    unchanging: ClassVar[Mapping[str, Any]] = {}
    """Option -> a value that leaves all outputs equal, bit for bit."""
    untried: ClassVar[Collection[str]] = ()
    """Options that are not tested; give the reason in a comment."""
    texts: ClassVar[Sequence[str]] = TEXTS
    pairs: ClassVar[Sequence[tuple[str, ...]]] = PAIRS
    """Examples of several segments; none for a teacher that takes texts alone."""
    refused: ClassVar[Collection[str]] = ()
    """Texts that it refuses: it has no output for them."""
    device: ClassVar[str] = "cpu"
    tolerance: ClassVar[float] = 0.0
    """Absolute difference allowed between the outputs of a text in two batches: 0 is bit for bit,
    as on a CPU; GPU kernels round differently by batch size."""
    padding_tolerance: ClassVar[float | None] = 1e-3
    """Difference allowed beside a text of a longer bucket, relative to the largest number of the
    output; None for a model that reads padding, so that its buckets are part of the output."""

    @pytest.fixture
    def source(self) -> str:
        """KIND:SOURCE of the teacher."""
        return self.teacher

    _made: tuple[Teacher, ...] = ()

    @pytest.fixture(autouse=True)
    def _closed(self, source: str) -> Iterator[None]:
        yield
        for teacher in self._made:
            teacher.close()

    # --- spec and options

    def test_its_spec_is_known_before_it_is_loaded(self, source: str) -> None:
        teacher = self._make(source)
        spec = teacher.spec
        assert spec.kind == source.partition(":")[0], "spec.kind is the name it is registered by"
        assert TeacherSpec.model_validate_json(spec.model_dump_json()) == spec
        teacher.load()
        assert teacher.spec == spec, "load changed the spec"
        assert self._make(source).spec.fingerprint == spec.fingerprint, "made twice, it differs"

    def test_every_option_is_named_here(self, source: str) -> None:
        known = _class_of(source).Options.model_fields
        named = {*self.changing, *self.unchanging, *self.untried}
        lacking, strange = sorted(known.keys() - named), sorted(named - known.keys())
        assert not lacking, f"options {lacking}: name them in changing, unchanging or untried"
        assert not strange, f"{strange}: the teacher has no such options"

    def test_options_have_defaults_and_descriptions(self, source: str) -> None:
        options = _class_of(source).Options
        for name, field in options.model_fields.items():
            assert not field.is_required(), f"option {name} has no default"
            assert field.description, f"option {name} has no description"
        with pytest.raises(ValidationError, match="no_such_option"):
            options.model_validate({"no_such_option": 1})
        assert not _class_of(source).selecting - options.model_fields.keys()

    # --- outputs

    def test_answers_are_as_declared_and_finite(self, source: str) -> None:
        teacher, examples = self._loaded(source), self._examples()
        for batch in _batches(teacher, examples, 4):
            answers = _encode(teacher, batch)
            assert not answers.invalid, (
                f"no valid output: {answers.invalid}; name such texts in refused"
            )
            _check(answers, teacher.spec, batch)

    def test_an_answer_depends_on_its_example_alone(self, source: str) -> None:
        teacher, examples = self._loaded(source), self._examples()
        alone = _run(teacher, examples, 1)
        for name, order in (("in order", examples), ("backwards", examples[::-1])):
            for size in (2, 3, len(examples)):
                together = _run(teacher, order, size)
                for example in examples:
                    differing = self._differences(alone[example.key], together[example.key])
                    assert not differing, (
                        f"{differing} of {example.segments!r:.80} differ alone and in a batch of "
                        f"{size}, {name}: is padding masked, and the same in any batch (buckets)?"
                    )

    def test_padding_changes_nothing(self, source: str) -> None:
        """Beside a text of the longest bucket, up to rounding. Codes are not compared: rounding can
        change one of them by a step."""
        teacher, examples = self._loaded(source), self._examples()
        buckets = list(teacher.buckets(examples))
        longest = examples[buckets.index(max(buckets))]
        numbers = [f.name for f in teacher.spec.features if f.coding is None and not f.whole]
        for example, bucket in zip(examples, buckets, strict=True):
            if bucket == max(buckets) or self.padding_tolerance is None:
                continue
            alone, beside = (_encode(teacher, each) for each in ([example], [example, longest]))
            for name in numbers:
                one, other = (np.asarray(each.features[name][0], "f8") for each in (alone, beside))
                most = self.padding_tolerance * np.abs(one).max(initial=0)
                same = one.shape == other.shape and np.allclose(other, one, rtol=0, atol=most)
                assert same, (
                    f"{name} of {example.segments!r:.80} differs beside a longer text: is padding "
                    "masked?"
                )

    def test_it_answers_the_same_again(self, source: str) -> None:
        """Another object, at another state of all shared generators of random numbers."""
        found = []
        for seed in (0, 1):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            found.append(_run(self._loaded(source), self._examples(), 4))
        self._require_same(found[0], found[1], "asked twice")

    def test_what_it_cannot_answer_is_refused_in_a_line(self, source: str) -> None:
        assert set(self.refused) <= set(self.texts), "refused are some of the texts"
        teacher = self._loaded(source)
        for text in self.refused:
            with _refusing() as messages:
                answers = _encode(teacher, [_example(text)])
                numbers = [np.asarray(rows[0]) for rows in answers.features.values()]
                finite = all(np.isfinite(each).all() for each in numbers)
                assert answers.invalid or not finite, (
                    f"{text!r:.80} has finite outputs: it is not refused"
                )
            assert not any("\n" in line for line in messages)

    # --- fingerprints

    def test_options_that_change_answers_change_the_fingerprint(self, source: str) -> None:
        teacher = self._loaded(source)
        before = _run(teacher, self._examples(), 4)
        for name, value in self.changing.items():
            other = self._loaded(source, {name: value})
            assert other.spec.fingerprint != teacher.spec.fingerprint, (
                f"{name}={value!r} has the same fingerprint: put it into the settings of the spec"
            )
            after = _run(other, self._examples(), 4)
            shared = {name for name, own in _described(other).items() if _has(teacher, name, own)}
            same = [
                not self._differences(_only(before[key], shared), _only(after[key], shared))
                for key in before
            ]
            if name in type(teacher).selecting:
                assert all(same), f"{name} is named in `selecting` and changes {sorted(shared)}"
            assert not all(same) or _described(other) != _described(teacher), (
                f"{name}={value!r} changes no output: is the option read?"
            )

    def test_options_that_change_nothing_keep_the_fingerprint(self, source: str) -> None:
        teacher = self._make(source)
        for name, value in self.unchanging.items():
            other = self._loaded(source, {name: value})
            assert other.spec.fingerprint == teacher.spec.fingerprint, (
                f"{name}={value!r} changes the fingerprint: every cache would be computed again"
            )
            after = _run(other, self._examples(), 4)
            self._require_same(_run(self._loaded(source), self._examples(), 4), after, name)

    # --- a run of stage 1

    def test_a_cut_run_that_goes_on_equals_an_uncut_one(self, source: str, tmp_path: Path) -> None:
        whole, cut = tmp_path / "whole", tmp_path / "cut"
        self._precompute(source, whole)
        with pytest.raises(_CutError):
            self._precompute(source, cut, cut=True)
        kept, rows = len(open_cache(cut)), self._rows()
        assert 0 < kept < len(rows), "the texts are too few to be cut"
        self._precompute(source, cut)
        one, other = _read(open_cache(whole), rows), _read(open_cache(cut), rows)
        self._require_same(one, other, "cut and resumed")
        self._require_same(one, _run(self._loaded(source), rows, 4), "read from the cache")

    def _precompute(self, source: str, path: Path, cut: bool = False) -> None:
        rows = [{f"text_{n}": s for n, s in enumerate(e.segments)} for e in self._rows()]
        corpus = read_corpus((in_memory(rows),), tuple(f"{name}?" for name in rows[0]))

        teacher, keys = self._loaded(source), corpus.keys()
        spec = teacher.spec
        manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
        with CacheWriter(path, manifest) as writer:
            encoding = EncodingRun(_CutInTheMiddle(1) if cut else BatchSizes(1))
            precompute(corpus, keys, Work(writer, keys), teacher, writer, encoding)

    # --- helpers

    def _make(self, source: str, options: Mapping[str, Any] = _NONE) -> Teacher:
        kind, rest = _class_of(source), source.partition(":")[2]
        made: Teacher = kind(
            rest, kind.Options(**{**self.options, **options}), torch.device(self.device)
        )
        made.settle([])
        self._made = (*self._made, made)
        return made

    def _loaded(self, source: str, options: Mapping[str, Any] = _NONE) -> Teacher:
        teacher = self._make(source, options)
        teacher.load()
        return teacher

    def _answered(self) -> list[str]:
        return [text for text in self.texts if text not in self.refused]

    def _rows(self) -> list[Example]:
        """Rows of one corpus, which has no blank rows: the texts, or else the pairs."""
        return [e for e in _all(self._answered() or self.pairs) if "".join(e.segments).strip()]

    def _examples(self) -> list[Example]:
        return _all([*self._answered(), *self.pairs])

    def _differences(self, one: Stored, other: Stored) -> list[str]:
        """Names of the differences between two outputs."""
        differing = [
            name
            for name, values in one.features.items()
            if values.shape != other.features[name].shape
            or not np.allclose(values, other.features[name], rtol=0, atol=self.tolerance)
        ]
        return differing + ["truncated"] * (one.truncated != other.truncated)

    def _require_same(
        self, one: Mapping[bytes, Stored], other: Mapping[bytes, Stored], what: str
    ) -> None:
        assert one.keys() == other.keys()
        for key, stored in one.items():
            assert not self._differences(stored, other[key]), f"answers differ: {what}"


def _class_of(source: str) -> type[Teacher]:
    found: type[Teacher] = TEACHERS.load(source.partition(":")[0])
    return found


def _example(segments: str | tuple[str, ...]) -> Example:
    parts = (segments,) if isinstance(segments, str) else segments
    return Example(example_key(parts), parts)


def _all(texts: Sequence[str | tuple[str, ...]]) -> list[Example]:
    return [_example(text) for text in texts]


@contextmanager
def _refusing() -> Iterator[list[str]]:
    """A teacher's error for a text that it refuses."""
    messages: list[str] = []
    try:
        yield messages
    except TeacherOutputError as error:
        messages.append(str(error))


def _encode(teacher: Teacher, batch: Sequence[Example]) -> Answers:
    with torch.inference_mode():
        return teacher.encode(batch)


def _batches(teacher: Teacher, examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Batches as in stage 1: of one bucket each."""
    buckets = list(teacher.buckets(examples))
    assert len(buckets) == len(examples), "buckets: one number an example"
    batches = []
    for bucket in dict.fromkeys(buckets):
        of_one = [e for e, own in zip(examples, buckets, strict=True) if own == bucket]
        batches += [of_one[start : start + size] for start in range(0, len(of_one), size)]
    return batches


def _run(teacher: Teacher, examples: Sequence[Example], size: int) -> dict[bytes, Stored]:
    """Key -> what would be stored."""
    found = {}
    for batch in _batches(teacher, examples, size):
        answers = _encode(teacher, batch)
        for at, example in enumerate(batch):
            rows = {
                spec.name: np.asarray(answers.features[spec.name][at]).astype(spec.dtype)
                for spec in teacher.spec.features
            }
            found[example.key] = Stored(rows, bool(answers.truncated[at]))
    return found


def _read(cache: Cache, examples: Sequence[Example]) -> dict[bytes, Stored]:
    """Key -> what a cache holds."""
    rows = cache.find(keys_to_array(example.key for example in examples))
    truncated = cache.table("rows", {"truncated": pa.bool_()})["truncated"].to_pylist()
    return {
        example.key: Stored(
            {spec.name: _read_row(cache, spec, row) for spec in cache.teacher.spec.features},
            truncated[row],
        )
        for example, row in zip(examples, rows.tolist(), strict=True)
    }


def _read_row(cache: Cache, feature: FeatureSpec, row: int) -> npt.NDArray[Any]:
    along = cache.ragged(feature.name) if feature.axis else cache[feature.name]
    return np.asarray(along[row])


def _only(stored: Stored, names: Collection[str]) -> Stored:
    features = {name: rows for name, rows in stored.features.items() if name in names}
    return Stored(features, stored.truncated)


def _described(teacher: Teacher) -> dict[str, dict[str, Any]]:
    """Name -> feature, without descriptions."""
    return {f.name: f.model_dump(exclude={"description"}) for f in teacher.spec.features}


def _has(teacher: Teacher, name: str, feature: Mapping[str, Any]) -> bool:
    return _described(teacher).get(name) == feature


def _check(answers: Answers, spec: TeacherSpec, batch: Sequence[Example]) -> None:
    declared = {feature.name for feature in spec.features}
    assert answers.features.keys() == declared, "features: as in the spec, no more, no fewer"
    truncated = np.asarray(answers.truncated)
    assert (truncated.shape, truncated.dtype) == ((len(batch),), np.dtype(bool)), "truncated"
    assert len(answers.images) in (0, len(batch)), "images: one an example, or none"
    assert answers.fidelity.keys() <= declared
    lengths: dict[str, list[int]] = {}
    for feature in spec.features:
        rows = answers.features[feature.name]
        assert len(rows) == len(batch), f"{feature.name}: one array an example"
        for row in rows:
            _check_row(np.asarray(row), feature)
        if feature.axis is not None:
            counts = [len(row) for row in rows]
            assert lengths.setdefault(feature.axis, counts) == counts, (
                f"{feature.name}: features of the axis {feature.axis} have as many rows"
            )


def _check_row(row: npt.NDArray[Any], feature: FeatureSpec) -> None:
    shape = row.shape
    if feature.axis is not None:
        assert shape[0] <= (feature.max_length or 0), f"{feature.name}: more rows than `max_length`"
        shape = shape[1:]
    assert shape == feature.shape, f"{feature.name}: is {shape}, the spec says {feature.shape}"
    if feature.whole:
        assert np.array_equal(row, row.astype(feature.dtype)), f"{feature.name}: {feature.dtype}"
    with np.errstate(over="ignore"):
        assert np.isfinite(row.astype(feature.dtype)).all(), (
            f"{feature.name}: is not finite as {feature.dtype}"
        )
