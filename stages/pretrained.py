"""Model folders as transformers saves them: configuration, tokenizer, and the library's manners.

Nothing here reaches for the network or runs code that came with a model. Whatever the library
raises about a folder becomes an error of one line, of the kind the caller names.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..cache_schemas.errors import InputError

LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError)
"""What a configuration, tokenizer or checkpoint that does not fit raises in transformers."""


def read_config(folder: Path, error: type[InputError]) -> Any:
    """The configuration of a model folder; refuses adapters, whose base lies elsewhere."""
    from transformers import AutoConfig

    if (folder / "adapter_config.json").exists():
        raise error(
            f"source {folder}: holds an adapter; merge it into its base model and save that"
        )
    if not (folder / "config.json").exists():
        raise error(f"source {folder}: holds no config.json")
    try:
        return AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
    except LOAD_ERRORS as cause:
        raise error(f"source {folder}: config.json: {one_line(cause)}") from cause


def read_tokenizer(folder: Path, error: type[InputError]) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
    except LOAD_ERRORS as cause:
        raise error(f"source {folder}: tokenizer: {one_line(cause)}") from cause
    require_vocabulary(tokenizer, folder, error)
    return tokenizer


def require_vocabulary(tokenizer: Any, folder: Path, error: type[InputError]) -> None:
    """Refuses a tokenizer that transformers made up: without its files it knows no words."""
    files = {*tokenizer.vocab_files_names.values()}
    if files and not any((folder / name).exists() for name in files):
        raise error(f"source {folder}: holds no tokenizer ({' or '.join(sorted(files))})")


def token_limit(tokenizer: Any, model: Any) -> int:
    """How many tokens a model takes, special ones included; `model` needs no weights."""
    return int(min([tokenizer.model_max_length, *_positions(model)]))


def _positions(model: Any) -> list[int]:
    declared = getattr(model.config, "max_position_embeddings", None)
    if not declared or declared < 1:  # XLNet says -1, T5 nothing: relative positions
        return []
    # RoBERTa and its kin count positions from the padding index on, so the first are never used.
    skipped = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return [declared - max(skipped, default=0)]


def source_name(source: str, revision: str | None) -> str:
    """What people call a source: the folder's name, or hub id and revision."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve().name
    return source if revision is None else f"{source}@{revision}"


def one_line(cause: BaseException) -> str:
    """The start of another library's message, on one line."""
    return " ".join(str(cause).split())[:300] or type(cause).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports: what matters of them is checked and raised here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # The trainer has no other word yet for what it passes on to torch under this name.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
