"""Reading and writing folders of sentence-transformers: how a model's states become an embedding.

modules.json                        the modules in order, each with the folder of its own
[0_Transformer/]config.json, ...    the transformer, at the top or in a folder
[0_Transformer/]sentence_bert_config.json    most tokens, lower-casing
1_Pooling/config.json               how tokens become one vector
2_Dense/, 3_Normalize/, ...         layers behind it
config_sentence_transformers.json   prompts

A MultiVectorEncoder has no pooling: a text has the vectors of its tokens, and the layers are of
these (late interaction).

Format: https://sbert.net. Newer releases write other keys for the same; both are read; the keys
written are those that every release of that library reads.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...cache_schemas.errors import InputError
from ..pooling import STATE_POOLINGS, StatePooling
from .layers import (
    ACTIVATIONS,
    LAYER_WEIGHTS,
    LAYERS,
    SENTENCE_EMBEDDING,
    TOKEN_EMBEDDINGS,
    Dense,
    DenseSettings,
    Layer,
    Normalize,
    activation,
    read_layer,
)

MODULES = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
TEXT_CONFIG = "sentence_bert_config.json"
POOLING_CONFIG = "config.json"

_TEXT_CONFIGS = (
    TEXT_CONFIG,
    *(
        f"sentence_{name}_config.json"
        for name in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
"""Older releases named it by the model."""

OLD_POOLINGS: Mapping[str, StatePooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
"""In the order of concatenation."""

OF_TOKENS = "MultiVectorEncoder"
"""Kind of a model that has a vector for each token."""

_MASK = "MultiVectorMask"
_OF_SOME_TOKENS = ("query_expansion", "query_length", "document_length")
_MEAN_MAXSIM = "meanmaxsim"
"""The similarity that students of tokens are trained with, as the library names it."""

_MODEL_ARGUMENTS = ("model_kwargs", "model_args", "config_kwargs", "config_args")
_TOKENIZER_ARGUMENTS = ("processor_kwargs", "tokenizer_args")
_WITHOUT_EFFECT = frozenset(
    {"padding_side", "model_max_length", "trust_remote_code", "add_pooling_layer", "use_cache"}
    | {"attn_implementation", "torch_dtype", "dtype", "use_safetensors", "low_cpu_mem_usage"}
)
"""Arguments that change no embedding here: padding is masked, types are options."""


@dataclass(frozen=True, slots=True)
class EmbeddingFolder:
    """A transformer, and how its states become an embedding."""

    transformer: Path
    pooling: tuple[StatePooling, ...] | None
    """None: texts have features of the model's own, as CLIP's have; none, (): a vector for each
    token."""
    include_prompt: bool
    """Whether the tokens of a prompt are pooled too."""
    layers: tuple[Layer, ...]
    """After the pooling, or behind the tokens, in order."""
    max_length: int | None
    """Maximum tokens of a text; None: that of the tokenizer."""
    lowercase: bool
    prompts: Mapping[str, str]
    default_prompt: str
    """The default prefix of texts; may be empty."""

    @property
    def of_tokens(self) -> bool:
        """Whether a text has a vector for each token."""
        return self.pooling == ()


def is_of_tokens(folder: Path, error: type[InputError]) -> bool:
    """Whether a folder holds a model with a vector for each token."""
    return bool(read_json(folder / MODEL_CONFIG, error).get("model_type") == OF_TOKENS)


def read_embedding_folder(folder: Path, error: type[InputError]) -> EmbeddingFolder | None:
    """Declarations of the folder; None if it is not of sentence-transformers, or is a
    cross-encoder, which does not pool. Raises `error` for unknown modules and invalid folders."""
    if not (folder / MODULES).is_file():
        return None
    document = read_json(folder / MODEL_CONFIG, error)
    if document.get("model_type") == "CrossEncoder":
        return None
    modules = read_modules(folder, error)
    kinds = [kind for kind, _ in modules]
    transformer = modules[0][1] if modules else folder
    text = _read_text_config(transformer, error)
    features = kinds[:1] == ["CLIPModel"] or _uses_text_features(transformer, text, error)
    of_tokens = document.get("model_type") == OF_TOKENS
    if of_tokens:
        modules = _without_mask(modules, transformer, text, error)
        kinds = [kind for kind, _ in modules]
    start = ["Transformer", "Pooling"]
    if features or of_tokens:
        start = ["CLIPModel" if kinds[:1] == ["CLIPModel"] else "Transformer"]
    rest = modules[len(start) :]
    if kinds[: len(start)] != start or not {kind for kind, _ in rest} <= set(LAYERS):
        raise error(
            f"source {folder}: {MODULES} holds {', '.join(kinds) or 'nothing'}; known are a "
            f"Transformer, a Pooling and behind it {', '.join(LAYERS)}"
        )
    modes: tuple[StatePooling, ...] | None = () if of_tokens else None
    include_prompt = True
    if not features and not of_tokens:
        modes, include_prompt = _read_pooling(modules[1][1], error)
    layers = tuple(
        read_layer(kind, index, read_json(index / "config.json", error), error)
        for kind, index in rest
    )
    for layer in layers:
        if not layer.settings.is_of(TOKEN_EMBEDDINGS if of_tokens else SENTENCE_EMBEDDING):
            own = "each token" if of_tokens else "the pooled embedding"
            raise error(
                f"source {layer.folder}: module_input_name {layer.settings.module_input_name!r}: "
                f"only layers of {own} are supported in this kind of model"
            )
    prompts = {str(k): str(v or "") for k, v in (document.get("prompts") or {}).items()}
    return EmbeddingFolder(
        transformer=transformer,
        pooling=modes,
        include_prompt=include_prompt,
        layers=layers,
        max_length=_max_length(transformer, text, error),
        lowercase=bool(text.get("do_lower_case")),
        prompts=prompts,
        default_prompt=default_prompt(folder, document, prompts, error),
    )


def _without_mask(
    modules: list[tuple[str, Path]],
    transformer: Path,
    text: Mapping[str, Any],
    error: type[InputError],
) -> list[tuple[str, Path]]:
    """The modules of a model with a vector for each token, without those that leave tokens out.
    Raises `error` for one that leaves some out, or adds some."""
    for key in _OF_SOME_TOKENS:
        if text.get(key):
            raise error(
                f"source {transformer / TEXT_CONFIG}: {key} {text[key]!r}: queries and passages "
                "that are read with other tokens than their own are not supported"
            )
    for kind, folder in modules:
        document = read_json(folder / "config.json", error) if kind == _MASK else {}
        for key in ("skiplist_words", "keep_only_token_ids"):
            if document.get(key):
                raise error(
                    f"source {folder}: {key}: vectors of some tokens are left out, which is not "
                    "supported"
                )
    return [each for each in modules if each[0] != _MASK]


@dataclass(frozen=True, slots=True)
class CrossEncoderFolder:
    """A transformer with a head that scores pairs, and what is declared of its scores."""

    transformer: Path
    activation: str | None
    """Name of the activation behind its logits; None: not declared."""
    max_length: int | None
    lowercase: bool


def read_cross_encoder(folder: Path, error: type[InputError]) -> CrossEncoderFolder:
    """Declarations of a cross-encoder's folder, in the words of any release; of a folder of
    transformers alone there are none. Raises `error` for what is not a sequence classifier."""
    document = read_json(folder / MODEL_CONFIG, error)
    if (kind := document.get("model_type", "CrossEncoder")) != "CrossEncoder":
        raise error(f"source {folder}: is a {kind}, not a cross-encoder; use encoder:{folder.name}")
    modules = read_modules(folder, error) if (folder / MODULES).is_file() else []
    kinds = [kind for kind, _ in modules] or ["Transformer"]
    transformer = modules[0][1] if modules else folder
    text = _read_text_config(transformer, error)
    way = (text.get("modality_config") or {}).get("text", {}).get("method_output_name", "logits")
    if kinds != ["Transformer"] or way != "logits":
        raise error(
            f"source {folder}: its scores are not the logits of a sequence classifier "
            f"({', '.join(kinds)}, {way}), which is not supported"
        )
    prompts = {str(k): str(v or "") for k, v in (document.get("prompts") or {}).items()}
    if default_prompt(folder, document, prompts, error):
        raise error(f"source {folder}: declares a prompt for its pairs, which is not supported")
    config = read_json(transformer / "config.json", error)
    declared = (
        document.get("activation_fn"),
        (config.get("sentence_transformers") or {}).get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
    )
    return CrossEncoderFolder(
        transformer=transformer,
        activation=next((str(name) for name in declared if name is not None), None),
        max_length=_max_length(transformer, text, error),
        lowercase=bool(text.get("do_lower_case")),
    )


def transformer_folder(folder: Path, error: type[InputError]) -> Path:
    """Folder of the transformer: the top, or as declared."""
    if (folder / "config.json").is_file() or not (folder / MODULES).is_file():
        return folder
    modules = read_modules(folder, error)
    return modules[0][1] if modules else folder


def read_modules(folder: Path, error: type[InputError]) -> list[tuple[str, Path]]:
    """(kind, folder) of each module that changes an embedding."""
    file = folder / MODULES
    try:
        entries = [
            (str(entry["type"]), str(entry["path"]))
            for entry in json.loads(file.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise error(f"source {file}: is not a list of modules with type and path") from cause
    return [
        (kind, folder / path)
        for kind, path in ((_kind(file, *entry, error), entry[1]) for entry in entries)
        if kind != "Dropout"
    ]


def _kind(file: Path, name: str, path: str, error: type[InputError]) -> str:
    index = PurePosixPath(path)
    if index.is_absolute() or ".." in index.parts or "\\" in path:
        raise error(f"source {file}: path {path!r} is outside the folder")
    package, _, kind = name.rpartition(".")
    if package.partition(".")[0] != "sentence_transformers":
        raise error(f"source {file}: {name} is custom code, which is not run; use another model")
    if kind == "Router":
        raise error(
            f"source {file.parent}: has a tower for queries and another for passages; name the "
            "folder of one of them, such as its query or document"
        )
    known = ("Transformer", "CLIPModel", "StaticEmbedding", "Pooling", "Dropout", _MASK, *LAYERS)
    if kind not in known:
        raise error(
            f"source {file}: module {kind} is not known; known are Transformer, Pooling, Dropout, "
            f"{', '.join(LAYERS)}"
        )
    return kind


def _read_text_config(transformer: Path, error: type[InputError]) -> dict[str, Any]:
    names = (name for name in _TEXT_CONFIGS if (transformer / name).is_file())
    file = transformer / next(names, TEXT_CONFIG)
    text = read_json(file, error)
    for key in (*_MODEL_ARGUMENTS, *_TOKENIZER_ARGUMENTS, "processing_kwargs"):
        unknown = sorted(set(text.get(key) or {}) - _WITHOUT_EFFECT)
        if unknown:
            raise error(
                f"source {file}: {key} sets {', '.join(unknown)}, which may change embeddings and "
                "is not supported; save it in the model's own configuration"
            )
    return text


def _uses_text_features(
    transformer: Path, text: Mapping[str, Any], error: type[InputError]
) -> bool:
    """Whether the folder uses the model's own text features, not its last hidden states."""
    ways = text.get("modality_config") or {}
    given = ways.get("text", {"method": "forward", "method_output_name": "last_hidden_state"})
    way = given.get("method"), given.get("method_output_name")
    task = text.get("transformer_task", "feature-extraction")
    if task == "feature-extraction" and "message" not in ways:
        if way == ("forward", "last_hidden_state"):
            return False
        if way in (("get_text_features", "pooler_output"), ("get_text_features", None)):
            return True
    raise error(
        f"source {transformer / TEXT_CONFIG}: needs other inputs than plain text or other outputs "
        "than last hidden states (transformer_task, modality_config), which is not supported"
    )


