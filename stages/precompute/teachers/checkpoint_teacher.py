"""Teachers from transformers checkpoints: a frozen model, and the base of those with one row per
text. In: a folder or hub id. Out: a model all of whose used weights came from the checkpoint.
Unsuitable models are refused from the configuration and a skeleton of the model: its modules
without any weights, built in milliseconds. `LanguageModelTeacher` is the base of encoders and
classifiers: texts in, one row of numbers for each, which does not depend on padding.
"""

import inspect
import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ....cache_schemas.errors import JobError, RunError, TeacherOutputError, TeacherSourceError
from ....cache_schemas.features import TOKEN_IDS, FeatureSpec
from ....cache_schemas.teachers import SettingValue, TeacherSpec
from ...adapters import TASK, adapter_digests, base_of, not_brought, read_adapters
from ...language.masks import attending
from ...pretrained import (
    DEFAULT_MAX_LENGTH,
    LOCAL_ONLY,
    choose_length,
    embedding_rows,
    least_length,
    quiet_transformers,
    read_config,
    read_tokenizer,
    refuse_other_shapes,
    refusing,
    source_name,
    token_limit,
)
from ...sources import MODEL_FILE_PATTERNS, digest_files, require_safetensors, resolve
from ...tokenizing.unknown import Unknown
from .base import (
    Answers,
    Example,
    Outputs,
    Prepared,
    Teacher,
    make_spec,
    to_device,
    to_host,
)
from .options import CheckpointOptions, TeacherOptions, TokenizedOptions
from .tokenized import Inputs, TextTokenizer, TokenRows

_LOGGER = logging.getLogger("armada")

_CAREFULLY = {
    "use_safetensors": True,
    "ignore_mismatched_sizes": True,  # they are refused here, by name
    "output_loading_info": True,
    **LOCAL_ONLY,
}


