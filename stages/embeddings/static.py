"""Static models: a text is the mean of the vectors of its tokens, without a transformer.

modules.json                    StaticEmbedding first, then Dense, LayerNorm, Normalize
[0_StaticEmbedding/]model.safetensors    embedding.weight [V, D], a vector for each token
[0_StaticEmbedding/]tokenizer.json       its fast tokenizer; special tokens are not added
config_sentence_transformers.json        prompts; and for model2vec normalize, max_length

The layout is that of sentence-transformers' StaticEmbedding, which model2vec reads as well; folders
of model2vec (embeddings, mapping and weights in place of embedding.weight) are read, too. Both give
a text without tokens a vector of zeros. They differ in the unknown token: model2vec leaves it out
of the mean, and so do folders written here, whose unknown token has zeros: in all of them a text's
vector has the same direction, and with a Normalize behind it is the same.

Sources: Model2Vec (Tulkens and van Dongen, 2024, https://github.com/MinishLab/model2vec),
StaticEmbedding of sentence-transformers (Aarsen, 2025). Shapes: B texts, T tokens, S tokens of all
texts, laid end to end; V tokens of the vocabulary, D numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...cache_schemas.errors import InputError
from ..pretrained import refusing
from ..sources import require_safetensors
from .folders import (
    MODEL_CONFIG,
    MODULES,
    NO_PROMPTS,
    default_prompt,
    read_json,
    read_modules,
    write_layer,
    write_model_config,
    write_modules,
)
from .layers import LAYER_WEIGHTS, LAYERS, Dense, Layer, Normalize, read_layer

STATIC = "StaticEmbedding"
TOKENIZER = "tokenizer.json"
WEIGHT = "embedding.weight"
LEAVES_OUT_UNKNOWN = "leaves_out_unknown_tokens"
"""Key of a folder written here."""

MODEL2VEC_LENGTH = 512
"""Tokens of a text that model2vec reads unless its folder says otherwise."""


class TokenTable(nn.Module):
    """A vector for each token [V, D]; a text is the mean of those of its tokens, zeros if it has
    none. Padding is not looked up, so that it changes no bit."""

    config = None
    """A transformer's would limit the length of texts."""

    def __init__(self, weight_VD: Tensor, unknown: int | None = None) -> None:
        """`unknown`: the token that is left out, None: none is."""
        super().__init__()
        self.weight = nn.Parameter(weight_VD)
        self.unknown = unknown
        self.sparse = False
        """Whether its gradient holds the rows of a batch alone; on a CPU."""

    @property
    def width(self) -> int:
        """D."""
        return int(self.weight.shape[1])

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, D] of padded texts; mask 1 for tokens."""
        kept_BT = mask_BT.bool()
        if self.unknown is not None:
            kept_BT = kept_BT & (ids_BT != self.unknown)
        if ids_BT.device.type != "cpu":
            return self.of_padded(ids_BT, kept_BT)
        counts_B = kept_BT.sum(1)
        return self.of_flat(ids_BT[kept_BT], counts_B.cumsum(0) - counts_B)

    def of_padded(self, ids_BT: Tensor, kept_BT: Tensor) -> Tensor:
        """[B, D] of the tokens that are kept, looking up all: to pick them out, a GPU would have to
        tell how many there are."""
        weights_BT = kept_BT.to(self.weight.dtype)
        sums_BD = F.embedding_bag(ids_BT, self.weight, mode="sum", per_sample_weights=weights_BT)
        return sums_BD / kept_BT.sum(1).clamp(min=1).unsqueeze(1)

    def of_flat(self, ids_S: Tensor, starts_B: Tensor) -> Tensor:
        """[B, D] of tokens laid end to end, none of them unknown; `starts_B`: where texts begin."""
        return F.embedding_bag(ids_S, self.weight, starts_B, mode="mean", sparse=self.sparse)


class StaticTokenizer:
    """A fast tokenizer as static models read texts: no special tokens, no padding.

    Ids are those of the library, `encode_batch_fast`, without a Python object per token."""

    def __init__(self, backend: Any, max_length: int | None, unknown: int | None = None) -> None:
        """`backend`: a Tokenizer of `tokenizers`, which is changed; `max_length`: most tokens of a
        text, None: all; `unknown`: a token to leave out."""
        self.backend, self.max_length, self.unknown = backend, max_length, unknown
        backend.no_truncation()
        backend.no_padding()

    def read(
        self, texts: Sequence[str]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids [S] of all texts, laid end to end; where each begins [B]; which were cut [B]."""
        encoded = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [each.ids for each in encoded]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        cut = np.zeros(len(rows), dtype=bool)
        if self.max_length is not None and (cut := lengths > self.max_length).any():
            rows = [ids[: self.max_length] for ids in rows]
            lengths = lengths.clip(max=self.max_length)
        ids = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
        if self.unknown is not None and (known := ids != self.unknown).sum() < len(ids):
            row = np.repeat(np.arange(len(rows)), lengths)[known]
            ids, lengths = ids[known], np.bincount(row, minlength=len(rows))
        return ids, np.cumsum(lengths) - lengths, cut


