"""Judges: what each rule decides about the responses of a block.

judge = make_judge(rule, generators)
kept = judge.keeps(prompts, responses)      # mask [R]; responses are those that are still kept

A judge sees the blocks in the order of the corpus, once, for what it says may depend on those
before. Shapes: P prompts, R responses.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache_schemas.chats import answered
from ...cache_schemas.errors import JobError, MissingKeysError
from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.keys import IntArray, example_key, keys_to_array
from ...stages.store.format.rows import Rows
from ...stages.store.reading.reader import open_cache
from .answers import answer_in, answer_of_label, most_common
from .generators import CachedResponses, Float64, Prompts, Responses
from .rules import (
    AgreementRule,
    AnswerRule,
    BestRule,
    CriticKeys,
    DuplicatesRule,
    FinishRule,
    LabelRule,
    LengthRule,
    LogProbRule,
    MajorityRule,
    PatternRule,
    Rule,
    ScoreRule,
)

Mask = npt.NDArray[np.bool_]


class Judge(ABC):
    """A rule, and what it remembers."""

    def __init__(self, rule: Rule) -> None:
        self.name = rule.shown
        self._keys = rule.model_dump(mode="json", exclude_none=True)

    @abstractmethod
    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        """Which of the responses it keeps, [R]."""

    def document(self) -> dict[str, Any]:
        """Its options, without paths of this machine."""
        return self._keys


class _EachByItself(Judge):
    """A rule about one response at a time."""

    def __init__(self, rule: Rule, keeps: Callable[[Responses], Mask]) -> None:
        super().__init__(rule)
        self._keeps = keeps

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        return self._keeps(responses)


def _finish(rule: FinishRule) -> Callable[[Responses], Mask]:
    def keeps(responses: Responses) -> Mask:
        if "" in responses.finish:
            raise JobError(f"rule {rule.shown}: how responses finished is not known; leave it out")
        return _mask(each in rule.among for each in responses.finish)

    return keeps


def _pattern(rule: PatternRule) -> Callable[[Responses], Mask]:
    search = re.compile(rule.pattern).search
    return lambda responses: _mask((search(t) is None) == rule.reject for t in responses.texts)


def _length(rule: LengthRule) -> Callable[[Responses], Mask]:
    reads_tokens = rule.least_tokens is not None or rule.most_tokens is not None

    def keeps(responses: Responses) -> Mask:
        if reads_tokens and (responses.tokens < 0).any():
            raise JobError(f"rule {rule.shown}: the number of tokens is not known; use characters")
        characters = np.array([len(text) for text in responses.texts], dtype=np.int64)
        kept = _within(characters, rule.least_characters, rule.most_characters)
        return kept & _within(responses.tokens, rule.least_tokens, rule.most_tokens)

    return keeps


def _log_prob(rule: LogProbRule) -> Callable[[Responses], Mask]:
    def keeps(responses: Responses) -> Mask:
        return log_probs_of(rule, responses, rule.each == "token") >= rule.least

    return keeps


class _LabelJudge(Judge):
    def __init__(self, rule: LabelRule) -> None:
        super().__init__(rule)
        self._rule = rule

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        labels = [answer_of_label(self._rule, label) for label in prompts.labels]
        found = _answers(self._rule, responses)
        wanted = (labels[at] for at in responses.prompts.tolist())
        return _mask(
            ours is not None and ours == label for ours, label in zip(found, wanted, strict=True)
        )


class _MajorityJudge(Judge):
    def __init__(self, rule: MajorityRule) -> None:
        super().__init__(rule)
        self._rule = rule

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        found = _answers(self._rule, responses)
        kept = np.zeros(len(responses), dtype=bool)
        for group in responses.of_prompts():
            answer, count = most_common(found[at] for at in group.tolist())
            if answer is not None and count >= self._rule.least_share * len(group):
                kept[group] = [found[at] == answer for at in group.tolist()]
        return kept


class _AgreementJudge(Judge):
    def __init__(self, rule: AgreementRule) -> None:
        super().__init__(rule)
        self._rule, self._other = rule, CachedResponses(rule.shown, rule.other)

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        theirs, lacking = self._other.read(prompts)
        lacking = np.intersect1d(lacking, responses.prompts)
        if len(lacking):
            raise MissingKeysError(
                f"rule {self.name}: {len(lacking)} prompts, the first of which is "
                f"{prompts.corpus.where(int(lacking[0]))}, are not in the cache of the other "
                "teacher; run `armada precompute` on them",
                lacking.tolist(),
            )
        found = _answers(self._rule, theirs)
        agreed: dict[int, str | None] = {}
        for group in theirs.of_prompts():
            answer, _ = most_common(found[at] for at in group.tolist())
            agreed[int(theirs.prompts[group[0]])] = answer
        ours = _answers(self._rule, responses)
        wanted = (agreed.get(at) for at in responses.prompts.tolist())
        return _mask(
            mine is not None and mine == other for mine, other in zip(ours, wanted, strict=True)
        )

    def document(self) -> dict[str, Any]:
        return self._keys | {"other": self._other.document()}


class _ScoreJudge(Judge):
    def __init__(self, rule: ScoreRule) -> None:
        super().__init__(rule)
        self._rule, self._critic = rule, Critic(rule.shown, rule.critic)

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        scores = self._critic.scores(prompts, responses)
        return _within(scores, self._rule.least, self._rule.most)

    def document(self) -> dict[str, Any]:
        return self._keys | {"critic": self._critic.document()}


class _BestJudge(Judge):
    def __init__(self, rule: BestRule) -> None:
        super().__init__(rule)
        self._rule = rule
        self._critic = None if rule.critic is None else Critic(rule.shown, rule.critic)

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        if self._critic is not None:
            values = self._critic.scores(prompts, responses)
        else:
            values = log_probs_of(self._rule, responses, self._rule.by == "mean_log_prob")
        kept = np.zeros(len(responses), dtype=bool)
        for group in responses.of_prompts():
            best = np.argsort(-values[group], kind="stable")[: self._rule.count]
            kept[group[best]] = True
        return kept

    def document(self) -> dict[str, Any]:
        return self._keys | ({"critic": self._critic.document()} if self._critic else {})


class _DuplicatesJudge(Judge):
    """Memory: about 100 bytes for each response that is kept."""

    def __init__(self, rule: DuplicatesRule) -> None:
        super().__init__(rule)
        self._rule, self._seen = rule, set[bytes]()

    def keeps(self, prompts: Prompts, responses: Responses) -> Mask:
        keys = [bytes(key) for key in prompts.keys(with_response=False)]
        kept = []
        for prompt, text in zip(responses.prompts.tolist(), responses.texts, strict=True):
            plain = " ".join(text.split())
            plain = plain.casefold() if self._rule.ignore_case else plain
            own = keys[prompt] if self._rule.among == "prompt" else b""
            digest = hashlib.blake2b(own + plain.encode(), digest_size=16).digest()
            kept.append(digest not in self._seen)
            self._seen.add(digest)
        return _mask(kept)


class Critic:
    """A cached feature of a teacher that read prompts with their responses, as one number each."""

    def __init__(self, name: str, keys: CriticKeys) -> None:
        """Raises CacheError, JobError for a feature that is no score."""
        self._name, self._keys = name, keys
        self._cache = open_cache(keys.cache, keys.teacher)
        known = [each for each in self._cache.features if self._is_score(each)]
        feature = keys.feature or (known[0] if len(known) == 1 else None)
        if feature not in known:
            raise JobError(
                f"rule {name}: feature {feature or 'is missing'}: name one with a number, or "
                f"several, for each text; the critic has {', '.join(known) or 'none'}"
            )
        self._spec = self._cache.feature_spec(feature)
        self._column = self._column_of(self._spec)

    def _is_score(self, feature: str) -> bool:
        spec = self._cache.feature_spec(feature)
        most = 1 if spec.axis is None else 0
        return len(spec.shape) <= most and spec.coding is None and not spec.whole

    def _column_of(self, spec: FeatureSpec) -> int:
        column, count = self._keys.column, spec.values_per_row
        if isinstance(column, str) and column in (spec.labels or ()):
            assert spec.labels is not None
            return spec.labels.index(column)
        if column is None and count == 1:
            return 0
        if isinstance(column, int) and 0 <= column < count:
            return column
        names = f", or one of {', '.join(spec.labels)}" if spec.labels else ""
        raise JobError(
            f"rule {self._name}: column {column!r}: feature {spec.name!r} has {count} numbers; "
            f"name one, from 0 to {count - 1}{names}"
        )

    def scores(self, prompts: Prompts, responses: Responses) -> Float64:
        """The score of each response [R]. Raises MissingKeysError."""
        rows = self._cache.find(keys_to_array(map(example_key, self._examples(prompts, responses))))
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            where = prompts.corpus.where(int(responses.prompts[missing[0]]))
            raise MissingKeysError(
                f"rule {self._name}: {len(missing)} responses, the first of which is to {where}, "
                "are not in the critic's cache; write them by `armada corpus` without this rule "
                "and those behind it, and run `armada precompute` on that file",
                missing.tolist(),
            )
        if self._spec.axis is not None:
            return self._of_tokens(rows)
        values = self._cache[self._spec.name].gather(rows).astype(np.float64)
        values = values.reshape(len(rows), -1)
        if self._keys.probability:
            values = values - np.logaddexp.reduce(values, axis=1, keepdims=True)
            values = np.exp(values)
        scores: Float64 = values[:, self._column]
        return scores

    def _of_tokens(self, rows: Rows) -> Float64:
        """The mean or sum over the tokens of each row."""
        found = self._cache.ragged(self._spec.name).gather(rows)
        sums: Float64 = np.zeros(len(rows))
        np.add.at(sums, np.repeat(np.arange(len(rows)), found.lengths), found.values)
        if self._keys.each == "token":
            sums /= np.maximum(found.lengths, 1)
        return sums

    def _examples(self, prompts: Prompts, responses: Responses) -> list[tuple[str, ...]]:
        if self._keys.reads == "response":
            return [(text,) for text in responses.texts]
        asked = prompts.asked(with_response=False)
        both = zip(responses.prompts.tolist(), responses.texts, strict=True)
        if prompts.corpus.chats:
            return [(answered(asked[prompt][0], text),) for prompt, text in both]
        return [(*asked[prompt], text) for prompt, text in both]

    def document(self) -> dict[str, Any]:
        """Where its scores come from."""
        spec = self._cache.teacher.spec
        own = self._keys.model_dump(mode="json", exclude_none=True, exclude={"cache", "teacher"})
        return own | {
            "cache": self._keys.cache.absolute().name,
            "fingerprint": self._cache.teacher.fingerprint,
            "teacher": f"{spec.kind}:{spec.name}",
        }


def make_judge(rule: Rule) -> Judge:
    """The judge of a rule. Raises CacheError, JobError."""
    of_each: dict[type[Rule], Callable[[Any], Callable[[Responses], Mask]]] = {
        FinishRule: _finish,
        PatternRule: _pattern,
        LengthRule: _length,
        LogProbRule: _log_prob,
    }
    if type(rule) in of_each:
        return _EachByItself(rule, of_each[type(rule)](rule))
    others: dict[type[Rule], Callable[[Any], Judge]] = {
        LabelRule: _LabelJudge,
        MajorityRule: _MajorityJudge,
        AgreementRule: _AgreementJudge,
        ScoreRule: _ScoreJudge,
        BestRule: _BestJudge,
        DuplicatesRule: _DuplicatesJudge,
    }
    return others[type(rule)](rule)


def log_probs_of(rule: Rule, responses: Responses, mean: bool) -> Float64:
    """The log-probability of each response [R], or its mean over tokens. Raises JobError where it
    is not known."""
    if np.isnan(responses.log_probs).any():
        raise JobError(
            f"rule {rule.shown}: the cache has no log-probabilities of responses; a teacher "
            "behind a server needs tokenizer=FOLDER, or leave the rule out"
        )
    if not mean:
        return responses.log_probs
    means: Float64 = responses.log_probs / np.maximum(responses.tokens, 1)
    return means


def _answers(rule: AnswerRule, responses: Responses) -> list[str | None]:
    return [answer_in(rule, text) for text in responses.texts]


def _mask(values: Any) -> Mask:
    return np.fromiter(values, dtype=bool)


def _within(values: npt.NDArray[Any], least: float | None, most: float | None) -> Mask:
    kept = np.ones(len(values), dtype=bool)
    if least is not None:
        kept &= values >= least
    if most is not None:
        kept &= values <= most
    return kept


def in_order(judges: Sequence[Judge], prompts: Prompts, responses: Responses) -> IntArray:
    """The number, from 1, of the judge that rejects each response [R]; 0: all keep it."""
    verdicts = np.zeros(len(responses), dtype=np.int64)
    for number, judge in enumerate(judges, 1):
        left = np.flatnonzero(verdicts == 0)
        if not len(left):
            break
        kept = judge.keeps(prompts, responses.take(left))
        verdicts[left[~kept]] = number
    return verdicts
