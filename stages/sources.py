"""Sources of models: a local folder, or a hub id with a revision. Safetensors only.

`resolve` gives a local folder; a folder never touches the network. `digest_files` names its
content, so that the same weights have the same fingerprint in any folder.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..cache_schemas.errors import InputError
from ..cache_schemas.keys import digest
from ..cache_schemas.locations import expand_home
from .known_digests import sha256_of

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5"})
MODEL_FILE_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Configuration, tokenizer and weights: all that is fetched from a hub, and digested."""

PIPELINE_FILE_PATTERNS = ("model_index.json", *(f"*/{name}" for name in MODEL_FILE_PATTERNS))
"""The same for a pipeline, whose components are in sub-folders: without the full checkpoints beside
them."""

VARIANT_PATTERNS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*", "*.int8.*", "original/*")
"""Other copies of weights in many repositories, which are never read."""


def resolve(
    source: str,
    revision: str | None,
    error: type[InputError],
    patterns: Sequence[str] = MODEL_FILE_PATTERNS,
) -> Path:
    """The local folder of `source`: itself if it is a folder, or that of the student in it if it is
    a run's; else a hub snapshot of the files that match `patterns`.

    Raises `error` if it is neither, naming what was tried."""
    folder = Path(expand_home(source))
    if folder.is_dir():
        return _student_of(folder, error)
    if folder.exists():
        raise error(f"source {source}: is a file; name the folder that holds config and weights")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", source):
        raise error(
            f"source {source}: looks like a URL; name a local folder, or a model id of the hub, "
            "such as org/name"
        )
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise error(f"source {source}: no such folder")
    return _snapshot(source, revision, error, patterns)


def _student_of(folder: Path, error: type[InputError]) -> Path:
    if (folder / "config.json").exists():
        return folder
    seeds = sorted(each.parent.name for each in folder.glob("seed-*/student"))
    if seeds:
        raise error(
            f"source {folder}: holds students of several seeds; name one: {folder / seeds[0]}"
        )
    student = folder / "student"
    return student if student.is_dir() else folder


def _snapshot(
    repository: str, revision: str | None, error: type[InputError], patterns: Sequence[str]
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with _bars_for_people():
            folder = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(VARIANT_PATTERNS),
            )
        return Path(folder)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as cause:
        raise error(
            f"source {repository}: not a local folder, and not found on the hub at revision "
            f"{revision or 'main'} ({type(cause).__name__}); name a folder or a hub id"
        ) from cause


@contextmanager
def _bars_for_people() -> Iterator[None]:
    """Progress of downloads on a terminal, not in a log."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def require_safetensors(folder: Path, error: type[InputError]) -> list[Path]:
    """The weight files of one model folder; refuses missing weights, and pickles."""
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        if not os.access(file, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
            # Libraries report it as missing.
            raise error(f"source {folder}: {file.name} is not readable for you (chmod a+r)")
    if weights:
        return weights
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise error(
            f"source {folder}: weights are pickled ({pickles[0]}), which can run code when opened; "
            "convert them to safetensors"
        )
    raise error(f"source {folder}: holds no *.safetensors weights")


def digest_files(folder: Path, files: Iterable[Path] | None = None) -> str:
    """128-bit digest of the names and contents of model files in `folder` (default: all of them,
    one level of sub-folders included). About 1 GB/s at first; known then (`known_digests.py`)."""
    if files is None:
        files = (
            path
            for pattern in MODEL_FILE_PATTERNS
            for path in (*folder.glob(pattern), *folder.glob(f"*/{pattern}"))
        )
    return digest({path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(files)})