def _max_length(transformer: Path, text: Mapping[str, Any], error: type[InputError]) -> int | None:
    tokenizer = [text.get(key) or {} for key in _TOKENIZER_ARGUMENTS]
    declared = [settings.get("model_max_length") for settings in tokenizer]
    most = next((n for n in (*declared, text.get("max_seq_length")) if n is not None), None)
    if most is not None and (not isinstance(most, int) or most < 1):
        raise error(f"source {transformer / TEXT_CONFIG}: max_seq_length {most!r} is no length")
    return most


def _read_pooling(folder: Path, error: type[InputError]) -> tuple[tuple[StatePooling, ...], bool]:
    file = folder / POOLING_CONFIG
    document = read_json(file, error)
    modes = document.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in OLD_POOLINGS.items() if document.get(key)] or ["mean"]
    named = [modes] if isinstance(modes, str) else modes
    found: tuple[Any, ...] = tuple("last" if mode == "lasttoken" else mode for mode in named)
    unknown = [mode for mode in found if mode not in STATE_POOLINGS]
    if unknown or not found:
        raise error(
            f"source {file}: pooling_mode {modes!r} is not known; known are "
            f"{', '.join(STATE_POOLINGS)}"
        )
    return found, bool(document.get("include_prompt", True))


def default_prompt(
    folder: Path, document: Mapping[str, Any], prompts: Mapping[str, str], error: type[InputError]
) -> str:
    """The prefix of every text that a folder declares; may be empty."""
    name = document.get("default_prompt_name")
    if name is None:
        return ""
    if name not in prompts:
        raise error(
            f"source {folder / MODEL_CONFIG}: default_prompt_name {name!r} is not one of its "
            "prompts"
        )
    return prompts[name]