class CheckpointTeacher(Teacher):
    """A frozen transformers model, `_model` after `load`.

    Subclasses: `auto_class`, `_features`, and where needed `_prepare`, `_probe` and `_unused`."""

    auto_class: str

    def __init__(
        self, source: str, revision: str | None, options: CheckpointOptions, device: torch.device
    ) -> None:
        self._source, self._revision, self._device = source, revision, device
        self._folder = self._find_model(resolve(source, revision, TeacherSourceError))
        self._base = base_of(self._folder, TeacherSourceError)
        self._config = read_config(self._config_folder(), TeacherSourceError)
        self._quantised = bool(getattr(self._config, "quantization_config", None))
        saved = saved_dtype(self._config)
        self._precision = options.precision(device, saved, self._quantised)
        self._device_map, self._is_divided = options.device_map, options.tensor_parallel
        self._refuse_quantised_base()
        require_safetensors(self._folder, TeacherSourceError)
        self._skeleton = self._build_skeleton()
        if self._is_divided:
            refuse_undivided(self._skeleton, self._device, self._folder)
        self._refuse_without_text()

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return self._folder

    def _make_spec(self, options: TeacherOptions, **resolved: SettingValue) -> TeacherSpec:
        """The spec of the checkpoint under these options."""
        features = self._features()  # before the digest, which may read every weight
        return make_spec(
            self.kind,
            source_name(self._source, self._revision),
            self._digests(),
            options,
            features,
            revision=None,  # the digest identifies it, also if the folder has no revision
            **resolved,
            **self._precision.settings(),
        )

    def load(self) -> None:
        """Read the weights and put them on the device.

        Raises TeacherSourceError if the checkpoint cannot be read, lacks a used weight, or fails a
        probe; RunError if a part of it would stay on the disk."""
        with quiet_transformers():
            with refusing(TeacherSourceError, f"source {self._folder}"):
                model = self._read()
                model.config.use_cache = False  # no keys and values to remember
                self._model: Any = model.eval().requires_grad_(False)
                self._device = spread_over(model, self._device, self._folder)
            name = type(self._model).__name__
            with refusing(TeacherSourceError, f"source {self._folder}: {name} does not run"):
                self._prepare()
                self._probe()

    def _answering(self) -> AbstractContextManager[None]:
        """Turns exceptions of the model into one line; out-of-memory errors pass."""
        name = type(self._model).__name__
        return refusing(TeacherOutputError, f"source {self._folder}: {name} fails on a text")

    @abstractmethod
    def _features(self) -> list[FeatureSpec]:
        """Specs of the teacher's features, from `_config` and `_skeleton`."""

    def _find_model(self, folder: Path) -> Path:
        """The folder of the transformers model within the source."""
        return folder

    def _digests(self) -> dict[str, str]:
        """Part of the model -> digest of its files."""
        if self._base is not None:
            return adapter_digests(self._folder, self._base)
        return {"model": digest_files(self._folder, own_files(self._folder))}

    def _config_folder(self) -> Path:
        if self._base is None:
            return self._folder
        task = self._folder / TASK
        return task if task.is_dir() else self._base

    def _prepare(self) -> None:
        """Hook called after the model is loaded."""

    def _probe(self) -> None:
        """Raises TeacherSourceError for a model whose outputs cannot be used."""

    def _unused(self, weight: str) -> bool:
        """Whether no feature depends on that weight."""
        return False

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _build_skeleton(self) -> Any:
        kind, auto = self._config.model_type, self._auto()
        if type(self._config) not in auto._model_mapping:
            raise TeacherSourceError(
                f"source {self._folder}: model type {kind!r} is not supported by "
                f"{self.auto_class}; use another kind of teacher or model"
            )
        what = f"source {self._folder}: model type {kind!r} does not work as {self.auto_class}"
        with refusing(TeacherSourceError, what), torch.device("meta"), quiet_transformers():
            return auto.from_config(self._config, trust_remote_code=False)

    def _refuse_without_text(self) -> None:
        names = list(inspect.signature(self._skeleton.forward).parameters)
        if "input_ids" not in names:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._skeleton).__name__} reads {names[0]}, not "
                f"text; use a text model"
            )

    def _read(self) -> Any:
        if self._base is not None:
            return self._read_adapted(self._base).to(self._device, self._precision.torch_dtype)
        dtype = self._precision.torch_dtype
        model, report = self._auto().from_pretrained(
            self._folder, dtype=dtype, **self._placement(), **_CAREFULLY
        )
        refuse_other_shapes(report["mismatched_keys"], self._folder, TeacherSourceError)
        self._refuse_random(report["missing_keys"])
        if self._quantised and model.dtype != dtype:
            own = str(model.dtype).removeprefix("torch.")
            raise TeacherSourceError(
                f"source {self._folder}: its quantised weights compute in {own}, not in "
                f"{self._precision.compute}; set dtype={own}"
            )
        return model

    def _placement(self) -> dict[str, Any]:
        """Where weights are read to: each, or this process's part of it, straight to its device."""
        if self._is_divided:
            from transformers.distributed import DistributedConfig

            return {"distributed_config": DistributedConfig(tp_size=world_size())}
        on_cpu = self._device.type == "cpu"
        return {
            "device_map": {"": self._device} if on_cpu or not self._device_map else self._device_map
        }

    def _refuse_quantised_base(self) -> None:
        placed = "a device_map" if self._device_map else "tensor_parallel"
        if self._base is not None and (self._quantised or self._device_map or self._is_divided):
            what = "a quantised base" if self._quantised else placed
            raise TeacherSourceError(
                f"source {self._folder}: its adapters cannot be merged with {what}; merge them "
                "into the base in full precision, and save that"
            )

    def _read_adapted(self, base: Path) -> Any:
        """The base with adapters in its weights, in float32; of a classifier, only its transformer
        if that is the auto class."""
        import transformers

        classifies = (self._folder / TASK).is_dir()
        auto = transformers.AutoModelForSequenceClassification if classifies else self._auto()
        model, report = auto.from_pretrained(
            base, config=self._config, dtype=torch.float32, **_CAREFULLY
        )
        adapted = read_adapters(model, self._folder, TeacherSourceError)
        mismatched = (name for name, *_ in report["mismatched_keys"])
        self._refuse_random(not_brought(adapted, [*report["missing_keys"], *mismatched]))
        merged = adapted.merge_and_unload()
        return merged if auto is self._auto() else merged.base_model

    def _refuse_random(self, missing: Iterable[str]) -> None:
        lacking = sorted(name for name in missing if not self._unused(name))
        if lacking:
            raise TeacherSourceError(
                f"source {self._folder}: the weights lack {', '.join(lacking[:4])}"
                f"{' and more' if len(lacking) > 4 else ''}, which would be random; "
                f"use a checkpoint that was saved as {type(self._skeleton).__name__}"
            )


def saved_dtype(config: Any) -> torch.dtype | None:
    """The dtype that a checkpoint was saved in, if its configuration says so."""
    text = config.get_text_config()
    saved = getattr(text, "dtype", None) or getattr(config, "dtype", None)
    return getattr(torch, saved, None) if isinstance(saved, str) else saved


