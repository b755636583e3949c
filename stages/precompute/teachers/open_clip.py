"""The text tower of any open_clip model as a teacher.

Computed by open_clip's own code: its tokenizer, truncated and padded to the model's context length,
and its `encode_text`. So every example has one length, and one bucket. Shapes: B examples, E
numbers of an embedding.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.keys import IntArray, digest
from ...pretrained import one_line, quiet_transformers, refusing, require_vocabulary
from ...sources import MODEL_FILE_PATTERNS, digest_files
from ...tokenizing.long_texts import LONG, shortened
from ...tokenizing.unknown import Unknown, mostly_unknown
from .base import (
    Answers,
    Example,
    Outputs,
    Prepared,
    Teacher,
    in_row_groups,
    make_spec,
    to_host,
)
from .clip_source import CONFIG_FILE, ClipSource, find_clip
from .options import OpenClipOptions


@dataclass(frozen=True, slots=True)
class _Rows:
    """Texts as the tower reads them: token ids [N, T], and which [N] were truncated."""

    ids_NT: torch.Tensor
    truncated: npt.NDArray[np.bool_]

    def take(self, rows: IntArray) -> "_Rows":
        return _Rows(self.ids_NT[torch.from_numpy(rows)], self.truncated[rows])


class OpenClipTeacher(Teacher):
    """Feature `embedding` [E], the text in the space that texts and images share."""

    Options = OpenClipOptions
    kind = "open_clip"

    def __init__(self, source: str, options: OpenClipOptions, device: torch.device) -> None:
        require_extra("teacher open_clip", "teachers", "open_clip")
        self._options, self._device = options, device
        self._precision = options.precision()
        self._source = find_clip(source, options.weights, options.revision)
        self._text_config = _text_config(self._source)
        self._tokenizer = _tokenizer(self._source)
        self._reads_clean = copy(self._tokenizer)
        self._reads_clean.clean_fn = str  # texts are cut between cleaning and reading
        feature = FeatureSpec(
            name="embedding",
            shape=(self._width(),),
            dtype=self._precision.stored,
            description="text embedding" + (", length 1" if options.normalize else ""),
        )
        self.spec = make_spec(
            "open_clip",
            self._source.name,
            _digests(self._source, self._tokenizer),
            # The digests identify both, wherever the files came from.
            options.model_copy(update={"revision": None, "weights": None}),
            [feature],
            **self._precision.settings(),
        )

    @property
    def folder(self) -> Path | None:
        """The folder of the model, both towers; None for an architecture with weights apart."""
        return self._source.folder

    def load(self) -> None:
        """Read the weights and keep the text tower."""
        import open_clip
        from open_clip.factory import load_checkpoint

        what = f"source {self._source.weights}"
        with refusing(TeacherSourceError, what), quiet_open_clip(), quiet_transformers():
            # `pretrained_text`: the configuration of a text tower, not its weights, which
            # are all in the checkpoint; strict loading refuses one that lacks any.
            model = open_clip.create_model(
                self._source.model_name, load_weights=False, pretrained_text=False
            )
            load_checkpoint(model, str(self._source.weights), strict=True)
        for unused in ("visual", "text_decoder"):
            if hasattr(model, unused):
                delattr(model, unused)
        model.eval().requires_grad_(False)
        self._model: Any = model.to(self._device, self._precision.torch_dtype)

    def encode(self, examples: Sequence[Example]) -> Answers:
        """[B, E] numbers."""
        return self.start(self.prepare(examples))()

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens."""
        texts = self._texts(examples)
        ids_NT = self._reads_clean(texts)
        truncated = np.array(self._counts(texts, ids_NT)) > ids_NT.shape[1]
        return Prepared(examples, np.zeros(len(texts), dtype=np.int64), _Rows(ids_NT, truncated))

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        rows: _Rows = batch.inputs
        embedding_BE = self._model.encode_text(in_row_groups(rows.ids_NT, self._device)).float()
        if self._options.normalize:
            embedding_BE = torch.nn.functional.normalize(embedding_BE, dim=-1)
        arriving = to_host([self._precision.cast(embedding_BE[: len(batch)])])
        return lambda: Answers({"embedding": arriving()[0]}, rows.truncated)

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher; open_clip's own tokenizer reads bytes."""
        hf = getattr(self._tokenizer, "tokenizer", None)
        return None if hf is None else mostly_unknown(hf, self._texts(examples))

    def _texts(self, examples: Sequence[Example]) -> list[str]:
        """The text of each example: cleaned, and cut far beyond the tokens that are kept."""
        most = self._tokenizer.context_length
        texts = [self._tokenizer.clean_fn(self._options.text(e.segments)) for e in examples]
        if (hf := getattr(self._tokenizer, "tokenizer", None)) is not None:
            return shortened(hf, texts, most)
        if self._tokenizer.reduction_fn is not None:
            return texts  # it reads all of a text to choose what is kept
        return [_first_words(self._tokenizer.pat, text, most) for text in texts]

    def _counts(self, texts: list[str], ids_BT: torch.Tensor) -> list[int]:
        """Number of tokens of each text, special ones included, before truncation."""
        hf = getattr(self._tokenizer, "tokenizer", None)
        if hf is None:
            # open_clip's own is slow: only texts that fill their row are counted again.
            return [
                len(self._reads_clean.encode(text)) + 2 if full else 0
                for text, full in zip(texts, ids_BT[:, -1].tolist(), strict=True)
            ]
        own = 3 if self._tokenizer.tokenizer_mode == "clips" else 0  # added without the tokenizer
        rows = hf(texts, add_special_tokens=not own, verbose=False).input_ids
        return [len(row) + own for row in rows]

    def _width(self) -> int:
        if self._text_config.proj_type == "none" and not self._text_config.hf_model_name:
            return int(self._text_config.width)
        return int(self._source.config["embed_dim"])