@dataclass(frozen=True, slots=True)
class StaticFolder:
    """Declarations of a static model's folder."""

    weights: Path
    tokenizer: Path
    leaves_out_unknown: bool
    layers: tuple[Layer, ...]
    """Behind the mean, in order."""
    max_length: int | None
    prompts: Mapping[str, str]
    default_prompt: str

    @property
    def files(self) -> list[Path]:
        """All files that an embedding depends on."""
        own = [
            layer.folder / name
            for layer in self.layers
            if not layer.normalizes
            for name in ("config.json", LAYER_WEIGHTS)
        ]
        return [self.weights, self.tokenizer, *own]


def is_static_folder(folder: Path, error: type[InputError]) -> bool:
    """Whether a folder holds a static model."""
    if not (folder / MODULES).is_file():
        return _of_model2vec(folder, error)
    return [kind for kind, _ in read_modules(folder, error)][:1] == [STATIC]


def read_static_folder(folder: Path, error: type[InputError]) -> StaticFolder:
    """Declarations of a static model's folder. Raises `error` for an invalid one."""
    config = read_json(folder / "config.json", error)
    document = read_json(folder / MODEL_CONFIG, error)
    model2vec = _of_model2vec(folder, error)
    if (folder / MODULES).is_file():
        (_, table), *rest = read_modules(folder, error)
        if unknown := [kind for kind, _ in rest if kind not in LAYERS]:
            raise error(
                f"source {folder}: {MODULES} holds {unknown[0]} behind a {STATIC}; known are "
                f"{', '.join(LAYERS)}"
            )
    else:
        table, rest = folder, [("Normalize", folder)] if config.get("normalize") else []
    for name in (LAYER_WEIGHTS, TOKENIZER):
        if not (table / name).is_file():
            raise error(f"source {table}: holds no {name}, which a {STATIC} needs")
    require_safetensors(table, error)
    prompts = {str(k): str(v or "") for k, v in (document.get("prompts") or {}).items()}
    layers = (
        read_layer(kind, at, {} if at == folder else read_json(at / "config.json", error), error)
        for kind, at in rest
    )
    return StaticFolder(
        weights=table / LAYER_WEIGHTS,
        tokenizer=table / TOKENIZER,
        leaves_out_unknown=model2vec or bool(document.get(LEAVES_OUT_UNKNOWN)),
        layers=tuple(layers),
        max_length=_max_length(config if model2vec else document, table, model2vec, error),
        prompts=prompts,
        default_prompt=default_prompt(folder, document, prompts, error),
    )


def _of_model2vec(folder: Path, error: type[InputError]) -> bool:
    kind = read_json(folder / "config.json", error).get("model_type")
    if kind is not None:
        return bool(kind == "model2vec")
    weights = folder / LAYER_WEIGHTS  # a model that was made from vectors says no kind
    if not (weights.is_file() and (folder / TOKENIZER).is_file()):
        return False
    with refusing(error, f"source {weights}"), safe_open(weights, "pt") as tensors:
        return "embeddings" in tensors.keys()  # noqa: SIM118 (no mapping)


