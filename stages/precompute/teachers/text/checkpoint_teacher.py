"""A transformers checkpoint as a frozen model: what all its teachers share.

In goes a folder or hub id; out comes a model of which every weight that is used came from the
checkpoint. Whatever can be refused is refused from the configuration and a skeleton of the model:
its modules without any weights, built in milliseconds.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from .....cache_schemas.errors import TeacherSourceError
from .....cache_schemas.features import FeatureSpec
from .....cache_schemas.teachers import SettingValue, TeacherSpec
from ....pretrained import (
    LOAD_ERRORS,
    LOCAL_ONLY,
    one_line,
    quiet_transformers,
    read_config,
    source_name,
)
from ....sources import MODEL_FILE_PATTERNS, digest_files, require_safetensors, resolve
from ..base import Teacher, TeacherOptions, make_spec
from ..precision import Precision


class CheckpointTeacher(Teacher):
    """A frozen transformers model, `_model` after `load`.

    Subclasses: `auto_class`, `_features`, and where needed `_prepare` and `_unused`."""

    auto_class: ClassVar[str]

    def __init__(
        self, source: str, revision: str | None, precision: Precision, device: torch.device
    ) -> None:
        self._source, self._revision = source, revision
        self._device, self._precision = device, precision
        self._folder = resolve(source, revision, TeacherSourceError)
        self._config = read_config(self._folder, TeacherSourceError)
        require_safetensors(self._folder, TeacherSourceError)
        self._skeleton = self._build_skeleton()

    def _make_spec(self, options: TeacherOptions, **resolved: SettingValue) -> TeacherSpec:
        """The spec of the checkpoint under these options."""
        features = self._features()  # before the digest, which reads every weight
        return make_spec(
            self.kind,
            source_name(self._source, self._revision),
            {"model": digest_files(self._folder, _own_files(self._folder))},
            options,
            features,
            revision=None,  # the digest says it, also where the folder has no revision
            **resolved,
            **self._precision.settings(),
        )

    def load(self) -> None:
        """Read the weights and put them on the device.

        Raises TeacherSourceError if the checkpoint lacks a weight that an answer needs, or if the
        model's answers depend on padding."""
        with quiet_transformers():
            model = self._read()
            model.config.use_cache = False  # no keys and values to remember
            self._model: Any = model.eval().requires_grad_(False).to(self._device)
            self._prepare()

    @abstractmethod
    def _features(self) -> list[FeatureSpec]:
        """What the teacher answers, from `_config` and `_skeleton`."""

    def _prepare(self) -> None:
        """What else is to be done with a model that was just read."""

    def _unused(self, weight: str) -> bool:
        """Whether no answer depends on that weight."""
        return False

    def _auto(self) -> Any:
        import transformers

        return getattr(transformers, self.auto_class)

    def _build_skeleton(self) -> Any:
        try:
            with torch.device("meta"), quiet_transformers():
                return self._auto().from_config(self._config, trust_remote_code=False)
        except LOAD_ERRORS as cause:
            raise TeacherSourceError(
                f"source {self._folder}: model type {self._config.model_type!r} does not work as "
                f"{self.auto_class}: {one_line(cause)}"
            ) from cause

    def _read(self) -> Any:
        try:
            model, report = self._auto().from_pretrained(
                self._folder,
                dtype=self._precision.torch_dtype,
                use_safetensors=True,
                output_loading_info=True,
                **LOCAL_ONLY,
            )
        except LOAD_ERRORS as cause:
            raise TeacherSourceError(f"source {self._folder}: {one_line(cause)}") from cause
        self._refuse_random(report["missing_keys"])
        return model

    def _refuse_random(self, missing: Sequence[str]) -> None:
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
