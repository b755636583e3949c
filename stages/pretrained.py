"""Model folders as transformers saves them: configuration, tokenizer, and the library's manners.

Nothing here reaches for the network or runs code that came with a model. Whatever a library raises
about a model becomes an error of one line, of the kind the caller names (`refusing`).
"""

import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from safetensors import SafetensorError

from ..cache_schemas.errors import ArmadaError, InputError
from ..cache_schemas.locations import expand_home
from .memory import is_out_of_memory

DEFAULT_MAX_LENGTH = 128
"""Default maximum tokens of an encoder, as teacher and as student."""

LOCAL_ONLY = {"local_files_only": True, "trust_remote_code": False}


@contextmanager
def refusing(error: type[ArmadaError], what: str) -> Iterator[None]:
    """Turns whatever a library raises about a model into `error`, one line about `what`.

    No list of exceptions would do: a model of any family may raise anything. Out-of-memory errors
    pass."""
    try:
        yield
    except ArmadaError:
        raise
    except Exception as cause:
        if is_out_of_memory(cause):
            raise
        raise error(f"{what}: {_with_remedy(cause)}") from cause


def _with_remedy(cause: Exception) -> str:
    """A library's message, and the remedy."""
    message = one_line(cause)
    if "trust_remote_code" in str(cause):
        return "needs custom code, which is never run; use a model supported by transformers itself"
    if isinstance(cause, ImportError):
        return f"needs a missing package; install it: {message}"
    if isinstance(cause, SafetensorError):
        return f"the weights are damaged or incomplete ({message}); download them again"
    if isinstance(cause, OSError | ValueError | RuntimeError) and " " in message:
        return message
    return f"{type(cause).__name__}: {message}; use another model, or see --debug"


def read_config(folder: Path, error: type[InputError]) -> Any:
    """The configuration of a model folder; refuses adapters, whose base is elsewhere."""
    from transformers import AutoConfig

    if (folder / "adapter_config.json").exists():
        raise error(
            f"source {folder}: holds an adapter; merge it into its base model and save that"
        )
    if not (folder / "config.json").exists():
        raise error(f"source {folder}: holds no config.json")
    with refusing(error, f"source {folder}: config.json"):
        _refuse_unknown_type(folder, error)
        config = AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
    _refuse_unknown_quantisation(config, folder, error)
    return config


def _refuse_unknown_type(folder: Path, error: type[InputError]) -> None:
    from transformers import CONFIG_MAPPING, __version__

    try:
        document = json.loads((folder / "config.json").read_bytes())
    except ValueError as cause:
        raise error(f"source {folder}: config.json: is not JSON: {one_line(cause)}") from cause
    if not isinstance(document, dict):
        raise error(f"source {folder}: config.json: is not a JSON object; download it again")
    kind = document.get("model_type")
    # Older folders name no type; one of its own, which comes with code, is refused further on.
    if kind is None or kind in CONFIG_MAPPING or "auto_map" in document:
        return
    raise error(
        f"source {folder}: model type {kind!r} is unknown to transformers {__version__}; update "
        "transformers, or use another model"
    )


def _refuse_unknown_quantisation(config: Any, folder: Path, error: type[InputError]) -> None:
    """transformers would read such weights as if they were plain numbers."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantised = getattr(config, "quantization_config", None)
    if not quantised:
        return
    with quiet_transformers(), refusing(error, f"source {folder}: quantization_config"):
        known = AutoHfQuantizer.supports_quant_method(quantised)
    if not known:
        raise error(
            f"source {folder}: uses an unknown quantisation; use the checkpoint without "
            "quantisation"
        )


def refuse_other_shapes(mismatched: Iterable[Any], folder: Path, error: type[InputError]) -> None:
    """Refuse weights that do not fit the configuration; `mismatched` is what `from_pretrained`
    reports: names, shapes saved, shapes of the model."""
    for name, saved, built in sorted(mismatched):
        raise error(
            f"source {folder}: weight {name} is {list(saved)}, by config.json {list(built)}; use "
            "the config.json saved with the weights"
        )


def read_tokenizer(folder: Path, error: type[InputError]) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    with refusing(error, f"source {folder}: tokenizer"), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY)
        require_vocabulary(tokenizer, folder, error)
        tokenizer("a")  # some need a package only when they are used
    return tokenizer


def require_vocabulary(tokenizer: Any, folder: Path, error: type[InputError]) -> None:
    """Refuses a tokenizer that transformers made up: without its files it knows no words."""
    files = {*tokenizer.vocab_files_names.values()}
    if tokenizer.is_fast:
        files.add("tokenizer.json")
    if files and not any((folder / name).exists() for name in files):
        raise error(f"source {folder}: holds no tokenizer ({' or '.join(sorted(files))})")


def embedding_rows(model: Any) -> int:
    """Number of embedding rows of a model; `model` needs no weights. Unlimited without an embedding
    table, such as in models of characters."""
    try:
        table = getattr(model.get_input_embeddings(), "weight", None)
    except (NotImplementedError, AttributeError):
        table = None
    if table is not None and table.ndim == 2:
        return int(table.shape[0])
    return int(getattr(model.config, "vocab_size", None) or sys.maxsize)


def padding_id(tokenizer: Any, rows: int = sys.maxsize) -> int:
    """The padding id. It is masked, so any will do if a tokenizer has none, or has one beyond a
    model's `rows`."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(each) for each in candidates if each is not None and each < rows)


def token_limit(tokenizer: Any, model: Any) -> int:
    """Maximum number of tokens of a model, special ones included; `model` needs no weights."""
    return int(min([tokenizer.model_max_length, *_positions(model)]))


def least_length(tokenizer: Any) -> int:
    """Minimum `max_length` for an example of two texts."""
    return int(tokenizer.num_special_tokens_to_add(pair=True)) + 1


def choose_length(
    requested: int | None, limit: int, default: int, least: int, error: type[InputError]
) -> int:
    """The most tokens of an example: as requested, or the default, or the model's maximum (`limit`)
    if that is less. Raises `error` if the request exceeds that, or is too small for any text."""
    if requested is not None and requested < least:
        raise error(
            f"max_length {requested}: leaves no room beside the special tokens; use at least "
            f"{least}"
        )
    if requested is not None and requested > limit:
        raise error(f"max_length {requested}: the model takes at most {limit} tokens; use fewer")
    return requested or min(default, limit)


def _positions(model: Any) -> list[int]:
    declared = getattr(model.config, "max_position_embeddings", None)
    if not declared or declared < 1:  # XLNet has -1, T5 none: relative positions
        return []
    # RoBERTa and similar models count positions from the padding index on: the first are unused.
    skipped = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return [declared - max(skipped, default=0)]


def source_name(source: str, revision: str | None) -> str:
    """Display name of a source: the folder's name, or hub id and revision."""
    folder = Path(expand_home(source))
    if folder.is_dir():
        return folder.resolve().name
    return source if revision is None else f"{source}@{revision}"


def one_line(cause: BaseException) -> str:
    """The start of another library's message, on one line."""
    return shorten(str(cause), 300, placeholder=" ...") or type(cause).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports: what matters of them is checked and raised here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # The trainer has no newer name yet for this argument of torch.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
