"""A folder that `distill` wrote, opened as a module that predicts, whatever kind of student it is.

student = load_student("run/student")
student.predict(["a warm and clever thriller"])     # [{"class": ..., "probabilities": [...]}]
student(**student.encode(["a", "b"]))               # tensors, for programs of one's own
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...cache_schemas.errors import InputError, JobError, StudentSourceError
from ...cache_schemas.locations import expand_home, shown_url
from ..adapters import without_adapters
from ..embeddings.folders import MODULES, read_embedding_folder
from ..embeddings.layers import load_layers
from ..embeddings.prompts import PromptName
from ..embeddings.static import StaticTokenizer, is_static_folder, read_static_folder
from ..language.tokens import encode_prompts, encode_texts, end_ids
from ..pretrained import refusing
from .evaluation import require_finite
from .export import CARD, HEADS, StudentCard, load_saved_student, read_card, student_folder
from .language.evaluation import padded_prompts, respond
from .language.export import (
    LanguageCard,
    is_language_student,
    is_masked_student,
    load_language_folder,
)
from .projectors import MLPProjector
from .settings import DEFAULT_NEW_TOKENS
from .static_student import StaticStudent
from .student import Student
from .tokens import encode

Kind = Literal["classification", "multilabel", "regression", "embedding", "language"]
Text = str | Sequence[str]
"""A text, or its segments in the order of training."""

Prediction = dict[str, Any]
"""Prediction for one text. classification: `class`, a name or a number, and `probabilities`, one
per class; multilabel: `classes`, those above 1/2, and `probabilities`; regression: `score`, or
`scores` of several outputs; embedding: `embedding`, float32 [H], or [T, H] of a student with a
vector for each token; language: `generated_text`."""

HOLDS = 0.5
"""Probability above which a class of a multilabel student holds."""

_PROJECTION = re.compile(r"objective\.(each\.\d+\.)?projection\.")
_FIRST = "hidden.weight"
"""Weight of the first layer of a projector of two."""


class SavedStudent(nn.Module, ABC):
    """A finished student, in eval mode, with its tokenizer; `to(device)` moves it."""

    kind: Kind
    tokenizer: Any
    card: StudentCard | LanguageCard

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return next(self.parameters()).device

    @property
    def weights_bytes(self) -> int:
        """Bytes of its weights, as they are in memory."""
        weights = (*self.parameters(), *self.buffers())
        return sum(each.numel() * each.element_size() for each in weights)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, if they have any."""
        return self.card.space.names if self.kind in ("classification", "multilabel") else None

    @abstractmethod
    def encode(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """A batch of texts as the module takes them, on its device."""

    @abstractmethod
    def predict(self, texts: Sequence[Text], batch_size: int = 64) -> list[Prediction]:
        """Predictions for texts, in their order."""

    def _segments(self, texts: Sequence[Text]) -> list[tuple[str, ...]]:
        return [(text,) if isinstance(text, str) else tuple(text) for text in texts]

    def _require_several(self, texts: Sequence[Text]) -> None:
        if isinstance(texts, str):
            raise InputError("predict: takes a list of texts, not a single text; put it in []")


class SavedReader(SavedStudent):
    """A student that reads texts: class logits [B, K], scores [B, K] or embeddings [B, H]; with a
    vector for each token [B, T, H], zeros behind the last."""

    card: StudentCard

    def __init__(
        self, student: Student, tokenizer: Any, card: StudentCard, layers: nn.Module | None
    ) -> None:
        """`layers`: from a pooled text to its embedding."""
        super().__init__()
        self.student, self.tokenizer, self.card = student, tokenizer, card
        self.layers = layers
        task = card.space.task
        self.kind = "embedding" if task == "none" else task
        self.eval()

    @property
    def of_tokens(self) -> bool:
        """Whether a text has an embedding of each of its tokens."""
        return self.card.pooling == "none"

    def require_one_vector(self, what: str) -> None:
        """Raises JobError for a student with a vector for each token; `what` takes one of a
        text."""
        if self.of_tokens:
            raise JobError(
                f"{what}: takes one vector of each text, and this student has one of each token "
                "(pooling=none); name a student with another pooling"
            )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits, scores or embeddings."""
        answers: tuple[Tensor, Tensor] = self.student(input_ids, attention_mask, token_type_ids)
        return self._output(*answers)

    def _output(self, pooled_BD: Tensor, output_BK: Tensor) -> Tensor:
        if self.kind != "embedding":
            return output_BK
        if self.layers is None:
            return pooled_BD
        embeddings: Tensor = self.layers(pooled_BD)
        if self.of_tokens:  # a bias is no token
            embeddings = embeddings.masked_fill(~pooled_BD.any(dim=-1, keepdim=True), 0.0)
        return embeddings

    def prompted(self, texts: Sequence[Text], name: PromptName | None = None) -> list[Text]:
        """Texts behind the prompt that they had in training, if they had one: queries, or documents
        (which are passages). Raises JobError if these have different ones and no name is given."""
        own = self.card.embedding
        prompt = "" if own is None else own.chosen(name, "of this folder")
        if not prompt:
            return list(texts)
        return [(f"{prompt}{first}", *rest) for first, *rest in self._segments(texts)]

    def encode(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """A batch of texts as the module takes them, on its device."""
        tokens = encode(self.tokenizer, self._segments(texts), self.card.max_length)
        batch = tokens.pad(np.arange(len(tokens)))
        return {name: rows.to(self.device) for name, rows in batch.items()}

    @torch.inference_mode()
    def predict(self, texts: Sequence[Text], batch_size: int = 64) -> list[Prediction]:
        """Predictions for texts, in their order. Raises InputError for a bare text."""
        self._require_several(texts)
        found: list[Prediction] = []
        for start in range(0, len(texts), batch_size):
            output = self._read(texts[start : start + batch_size]).float().cpu()
            found.extend(self._predictions(output))
        return found

    @torch.inference_mode()
    def outputs(
        self, texts: Sequence[Text], batch_size: int
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Outputs [N, K] of texts in their order, or [N, T, K] of their tokens, and how many texts
        were truncated; batches are of texts of similar length, the longest first, so that memory
        runs out at once or never.

        Raises TrainingError for outputs that are not finite."""
        if not texts:
            return np.empty((0, 0), dtype=np.float32), 0
        tokens = encode(self.tokenizer, self._segments(texts), self.card.max_length)
        longest_first = np.argsort(-np.diff(tokens.offsets), kind="stable")
        found = []
        for start in range(0, len(tokens), batch_size):
            batch = tokens.pad(longest_first[start : start + batch_size])
            output = self(**{name: rows.to(self.device) for name, rows in batch.items()})
            found.append(output.float().cpu().numpy())
        outputs = _end_to_end(found)[np.argsort(longest_first)]
        require_finite(outputs)
        return outputs, tokens.truncated

    def _read(self, texts: Sequence[Text]) -> Tensor:
        output: Tensor = self(**self.encode(texts))
        return output

    def _predictions(self, output: Tensor) -> Iterator[Prediction]:
        if self.kind == "regression":
            one = output.shape[1] == 1
            yield from ({"score": row[0]} if one else {"scores": row} for row in output.tolist())
        elif self.kind == "multilabel":
            known = self.classes or range(output.shape[1])
            for row in output.double().sigmoid().tolist():
                held = [label for label, p in zip(known, row, strict=True) if p > HOLDS]
                yield {"classes": held, "probabilities": row}
        elif self.kind == "embedding":
            for row in output.numpy():
                yield {"embedding": row[row.any(axis=-1)] if self.of_tokens else row}
        else:
            for row in output.double().softmax(1):
                chosen = int(row.argmax())
                label = self.classes[chosen] if self.classes else chosen
                yield {"class": label, "probabilities": row.tolist()}


def _end_to_end(batches: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Outputs of batches; those of tokens as wide as the widest, with zeros."""
    if batches[0].ndim == 2:
        return np.concatenate(batches)
    widest = max(batch.shape[1] for batch in batches)
    return np.concatenate(
        [np.pad(batch, ((0, 0), (0, widest - batch.shape[1]), (0, 0))) for batch in batches]
    )


class SavedStaticReader(SavedReader):
    """A static student: as the others, but its texts are never padded."""

    student: StaticStudent

    @torch.inference_mode()
    def outputs(
        self, texts: Sequence[Text], batch_size: int
    ) -> tuple[npt.NDArray[np.float32], int]:
        """See SavedReader."""
        whole = self._segments(texts)
        if not whole or any(len(segments) > 1 for segments in whole):
            return super().outputs(texts, batch_size)
        starts = range(0, len(whole), batch_size)
        parts = [self._read_flat([text for (text,) in whole[n : n + batch_size]]) for n in starts]
        outputs = np.concatenate([output.float().cpu().numpy() for output, _ in parts])
        require_finite(outputs)
        return outputs, sum(cut for _, cut in parts)

    def _read(self, texts: Sequence[Text]) -> Tensor:
        whole = self._segments(texts)
        if any(len(segments) > 1 for segments in whole):
            return super()._read(texts)
        return self._read_flat([text for (text,) in whole])[0]

    def _read_flat(self, texts: list[str]) -> tuple[Tensor, int]:
        """Outputs of texts of one segment, and how many were truncated."""
        backend, unknown = self.tokenizer.backend_tokenizer, self.student.backbone.unknown
        tokens = StaticTokenizer(backend, self.card.max_length, unknown)
        ids_S, starts_B, cut = tokens.read(texts)
        given = (torch.from_numpy(each).to(self.device) for each in (ids_S, starts_B))
        return self._output(*self.student.of_flat(*given)), int(cut.sum())


class SavedLanguageModel(SavedStudent):
    """A student that is a language model: logits [B, T, V] of the next token."""

    kind = "language"
    card: LanguageCard

    def __init__(self, model: Any, tokenizer: Any, card: LanguageCard) -> None:
        super().__init__()
        self.model, self.tokenizer, self.card = model, tokenizer, card
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    def encode(self, texts: Sequence[Text]) -> dict[str, Tensor]:
        """Prompts as the module takes them, padded on the left, on its device."""
        prompts, _ = self._prompts(texts)
        batch = padded_prompts(self.tokenizer, prompts)
        return {name: rows.to(self.device) for name, rows in batch.items()}

    def predict(
        self,
        texts: Sequence[Text],
        batch_size: int = 64,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
    ) -> list[Prediction]:
        """Its greedy response to each prompt, or its continuation of a text."""
        self._require_several(texts)
        responses, _ = self.respond(texts, batch_size, max_new_tokens)
        return [{"generated_text": text} for text in responses]

    def respond(
        self, texts: Sequence[Text], batch_size: int, max_new_tokens: int
    ) -> tuple[list[str], int]:
        """Responses, and how many of the texts were truncated at the student's max_length."""
        causal = without_adapters(self.model)
        ends = end_ids(self.tokenizer, self.card.recipe, causal.generation_config)
        prompts, cut = self._prompts(texts)
        return respond(causal, self.tokenizer, prompts, max_new_tokens, batch_size, ends), cut

    @property
    def reads_chats(self) -> bool:
        """Whether examples are chats of many turns."""
        return self.card.recipe.text_format == "chat" and len(self.card.text_columns) == 1

    def _prompts(self, texts: Sequence[Text]) -> tuple[list[list[int]], int]:
        """Tokens of texts, and how many of these were truncated."""
        recipe = self.card.recipe
        examples, most = self._segments(texts), self.card.max_length
        if recipe.has_prompt:  # the response is generated
            found = encode_prompts(self.tokenizer, recipe, examples, most)
        else:
            recipe = recipe.model_copy(update={"end_token": False})
            found = encode_texts(self.tokenizer, recipe, examples, most)
        prompts = [found.of(text).tolist() for text in range(len(found))]
        return prompts, int(found.truncated.sum())


def load_student(folder: str | Path) -> SavedStudent:
    """The student in a folder that `distill` wrote, or in the run's folder around it, on the CPU.

    Raises StudentSourceError."""
    if re.match(r"[a-z][a-z0-9+.-]+://", str(folder)):
        raise StudentSourceError(
            f"student {shown_url(str(folder))}: looks like a URL; name a local folder"
        )
    folder = Path(expand_home(str(folder)))
    if is_language_student(folder):
        return SavedLanguageModel(*load_language_folder(folder))
    if is_masked_student(folder):
        raise StudentSourceError(
            f"student {folder}: is a masked language model, which fills masks; open its folder "
            'with transformers (pipeline("fill-mask", folder)), or train it on labels first'
        )
    folder = student_folder(folder)
    student, tokenizer, card = load_saved_student(folder)
    layers = _read_layers(folder, card) if card.space.task == "none" else None
    kind = SavedStaticReader if isinstance(student, StaticStudent) else SavedReader
    return kind(student, tokenizer, card, layers)


def is_embedder(folder: Path) -> bool:
    """Whether a folder that `distill` wrote holds a student trained on a feature as an embedding
    model."""
    folder = student_folder(folder)
    if not (folder / MODULES).is_file():
        return False
    # A static student opens as an embedding model whatever it was trained on.
    if not is_static_folder(folder, StudentSourceError):
        return True
    return bool(read_card(folder / CARD, StudentCard).learned_feature) or _has_projection(folder)


def load_embedder(folder: Path) -> SavedReader | None:
    """A student trained on a feature as an embedding model, also if it predicts labels too; None
    for one that predicts labels and learned no feature. Raises StudentSourceError."""
    folder = student_folder(folder)
    student, tokenizer, card = load_saved_student(folder)
    # Other objectives have projections, too: into a space that is not the feature's.
    if card.space.task != "none" and not is_embedder(folder):
        return None
    kind = SavedStaticReader if isinstance(student, StaticStudent) else SavedReader
    reader = kind(student, tokenizer, card, _read_layers(folder, card))
    reader.kind = "embedding"
    return reader


def _read_layers(folder: Path, card: StudentCard) -> nn.Module | None:
    """Layers after the student's pooling, from the projection on: a layer before it is part of that
    pooling."""
    if is_static_folder(folder, StudentSourceError):
        layers = read_static_folder(folder, StudentSourceError).layers
        return load_layers(layers, StudentSourceError)
    declared = read_embedding_folder(folder, StudentSourceError)
    if declared is None:
        return _read_projection(folder)
    dense = [index for index, layer in enumerate(declared.layers) if not layer.normalizes]
    if not _has_layer_behind(folder, card):
        behind = dense[-1] + 1 if dense else 0
        return load_layers(declared.layers[behind:], StudentSourceError)
    if len(dense) > 1 and card.embedding is None:
        both = load_layers(declared.layers[dense[-2] :], StudentSourceError)
        if _is_first_of_two(folder, both[0]):
            return both
    return load_layers(declared.layers[dense[-1] :], StudentSourceError)


def _has_layer_behind(folder: Path, card: StudentCard) -> bool:
    """Whether there is a layer behind those of the pooling, from a text to its embedding."""
    return _has_projection(folder) if card.embedding is None else card.embedding.has_dense


def _is_first_of_two(folder: Path, layer: Any) -> bool:
    """Whether a layer is the first of a projector of two."""
    weight = layer.state_dict().get("linear.weight")
    tensors = load_file(folder / HEADS)
    firsts = [t for name, t in tensors.items() if _PROJECTION.match(name) and _FIRST in name]
    return weight is not None and any(torch.equal(weight, first.float()) for first in firsts)


def _has_projection(folder: Path) -> bool:
    """Whether something was learned with a projection into the space of a feature."""
    with refusing(StudentSourceError, f"student {folder}: {HEADS}"):
        return any(map(_PROJECTION.match, load_file(folder / HEADS)))


def _read_projection(folder: Path) -> nn.Module | None:
    """Projection of a pooled text to the space of the learned feature; None if there is none."""
    with refusing(StudentSourceError, f"student {folder}: {HEADS}"):
        tensors = load_file(folder / HEADS)
        found = (_PROJECTION.match(name) for name in sorted(tensors))
        prefix = next((each[0] for each in found if each), None)
        if prefix is None:
            return None
        if f"{prefix}{_FIRST}" in tensors:
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            first, last = own[_FIRST], own["output.weight"]
            projector = MLPProjector(first.shape[1], last.shape[0])
            projector.load_state_dict(own)
            return projector
        weight = tensors.get(f"{prefix}weight")
        if weight is None:  # only the run knows its parametrization
            raise StudentSourceError(
                f"student {folder}: it has no modules.json, needed for its orthogonal projection; "
                "train it again with pooling=mean, cls or last"
            )
        bias = tensors.get(f"{prefix}bias")
        projection = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        projection.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return projection
