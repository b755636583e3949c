"""What all kinds start from: made-up texts and checkpoints of a few thousand seeded weights.

The checkpoints are made by the builders of this repository's tests, which know nothing of armada:
two versions of it start from the same bytes."""

import hashlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.append(str(Path(__file__).parents[2] / "tests"))

import tiny_checkpoints
import tiny_diffusion
import tiny_embeddings
import tiny_language_models

TRAIN_ROWS, VALIDATION_ROWS = 53, 23
"""In batches of 8, three epochs of 53 rows are 21 steps; the last batch of each is not full."""
LABELS = ("calm", "busy", "stormy")
_WORDS = [
    "the",
    "red",
    "bird",
    "sings",
    "at",
    "dawn",
    "two",
    "dogs",
    "run",
    "along",
    "river",
    "a",
    "cat",
    "why",
    "do",
    "stars",
    "shine",
    "over",
    "sea",
    "night",
    "never",
    "by",
    "day",
    "rain",
    "falls",
    "and",
    "gives",
    "it",
    "back",
    "as",
    "ferry",
    "leaves",
    "noon",
    "gulls",
    "clock",
]


class Material:
    """Tables and checkpoints in a folder; a checkpoint is made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        drawn = random.Random(5)

        def texts(count: int, longest: int) -> list[str]:
            return [
                " ".join(drawn.choice(_WORDS) for _ in range(drawn.randint(1, longest)))
                for _ in range(count)
            ]

        self.texts = [*texts(150, 22), "Ünïcode ❤ text", "x"]
        second = texts(len(self.texts), 6)
        numbers = np.random.default_rng(3)
        count = len(self.texts)
        self._table = pa.table(
            {
                "text": self.texts,
                "second": second,
                "chat": [
                    json.dumps([_turn("user", asked), _turn("assistant", said)])
                    for asked, said in zip(self.texts, second, strict=True)
                ],
                "label": numbers.integers(len(LABELS), size=count),
                "score": numbers.random(count) * 5,
                "vector": list(numbers.standard_normal((count, 4)).astype("float32")),
            }
        )
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def corpus(self) -> Path:
        """All rows: `text`, `second`, `chat`, `label`, `score`, `vector` of 4 numbers."""
        return self._parquet("corpus", self._table)

    @property
    def train(self) -> Path:
        """The first rows."""
        return self._parquet("train", self._table.slice(0, TRAIN_ROWS))

    @property
    def validation(self) -> Path:
        """The rows behind those."""
        return self._parquet("validation", self._table.slice(TRAIN_ROWS, VALIDATION_ROWS))

    @property
    def vectors(self) -> Path:
        """An array of 5 float32 numbers for each row of the corpus, for imports."""
        file = self._folder / "vectors.npy"
        values = np.random.default_rng(4).standard_normal((len(self.texts), 5))
        np.save(file, values.astype("float32"))
        return file

    def checkpoint(self, name: str) -> Path:
        """The folder of a checkpoint of `MAKERS`."""
        folder = self._folder / name
        if not folder.exists():
            MAKERS[name](self, folder)
        return folder

    def _parquet(self, name: str, table: pa.Table) -> Path:
        file = self._folder / f"{name}.parquet"
        if not file.exists():
            pq.write_table(table, file)
        return file


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _embedder(material: Material, folder: Path) -> None:
    tiny_embeddings.make_embedding_model(folder, material.checkpoint("bert"), ("mean", "cls"))


def _chat(_: Material, folder: Path) -> None:
    tokenizer = tiny_language_models.make_chat_tokenizer()
    tiny_language_models.make_causal_lm(folder, "llama", tokenizer=tokenizer)


MAKERS = {
    "bert": lambda m, folder: tiny_checkpoints.make_bert(folder, m.texts),
    "opt": lambda m, folder: tiny_checkpoints.make_opt(folder, m.texts),
    "llama": lambda m, folder: tiny_checkpoints.make_llama(folder, m.texts),
    "deberta": lambda m, folder: tiny_checkpoints.make_deberta(folder, m.texts),
    "bert_classifier": lambda m, f: tiny_checkpoints.make_bert_classifier(f, m.texts, LABELS),
    "opt_classifier": lambda m, f: tiny_checkpoints.make_opt_classifier(f, m.texts, LABELS[:2]),
    "embedder": _embedder,
    "lm_llama": lambda _, folder: tiny_language_models.make_causal_lm(folder, "llama", padding=7),
    "lm_gemma2": lambda _, folder: tiny_language_models.make_causal_lm(folder, "gemma2", padding=7),
    "lm_gpt2": lambda _, folder: tiny_language_models.make_causal_lm(folder, "gpt2", padding=7),
    "lm_student": lambda _, f: tiny_language_models.make_causal_lm(f, "llama", padding=7, seed=2),
    "lm_chat": _chat,
    "clip": lambda _, folder: tiny_checkpoints.make_open_clip(folder),
    "diffusion": lambda _, folder: tiny_diffusion.make_stable_diffusion(folder),
    "diffusion_lora": lambda _, folder: tiny_diffusion.make_lora(folder),
    "clip_vision": lambda _, folder: tiny_diffusion.make_clip_vision(folder),
    "vit": lambda _, folder: tiny_diffusion.make_vit(folder),
    "clip_images": lambda _, folder: tiny_diffusion.make_open_clip(folder),
}


def array_digest(*arrays: Any) -> str:
    """SHA-256 of types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """Path in the folder -> SHA-256 of each file; of JSON, without the descriptions in it: a
    sentence may be put better."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(_content(f)).hexdigest() for f in files}


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    if file.suffix != ".json":
        return content

    def undescribed(document: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in document.items() if key != "description"}

    return json.dumps(json.loads(content, object_hook=undescribed)).encode()
