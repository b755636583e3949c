"""Pictures that are the examples themselves, embedded by a vision tower.

In: an example of one segment, a picture (`stages/pictures.py`), whose bytes are its key. Out:
`image_embedding` [E], by the image tower of a CLIP or SigLIP, or by any model that
`image_encoders.py` knows. Pictures are unpacked when their batch begins. On a CPU they are computed
one by one, and so an embedding is equal bit for bit in any batch.
Shapes: B pictures, E numbers of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ...pictures import PREFIX, PictureError, read_picture
from ...pretrained import source_name
from ...sources import resolve
from .base import Answers, Example, Outputs, Prepared, Teacher, make_spec, to_host
from .clip_image_options import ClipImageOptions
from .clip_source import HUB_PREFIX, is_open_clip
from .image_encoders import image_encoder


class GivenPictures(Teacher):
    """Feature `image_embedding` [E] of the example's own picture."""

    kind = "clip_image"
    default_batch_size = 32

    def __init__(self, source: str, options: ClipImageOptions, device: torch.device) -> None:
        self._normalize, self._device = options.normalize, device
        self._precision = options.precision()
        own = source.removeprefix(HUB_PREFIX)
        folder = resolve(own, options.revision, TeacherSourceError)
        form = "open_clip" if is_open_clip(source) else "transformers"
        self._encoder = image_encoder(f"{form}:{folder}")
        told = "image embedding of the picture" + (", length 1" if self._normalize else "")
        self.spec = make_spec(
            self.kind,
            source_name(own, options.revision),
            {"image_encoder": self._encoder.digest()},
            options.model_copy(update={"revision": None}),  # the digest is of its files
            [
                FeatureSpec(
                    name="image_embedding",
                    shape=(self._encoder.dim,),
                    dtype=self._precision.stored,
                    description=told,
                )
            ],
            **self._precision.settings(),
            image_encoder=form,
        )

    def load(self) -> None:
        """Build the vision tower."""
        self._encoder.load(self._precision.torch_dtype, self._device)

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for what is not one picture."""
        for example in examples:
            if len(example.segments) != 1:
                raise JobError(
                    f"text_column: picture=given reads one picture, and an example has "
                    f"{len(example.segments)} segments; name one column, as picture:COLUMN"
                )
            if not example.segments[0].startswith(PREFIX):
                raise JobError(
                    f"text_column: picture=given reads pictures, and {example.segments[0]!r:.60} "
                    "is none; name the column as picture:COLUMN"
                )

    def encode(self, examples: Sequence[Example]) -> Answers:
        """[B, E] numbers."""
        return self.start(self.prepare(examples))()

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        self.check(batch.examples)
        pictures, refused = dict[int, Any](), dict[int, str]()
        for row, example in enumerate(batch.examples):
            try:
                pictures[row] = read_picture(example.segments[0])
            except PictureError as error:
                refused[row] = f"the picture {error}"
        at_once = 1 if self._device.type == "cpu" else max(len(pictures), 1)
        sound = list(pictures.values())
        found = [
            self._embedded(sound[start : start + at_once])
            for start in range(0, len(sound), at_once)
        ]
        arriving = to_host(found)

        def outputs() -> Answers:
            (feature,) = self.spec.features
            embeddings_BE = np.zeros((len(batch), *feature.shape), feature.dtype)
            if found:
                embeddings_BE[list(pictures)] = np.concatenate(arriving())
            uncut = np.zeros(len(batch), dtype=bool)
            return Answers({feature.name: embeddings_BE}, uncut, refused=refused)

        return outputs

    def _embedded(self, pictures: Sequence[Any]) -> torch.Tensor:
        found_BE = self._encoder(pictures).float()
        if self._normalize:
            found_BE = F.normalize(found_BE, dim=-1)
        return self._precision.cast(found_BE)


def require_no_picture(examples: Sequence[Example]) -> None:
    """Raises JobError for pictures where texts are read."""
    if any(segment.startswith(PREFIX) for each in examples for segment in each.segments):
        raise JobError(
            "text_column: names a column of pictures, and pictures are retrieved for texts; to "
            "embed these pictures themselves, set picture=given"
        )
