"""Kinds of store: what armada reads from each, and the bytes that lie there."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import armada
import numpy as np
import pyarrow.parquet as pq
from armada.cache_schemas.manifest import FORMAT_VERSION, TeacherManifest
from armada.cli import main as command_line
from armada.stages.precompute.teachers import TEACHERS

from .material import Material, array_digest, file_digests
from .names import FEATURES, OPTIONS

TOKEN_ANSWERS = {
    "top_k": 12,
    "temperatures": [1.0, 2.0],
    "samples": 5,
    "samples_log_probs": True,
} | {
    "hidden_layers": [0, 2],
    "characters": True,
}
SHORT = {"limit": 70}
"""Two shards, of 64 rows and of 6."""
PAIRS = {"text_column": ["text", "second"]}
PICTURES = {"steps": 2, "height": 64, "width": 32, "resize": 16, "limit": 5}

PRECOMPUTED: dict[str, dict[str, Any]] = {
    "hash": {"teacher": "hash:16", "seed": 3},
    "hash, pairs, float16": {"teacher": "hash:7", "store_dtype": "float16"} | PAIRS,
    "hash_words": {"teacher": "hash_words:8", "max_words": 12},
    **{
        f"encoder, BERT, {pooling}": {"teacher": "encoder:bert", "pooling": pooling}
        | {"layers": [0, 1], "max_length": 24}
        | SHORT
        for pooling in ("mean", "cls", "last", "max", "weightedmean", "pooler")
    },
    "encoder, BERT, pairs, unit length": {"teacher": "encoder:bert", "max_length": 40}
    | {"normalize": True}
    | PAIRS
    | SHORT,
    "encoder, OPT, pairs": {"teacher": "encoder:opt", "pooling": "last"} | PAIRS | SHORT,
    "encoder, Llama, two poolings": {"teacher": "encoder:llama", "pooling": ["mean", "last"]}
    | SHORT,
    "encoder, DeBERTa, prompt left out": {"teacher": "encoder:deberta", "prompt": "query: "}
    | {"include_prompt": False}
    | SHORT,
    "encoder, sentence embedder": {"teacher": "encoder:embedder"} | SHORT,
    "encoder, sentence embedder, cut to 8": {"teacher": "encoder:embedder", "dim": 8}
    | {"normalize": True, "lowercase": True}
    | SHORT,
    "classifier, BERT": {"teacher": "classifier:bert_classifier"},
    "classifier, OPT, pairs": {"teacher": "classifier:opt_classifier"} | PAIRS | SHORT,
    "causal_lm, Llama, all features": {"teacher": "causal_lm:lm_llama", "top_k_bits": 8}
    | TOKEN_ANSWERS
    | SHORT,
    "causal_lm, GPT-2, dense, 5 bits": {"teacher": "causal_lm:lm_gpt2", "top_k": 9}
    | {"top_k_bits": 5, "dense": True}
    | SHORT,
    "causal_lm, Gemma 2, generated": {"teacher": "causal_lm:lm_gemma2", "text_format": "plain"}
    | {"top_k": 8, "top_k_bits": 16, "max_new_tokens": 6, "generation_temperature": 0.8}
    | {"generation_top_p": 0.9}
    | PAIRS
    | SHORT,
    "causal_lm, Llama, sampled tokens alone": {"teacher": "causal_lm:lm_llama", "top_k": None}
    | {"text_format": "plain", "samples": 7, "max_new_tokens": 4}
    | PAIRS
    | SHORT,
    "causal_lm, chats": {"teacher": "causal_lm:lm_chat", "text_format": "chat", "top_k": 8}
    | {"text_column": "chat", "max_length": 100}
    | SHORT,
    "open_clip": {"teacher": "open_clip:clip"},
    "open_clip, pairs, any length": {"teacher": "open_clip:clip", "normalize": False}
    | PAIRS
    | SHORT,
    "diffusers": {"teacher": "diffusers:diffusion"} | PICTURES,
    "diffusers, CLIP of transformers": {"teacher": "diffusers:diffusion"}
    | {"image_encoder": "transformers:clip_vision"}
    | PICTURES,
    "diffusers, ViT": {"teacher": "diffusers:diffusion", "image_encoder": "transformers:vit"}
    | PICTURES,
    "diffusers, CLIP of open_clip, images kept": {"teacher": "diffusers:diffusion"}
    | {"image_encoder": "open_clip:clip_images", "keep_images": True}
    | PICTURES,
    "diffusers, LoRA": {"teacher": "diffusers:diffusion", "lora": "diffusion_lora"} | PICTURES,
}
"""Settings of `armada.precompute`; checkpoints are named as in `material.MAKERS`."""
NOT_COMPARED = {"runs", "index.json", "reservations", "writer.lock"}
"""The index repeats the other documents, those of runs among them."""


def record(kind: str, material: Material, folder: Path) -> dict[str, Any]:
    """Make one kind in `folder`: what is read from it, and SHA-256 of each of its files but those
    with times in them and those that are for writers alone."""
    cache = folder / kind
    with redirect_stdout(io.StringIO()):
        if kind in PRECOMPUTED:
            _precompute(PRECOMPUTED[kind], material, cache)
        else:
            MADE_OF_OTHERS[kind](material, cache)
    kept = {
        path: digest
        for path, digest in file_digests(cache).items()
        if not NOT_COMPARED & set(Path(path).parts)
    }
    if (cache / "armada.json").exists():
        return {"files": kept, "teachers": dict(_teachers(cache))}
    return {"files": kept, "columns": dict(_columns(cache))}


def _precompute(settings: dict[str, Any], material: Material, cache: Path, **more: Any) -> None:
    earlier = {today: name for name, today in OPTIONS.items()} if FORMAT_VERSION == 1 else {}
    settings = {earlier.get(name, name): value for name, value in (settings | more).items()}
    kind, _, source = settings.pop("teacher").partition(":")
    if not kind.startswith("hash"):
        source = material.checkpoint(source)
    settings = earlier_options(kind) | settings
    if "image_encoder" in settings:
        library, _, encoder = settings["image_encoder"].partition(":")
        settings["image_encoder"] = f"{library}:{material.checkpoint(encoder)}"
    if "lora" in settings:
        settings["lora"] = str(material.checkpoint(settings["lora"]))
    armada.precompute(
        **{"corpus": material.corpus, "text_column": "text", "rows_per_shard": 64} | settings,
        teacher=f"{kind}:{source}",
        cache=cache,
        device="cpu",
    )


def earlier_options(kind: str) -> dict[str, Any]:
    """Options of a teacher that this version has and earlier ones lack, as it was there."""
    return dict(getattr(TEACHERS.load(kind).Options, "earlier", {}))


def _columns(exported: Path) -> Iterator[tuple[str, str]]:
    """Column, or array, of what was exported to one file or to one for each -> SHA-256 of the
    values."""
    for file in sorted(exported.rglob("*.parquet")):
        table = pq.read_table(file)
        for name in table.column_names:
            values = repr(table[name].to_pylist()).encode()
            yield name, hashlib.sha256(values).hexdigest()
    for file in sorted(exported.rglob("*.npy")):
        yield file.stem, array_digest(np.load(file))


def _teachers(cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fingerprint -> rows, and SHA-256 of keys and of each feature's values as they are stored, in
    the order of the rows; and what the fingerprint would be if features had their earlier names."""
    for folder in sorted((cache / "teachers").iterdir()):
        if folder.is_dir():
            opened = armada.open_cache(cache, folder.name)
            yield (
                folder.name,
                {
                    "by_earlier_names": _by_earlier_names(opened.teacher),
                    "rows": len(opened),
                    "keys": array_digest(opened.keys),
                    "features": {name: _values(opened, name) for name in opened.features},
                },
            )


