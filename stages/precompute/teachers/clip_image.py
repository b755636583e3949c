"""Pictures embedded by the image tower of CLIP, SigLIP and the like: for each text one of a
folder, or the example's own (`given_pictures.py`).

Retrieved by both towers. In: a text, and a folder of pictures (`picture_index.py`). The
`neighbours` pictures whose embeddings are most similar (cosine) to the text's are retrieved. Out:
`image_embedding` [E], the mean of their embeddings by the image tower; `picture_ids` [K, 16], the
first bytes of the SHA-256 of each file, the most similar first; `similarities` [K]. Texts are read
as by `encoder` and `open_clip` teachers. The index is on the device, and a search is a few matrix
products.

A picture that is generated instead, and embedded: `diffusers`, with an `image_encoder`.
Shapes: B examples, N pictures, K neighbours, E numbers of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.extras import require_extra
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.teachers import TeacherSpec
from ...tokenizing.unknown import Unknown
from .base import ROW_GROUP, Answers, Example, Outputs, Prepared, Teacher, in_row_groups
from .clip_image_options import ClipImageOptions
from .clip_source import is_open_clip
from .encoder import EncoderTeacher
from .encoder_options import EncoderOptions
from .given_pictures import GivenPictures, require_no_picture
from .image_encoders import ImageEncoder, image_encoder
from .open_clip import OpenClipTeacher
from .options import OpenClipOptions
from .picture_index import ID_BYTES, embeddings_of, read_picture_folder

_NOT_SETTINGS = {"revision", "pictures"}
"""Outside the fingerprint: the locations of weights and pictures, whose digests are inside."""


_MOST_SIMILARITIES = 2**26
"""Cosines of texts and pictures that are computed at once: 256 MiB."""


class ClipImageTeacher(Teacher):
    """Feature `image_embedding` [E]; of a picture that is retrieved, `picture_ids` [K, 16] and
    `similarities` [K] as well."""

    Options = ClipImageOptions
    kind = "clip_image"

    def __init__(self, source: str, options: ClipImageOptions, device: torch.device) -> None:
        require_extra("teacher clip_image", "teachers", "PIL", "torchvision")
        chosen = GivenPictures if options.picture == "given" else RetrievedPictures
        self._teacher: Teacher = chosen(source, options, device)
        self.spec, self.notes = self._teacher.spec, self._teacher.notes
        for name in ("default_batch_size", "default_batch_tokens"):
            setattr(self, name, getattr(self._teacher, name))

    def load(self) -> None:
        """Build the towers that it needs."""
        self._teacher.load()

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Embeddings of B pictures."""
        return self.start(self.prepare(examples))()

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each text, in tokens; pictures have none."""
        return self._teacher.buckets(examples)

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """The tokens of texts; nothing yet of pictures."""
        return self._teacher.prepare(examples)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        return self._teacher.start(batch)

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for pictures where texts are read, and for texts where pictures are."""
        self._teacher.check(examples)

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        return self._teacher.unknown(examples)


