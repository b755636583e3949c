"""Any transformers text encoder as a teacher: pooled states of the last and of chosen layers.

Decoders are encoders too, with `pooling: last`. Of an encoder-decoder the encoder is used. What a
folder of sentence-transformers declares is used, in our own code. Models that read more than texts
(CLIP, SigLIP, CLAP and similar) have text features: whole models of transformers that have
`get_text_features`, and their text towers saved alone. The features are the library's own: pooled
as the model pools, with its projection, not scaled. Of a multi-vector model (late interaction,
ColBERT; `MultiVectorEncoder` of sentence-transformers) a text has the vectors of its tokens.
Shapes: B examples, T tokens, H hidden numbers, E numbers of an embedding or feature.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....cache_schemas.errors import JobError, TeacherSourceError
from ....cache_schemas.features import TOKEN_IDS, TOKENS, FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ...embeddings.folders import (
    is_of_tokens,
    lower_case,
    prompt_tokens,
    read_embedding_folder,
)
from ...embeddings.layers import LAYER_WEIGHTS, load_layers, width_after
from ...embeddings.static import is_static_folder
from ...language.attention import attention_linears, recorded, stacked
from ...language.probes import probe_skeleton
from ...pooling import StatePooling, pool
from ...pretrained import quiet_transformers, refusing, token_limit
from ...sources import digest_files, resolve
from .checkpoint_teacher import LanguageModelTeacher
from .encoder_options import ATTENTION, TOKEN_STATES, EncoderOptions, Pooling, resolve_options
from .options import TokenizedOptions
from .static_model import StaticTeacher
from .text_features import (
    drop_other_parts,
    features_width,
    gives_text_features,
    pads_to_its_limit,
    reads_no_text,
    text_arguments,
    text_features,
    text_tower,
    tower_class,
)
from .tokenized import Inputs

ROWS_OF_TOKENS = 1024
"""Texts of a shard by default, where each has as many rows as tokens: with 768 numbers of 40
tokens, a shard has 60 MB a layer."""

VECTORS = "token_vectors"

_OF_POOLED = ("pooling", "layers", "token_layers", "attention_layers", "include_prompt")
"""Options that say nothing of vectors of tokens."""


class EncoderTeacher(LanguageModelTeacher):
    """Features `pooled` [E], `layer_<n>` [H] for each of `layers`, and along the tokens
    `token_states_<n>` [H] for each of `token_layers` and `attention_<n>` [3, H] for each of
    `attention_layers`, with `token_ids`."""

    Options = EncoderOptions
    kind = "encoder"
    selecting = frozenset({"layers", "token_layers", "attention_layers"})
    auto_class = "AutoModel"

    def __new__(cls, source: str, options: EncoderOptions, *more: Any) -> Any:
        """A teacher of the source's kind: a static model is no transformer, and a multi-vector
        model has no vector of a text."""
        folder = resolve(source, options.revision, TeacherSourceError)
        if cls is EncoderTeacher and is_static_folder(folder, TeacherSourceError):
            return StaticTeacher(source, folder, options, *more)
        if cls is EncoderTeacher and is_of_tokens(folder, TeacherSourceError):
            return super().__new__(TokenVectorsTeacher)
        return super().__new__(cls)

    def __init__(self, source: str, options: EncoderOptions, device: torch.device) -> None:
        self._options = options
        super().__init__(source, options, device)
        if self._options.reads_tokens:
            self.default_rows_per_shard = ROWS_OF_TOKENS
        if self._skipped >= int(self.spec.settings["max_length"]):  # type: ignore[arg-type]
            raise JobError(f"prompt: its {self._skipped} tokens leave no room for text")

    def _find_model(self, folder: Path) -> Path:
        self._declared = read_embedding_folder(folder, TeacherSourceError)
        return folder if self._declared is None else self._declared.transformer

    def _resolve(self, options: TokenizedOptions, tokenizer: Any) -> TokenizedOptions:
        self._gives_features = gives_text_features(self._skeleton)
        longest = self._longest(tokenizer) if self._declared else None
        resolved = resolve_options(self._options, self._declared, longest)
        self._options, self.notes = resolved.options, resolved.notes
        self._layer_folders = resolved.layers
        if self._gives_features and "pooling" not in options.model_fields_set:
            self._options = self._options.model_copy(update={"pooling": "features"})
        wanted = self._options.lowercase and self._declared and self._declared.lowercase
        self._lowercases = bool(wanted) and hasattr(tokenizer, "backend_tokenizer")
        if self._lowercases:
            lower_case(tokenizer)
            self._options = self._options.model_copy(update={"lowercase": False})  # not by us too
        self._skipped = 0
        if self._options.prompt and not self._options.include_prompt:
            self._skipped = prompt_tokens(tokenizer, self._options.prompt)
        return self._options

    def _longest(self, tokenizer: Any) -> int:
        """Declared maximum number of tokens."""
        assert self._declared is not None
        declared = self._declared.max_length or tokenizer.model_max_length
        # There it is the default length, which a job may change, not the model's maximum.
        tokenizer.model_max_length = sys.maxsize
        return int(min(declared, token_limit(tokenizer, self._reader())))

    def _reader(self) -> Any:
        return text_tower(self._skeleton) if self._gives_features else self._skeleton

    def _arguments(self) -> frozenset[str]:
        return text_arguments(self._skeleton) if self._gives_features else super()._arguments()

    def _pads_to_its_limit(self) -> bool:
        return self._gives_features and pads_to_its_limit(self._skeleton)

    def _build_skeleton(self) -> Any:
        tower = tower_class(self._config)
        if tower is None:
            return super()._build_skeleton()
        what = f"source {self._folder}: {tower}"
        with refusing(TeacherSourceError, what), torch.device("meta"), quiet_transformers():
            return self._auto()._from_config(self._config)

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, tower_class(self._config) or self.auto_class)

    def _declared_settings(self) -> dict[str, SettingValue]:
        settings: dict[str, SettingValue] = {"lowercase": True} if self._lowercases else {}
        if self._layer_folders:
            settings["modules"] = tuple(str(layer.settings) for layer in self._layer_folders)
        return settings

    def _digests(self) -> dict[str, str]:
        # Those without weights are all in the settings.
        folders = [layer.folder for layer in self._layer_folders if not layer.normalizes]
        files = [folder / name for folder in folders for name in ("config.json", LAYER_WEIGHTS)]
        digests = super()._digests()
        if files:
            source = folders[0].parent
            digests["modules"] = digest_files(source, [file for file in files if file.is_file()])
        return digests

    def _prepare(self) -> None:
        if self._has_decoder():
            self._model = self._model.get_encoder()
        if self._gives_features:
            drop_other_parts(self._model)
        self._linears = attention_linears(self._model) if self._options.attention_layers else []
        layers = load_layers(self._layer_folders, TeacherSourceError)
        self._layers = layers.eval().requires_grad_(False).to(self._device)

    def _answer(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        tokens: dict[str, Tensor] = {}
        if self._options.pooling == "features":
            told = {name: inputs[name] for name in inputs.keys() & self._texts.names}
            pooled = {"pooled": text_features(self._model, told).float()}
        else:
            options = self._options
            read = bool(options.layers or options.token_layers)
            chosen = [self._linears[layer - 1] for layer in options.attention_layers]
            with recorded(chosen) as projections:
                output = self._model(**inputs, output_hidden_states=read)
            pooled = self._pool(output, inputs["attention_mask"])
            tokens = {TOKEN_STATES.format(n): output.hidden_states[n] for n in options.token_layers}
            for layer, each in zip(options.attention_layers, stacked(projections), strict=True):
                tokens[ATTENTION.format(layer)] = each
        pooled["pooled"] = self._layers(pooled["pooled"])[:, : self._options.dim]
        if self._options.normalize:
            pooled = {name: F.normalize(values, dim=-1) for name, values in pooled.items()}
        return pooled | tokens

    def _pool(self, output: Any, mask_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        modes = _of_states(self._options.pooling)
        if self._options.pooling == "pooler":
            pooled = {"pooled": output.pooler_output.float()}
        else:
            pooled = {"pooled": pool(output.last_hidden_state, mask_BT, modes, self._skipped)}
        return pooled | {
            f"layer_{layer}": pool(output.hidden_states[layer], mask_BT, modes, self._skipped)
            for layer in self._options.layers
        }

    def _features(self) -> list[FeatureSpec]:
        self._check_options()
        name = type(self._skeleton).__name__
        with refusing(TeacherSourceError, f"source {self._folder}: {name} as an encoder"):
            widths = self._widths()
        embedding = width_after(self._layer_folders, widths["pooled"], TeacherSourceError)
        dim = self._options.dim or embedding
        if dim > embedding:
            raise JobError(f"dim: {dim} is more than the {embedding} dimensions of an embedding")
        return [
            FeatureSpec(
                name=name,
                shape=(dim if name == "pooled" else widths[name],),
                dtype=self._precision.stored,
                description=text,
            )
            for name, text in self._descriptions().items()
        ] + self._options.token_features(
            [widths[TOKEN_STATES.format(layer)] for layer in self._options.token_layers],
            self._attention_widths(),
            self._texts.max_length,
        )

    def _attention_widths(self) -> list[int]:
        """Numbers of a query in each of `attention_layers`. Raises JobError for a family that has
        none of its own."""
        if not self._options.attention_layers:
            return []
        linears = attention_linears(self._skeleton)
        if not linears:
            raise JobError(
                f"attention_layers: a {type(self._skeleton).__name__} has no separate queries, "
                "keys and values in each layer; use a BERT, RoBERTa, ELECTRA or DistilBERT"
            )
        return [int(linears[layer - 1][0].out_features) for layer in self._options.attention_layers]

    def _widths(self) -> dict[str, int]:
        """Feature -> numbers per text."""
        if self._options.pooling == "features":
            with refusing(TeacherSourceError, f"source {self._folder}"):
                return {"pooled": features_width(self._skeleton)}
        modes, layers = len(_of_states(self._options.pooling)), self._options.layers
        of_tokens = self._options.token_layers
        probed = self._skeleton.get_encoder() if self._has_decoder() else self._skeleton
        output = probe_skeleton(probed, output_hidden_states=bool(layers or of_tokens))
        if output is not None:
            last = output.last_hidden_state
            if self._options.pooling == "pooler":
                last = output.pooler_output
            states = {"pooled": last} | {f"layer_{n}": output.hidden_states[n] for n in layers}
            return {name: modes * int(each.shape[-1]) for name, each in states.items()} | {
                TOKEN_STATES.format(n): int(output.hidden_states[n].shape[-1]) for n in of_tokens
            }
        width = getattr(self._text_config, "hidden_size", None)
        if width is None:
            raise TeacherSourceError(
                f"source {self._folder}: model type {self._config.model_type!r} has no "
                "hidden_size; use a text encoder"
            )
        pooled = ("pooled", *(f"layer_{n}" for n in layers))
        return {name: modes * int(width) for name in pooled} | {
            TOKEN_STATES.format(n): int(width) for n in of_tokens
        }

    @property
    def _text_config(self) -> Any:
        """The part of the configuration that is of texts."""
        what = f"source {self._folder}: model type {self._config.model_type!r}"
        with refusing(TeacherSourceError, what):
            return self._config.get_text_config()

    def _descriptions(self) -> dict[str, str]:
        pooling = self._options.pooling
        scaled = ", length 1" if self._options.normalize else ""
        layers = "".join(f", {layer.settings}" for layer in self._layer_folders)
        cut = f", the first {self._options.dim}" if self._options.dim else ""
        read = "text features" if pooling == "features" else "last hidden states"
        pooled = "" if pooling == "features" else f", {_in_words(pooling)}"
        return {"pooled": f"{read}{pooled}{layers}{cut}{scaled}"} | {
            f"layer_{layer}": f"hidden states {layer}, {' and '.join(_of_states(pooling))}{scaled}"
            for layer in self._options.layers
        }

    def _check_options(self) -> None:
        name = type(self._skeleton).__name__
        if self._gives_features != (self._options.pooling == "features"):
            gives = "gives" if self._gives_features else "does not give"
            raise JobError(f"pooling: a {name} {gives} its own text features; leave it out")
        for option in ("layers", "token_layers", "attention_layers"):
            layers = getattr(self._options, option)
            if self._gives_features and layers:
                raise JobError(f"{option}: for a {name}, only text features are kept; leave it out")
            deepest = getattr(self._text_config, "num_hidden_layers", 0) if layers else 0
            beyond = [layer for layer in layers if layer > deepest]
            if beyond:
                raise JobError(f"{option}: {beyond[0]} is beyond the model's; from 0 to {deepest}")
        if self._gives_features:
            return
        if self._options.pooling == "pooler" and getattr(self._skeleton, "pooler", None) is None:
            raise JobError(f"pooling: {name} has no pooler; choose mean, cls or last")

    def _has_decoder(self) -> bool:
        # Not `is_encoder_decoder`, which is false for a T5 that was saved without its decoder.
        return hasattr(self._skeleton, "encoder") and hasattr(self._skeleton, "decoder")

    def _unused(self, weight: str) -> bool:
        if self._has_decoder() and weight.startswith("decoder."):
            return True
        if self._gives_features:
            return reads_no_text(weight)
        return self._options.pooling != "pooler" and weight.startswith("pooler.")


class TokenVectorsTeacher(EncoderTeacher):
    """Along the tokens `token_vectors` [E], with `token_ids`."""

    def __init__(self, source: str, options: EncoderOptions, device: torch.device) -> None:
        for name in _OF_POOLED:
            if name in options.model_fields_set:
                raise JobError(
                    f"{name}: source {source} has a vector for each token, which are not pooled; "
                    "leave it out"
                )
        if options.store_dtype == "float32":
            raise JobError(
                f"store_dtype float32: source {source} has a vector for each token, which are kept "
                "in half precision; leave it out"
            )
        super().__init__(source, options, device)
        self.default_rows_per_shard = ROWS_OF_TOKENS

    def _answer(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        states_BTH = self._model(**inputs).last_hidden_state
        vectors_BTE = self._layers(states_BTH.float())[..., : self._options.dim]
        if self._options.normalize:
            vectors_BTE = F.normalize(vectors_BTE, dim=-1)
        return {VECTORS: vectors_BTE}

    def _features(self) -> list[FeatureSpec]:
        name = type(self._skeleton).__name__
        with refusing(TeacherSourceError, f"source {self._folder}: {name} as an encoder"):
            width = self._width()
        whole = width_after(self._layer_folders, width, TeacherSourceError)
        dim = self._options.dim or whole
        if dim > whole:
            raise JobError(f"dim: {dim} is more than the {whole} numbers of a token's vector")
        layers = "".join(f", {layer.settings}" for layer in self._layer_folders)
        scaled = ", length 1" if self._options.normalize else ""
        along: dict[str, Any] = {"axis": TOKENS, "max_length": self._texts.max_length}
        ids = FeatureSpec(
            name=TOKEN_IDS, shape=(), dtype="uint32", description="token ids of the text", **along
        )
        vectors = FeatureSpec(
            name=VECTORS,
            shape=(dim,),
            dtype="float16",
            description=f"last hidden states of each token{layers}{scaled}",
            **along,
        )
        return [vectors, ids]

    def _width(self) -> int:
        """H, of a model without weights."""
        output = probe_skeleton(self._skeleton)
        if output is None:
            return int(self._text_config.hidden_size)
        return int(output.last_hidden_state.shape[-1])


def _of_states(pooling: Pooling | tuple[StatePooling, ...]) -> tuple[StatePooling, ...]:
    if isinstance(pooling, tuple):
        return pooling
    if pooling == "pooler" or pooling == "features":
        return ("cls",)  # they know the last layer alone; a pooler starts from its first token
    return (pooling,)


def _in_words(pooling: Pooling | tuple[StatePooling, ...]) -> str:
    return " and ".join((pooling,) if isinstance(pooling, str) else pooling)
