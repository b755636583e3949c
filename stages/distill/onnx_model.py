"""A finished student that embeds, as an ONNX model, and its second one of int8 weights.

    in     input_ids, attention_mask, and token_type_ids where its tokenizer has them: int64 [B, T]
    out    last_hidden_state [B, T, W]    the transformer's, for readers that pool by themselves
           sentence_embedding [B, E]      pooled, through all layers of the folder

Both sizes B and T are free. The names are those of Optimum's exports of sentence-transformers
models, so its `backend="onnx"`, and what pools by itself, open the file. Of a static student,
last_hidden_state is the rows of its table, zeros for tokens that its mean leaves out.

int8: weights by a scale for each column of a matrix, in 7 bits, so that no sum of products
overflows on processors without VNNI; activations by the range of each batch (dynamic quantization
of ONNX Runtime). Measured with three layers of MiniLM on sentences of STS-B: the mean cosine to
float32 is 0.997; with one scale for each matrix 0.971. Shapes: B texts, T tokens, W and E numbers.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cache_schemas.errors import StudentSourceError
from ..embeddings.folders import read_embedding_folder
from ..embeddings.layers import load_layers
from ..embeddings.static import read_static_folder
from ..pooling import StatePooling, pool
from ..pretrained import one_line
from .saved_student import SavedReader, Text
from .static_student import StaticStudent
from .tokens import encode

OUTPUTS = ("last_hidden_state", "sentence_embedding")
OPSET = 20
_MOST_BYTES = 1_500_000_000
"""Larger weights lie in a file beside the model's: one of ONNX holds 2 GiB."""


class _Encoder(nn.Module):
    """Transformer, pooling, layers."""

    def __init__(
        self, reader: SavedReader, modes: Sequence[StatePooling], layers: nn.Module
    ) -> None:
        super().__init__()
        self.backbone, self.modes, self.layers = reader.student.backbone, modes, layers
        self.always = reader.student._always

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        states_BTW = self.backbone(**inputs, **self.always).last_hidden_state
        return states_BTW, self.layers(pool(states_BTW, attention_mask, self.modes))


class _Table(nn.Module):
    """Rows of a table, their mean, layers."""

    def __init__(self, student: StaticStudent, layers: nn.Module) -> None:
        super().__init__()
        self.weight = student.backbone.weight
        self.unknown = -1 if student.backbone.unknown is None else student.backbone.unknown
        self.layers = layers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        kept_BT = (attention_mask != 0) & (input_ids != self.unknown)
        kept_BT1 = kept_BT.unsqueeze(-1).to(self.weight.dtype)
        rows_BTW = F.embedding(input_ids, self.weight) * kept_BT1
        return rows_BTW, self.layers(rows_BTW.sum(1) / kept_BT1.sum(1).clamp(min=1))


def write_onnx(reader: SavedReader, folder: Path, file: Path) -> None:
    """Write the student of `folder`, which `reader` has open. Raises StudentSourceError for one
    that sentence-transformers does not pool, or whose model has no way into ONNX."""
    graph, names = _graph(reader, folder), _input_names(reader)
    rows = reader.encode(["a", "a few words of a text"])
    given = tuple(rows[name] for name in names)
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    size = sum(each.numel() * each.element_size() for each in graph.parameters())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                given,
                dynamo=True,
                input_names=list(names),
                output_names=list(OUTPUTS),
                dynamic_shapes={name: {0: batch, 1: sequence} for name in names},
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(file, external_data=size > _MOST_BYTES)
    except torch.onnx.errors.OnnxExporterError as cause:
        first = str(cause).strip().partition("\n")[0]
        raise StudentSourceError(
            f"student {folder}: PyTorch has no way of its model into ONNX: {first}; "
            "armada.load_student and sentence-transformers open the folder as it is"
        ) from cause


def _input_names(reader: SavedReader) -> tuple[str, ...]:
    """The inputs of a batch, in the order of `forward`."""
    given = reader.encode(["a"])
    return tuple(n for n in ("input_ids", "attention_mask", "token_type_ids") if n in given)


def _graph(reader: SavedReader, folder: Path) -> nn.Module:
    if isinstance(reader.student, StaticStudent):
        behind = read_static_folder(folder, StudentSourceError).layers
        return _Table(reader.student, load_layers(behind, StudentSourceError)).eval()
    declared = read_embedding_folder(folder, StudentSourceError)
    if declared is None or declared.pooling is None:
        raise StudentSourceError(
            f"student {folder}: is no folder of sentence-transformers, which says how its texts "
            "are pooled; train it with pooling=mean, cls or last"
        )
    layers = load_layers(declared.layers, StudentSourceError)
    return _Encoder(reader, declared.pooling, layers).eval()


def write_int8(whole: Path, file: Path) -> None:
    """Write an ONNX model again with int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            whole, file, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of their own inner matters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def embed_by_onnx(
    file: Path, reader: SavedReader, texts: Sequence[Text], batch_size: int
) -> npt.NDArray[np.float32]:
    """The embeddings [N, E] of texts by a file's model in ONNX Runtime, on the CPU. Raises
    StudentSourceError for a model that does not run on them."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    segments = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    tokens = encode(reader.tokenizer, segments, reader.card.max_length)
    longest_first = np.argsort(-np.diff(tokens.offsets), kind="stable")
    found = []
    for start in range(0, len(tokens), batch_size):
        batch = tokens.pad(longest_first[start : start + batch_size])
        given: Mapping[str, Any] = {name: batch[name].numpy() for name in names}
        try:
            found.append(session.run(["sentence_embedding"], given)[0])
        except (errors.InvalidArgument, errors.Fail, errors.RuntimeException) as cause:
            raise StudentSourceError(
                f"{file.name}: PyTorch's exporter wrote a model that does not run on batches of "
                f"other sizes ({one_line(cause)}), as it does of some families; "
                "armada.load_student and sentence-transformers open the folder as it is"
            ) from cause
    by_text: npt.NDArray[np.float32] = np.concatenate(found)[np.argsort(longest_first)]
    return by_text
