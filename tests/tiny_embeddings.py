"""Folders of embedding models as sentence-transformers saves them, from tiny checkpoints.

Each is saved by the library itself; `as_older` then says the same in the words of its releases
before 5, which most published folders are in.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from armada.stages.embeddings.folders import dense_layer, write_token_files
from armada.stages.embeddings.layers import Normalize
from tiny_checkpoints import make_bert

OLD_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


def make_embedding_model(
    folder: Path,
    checkpoint: Path,
    pooling: str | Sequence[str] = "mean",
    layers: Sequence[Any] = (),
    *,
    max_length: int | None = None,
    lowercase: bool = False,
    include_prompt: bool = True,
    padding_side: str | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
) -> Path:
    """A transformer, its pooling and `layers` (modules of sentence-transformers) behind it."""
    with quiet_sentence_transformers():
        from sentence_transformers import SentenceTransformer

        transformer = modules().Transformer(
            str(checkpoint), max_seq_length=max_length, do_lower_case=lowercase
        )
        if padding_side is not None:
            transformer.tokenizer.padding_side = padding_side
        if transformer.tokenizer.pad_token is None:
            transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
        width = transformer.get_embedding_dimension()
        pooled = modules().Pooling(width, pooling, include_prompt=include_prompt)
        model = SentenceTransformer(
            modules=[transformer, pooled, *layers],
            device="cpu",
            prompts=prompts,
            default_prompt_name=default_prompt,
        )
        model.save(str(folder), create_model_card=False)
    return folder


def make_multi_vector_model(folder: Path, texts: Sequence[str], width: int = 5) -> Path:
    """A tiny BERT whose tokens have a vector each, as armada writes it."""
    make_bert(folder, texts)
    wide = json.loads((folder / "config.json").read_text())["hidden_size"]
    draw = torch.Generator().manual_seed(width)
    weight = torch.randn(width, wide, generator=draw)
    layers = [dense_layer(weight, None, "torch.nn.modules.linear.Identity"), Normalize()]
    write_token_files(folder, layers, 48, {"query": "ask ", "document": ""})
    return folder


def modules() -> Any:
    """The module classes of sentence-transformers."""
    from sentence_transformers import sentence_transformer

    return sentence_transformer.modules


def dense(narrow: int, wide: int, activation: Any, **more: Any) -> Any:
    """A Dense of sentence-transformers with seeded weights."""
    with quiet_sentence_transformers():
        torch.manual_seed(narrow + wide)
        return modules().Dense(narrow, wide, activation_function=activation, **more)


def as_older(folder: Path, max_length: int | None = None, lowercase: bool = False) -> Path:
    """The same folder in the words of older releases of the library."""
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    if "pooling_mode" in pooling:
        modes = pooling["pooling_mode"]
        modes = [modes] if isinstance(modes, str) else modes
        old = {"word_embedding_dimension": pooling["embedding_dimension"]}
        old |= {key: mode in modes for mode, key in OLD_POOLINGS.items()}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(old))
    text = {"max_seq_length": max_length, "do_lower_case": lowercase}
    (folder / "sentence_bert_config.json").write_text(json.dumps(text))
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
    (folder / "modules.json").write_text(json.dumps(modules))
    versions = {"__version__": {"sentence_transformers": "2.0.0"}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(versions))
    return folder


def encode(folder: Path, texts: Sequence[str], *, cut: int | None = None, **asked: Any) -> Any:
    """What the library gives for texts in one padded batch, [N, E]; `cut`: its truncate_dim."""
    with quiet_sentence_transformers():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", truncate_dim=cut)
        return model.encode(list(texts), **asked)


@contextmanager
def quiet_sentence_transformers() -> Iterator[None]:
    """Without its progress bars, and without errors for what it deprecates of its own."""
    import warnings

    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            logging.enable_progress_bar()


def make_cross_encoder(folder: Path, checkpoint: Path, activation: Any = None) -> Path:
    """A sequence classifier as that library saves a cross-encoder."""
    with quiet_sentence_transformers():
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(checkpoint), device="cpu", activation_fn=activation)
        model.save_pretrained(str(folder), create_model_card=False)
    return folder


def predict(folder: Path, pairs: Sequence[tuple[str, str]], max_length: int | None = None) -> Any:
    """That library's scores of pairs, [N] or [N, K]."""
    with quiet_sentence_transformers():
        from sentence_transformers import CrossEncoder

        model = CrossEncoder(str(folder), device="cpu", max_length=max_length)
        return model.predict(list(pairs))
