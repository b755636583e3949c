"""Static models as encoders: folders of sentence-transformers' StaticEmbedding and of model2vec,
and static students. The kind is `encoder`; the text vector is the mean of its tokens' vectors and
what the folder declares behind it, computed in float32. Shapes: B examples, D numbers of a token, E
of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ...embeddings.layers import load_layers, width_after
from ...embeddings.static import (
    StaticTokenizer,
    TokenTable,
    check_rows,
    read_backend,
    read_static_folder,
    read_table,
    table_width,
    unknown_id,
)
from ...pretrained import source_name
from ...sources import digest_files
from .base import Answers, Example, Teacher, in_row_groups, make_spec
from .encoder_options import EncoderOptions

_OF_TRANSFORMERS = (
    *("layers", "token_layers", "attention_layers"),
    *("device_map", "tensor_parallel", "include_prompt"),
)
"""Options that say nothing of a table."""


class StaticTeacher(Teacher):
    """Feature `pooled` [E]."""

    Options = EncoderOptions
    kind = "encoder"
    default_batch_size = 1024

    def __init__(
        self, source: str, folder: Path, options: EncoderOptions, device: torch.device
    ) -> None:
        """`folder`: that of the source, which holds a static model."""
        self._device = device
        self._found = read_static_folder(folder, TeacherSourceError)
        self._options = self._resolved(options)
        self._precision = options.precision(device)
        if self._precision.compute != "float32":
            raise JobError(f"dtype {options.dtype}: static models compute in float32; leave it out")
        backend = read_backend(self._found, TeacherSourceError)
        self._unknown = unknown_id(backend) if self._found.leaves_out_unknown else None
        self._backend = backend
        most = self._options.max_length
        self._tokens = StaticTokenizer(backend, most, self._unknown)
        feature = self._feature()
        self.spec = make_spec(
            "encoder",
            source_name(source, options.revision),
            {"model": digest_files(folder, self._found.files)},
            self._options,
            [feature],
            revision=None,  # the digest identifies it
            static=True,
            modules=tuple(str(layer.settings) for layer in self._layers),
            leaves_out_unknown=self._found.leaves_out_unknown,
            **self._precision.settings(),
        )

    def _resolved(self, options: EncoderOptions) -> EncoderOptions:
        """The options, completed by what the folder declares. Raises JobError for those of
        transformers."""
        given = options.model_fields_set
        for name in _OF_TRANSFORMERS:
            if getattr(options, name) != EncoderOptions.model_fields[name].default:
                raise JobError(f"{name}: a static model has no layers; leave it out")
        if options.pooling != "mean":
            raise JobError(
                f"pooling {options.pooling!r}: a static model takes the mean of its tokens' "
                "vectors; leave it out"
            )
        found, prompts = self._found, self._found.prompts
        prompt = found.default_prompt
        if options.prompt_name is not None:
            if "prompt" in given:
                raise JobError("prompt and prompt_name: name only one")
            if options.prompt_name not in prompts:
                raise JobError(
                    f"prompt_name: {options.prompt_name!r} is not a prompt of the folder; it has "
                    f"{', '.join(prompts) or 'none'}"
                )
            prompt = prompts[options.prompt_name]
        layers = found.layers
        while layers and layers[-1].normalizes:
            layers = layers[:-1]
        normalizes = layers != found.layers
        if normalizes and options.dim is not None and "normalize" not in given:
            # Scaled before it is cut, as in sentence-transformers' truncate_dim.
            layers, normalizes = found.layers, False
        self._layers = layers
        declared = {"normalize": normalizes, "prompt": prompt, "max_length": found.max_length}
        own = {name: value for name, value in declared.items() if name not in given}
        return options.model_copy(update=own)

    def _feature(self) -> FeatureSpec:
        width = table_width(self._found, TeacherSourceError)
        embedding = width_after(self._layers, width, TeacherSourceError)
        dim = self._options.dim or embedding
        if dim > embedding:
            raise JobError(f"dim: {dim} is more than the {embedding} dimensions of an embedding")
        behind = "".join(f", {layer.settings}" for layer in self._layers)
        cut = f", the first {self._options.dim}" if self._options.dim else ""
        scaled = ", length 1" if self._options.normalize else ""
        return FeatureSpec(
            name="pooled",
            shape=(dim,),
            dtype=self._precision.stored,
            description=f"mean of token embeddings{behind}{cut}{scaled}",
        )

    def load(self) -> None:
        """Read the table and the layers behind it."""
        weight_VD = read_table(self._found, TeacherSourceError)
        what = f"source {self._found.weights.parent}"
        check_rows(weight_VD, self._backend, what, TeacherSourceError)
        table = TokenTable(weight_VD, self._unknown).eval().requires_grad_(False)
        self._table = table.to(self._device)
        layers = load_layers(self._layers, TeacherSourceError).eval().requires_grad_(False)
        self._behind: Any = layers.to(self._device)

    def encode(self, examples: Sequence[Example]) -> Answers:
        """[B, E]; a text without tokens has the embedding of zeros."""
        options = self._options
        texts = [options.prompt + options.text(example.segments) for example in examples]
        ids, starts, cut = self._tokens.read(texts)
        ids_S, starts_B = (torch.from_numpy(each).to(self._device) for each in (ids, starts))
        pooled_BD = in_row_groups(self._table.of_flat(ids_S, starts_B), self._device)
        values_BE = self._behind(pooled_BD)[: len(examples), : options.dim]
        if options.normalize:
            values_BE = F.normalize(values_BE, dim=-1)
        stored = self._precision.cast(values_BE).cpu().numpy()
        return Answers({"pooled": stored}, np.asarray(cut, dtype=bool))