def world_size() -> int:
    """The processes that have met (`torch.distributed`); 1 where they have not."""
    together = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if together else 1


def refuse_undivided(skeleton: Any, device: torch.device, folder: Path) -> None:
    """Raises JobError where there is one process, or not one for each accelerator;
    TeacherSourceError for a model that cannot be divided among as many as there are."""
    count = world_size()
    if count < 2:
        raise JobError(
            "tensor_parallel: needs several processes, each with its part of the model; start them "
            "with `torchrun --nproc-per-node N -m armada.cli precompute ...`"
        )
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = "cpu" if accelerator is None else accelerator.type
    if device.type != kind:
        raise JobError(f"tensor_parallel: computes on {kind} here, not on {device.type}")
    model = type(skeleton).__name__
    if not skeleton.supports_tp_plan:
        raise TeacherSourceError(
            f"source {folder}: transformers has no plan to divide a {model} among processes; use "
            "device_map=auto instead of tensor_parallel"
        )
    config = skeleton.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, name, None)
        if isinstance(heads, int) and heads % count:
            raise TeacherSourceError(
                f"source {folder}: its {heads} {name} cannot be divided among {count} processes; "
                "start as many as divide it"
            )


def spread_over(model: Any, device: torch.device, folder: Path) -> torch.device:
    """The device that a model takes its inputs on, and its parts return their outputs to: `device`,
    unless the model's layers were spread over several.

    Raises RunError for a layer that would be read from the disk for each batch."""
    devices = dict.fromkeys(getattr(model, "hf_device_map", {}).values())
    if len(devices) < 2:
        return device
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    if "disk" in devices:
        raise RunError(
            f"device memory: the model of {folder} fits neither the GPUs nor this machine's "
            "memory; use more GPUs, or a quantised checkpoint"
        )
    if "cpu" in devices:
        _LOGGER.warning(
            f"source {folder}: the GPUs do not hold all of the model; layers that stay in this "
            "machine's memory are many times as slow"
        )
    first = next(torch.device(each) for each in devices if each != "cpu")
    # As accelerate does for the model itself: parts of it are called as well.
    for part in {model.base_model, getattr(model.base_model, "encoder", None)} - {None, model}:
        together = AlignDevicesHook(first, io_same_device=True)
        add_hook_to_module(part, together, append=True)
    return first


def own_files(folder: Path) -> list[Path]:
    """The files of a model folder that are digested."""
    # Not those of sub-folders: a training folder keeps checkpoints there that are not used.
    return [path for pattern in MODEL_FILE_PATTERNS for path in folder.glob(pattern)]


def _of_tokens(values_BT: torch.Tensor, rows: TokenRows) -> torch.Tensor:
    """The values of real tokens [S, *shape] in half precision, text after text."""
    at = to_device(torch.from_numpy(rows.positions(values_BT.shape[1])), values_BT.device)
    return values_BT.flatten(0, 1).index_select(0, at).half()


PROBE = "a b c"
"""A text shorter than its bucket, and longer than the window of a model of characters."""

PADDING_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
"""Tolerance of padding, relative to a feature's largest value (at least 0.1): rounding."""