def read_json(file: Path, error: type[InputError]) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    if not file.is_file():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise error(f"source {file}: is not JSON: {cause}") from cause
    if not isinstance(document, dict):
        raise error(f"source {file}: is not a JSON object")
    return document


ACTIVATION_NAMES = (
    "torch.nn.modules.linear.Identity",
    *(
        f"{ACTIVATIONS}.{kind}"
        for kind in ("Tanh", "GELU", "ReLU", "SiLU", "Sigmoid", "Mish", "ELU", "Softplus")
    ),
)
"""Activations of a dense layer."""

_GRID = torch.linspace(-6, 6, 241)


def dense_layer(weight: Tensor, bias: Tensor | None, activation_function: str) -> Dense:
    """activation(W x + b) as a layer; W is [out, in]."""
    wide, narrow = weight.shape
    settings = DenseSettings(
        in_features=narrow,
        out_features=wide,
        bias=bias is not None,
        activation_function=activation_function,
    )
    layer = Dense(settings)
    state = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    layer.load_state_dict({name: value.detach().float() for name, value in state.items()})
    return layer


def activation_name(module: Any) -> str | None:
    """The name of torch.nn's activation that is this function, or None."""
    wanted = module(_GRID)
    for name in ACTIVATION_NAMES:
        if torch.allclose(activation(name)(_GRID), wanted, atol=1e-6):
            return name
    return None


