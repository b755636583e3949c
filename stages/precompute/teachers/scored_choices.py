"""The rule of scored choices: log-probabilities of listed answers become features, whatever model
they are of.

Shapes: B rows, Q questions (1 without any), K answers, F texts without content. All in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .choices_options import ChoicesOptions

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoringRule:
    """`tokens`: of each answer [K]."""

    options: ChoicesOptions
    tokens: Sequence[int]

    def scores(self, log_probs: Floats) -> Floats:
        """Scores [..., K] of the answers, from the sums of their tokens' log-probabilities: those,
        or their mean for a token or byte."""
        if self.options.per == "answer":
            return log_probs
        of_bytes = [len(answer.strip().encode()) for answer in self.options.answers]
        lengths = self.tokens if self.options.per == "token" else of_bytes
        scores: Floats = log_probs / np.array(lengths)
        return scores

    def prior(self, log_probs_QFK: Floats) -> Floats:
        """What the scores are without the text [Q, K], from the answers' log-probabilities after
        `ChoicesOptions.prompts_without_text`.

        After a premise, the scores themselves (PMI_DC: Holtzman et al., arXiv 2104.08315, equation
        2). Of texts without content, the log of p, the mean over them of the answers' probabilities
        (contextual calibration: Zhao et al., arXiv 2102.09690, where W = diag(p)^-1): less it, the
        softmax of scores is proportional to probability / p."""
        scores_QFK = self.scores(log_probs_QFK)
        if self.options.premise is not None:
            return scores_QFK[:, 0]
        mean_QK: Floats = np.exp(_log_softmax(scores_QFK)).mean(axis=1)
        # An answer that none of them makes likely at all would have no logarithm.
        return np.log(np.maximum(mean_QK, np.finfo(np.float64).tiny))

    def features(self, log_probs_BQK: Floats, prior_QK: Floats | None) -> dict[str, Floats]:
        """Feature -> [B, ...]: `logits` are the scores, less the prior; `aspects` the second
        answer's less the first's; `score` is sum of value·softmax(scores)."""
        scores_BQK = self.scores(log_probs_BQK)
        if prior_QK is not None:
            scores_BQK = scores_BQK - prior_QK
        with np.errstate(invalid="ignore"):  # of a broken model, which is reported further on
            return dict(self._features(scores_BQK))

    def _features(self, scores_BQK: Floats) -> Iterator[tuple[str, Floats]]:
        if not self.options.questions:
            yield "logits", scores_BQK[:, 0]
        elif len(self.options.answers) == 2:
            yield "aspects", scores_BQK[..., 1] - scores_BQK[..., 0]
        if (values := self.options.values) is not None:
            yield "score", np.exp(_log_softmax(scores_BQK)) @ np.array(values)


def _log_softmax(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