class LanguageModelTeacher(CheckpointTeacher):
    """A frozen transformers model with features of a fixed shape per text.

    Subclasses: `auto_class`, `_features`, `_answer`, and where needed `_prepare` and `_unused`."""

    default_batch_tokens = 64 * DEFAULT_MAX_LENGTH

    def __init__(self, source: str, options: TokenizedOptions, device: torch.device) -> None:
        super().__init__(source, options.revision, options, device)
        tokenizer = read_tokenizer(self._folder, TeacherSourceError)
        options = self._resolve(options, tokenizer)
        positions = token_limit(tokenizer, self._reader())
        max_length = choose_length(
            options.max_length, positions, DEFAULT_MAX_LENGTH, least_length(tokenizer), JobError
        )
        self._texts = self._text_tokenizer(
            tokenizer,
            options,
            max_length=max_length,
            names=self._arguments(),
            vocabulary=embedding_rows(self._reader()),
            positions=positions,
            fixed=self._pads_to_its_limit(),
        )
        if self._pads_to_its_limit():  # then nothing else does, as before there was this option
            options = options.model_copy(update=options.earlier)
        self.spec = self._make_spec(options, max_length=max_length, **self._declared_settings())

    def encode(self, examples: Sequence[Example]) -> Answers:
        """One array [B, *shape] a feature."""
        return self.start(self.prepare(examples))()

    def buckets(self, examples: Sequence[Example]) -> Sequence[int]:
        """The padded length of each example, in tokens."""
        buckets: list[int] = self.prepare(examples).buckets.tolist()
        return buckets

    def prepare(self, examples: Sequence[Example]) -> Prepared:
        """Their tokens."""
        rows = self._texts.read(examples)
        return Prepared(examples, self._texts.buckets(rows.lengths), rows, rows.lengths)

    def start(self, batch: Prepared) -> Outputs:
        """See Teacher."""
        rows: TokenRows = batch.inputs
        self._texts.check(rows, batch.examples)
        with self._answering(), attending(self._texts.needs_mask(rows)):
            answers = self._answer(self._texts.inputs(rows, self._device))
        along = [spec.name for spec in self.spec.features if spec.axis is not None]
        stored = {
            name: self._precision.cast(values[: len(batch)])
            for name, values in answers.items()
            if name not in along
        } | {name: _of_tokens(answers[name], rows) for name in along if name in answers}
        arriving = to_host(list(stored.values()))

        def wait() -> Answers:
            arrays: dict[str, Any] = dict(zip(stored, arriving(), strict=True))
            if along:
                arrays[TOKEN_IDS] = rows.columns["input_ids"]
            parts = {name: rows.parts(arrays[name]) for name in along}
            return Answers(arrays | parts, rows.truncated)

        return wait

    def unknown(self, examples: Sequence[Example]) -> Unknown | None:
        """See Teacher."""
        return self._texts.unknown(examples)

    def _resolve(self, options: TokenizedOptions, tokenizer: Any) -> TokenizedOptions:
        """The options, completed by what the source declares."""
        return options

    def _text_tokenizer(self, *given: Any, **limits: Any) -> TextTokenizer:
        """What makes tokens of the texts, of the same arguments."""
        return TextTokenizer(*given, **limits)

    def _reader(self) -> Any:
        """The part of the skeleton that reads tokens."""
        return self._skeleton

    def _arguments(self) -> frozenset[str]:
        """Model arguments for a text."""
        return frozenset(inspect.signature(self._skeleton.forward).parameters)

    def _pads_to_its_limit(self) -> bool:
        """Whether every text has to be as long as the model takes."""
        return False

    def _declared_settings(self) -> dict[str, SettingValue]:
        """Declarations of the source, beside the options, that change features."""
        return {}

    @abstractmethod
    def _answer(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Feature -> [B or more, *shape], rows beyond B being repeated ones; along tokens
        [B or more, T, *shape]."""

    def _require_tokens(self, states: torch.Tensor, rows: TokenRows) -> None:
        if states.shape[1] != int(rows.lengths.max()):
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._model).__name__} has no states of its own "
                "for each token; leave token_layers and attention_layers out"
            )

    @torch.inference_mode()
    def _probe(self) -> None:
        # Not every model heeds a mask (FNet), or finds a text's end before padding (XLNet's head).
        rows = self._texts.read_own(PROBE)
        bare = self._answer(self._texts.inputs(rows, self._device, padded=False))
        # Its own bucket may leave it as long as it is, or too little to see (Nystromformer).
        far = self._texts.inputs(rows, self._device, padding="multiples_of_16")
        padded = self._answer(far)
        tolerance = PADDING_TOLERANCE[self._precision.torch_dtype]
        for name, expected in bare.items():
            feature = self.spec.feature(name)
            if feature is not None and feature.axis is not None:
                self._require_tokens(expected, rows)
                own = rows.positions(expected.shape[1]), rows.positions(padded[name].shape[1])
                one, other = (torch.from_numpy(each).to(expected.device) for each in own)
                expected = expected.flatten(0, 1)[one]
                padded[name] = padded[name].flatten(0, 1)[other]
            if feature is not None and expected.shape[1:] != feature.shape:
                raise TeacherSourceError(
                    f"source {self._folder}: {type(self._model).__name__} gives "
                    f"{list(expected.shape[1:])} numbers per text, but its config.json says "
                    f"{list(feature.shape)} ({name}); use another model"
                )
            largest = expected.abs().max().clamp(min=0.1)
            if (padded[name] - expected).abs().max() > tolerance * largest:
                raise TeacherSourceError(
                    f"source {self._folder}: {type(self._model).__name__} gives other outputs for "
                    f"padded texts ({name}), so they would depend on the batch; use another model"
                )
