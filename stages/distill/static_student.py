"""Static students: a text is the mean of the vectors of its tokens, and a head behind it.

In: `static:SOURCE`, a folder or hub id of an encoder or decoder, of a sentence-transformers model,
or of a static model. Out: a `StaticStudent` and its tokenizer, which adds no special tokens. A step
costs the look-up of the batch's tokens: nothing padded is looked up, and the optimizer updates no
other rows of the table (`RowAdamW`). Shapes: B texts, T tokens, V tokens of the vocabulary, D
numbers.

Sources: as in `../embeddings/static.py`; trained to a teacher's embeddings of sentences as in
tokenlearn (Tulkens and van Dongen, 2024, https://github.com/MinishLab/tokenlearn).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cache_schemas.errors import StudentSourceError
from ..corpus.labels import LabelSpace
from ..embeddings.folders import MODULES, NO_PROMPTS, transformer_folder
from ..embeddings.layers import Dense, Normalize
from ..embeddings.static import (
    MODEL2VEC_LENGTH,
    TOKENIZER,
    StaticFolder,
    TokenTable,
    check_rows,
    is_static_folder,
    read_backend,
    read_static_folder,
    read_table,
    unknown_id,
    write_static_files,
)
from ..pretrained import read_tokenizer
from ..sources import require_safetensors, resolve
from .aligner import ClassificationHead
from .optimizers import updates_rows
from .settings import StudentSettings
from .static_start import DEFAULT_DIM, random_table, table_of
from .student import Student
from .student_models import load_config

_CONFIGS = ("config.json", MODULES, "*/config.json", TOKENIZER, f"*/{TOKENIZER}")


class StaticStudent(Student):
    """table -> mean over tokens -> head, a linear layer behind dropout. A text without tokens has
    a vector of zeros."""

    pooling = "mean"

    def __init__(self, table: TokenTable, space: LabelSpace, dropout: float = 0.1) -> None:
        super().__init__()
        self.space, self.dropout, self.dim = space, dropout, table.width
        self.model = table
        self.head = ClassificationHead(self.dim, space.num_labels, space.regression, dropout)
        self._always = {}
        updates_rows(table.weight)

    @property
    def backbone(self) -> TokenTable:
        """The table."""
        table: TokenTable = self.model
        return table

    def of_flat(self, ids_S: Tensor, starts_B: Tensor) -> tuple[Tensor, Tensor]:
        """(pooled, output) of tokens laid end to end, none of them unknown."""
        pooled_BD = self.backbone.of_flat(ids_S, starts_B)
        return pooled_BD, self.head(pooled_BD)

    def _read(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Any]:
        pooled_BD = self.model(inputs["input_ids"], inputs["attention_mask"])
        return pooled_BD, self.head(pooled_BD), None


def load_static_student(
    settings: StudentSettings, space: LabelSpace, dropout: float
) -> tuple[StaticStudent, Any]:
    """A student and its tokenizer. Raises StudentSourceError."""
    folder = _folder(settings)
    found = _declared(folder, settings)
    if found is not None:
        backend, weight_VD = read_backend(found, StudentSourceError), _read_table(found)
    else:
        source = read_tokenizer(transformer_folder(folder, StudentSourceError), StudentSourceError)
        backend = source.backend_tokenizer
        if settings.static_init == "random":
            weight_VD = random_table(source, settings.static_dim or DEFAULT_DIM)
        else:
            weight_VD = table_of(folder, source, settings)
    tokenizer, unknown = static_tokenizer(backend), unknown_id(backend)
    check_rows(weight_VD, backend, f"student {settings.student}", StudentSourceError)
    if unknown is not None:
        weight_VD[unknown] = 0.0
    return StaticStudent(TokenTable(weight_VD, unknown), space, dropout), tokenizer


def static_tokenizer(backend: Any) -> Any:
    """A fast tokenizer as transformers has them, without special tokens around a text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    document = json.loads(backend.to_str())
    document |= {"post_processor": None, "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(document))
    unknown = unknown_id(plain)
    named = {} if unknown is None else {"unk_token": plain.id_to_token(unknown)}
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=plain, model_input_names=names, **named)


def static_max_length(settings: StudentSettings) -> int:
    """Default maximum tokens of a text: as a static folder declares, else that of model2vec."""
    found = _declared(_folder(settings), settings)
    declared = None if found is None else found.max_length
    return declared or MODEL2VEC_LENGTH