def _by_earlier_names(teacher: TeacherManifest) -> str:
    earlier = {today: name for name, today in FEATURES.items()}
    features = tuple(
        feature.model_copy(update={"name": earlier.get(feature.name, feature.name)})
        for feature in teacher.spec.features
    )
    spec = teacher.spec.model_copy(update={"features": features})
    base = teacher.extends
    return spec.fingerprint if base is None else spec.fingerprint_extending(base)


def _values(cache: Any, name: str) -> str:
    rows = np.arange(len(cache))
    if not cache.feature_spec(name).axis:
        return array_digest(cache[name][rows])
    return array_digest(*(cache.ragged(name)[row] for row in rows))


def _command(*words: object) -> None:
    try:
        command_line([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise


WORDS = PRECOMPUTED["hash_words"]
LLAMA = PRECOMPUTED["causal_lm, Llama, all features"]
WHOLE = {"limit": None}
EXPORT = ("cache", "export", "{source}", "--corpus", "{corpus}", "--text-column", "text", "--quiet")
EXPORT += ("--output", "{cache}", "--format")


def _add_features(material: Material, cache: Path) -> None:
    _precompute({"teacher": "causal_lm:lm_llama", "top_k": 12} | SHORT, material, cache)
    more = {"teacher": "causal_lm:lm_llama", "top_k": 12, "samples": 4, "add_features": True}
    _precompute(more | SHORT, material, cache)


def _import(material: Material, cache: Path, *words: object) -> None:
    named = ("--name", "vectors", "--text-column", "text", "--quiet")
    _command("cache", "import", cache, *words, *named)


def _from_another(settings: dict[str, Any], *words: str) -> Callable[[Material, Path], None]:
    """A store that a command makes of one of these settings; `{source}`, `{cache}` and `{corpus}`
    are filled in."""

    def make(material: Material, cache: Path) -> None:
        source = cache.with_name(f"{cache.name}, source")
        _precompute(settings, material, source)
        paths = {"source": source, "cache": cache, "corpus": material.corpus}
        _command(*(word.format(**paths) for word in words))

    return make


def _merge_parts(material: Material, cache: Path) -> None:
    parts = [cache.with_name(f"{cache.name}, part {part}") for part in (1, 2)]
    for number, part in enumerate(parts, 1):
        _precompute(WORDS, material, part, part=f"{number}/2")
    _command("cache", "merge", cache, *parts, "--quiet")


def _repair(material: Material, cache: Path) -> None:
    _precompute(PRECOMPUTED["hash"], material, cache)
    shard = next(path for path in sorted(cache.rglob("embedding/c/1*/*")) if path.is_file())
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    shard.chmod(0o644)
    shard.write_bytes(damaged)
    _command("cache", "repair", cache)
    _precompute(PRECOMPUTED["hash"], material, cache)


MADE_OF_OTHERS: dict[str, Callable[[Material, Path], None]] = {
    "features added later": _add_features,
    "imported from NumPy": lambda m, cache: _import(m, cache, m.vectors, "--corpus", m.corpus),
    "imported from Parquet": lambda m, cache: _import(m, cache, m.corpus, "--column", "vector"),
    "merged from two parts": _merge_parts,
    "merged from one": _from_another(LLAMA, "cache", "merge", "{cache}", "{source}", "--quiet"),
    "damaged, repaired, completed": _repair,
    "exported as Parquet": _from_another(PRECOMPUTED["classifier, BERT"], *EXPORT, "parquet"),
    "exported as arrays": _from_another(PRECOMPUTED["encoder, BERT, mean"] | WHOLE, *EXPORT, "npy"),
    "exported, tokens": _from_another(LLAMA | WHOLE, *EXPORT, "parquet"),
    "pulled": _from_another(LLAMA, "cache", "pull", "file://{source}", "{cache}", "--quiet"),
    "pulled, one feature": _from_another(
        WORDS, "cache", "pull", "file://{source}", "{cache}", "--feature", "words", "--quiet"
    ),
    "pushed": _from_another(LLAMA, "cache", "push", "{source}", "file://{cache}", "--quiet"),
}
KINDS = (*PRECOMPUTED, *MADE_OF_OTHERS)