class RetrievedPictures(Teacher):
    """Features `image_embedding` [E], `picture_ids` [K, 16] and `similarities` [K]."""

    kind = ClipImageTeacher.kind
    default_batch_tokens = EncoderTeacher.default_batch_tokens

    def __init__(self, source: str, options: ClipImageOptions, device: torch.device) -> None:
        if not options.pictures:
            raise JobError(
                "pictures: name the folder of pictures; for those of the corpus, set "
                "picture=given; for generated ones, use diffusers with an image_encoder"
            )
        self._options, self._device = options, device
        self._reader, self._encoder = _towers(source, options, device)
        self._pictures = read_picture_folder(options.pictures)
        if options.neighbours > len(self._pictures.ids):
            raise JobError(
                f"neighbours: {options.neighbours}, but the folder holds "
                f"{len(self._pictures.ids)} distinct pictures; choose no more"
            )
        self.notes = self._reader.notes
        self.spec = self._spec()

    def _spec(self) -> TeacherSpec:
        options, read = self._options, self._reader.spec
        compute = read.settings["dtype"]
        self._precision = options.model_copy(update={"dtype": compute}).precision()
        own = {k: v for k, v in options.settings().items() if k not in _NOT_SETTINGS}
        for name in read.settings.keys() & {"max_length", "padding"}:
            own[name] = read.settings[name]
        return TeacherSpec(
            kind=self.kind,
            name=read.name,
            weights=dict(read.weights)
            | {"image_encoder": self._encoder.digest(), "pictures": self._pictures.digest()},
            settings=own | self._precision.settings() | {"image_encoder": self._encoder.form},
            features=self._features(),
        )

    def _features(self) -> tuple[FeatureSpec, ...]:
        count, stored = self._options.neighbours, self._precision.stored
        several = f"the {count} most similar pictures, their mean" if count > 1 else "that picture"
        return (
            FeatureSpec(
                name="image_embedding",
                shape=(self._encoder.dim,),
                dtype=stored,
                description=f"image embedding of {several}",
            ),
            FeatureSpec(
                name="picture_ids",
                shape=(count, ID_BYTES),
                dtype="uint8",
                description="first bytes of the SHA-256 of the files, the most similar first",
            ),
            FeatureSpec(
                name="similarities",
                shape=(count,),
                dtype=stored,
                description="cosine of text and picture",
            ),
        )

    def load(self) -> None:
        """Read the text tower, and embed the pictures unless their embeddings are kept."""
        self._reader.load()
        rows_NE = embeddings_of(
            self._pictures, self._encoder, self._precision.torch_dtype, self._device
        )
        del self._encoder  # the index takes its place
        unit_NE = F.normalize(rows_NE, dim=-1)
        self._unit_NE = unit_NE.to(self._device)
        self._rows_NE = self._unit_NE if self._options.normalize else rows_NE.to(self._device)
        self._ids = self._pictures.id_bytes()

    def encode(self, examples: Sequence[Example]) -> Answers:
        """Retrieve for B texts."""
        return self.start(self.prepare(examples))()

    def check(self, examples: Sequence[Example]) -> None:
        """Raises JobError for pictures, of which the name would be read as a text."""
        require_no_picture(examples)

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example, in tokens."""
        return self._reader.buckets(examples)

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens."""
        return self._reader.prepare(examples)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        reading = self._reader.start(batch)
        return lambda: self._retrieved(reading())

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        return self._reader.unknown(examples)

    @torch.inference_mode()
    def _retrieved(self, read: Answers) -> Answers:
        (texts,) = read.features.values()
        texts_BE = in_row_groups(torch.from_numpy(np.asarray(texts)), self._device)
        at_once = max(_MOST_SIMILARITIES // len(self._ids) // ROW_GROUP, 1) * ROW_GROUP
        found_BK = [self._nearest(rows) for rows in torch.split(texts_BE, at_once)]
        similar_BK, chosen_BK = (
            torch.cat(parts)[: len(texts)] for parts in zip(*found_BK, strict=True)
        )
        numbers = {
            "image_embedding": self._rows_NE[chosen_BK].mean(dim=1),
            "similarities": similar_BK,
        }
        found: dict[str, Any] = {
            name: self._precision.cast(values).cpu().numpy() for name, values in numbers.items()
        }
        found["picture_ids"] = self._ids[chosen_BK.cpu().numpy()]
        return Answers(found, read.truncated)

    def _nearest(self, texts_BE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Similarities and rows of the pictures nearest to each text, both [B, K]."""
        values_BK, rows_BK = (texts_BE @ self._unit_NE.T).topk(self._options.neighbours)
        return values_BK, rows_BK


def _towers(
    source: str, options: ClipImageOptions, device: torch.device
) -> tuple[Teacher, ImageEncoder]:
    """What reads texts, scaled to length 1, and what sees pictures, in one space."""
    shared = {
        "template": options.template,
        "lowercase": options.lowercase,
        "revision": options.revision,
        "dtype": options.dtype,
        "matmul_precision": options.matmul_precision,
        **{"store_dtype": "float32", "normalize": True},
    }
    if is_open_clip(source):
        if options.max_length is not None:
            raise JobError("max_length: an open_clip model reads as many as it was trained on")
        clip = OpenClipTeacher(source, OpenClipOptions(**shared), device)
        return clip, _of_one_space(clip, image_encoder(f"open_clip:{clip.folder}"))
    shared["max_length"] = options.max_length
    reader = EncoderTeacher(source, EncoderOptions(**shared), device)
    if reader.spec.settings["pooling"] != "features":
        raise TeacherSourceError(
            f"source {source}: gives no features of texts in the space of pictures; choose a CLIP "
            "or SigLIP model"
        )
    return reader, _of_one_space(reader, image_encoder(f"transformers:{reader.folder}"))


def _of_one_space(reader: Teacher, encoder: ImageEncoder) -> ImageEncoder:
    (width,) = reader.spec.features[0].shape
    if encoder.dim != width:
        raise TeacherSourceError(
            f"source {reader.spec.name}: texts have {width} numbers and pictures {encoder.dim}, "
            "which cannot be compared; choose a CLIP or SigLIP model with both projections"
        )
    return encoder
