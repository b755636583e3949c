"""The first vectors of a static student's tokens, made of a transformer. Nothing is drawn but by
`random_table`.

    forward      each token of the vocabulary alone through the transformer, with the special tokens
                 of a text around it, pooled as the model pools (Model2Vec)
    embeddings   the transformer's input embeddings

Both are then rotated to their first principal components, and weighted: a token that is r-th in the
vocabulary, which is about its rank by frequency, has a probability p = (1/(r+1)) / sum, by Zipf's
law, and the weight a / (a + p) with a = 1e-4 (SIF). At last all are scaled by one factor, so that
the root mean square of their lengths is 1, and a learning rate means the same whatever the source.
Tokens that are in no text, special and [unusedN], have zeros.

Time: one forward pass of as many short texts as the vocabulary has tokens: half a minute for 30,000
and MiniLM on two cores; memory: [V, H] numbers. Sources: Model2Vec
(https://github.com/MinishLab/model2vec); SIF: Arora et al., A Simple but Tough-to-Beat Baseline for
Sentence Embeddings, 2017. Shapes: V tokens, N of them kept, H numbers of the source, D of the
student.
"""

import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...cache_schemas.errors import StudentSourceError
from ..embeddings.folders import read_embedding_folder
from ..language.tokens import vocab_size_of
from ..pooling import StatePooling, pool
from ..pretrained import embedding_rows, refusing
from .settings import StudentSettings
from .student import is_decoder
from .student_models import load_backbone

DEFAULT_DIM = 256
SIF = 1e-4
_ROWS = 512
"""Tokens of a batch."""
_TOLD_S = 20.0
_UNUSED = re.compile(r"\[unused\d+\]")
_LOGGER = logging.getLogger("armada")


def random_table(tokenizer: Any, dim: int) -> Tensor:
    """[V, D] normal numbers, of length 1 on average."""
    table_VD: Tensor = torch.randn(vocab_size_of(tokenizer), dim) / dim**0.5
    return table_VD


def table_of(folder: Path, tokenizer: Any, settings: StudentSettings) -> Tensor:
    """[V, D] made of a transformer's folder by `static_init`. Raises StudentSourceError."""
    declared = read_embedding_folder(folder, StudentSourceError)
    model = load_backbone(folder if declared is None else declared.transformer).eval()
    kept = _kept(tokenizer)
    if embedding_rows(model) <= kept[-1]:
        raise StudentSourceError(
            f"student {settings.student}: its tokenizer has {kept[-1] + 1} tokens, the model "
            f"{embedding_rows(model)}; resize the model's embeddings"
        )
    if settings.static_init == "embeddings":
        vectors_NH = model.get_input_embeddings().weight.detach()[torch.from_numpy(kept)]
    else:
        pooling = None if declared is None else declared.pooling
        modes = pooling or (("last" if is_decoder(model.config) else "mean"),)
        with refusing(StudentSourceError, f"student {settings.student}: tokens on their own"):
            vectors_NH = _states(model, _around(tokenizer), kept, modes)
    dim = _dim(settings.static_dim, *vectors_NH.shape)
    vectors_ND = principal_components(vectors_NH, dim)
    vectors_ND *= torch.from_numpy(zipf_weights(len(kept))).float().unsqueeze(1)
    vectors_ND /= vectors_ND.square().sum(1).mean().sqrt().clamp(min=1e-12)
    weight_VD = torch.zeros(vocab_size_of(tokenizer), dim)
    weight_VD[torch.from_numpy(kept)] = vectors_ND
    return weight_VD


def _kept(tokenizer: Any) -> npt.NDArray[np.int64]:
    """Ids of the tokens that texts have, in their order."""
    special = set(tokenizer.all_special_ids)
    vocabulary = tokenizer.get_vocab().items()
    ids = [at for word, at in vocabulary if at not in special and not _UNUSED.fullmatch(word)]
    if not ids:
        raise StudentSourceError("student: its tokenizer has no tokens but special ones")
    return np.unique(np.array(ids, dtype=np.int64))


def _dim(wanted: int | None, tokens: int, width: int) -> int:
    most = min(tokens, width)
    if wanted is not None and wanted > most:
        raise StudentSourceError(
            f"static_dim {wanted}: {tokens} tokens of {width} numbers have {most} principal "
            f"components; choose at most {most}, or static_init=random"
        )
    return wanted or min(DEFAULT_DIM, most)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a text."""
    inside = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    for start in range(len(whole) - len(inside) + 1):
        if whole[start : start + len(inside)] == inside:
            return whole[:start], whole[start + len(inside) :]
    return [], []


@torch.inference_mode()
def _states(
    model: Any,
    around: tuple[list[int], list[int]],
    kept: npt.NDArray[np.int64],
    modes: tuple[StatePooling, ...],
) -> Tensor:
    """Pooled states [N, H] of each token as a text of its own."""
    _LOGGER.info(f"static student: {len(kept):,} tokens through the source")
    told, parts = time.monotonic(), []
    for start in range(0, len(kept), _ROWS):
        ids_B1 = torch.from_numpy(kept[start : start + _ROWS]).unsqueeze(1)
        before, behind = (torch.tensor(ids, dtype=torch.int64) for ids in around)
        rows = len(ids_B1)
        ids_BT = torch.cat([before.expand(rows, -1), ids_B1, behind.expand(rows, -1)], dim=1)
        mask_BT = torch.ones_like(ids_BT)
        states_BTH = model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        parts.append(pool(states_BTH, mask_BT, modes))
        if time.monotonic() - told > _TOLD_S:
            told = time.monotonic()
            _LOGGER.info(f"static student: {start + rows:,} of {len(kept):,} tokens")
    return torch.cat(parts).clone()


def principal_components(vectors_NH: Tensor, dim: int) -> Tensor:
    """Centred vectors [N, dim] along their first principal axes, in float64; the largest number of
    each axis is positive."""
    centred = vectors_NH.double() - vectors_NH.double().mean(0)
    _, axes_HH = torch.linalg.eigh(centred.T @ centred)
    axes_HD = axes_HH.flip(1)[:, :dim]
    largest = axes_HD.gather(0, axes_HD.abs().argmax(0, keepdim=True))
    components: Tensor = (centred @ (axes_HD * largest.sign())).float()
    return components


def zipf_weights(count: int) -> npt.NDArray[np.float64]:
    """SIF weights [N] of tokens in the order of their frequency, by Zipf's law."""
    shares = 1 / np.arange(2, count + 2)
    weights: npt.NDArray[np.float64] = SIF / (SIF + shares / shares.sum())
    return weights
