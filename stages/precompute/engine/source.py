"""A model folder that an engine is started with, and what is asked of it.

Nothing of the model is built here: configuration, tokenizer and digests are read, and weights are
the engine's matter. So whatever architecture the engine has can be a teacher.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.features import FeatureSpec
from ....cache_schemas.teachers import SettingValue
from ...adapters import ADAPTER_CONFIG
from ...language.tokens import vocab_size_of
from ...pretrained import read_config, read_tokenizer
from ...sources import digest_files, require_safetensors, resolve
from ..teachers.base import Answers, Example
from ..teachers.checkpoint_teacher import own_files, saved_dtype
from ..teachers.options import HALF_PRECISION


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the engine (`worker.Engine`): its task, its arguments, token ids [T]; a name,
    where an example has several of one task."""

    task: str
    arguments: Mapping[str, Any]
    ids: npt.NDArray[Any]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The engine's answers to one example: arrays by task, or name; how each response ended; why it
    is refused, empty if it is not."""

    arrays: Mapping[str, Mapping[str, npt.NDArray[Any]]] = field(default_factory=dict)
    finish: Sequence[str | None] = ()
    refused: str = ""


class Task(ABC):
    """The features of one runner of the engine. `Texts` are examples as it reads them, with
    `take`."""

    vocab_digest: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings before the engine starts."""
        return ()

    @abstractmethod
    def settings(self) -> dict[str, SettingValue]:
        """Settings of the fingerprint beside the options."""

    @abstractmethod
    def features(self) -> list[FeatureSpec]:
        """The features."""

    @abstractmethod
    def engine(self) -> dict[str, Any]:
        """Arguments of the engine."""

    @abstractmethod
    def own_texts(self, example: Example) -> list[str]:
        """The example's own texts."""

    def check(self, example: Example) -> None:  # noqa: B027 (most take any)
        """Raise JobError for an example with other segments than are read."""

    def beforehand(self) -> list[Request]:
        """Requests whose answers every example's features need."""
        return []

    def learn(self, found: Found) -> None:  # noqa: B027
        """Take their answers; called once, before any features are made."""

    @abstractmethod
    def read(self, examples: Sequence[Example]) -> Any:
        """Examples as the task reads them."""

    @abstractmethod
    def requests(self, texts: Any, examples: Sequence[Example]) -> list[list[Request]]:
        """The requests for each example."""

    @abstractmethod
    def answers(self, texts: Any, found: Sequence[Found]) -> Answers:
        """The features of some examples, from the engine's answers."""


class EngineSource:
    """Configuration and tokenizer of a model folder."""

    def __init__(self, source: str, revision: str | None) -> None:
        """Raises TeacherSourceError for a folder that is no model's, or that is a pickle's."""
        self.folder: Path = resolve(source, revision, TeacherSourceError)
        if (self.folder / ADAPTER_CONFIG).is_file():
            raise TeacherSourceError(
                f"source {self.folder}: holds adapters; merge them into their base, and save that"
            )
        self._config = read_config(self.folder, TeacherSourceError)
        self._text_config = self._config.get_text_config()
        require_safetensors(self.folder, TeacherSourceError)
        self.tokenizer = read_tokenizer(self.folder, TeacherSourceError)

    @property
    def dtype(self) -> str:
        """The dtype that the checkpoint was saved in, if it is a half precision; else float32."""
        return HALF_PRECISION.get(str(saved_dtype(self._config)), "float32")

    @property
    def vocabulary(self) -> int:
        """Tokens that the model has logits of."""
        return int(self._text_config.vocab_size)

    def require_vocabulary(self) -> None:
        """Raises TeacherSourceError for a tokenizer of more tokens than the model has."""
        if (size := vocab_size_of(self.tokenizer)) > self.vocabulary:
            raise TeacherSourceError(
                f"source {self.folder}: its tokenizer has {size} tokens, the model "
                f"{self.vocabulary}; use the model's own tokenizer, or resize the model's "
                "embeddings"
            )

    @property
    def width(self) -> int:
        """Numbers of a hidden state."""
        return int(self._text_config.hidden_size)

    @property
    def positions(self) -> int:
        """Maximum number of tokens of a text."""
        declared = getattr(self._text_config, "max_position_embeddings", None)
        limits = [self.tokenizer.model_max_length, *([declared] if declared else [])]
        return int(min(limits))

    def generation_config(self) -> Any:
        """What the model declares about its own responses."""
        from transformers import GenerationConfig

        if (self.folder / "generation_config.json").is_file():
            return GenerationConfig.from_pretrained(self.folder, local_files_only=True)
        return GenerationConfig.from_model_config(self._config)

    def digest(self) -> str:
        """Digest of its files, the same as another teacher's of the same folder."""
        return digest_files(self.folder, own_files(self.folder))