def check_static_student(settings: StudentSettings) -> None:
    """Raise StudentSourceError for a source that a static student cannot begin with, before weights
    are read; of a hub id, nothing but configurations and tokenizers is downloaded."""
    folder = _folder(settings, _CONFIGS)
    here = Path(str(settings.static_source)).expanduser().is_dir()
    if is_static_folder(folder, StudentSourceError):
        if here:
            _declared(folder, settings)
        return
    folder = transformer_folder(folder, StudentSourceError)
    config = load_config(folder)
    if here and settings.static_init != "random":
        require_safetensors(folder, StudentSourceError)
    if not read_tokenizer(folder, StudentSourceError).is_fast:
        raise StudentSourceError(
            f"student {settings.student}: has no fast tokenizer (tokenizer.json), which static "
            "students need; use another source"
        )
    width = getattr(config.get_text_config(), "hidden_size", None)
    wanted = settings.static_dim or 0
    if settings.static_init != "random" and width is not None and wanted > width:
        raise StudentSourceError(
            f"static_dim {wanted}: the source has {width} numbers a token; choose at most {width}, "
            "or static_init=random"
        )


def _folder(settings: StudentSettings, patterns: Any = None) -> Path:
    source, revision = settings.static_source, settings.student_revision
    assert source is not None
    if patterns is None:
        return resolve(source, revision, StudentSourceError)
    return resolve(source, revision, StudentSourceError, patterns)


def _declared(folder: Path, settings: StudentSettings) -> StaticFolder | None:
    """Declarations of a static model that a student starts from; None for another source."""
    if not is_static_folder(folder, StudentSourceError):
        return None
    for key in ("static_init", "static_dim"):
        if (value := getattr(settings, key)) is not None:
            raise StudentSourceError(
                f"{key} {value!r}: student {settings.student} starts from the table of a static "
                "model as it is; leave it out"
            )
    return read_static_folder(folder, StudentSourceError)


def _read_table(found: StaticFolder) -> Tensor:
    weight_VD = read_table(found, StudentSourceError)
    if dense := [str(layer.settings) for layer in found.layers if not layer.normalizes]:
        raise StudentSourceError(
            f"student {found.weights.parent}: has layers behind its table ({'; '.join(dense)}), "
            "which a static student has not; start from the model that it was made from"
        )
    return weight_VD


# --- What a run leaves


def load_static_model(folder: Path, space: LabelSpace, dropout: float) -> tuple[StaticStudent, Any]:
    """A student that a run left, without the weights of its head, and its tokenizer."""
    found = read_static_folder(folder, StudentSourceError)
    backend = read_backend(found, StudentSourceError)
    weight_VD, unknown = read_table(found, StudentSourceError), unknown_id(backend)
    check_rows(weight_VD, backend, f"student {folder}", StudentSourceError)
    student = StaticStudent(TokenTable(weight_VD, unknown), space, dropout)
    return student, static_tokenizer(backend)


def save_static_model(
    folder: Path,
    student: StaticStudent,
    tokenizer: Any,
    layers: list[Dense | Normalize],
    max_length: int,
    folds: bool,
    prompts: Mapping[str, str] = NO_PROMPTS,
) -> bool:
    """Write a student as a static model; `layers`: from the mean to the embedding. Returns whether
    a linear first layer has become part of the table, if it `folds`: the mean of W e + b over the
    tokens' vectors e is W times the mean, plus b."""
    weight_VD = student.backbone.weight.detach()
    folds = folds and bool(layers) and _is_linear(layers[0])
    folder.mkdir(parents=True, exist_ok=True)
    if folds:
        first, *layers = layers
        weight_VD = _folded(weight_VD, first, student.backbone.unknown)
    write_static_files(folder, weight_VD, tokenizer.backend_tokenizer, layers, max_length, prompts)
    return folds


def _is_linear(layer: Any) -> bool:
    return isinstance(layer, Dense) and isinstance(layer.activation_function, torch.nn.Identity)


@torch.no_grad()
def _folded(weight_VD: Tensor, layer: Any, unknown: int | None) -> Tensor:
    folded: Tensor = layer.to(weight_VD.device)(weight_VD)
    if unknown is not None:
        folded[unknown] = 0.0
    return folded
