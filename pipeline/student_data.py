"""The data of a run: examples, label space, and readers of the features of teachers."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..cache_schemas.errors import JobError
from ..cache_schemas.features import TOKEN_IDS, TOKENS
from ..stages.corpus.label_kinds import one_a_row
from ..stages.corpus.labels import LabelSpace
from ..stages.distill.batches import Features
from ..stages.distill.controls import Control, controlled
from ..stages.distill.objectives.base import Shape
from ..stages.distill.token_features import TokenGather, other_tokens
from ..stages.language.tokens import tokenizer_digest
from ..stages.store.format.rows import Rows
from ..stages.store.transfer.mirror import ToCome
from .choosing import Selection
from .distill_job import DistillJob
from .labelled_corpus import LabelledCorpus
from .measured import Measured
from .sources import Source, rows_by_first_use, sum_to_come

Made = TypeVar("Made")


@dataclass(frozen=True)
class StudentData:
    """Data of a run: training and validation examples, label space, and the sources of teachers'
    features by name."""

    train: LabelledCorpus
    validation: LabelledCorpus | None
    space: LabelSpace
    metric: str
    sources: Mapping[str, Source] = field(default_factory=dict)
    read_digests: Mapping[str, str] = field(default_factory=dict)
    """Digests of training texts that sources read, if they differ from the student's."""
    selection: Selection | None = None
    """What the job's rules left of the training rows."""
    measured: Measured = field(default_factory=Measured)
    """Sources that the student is compared with on validation texts."""
    _encoded: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def encoded_once(
        self, what: str, tokenizer: Any, most: int, encode: Callable[[], Made]
    ) -> Made:
        """What `encode` makes of some texts, to at most so many tokens: once for all seeds whose
        students have the same tokenizer. Not to be changed."""
        kind = type(tokenizer).__name__, tokenizer.padding_side, tokenizer_digest(tokenizer)
        key = (what, most, *kind)
        if key not in self._encoded:
            self._encoded[key] = encode()
        made: Made = self._encoded[key]
        return made

    @cached_property
    def of_texts(self) -> dict[str, Source]:
        """The sources with features of whole texts, or of all their tokens; others have features of
        predicted tokens."""
        return {n: each for n, each in self.sources.items() if each.spec.axis in (None, TOKENS)}

    @property
    def rows_of_texts(self) -> Mapping[str, Rows]:
        """The cache row of each training text in the caches of sources, -1 where there is none."""
        return self.train.cache_rows

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the features of whole texts."""
        return {name: source.spec.shape for name, source in self.of_texts.items()}

    @property
    def from_afar(self) -> list[str]:
        """Sources whose shards are downloaded during the run."""
        return [name for name, source in self.of_texts.items() if source.answers.mirror is not None]

    @cached_property
    def answered(self) -> dict[str, int]:
        """Training examples that have an answer, of each source that may lack some."""
        return {
            name: int((self.train.cache_rows[name] >= 0).sum())
            for name, source in self.sources.items()
            if source.may_lack
        }

    @cached_property
    def digests(self) -> dict[str, str | None]:
        """Digests of the examples, computed once for all seeds."""
        weights = self.train.weights_digest()
        return {
            "train_digest": self.train.digest(),
            "validation_digest": self.validation.digest() if self.validation else None,
            **({"weights_digest": weights} if weights else {}),
        }

    def provenance(self) -> dict[str, Any]:
        """Provenance of the teachers' features, for the record of a run."""
        by_teacher = {
            name: source.provenance()
            | ({"read_digest": self.read_digests[name]} if name in self.read_digests else {})
            for name, source in self.sources.items()
        }
        measured = self.measured.provenance()
        if len(by_teacher) > 1:
            return {"teachers": by_teacher} | measured
        nothing = dict.fromkeys(("cache_digest", "teacher_fingerprint", "teacher", "feature"))
        return next(iter(by_teacher.values()), nothing) | measured

    def gathers(self, seed: int, pad_left: bool = False) -> dict[str, Features]:
        """Readers of the training features, each source under its control; `pad_left`: those along
        tokens have padding first."""
        found: dict[str, Features] = {}
        for (name, source), of in zip(self.of_texts.items(), self._own_draws(), strict=True):
            rows, control = self.train.cache_rows[name], source.control
            if source.spec.axis == TOKENS:
                found[name] = TokenGather(source.of_tokens, rows, pad_left)
            else:
                labels = one_a_row(self.train.labels, self.space) if control.of_logits else None
                found[name] = controlled(source.feature, rows, control, seed, of, labels)
        return found

    def validation_gathers(self, pad_left: bool = False) -> dict[str, Features]:
        """Readers of the validation features, as cached; none if there are labels."""
        found: dict[str, Features] = {}
        for name, rows in self.validation.cache_rows.items() if self.validation else ():
            source = self.sources[name]
            if source.spec.axis == TOKENS:
                found[name] = TokenGather(source.of_tokens, rows, pad_left)
            else:
                found[name] = controlled(source.feature, rows, Control("none"), 0)
        return found

    def require_same_tokens(
        self, labelled: LabelledCorpus, ids: npt.NDArray[Any], offsets: Rows, tokenizer: Any
    ) -> None:
        """Raise JobError if the student's token ids of some texts, laid end to end, are not those
        of a teacher whose features are along the tokens."""
        for name in labelled.cache_rows.keys() & self.of_texts.keys():
            source, rows = self.sources[name], labelled.cache_rows[name]
            if source.spec.axis != TOKENS:
                continue
            token_ids = source.cache.ragged(TOKEN_IDS)
            differ = other_tokens(token_ids, rows, ids, offsets)
            if len(differ):
                first = int(differ[0])
                theirs = token_ids[int(rows[first])]
                ours = ids[offsets[first] : offsets[first + 1]]
                both = (tokenizer.convert_ids_to_tokens(e.tolist()) for e in (theirs, ours))
                told = (f"{each}"[:120] for each in both)
                raise JobError(
                    f"{labelled.corpus.where(first)}: its tokens differ from the teacher's "
                    f"({len(differ)} of {len(rows)} such rows): {' for the teacher, '.join(told)} "
                    f"for the student; use a student with the tokenizer of {source.teacher.kind}:"
                    f"{source.teacher.name}, and max_length="
                    f"{source.teacher.settings.get('max_length')}"
                )

    def fetch_ahead(self, job: DistillJob, aligners_first: Collection[str]) -> ToCome | None:
        """Start downloading what the run needs from caches at URLs; None if all are local.
        `aligners_first` are sources that an aligner reads before the student.

        Raises CacheError if that is more than a mirror may keep."""
        found, own_draws = [], dict(zip(self.of_texts, self._own_draws(), strict=True))
        for name, source in self.sources.items():
            train, own_draw = self.train.cache_rows[name], own_draws.get(name, "")
            rows = [rows_by_first_use(job, source, train, name in aligners_first, own_draw)]
            if self.validation is not None and name in self.validation.cache_rows:
                rows.append(self.validation.cache_rows[name])
            elif name in self.measured.sources:
                held_out = self.measured.sources[name].rows
                rows.append(held_out[held_out >= 0])
            found.append(source.fetch_ahead(np.concatenate(rows)))
        return sum_to_come(found)

    def _own_draws(self) -> list[str]:
        """Seeds for the noise and shuffling of each further source; none for the first."""
        return ["" if number == 0 else name for number, name in enumerate(self.of_texts)]

    def without(self, left_out: Rows, problem: str) -> "StudentData":
        """The same without some training texts, each listed with its problem."""
        return replace(self, train=self.train.without(left_out, problem))
