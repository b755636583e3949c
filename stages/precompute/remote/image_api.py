"""Pictures that a server makes of a text, embedded here: `POST /images/generations` -> an image
encoder -> feature `image_embedding` [E].

A picture is kept as it came until its embedding is in a shard, as every reply is: it was paid for.
On a CPU pictures are embedded one at a time, so that an embedding is the same in any batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ...pictures import open_picture, png_file
from ..teachers.base import Answers, Example
from ..teachers.image_encoders import image_encoder
from . import pictures
from .feature_api import FeatureApi
from .options import OpenAIOptions
from .requests import Query
from .wire import Usage


class ImageApi(FeatureApi):
    """Feature `image_embedding` of one picture of each text."""

    path = "/images/generations"
    probe = ("A quick brown fox jumps over a lazy dog.",)
    most_probes = 1
    """No two pictures are alike: another one says nothing, and costs as much."""

    def __init__(self, model: str, options: OpenAIOptions, device: torch.device) -> None:
        """Raises TeacherSourceError or JobError for the image encoder."""
        self._model, self._options, self._device = model, options, device
        assert options.image_encoder is not None
        self._encoder = image_encoder(options.image_encoder)
        self._digest = self._encoder.digest()

    @property
    def settings(self) -> Mapping[str, SettingValue]:
        """See FeatureApi: the kind of encoder."""
        return {"image_encoder": self._encoder.form}

    @property
    def weights(self) -> Mapping[str, str]:
        """See FeatureApi: the encoder's."""
        return {"image_encoder": self._digest}

    def load(self) -> None:
        """See FeatureApi."""
        self._encoder.load(torch.float32, self._device)

    def content(self, example: Example) -> str:
        """The text."""
        return self._options.text(example.segments)

    def body(self, queries: Sequence[Query]) -> dict[str, Any]:
        """See Api."""
        (query,) = queries
        return pictures.body(self._model, query.content, self._options.size)

    def read(self, document: Any, count: int) -> Sequence[bytes]:
        """The picture."""
        return pictures.read(document, count)

    def expected(self, queries: Sequence[Query]) -> Usage:
        """Pictures are paid by the piece: `request_price`."""
        return Usage(0, 0)

    def features(self, answer: bytes | None) -> list[FeatureSpec]:
        """The embedding, as wide as the encoder's."""
        return [
            FeatureSpec(
                name="image_embedding",
                shape=(self._encoder.dim,),
                dtype=self._options.store_dtype,
                description="embedding of the picture generated for the text",
            )
        ]

    def answers(self, found: Sequence[bytes | None], contents: Sequence[Any]) -> Answers:
        """[B, E]."""
        rows = np.zeros((len(found), self._encoder.dim), dtype=np.float32)
        there = [row for row, each in enumerate(found) if each is not None]
        opened = [open_picture(found[row] or b"") for row in there]
        size = 1 if self._device.type == "cpu" else max(len(opened), 1)
        with torch.inference_mode():
            for start in range(0, len(opened), size):
                embedded = self._encoder(opened[start : start + size])
                rows[there[start : start + size]] = embedded.float().cpu().numpy()
        kept: list[bytes] = []
        if self._options.keep_images:
            png = dict(zip(there, map(png_file, opened), strict=True))
            kept = [png.get(row, b"") for row in range(len(found))]
        return Answers({"image_embedding": rows}, np.zeros(len(found), dtype=bool), kept)

    def distance(self, one: bytes, other: bytes) -> float:
        """See FeatureApi: none that says anything."""
        return 0.0
