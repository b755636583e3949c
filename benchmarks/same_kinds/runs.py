"""Kinds of run: what each logged, metrics of the validation rows among it, and what it saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import armada
from safetensors.numpy import load_file

from .material import Material, array_digest
from .stores import earlier_options

CLASSES = {"label_column": "label", "student": "scratch:bert"} | {
    "student_layers": 2,
    "student_hidden_size": 32,
}
ALIGNED = CLASSES | {"teacher_of": "hash", "aligner_hidden_size": 16}
TOKENS = {"task": "language", "student_of": "lm_student", "teacher_of": "lm_llama", "epochs": 1}

KINDS: dict[str, dict[str, Any]] = {
    "armada": ALIGNED,
    "armada, joint, pointwise": ALIGNED
    | {"schedule": "joint", "manifold": "pointwise", "alpha": 0.3},
    "armada, shuffled": ALIGNED | {"control": "shuffled"},
    "armada, random aligner, streamed": ALIGNED
    | {"control": "random-aligner", "placement": "streamed"},
    "armada, regression": ALIGNED | {"label_column": "score"},
    "armada, accumulated, grouped by length": ALIGNED
    | {"gradient_accumulation": 2, "save_steps": 3, "group_by_length": True},
    "feature, no labels": CLASSES
    | {"label_column": None, "teacher_of": "hash", "objective": "feature"},
    "feature, noise, cosine": CLASSES
    | {"teacher_of": "hash", "objective": "feature", "control": "noise=0.5", "beta": 2}
    | {"distance": "cosine"},
    "kd": CLASSES | {"teacher_of": "bert_classifier", "objective": "kd", "temperature": "learned"},
    "undistilled": CLASSES | {"control": "undistilled"},
    "tokens": TOKENS | {"objective": "tokens", "feature": "top_k", "alpha": 0.7},
    "armada and tokens": TOKENS
    | {"objective": "armada", "teacher_of": "hash", "aligner_hidden_size": 16}
    | {"token_cache_of": "lm_llama", "token_feature": "top_k"},
}
"""Settings of `armada.distill`; those in `_of` name a teacher whose cache is made first, or a
checkpoint."""

TEACHERS: dict[str, dict[str, Any]] = {
    "hash": {"kind": "hash:6"},
    "bert_classifier": {"kind": "classifier"},
    "lm_llama": {"kind": "causal_lm", "top_k": 8},
}

UNTIMED = ("train_runtime", "train_samples", "train_steps", "eval_runtime", "eval_samples_")
UNTIMED += ("eval_steps_", "total_flos")
"""Entries of the log that measure the machine, by how they begin."""


def record(kind: str, material: Material, folder: Path) -> dict[str, Any]:
    """Train one kind in `folder`: the lines of its log, and SHA-256 of each tensor saved."""
    settings = _settings(dict(KINDS[kind]), material, folder / "caches")
    out = folder / kind
    armada.distill(
        train=material.train,
        validation=material.validation,
        text_column="text",
        output=out,
        **{"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1} | settings,
        device="cpu",
        report_to="none",
    )
    lines = map(json.loads, (out / "log.jsonl").read_text(encoding="utf-8").splitlines())
    logged = [{k: v for k, v in line.items() if not k.startswith(UNTIMED)} for line in lines]
    weights = {
        f"{file.relative_to(out)}: {name}": array_digest(tensor)
        for file in sorted(out.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    return {"logged": logged, "weights": weights}


def _settings(settings: dict[str, Any], material: Material, caches: Path) -> dict[str, Any]:
    special: dict[str, Callable[[str], dict[str, Any]]] = {
        "student_of": lambda name: {"student": str(material.checkpoint(name))},
        "teacher_of": lambda name: _cached(name, material, caches, ""),
        "token_cache_of": lambda name: _cached(name, material, caches, "token_"),
    }
    plain = {key: value for key, value in settings.items() if key not in special}
    for key in special.keys() & settings.keys():
        plain |= special[key](settings[key])
    return plain


def _cached(name: str, material: Material, caches: Path, prefix: str) -> dict[str, Any]:
    cache, options = caches / name, dict(TEACHERS[name])
    kind = options.pop("kind")
    if not cache.exists():
        for corpus in (material.train, material.validation):
            armada.precompute(
                corpus=corpus,
                text_column="text",
                teacher=kind if ":" in kind else f"{kind}:{material.checkpoint(name)}",
                cache=cache,
                device="cpu",
                **earlier_options(kind) | options,
            )
    return {f"{prefix}cache": cache}
