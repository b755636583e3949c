"""Training texts of which nothing is left to predict: refused, or left out and listed.

Only a student's tokens show them: a prompt that alone is as long as a text may be, say.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ...cache_schemas.errors import CorpusError
from ...stages.language.tokens import TokenTexts
from ...stages.store.format.ragged import places_of
from ..student_data import LabelledCorpus
from .data import LanguageData


def with_words_to_predict(
    data: LanguageData, texts: TokenTexts, skip: bool
) -> tuple[LanguageData, TokenTexts]:
    """The training examples with something to predict, and their tokens; `texts` are those of all.

    Raises CorpusError where there are others and they are not to be left out, or nothing else."""
    train = data.train
    empty = np.flatnonzero(texts.predicted == 0)
    if not len(empty):
        return data, texts
    if not skip or len(empty) == len(texts):
        raise CorpusError(
            f"{train.corpus.where(int(empty[0]))}: nothing of it is left to predict within "
            f"max_length ({len(empty)} such rows); raise max_length, or set skip_bad_rows=true to "
            "leave such rows out"
        )
    kept = np.flatnonzero(texts.predicted)
    corpus = train.corpus.without(empty, "nothing of it is left to predict within max_length")
    cache_rows = None if train.cache_rows is None else train.cache_rows[kept]
    rest = LabelledCorpus(corpus, train.labels[kept], cache_rows)
    words = None if data.words is None else replace(data.words, rows=data.words.rows[kept])
    return replace(data, train=rest, words=words), _taken(texts, kept)


def _taken(texts: TokenTexts, kept: npt.NDArray[np.int64]) -> TokenTexts:
    return TokenTexts(
        ids=texts.ids[places_of(kept, texts.offsets)],
        offsets=np.concatenate([[0], np.cumsum(texts.lengths[kept])]),
        prompts=texts.prompts[kept],
        truncated=texts.truncated[kept],
        bytes=texts.bytes[kept],
    )