NO_PROMPTS: Mapping[str, str] = {}


def write_embedding_files(
    folder: Path,
    pooling: StatePooling,
    width: int,
    layers: Sequence[Dense | Normalize],
    max_length: int,
    prompts: Mapping[str, str] = NO_PROMPTS,
) -> None:
    """Declare, beside the transformer in `folder`, how states of `width` numbers are pooled and
    passed through the layers, for texts of up to `max_length` tokens; `prompts`: prefixes by the
    name that a user of the folder chooses them by, none by default."""
    old = {key: mode == pooling for key, mode in OLD_POOLINGS.items()}
    write_json(folder / "1_Pooling" / POOLING_CONFIG, {"word_embedding_dimension": width} | old)
    names = ["Transformer", "Pooling"]
    for index, layer in enumerate(layers, start=2):
        names.append(type(layer).__name__)
        write_layer(folder / f"{index}_{names[-1]}", layer)
    write_json(folder / TEXT_CONFIG, {"max_seq_length": max_length, "do_lower_case": False})
    write_model_config(folder, prompts)
    write_modules(folder, names)


def write_token_files(
    folder: Path,
    layers: Sequence[Dense | Normalize],
    max_length: int,
    prompts: Mapping[str, str] = NO_PROMPTS,
) -> None:
    """The same of states that are not pooled, but each passed through the layers."""
    names = ["Transformer"]
    for index, layer in enumerate(layers, start=1):
        names.append(type(layer).__name__)
        write_layer(folder / f"{index}_{names[-1]}", layer, of_tokens=True)
    write_json(folder / TEXT_CONFIG, {"max_seq_length": max_length, "do_lower_case": False})
    write_model_config(folder, prompts, model_type=OF_TOKENS, similarity_fn_name=_MEAN_MAXSIM)
    write_modules(folder, names)


def write_model_config(folder: Path, prompts: Mapping[str, str], **more: Any) -> None:
    """Declare the prompts of a folder by their names, none by default, and what `more` there is."""
    declared = {"prompts": dict(prompts), "default_prompt_name": None}
    write_json(folder / MODEL_CONFIG, {"model_type": "SentenceTransformer", **declared, **more})


def write_modules(folder: Path, names: Sequence[str]) -> None:
    """Declare the modules of a folder, the first at the top; last of all: with it, the folder is
    one."""
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]
    write_json(folder / MODULES, modules)


def write_layer(folder: Path, layer: nn.Module, of_tokens: bool = False) -> None:
    """Write the settings and weights of a layer; of a Normalize behind a pooling, an empty
    folder. `of_tokens`: whether each token passes it."""
    settings: dict[str, Any] = {}
    if isinstance(layer, Dense):
        settings = layer.settings.model_dump(exclude=_UNKNOWN_TO_OLD_RELEASES)
    if of_tokens:
        settings |= dict.fromkeys(("module_input_name", "module_output_name"), TOKEN_EMBEDDINGS)
    folder.mkdir(exist_ok=True)
    if settings:
        write_json(folder / "config.json", settings)
    if not isinstance(layer, Dense):
        return
    state = {name: value.detach().cpu().contiguous() for name, value in layer.state_dict().items()}
    save_file(state, folder / LAYER_WEIGHTS)


_UNKNOWN_TO_OLD_RELEASES = {"module_input_name", "module_output_name", "use_residual"}


def write_json(file: Path, document: Any) -> None:
    """Write a document of JSON, in a folder that may be new."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def lower_case(tokenizer: Any) -> None:
    """Has the tokenizer lower-case whatever it reads, prompts too, before anything else."""
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    before = backend.normalizer
    own = [] if before is None else [before]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """Number of a text's first tokens that belong to the prompt: those of the prompt alone, without
    the closing special token."""
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    return len(ids) - 1 if ids and ids[-1] in tokenizer.all_special_ids else len(ids)