def _max_length(
    document: Mapping[str, Any], table: Path, model2vec: bool, error: type[InputError]
) -> int | None:
    cut = read_json(table / TOKENIZER, error).get("truncation") or {}
    most = document.get("max_length", MODEL2VEC_LENGTH if model2vec else cut.get("max_length"))
    if most is not None and (not isinstance(most, int) or most < 1):
        raise error(f"source {table}: max_length {most!r} is no length")
    return most


def read_backend(folder: StaticFolder, error: type[InputError]) -> Any:
    """The fast tokenizer of a static model's folder."""
    from tokenizers import Tokenizer

    with refusing(error, f"source {folder.tokenizer}"):
        return Tokenizer.from_file(str(folder.tokenizer))


def read_table(folder: StaticFolder, error: type[InputError]) -> Tensor:
    """The vectors of all tokens [V, D], float32: with a mapping and weights of model2vec, those
    that it looks up. Raises `error` for damaged weights, and for numbers that are not finite."""
    what = f"source {folder.weights}"
    with refusing(error, what):
        tensors = load_file(folder.weights)
    weight_VD = tensors.get(WEIGHT, tensors.get("embeddings"))
    if weight_VD is None or weight_VD.ndim != 2:
        raise error(f"{what}: holds no table {WEIGHT} or embeddings [tokens, numbers]")
    if weight_VD.dtype == torch.int8 or not weight_VD.is_floating_point():
        raise error(f"{what}: its numbers are {weight_VD.dtype}; save the model with float ones")
    weight_VD = weight_VD.float()
    with refusing(error, what):
        if (mapping := tensors.get("mapping")) is not None:
            weight_VD = weight_VD[mapping.long()]
        if (weights := tensors.get("weights")) is not None:
            weight_VD = weight_VD * weights.float().unsqueeze(1)
    if not weight_VD.isfinite().all():
        raise error(f"{what}: holds numbers that are not finite")
    found: Tensor = weight_VD.contiguous()
    return found


def table_width(folder: StaticFolder, error: type[InputError]) -> int:
    """D, from the header of the weights."""
    with (
        refusing(error, f"source {folder.weights}"),
        safe_open(folder.weights, "pt") as tensors,
    ):
        name = WEIGHT if WEIGHT in tensors.keys() else "embeddings"  # noqa: SIM118 (no mapping)
        return int(tensors.get_slice(name).get_shape()[-1])


def check_rows(weight_VD: Tensor, backend: Any, what: str, error: type[InputError]) -> None:
    """Raise `error` for a tokenizer with tokens that the table has no vectors for."""
    most = 1 + max(backend.get_vocab().values(), default=-1)
    if most > len(weight_VD):
        raise error(
            f"{what}: its tokenizer has {most} tokens, its table {len(weight_VD)} vectors; use the "
            "tokenizer that the table was saved with"
        )


def unknown_id(backend: Any) -> int | None:
    """The id that a tokenizer gives to what it does not know; None if it has none."""
    model = json.loads(backend.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    found = None if token is None else backend.token_to_id(token)
    return None if found is None else int(found)


def write_static_files(
    folder: Path,
    weight_VD: Tensor,
    backend: Any,
    layers: Sequence[Dense | Normalize],
    max_length: int,
    prompts: Mapping[str, str] = NO_PROMPTS,
) -> None:
    """Write a static model: its table, its tokenizer, and layers behind the mean. model2vec opens
    the table, and of the layers takes a single Normalize. `prompts`: prefixes by their names."""
    save_file({WEIGHT: weight_VD.detach().float().cpu().contiguous()}, folder / LAYER_WEIGHTS)
    backend.no_padding()
    backend.enable_truncation(max_length)
    backend.save(str(folder / TOKENIZER))
    backend.no_truncation()
    names = [STATIC]
    for index, layer in enumerate(layers, start=1):
        names.append(type(layer).__name__)
        write_layer(folder / f"{index}_{names[-1]}", layer)
    own = {"normalize": names[1:] == ["Normalize"], "max_length": max_length}
    write_model_config(folder, prompts, **own, **{LEAVES_OUT_UNKNOWN: True})
    write_modules(folder, names)
