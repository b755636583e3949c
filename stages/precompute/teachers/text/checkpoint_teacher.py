"""A transformers checkpoint as a frozen model: what all its teachers share.

In goes a folder or hub id; out comes a model of which every weight that is used came from the
checkpoint. Whatever can be refused is refused from the configuration and a skeleton of the model:
its modules without any weights, built in milliseconds.
"""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch

from .....cache_schemas.errors import RunError, TeacherOutputError, TeacherSourceError
from .....cache_schemas.features import FeatureSpec
from .....cache_schemas.teachers import SettingValue, TeacherSpec
from ....pretrained import (
    LOCAL_ONLY,
    quiet_transformers,
    read_config,
    refuse_other_shapes,
    refusing,
    source_name,
)
from ....sources import MODEL_FILE_PATTERNS, digest_files, require_safetensors, resolve
from ..base import Teacher, TeacherOptions, make_spec
from ..precision import Precision


class CheckpointTeacher(Teacher):
    """A frozen transformers model, `_model` after `load`.

    Subclasses: `auto_class`, `_features`, and where needed `_prepare`, `_probe` and `_unused`."""

    auto_class: ClassVar[str]

    def __init__(
        self, source: str, revision: str | None, precision: Precision, device: torch.device
    ) -> None:
        self._source, self._revision = source, revision
        self._device, self._precision = device, precision
        self._folder = self._find_model(resolve(source, revision, TeacherSourceError))
        self._config = read_config(self._folder, TeacherSourceError)
        require_safetensors(self._folder, TeacherSourceError)
        self._skeleton = self._build_skeleton()
        self._refuse_without_text()

    def _make_spec(self, options: TeacherOptions, **resolved: SettingValue) -> TeacherSpec:
        """The spec of the checkpoint under these options."""
        features = self._features()  # before the digest, which reads every weight
        return make_spec(
            self.kind,
            source_name(self._source, self._revision),
            self._digests(),
            options,
            features,
            revision=None,  # the digest says it, also where the folder has no revision
            **resolved,
            **self._precision.settings(),
        )

    def load(self) -> None:
        """Read the weights and put them on the device.

        Raises TeacherSourceError if the checkpoint cannot be read, lacks a weight that an answer
        needs, or does not answer a probe as it has to; RunError if it does not fit into memory."""
        try:
            with quiet_transformers():
                with refusing(TeacherSourceError, f"source {self._folder}"):
                    model = self._read()
                    model.config.use_cache = False  # no keys and values to remember
                    self._model: Any = model.eval().requires_grad_(False).to(self._device)
                name = type(self._model).__name__
                with refusing(TeacherSourceError, f"source {self._folder}: {name} does not answer"):
                    self._prepare()
                    self._probe()
        except torch.OutOfMemoryError as cause:
            raise RunError(
                f"device memory: the model of {self._folder} does not fit; use a device with more "
                "memory, or a smaller dtype"
            ) from cause

    def _answering(self) -> AbstractContextManager[None]:
        """What the model raises at a text becomes one line; memory that runs out passes."""
        name = type(self._model).__name__
        return refusing(TeacherOutputError, f"source {self._folder}: {name} fails at a text")

    @abstractmethod
    def _features(self) -> list[FeatureSpec]:
        """What the teacher answers, from `_config` and `_skeleton`."""

    def _find_model(self, folder: Path) -> Path:
        """Where in the source's folder the transformers model lies."""
        return folder

    def _digests(self) -> dict[str, str]:
        """Part of the model -> digest of its files."""
        return {"model": digest_files(self._folder, _own_files(self._folder))}

    def _prepare(self) -> None:
        """Hook called after the model is loaded."""

    def _probe(self) -> None:
        """Raises TeacherSourceError for a model whose answers cannot be used."""

    def _unused(self, weight: str) -> bool:
        """Whether no answer depends on that weight."""
        return False

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _build_skeleton(self) -> Any:
        kind, auto = self._config.model_type, self._auto()
        if type(self._config) not in auto._model_mapping:
            raise TeacherSourceError(
                f"source {self._folder}: model type {kind!r} does not work as "
                f"{self.auto_class}: transformers has none; use another kind of teacher or model"
            )
        what = f"source {self._folder}: model type {kind!r} does not work as {self.auto_class}"
        with refusing(TeacherSourceError, what), torch.device("meta"), quiet_transformers():
            return auto.from_config(self._config, trust_remote_code=False)

    def _refuse_without_text(self) -> None:
        names = list(inspect.signature(self._skeleton.forward).parameters)
        if "input_ids" not in names:
            raise TeacherSourceError(
                f"source {self._folder}: {type(self._skeleton).__name__} reads no text, but "
                f"{names[0]}; use a model of texts"
            )

    def _read(self) -> Any:
        model, report = self._auto().from_pretrained(
            self._folder,
            dtype=self._precision.torch_dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
            **LOCAL_ONLY,
        )
        refuse_other_shapes(report["mismatched_keys"], self._folder, TeacherSourceError)
        self._refuse_random(report["missing_keys"])
        return model

    def _refuse_random(self, missing: Iterable[str]) -> None:
        lacking = sorted(name for name in missing if not self._unused(name))
        if lacking:
            raise TeacherSourceError(
                f"source {self._folder}: the weights lack {', '.join(lacking[:4])}"
                f"{' and more' if len(lacking) > 4 else ''}, which would be random; "
                f"use a checkpoint that was saved as {type(self._skeleton).__name__}"
            )


def _own_files(folder: Path) -> list[Path]:
    # Not those of sub-folders: a training folder keeps checkpoints there that nobody asks.
    return [path for pattern in MODEL_FILE_PATTERNS for path in folder.glob(pattern)]