def _first_words(pattern: Any, text: str, most: int) -> str:
    """A text up to its word number `most`: open_clip's own tokenizer makes a token or more of each.
    All of it where its words would be others then."""
    if len(text) <= LONG * most:
        return text
    words = list(islice(pattern.finditer(text), most))
    short = text[: words[-1].end()] if len(words) == most else text
    return short if pattern.findall(short) == [word[0] for word in words] else text


def _text_config(source: ClipSource) -> Any:
    from open_clip import CLIPTextCfg

    try:
        config = CLIPTextCfg(**source.config["text_cfg"])
    except TypeError as cause:
        raise TeacherSourceError(
            f"source {source.name}: text_cfg: {one_line(cause)}; needs another open_clip"
        ) from cause
    mask = (config.tokenizer_kwargs or {}).get("reduction_mask", "")
    if mask not in ("", "syntax"):
        raise TeacherSourceError(
            f"source {source.name}: reduction_mask {mask!r} drops tokens at random, which is for "
            f"training; remove it from the folder's {CONFIG_FILE}"
        )
    return config


def _tokenizer(source: ClipSource) -> Any:
    import open_clip

    what = f"source {source.name}: tokenizer"
    with refusing(TeacherSourceError, what), quiet_open_clip(), quiet_transformers():
        tokenizer = open_clip.get_tokenizer(source.model_name)
    if hasattr(tokenizer, "tokenizer") and source.folder is not None:
        require_vocabulary(tokenizer.tokenizer, source.folder, TeacherSourceError)
    return tokenizer


def _digests(source: ClipSource, tokenizer: Any) -> dict[str, str]:
    digests = {
        "config": digest(source.config),
        "model": digest_files(source.weights.parent, [source.weights]),
    }
    if not hasattr(tokenizer, "tokenizer"):
        return digests  # open_clip's own, which comes with the package
    if source.folder is None:
        return digests | {"tokenizer": digest(tokenizer.tokenizer.backend_tokenizer.to_str())}
    files = [path for pattern in MODEL_FILE_PATTERNS for path in source.folder.glob(pattern)]
    texts = [path for path in files if path.suffix != ".safetensors" and path.name != CONFIG_FILE]
    return digests | {"tokenizer": digest_files(source.folder, texts)}


@contextmanager
def quiet_open_clip() -> Iterator[None]:
    # It warns through the root logger that weights are random; here they are loaded right after.
    # The NullHandler keeps `logging.warning` from installing a handler of its own for good.
    silent = logging.NullHandler()
    before = logging.root.manager.disable
    logging.root.addHandler(silent)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(silent)
