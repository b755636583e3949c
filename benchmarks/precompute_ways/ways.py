"""Features of texts: by armada, by a plain loop that sorts by length, by what people use instead.

Each way takes texts and leaves arrays; a tokenizer and a model are loaded before it is timed, but
armada's, which loads its own: the time of that is told apart and taken off.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

BATCH_TOKENS = 8192
"""Padded tokens of a batch, for all ways."""

Way = Callable[[Sequence[str]], Any]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of falling length, as many as make BATCH_TOKENS padded tokens."""
    order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    while order:
        rows = max(BATCH_TOKENS // max(lengths[order[0]], 1), 1)
        yield order[:rows]
        order = order[rows:]


class Bare:
    """The library's own calls: tokenized once, sorted, padded to the longest of a batch."""

    auto: str

    def __init__(self, folder: str, device: torch.device, max_length: int) -> None:
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        model = getattr(transformers, self.auto).from_pretrained(folder)
        self.model, self.device, self.max_length = model.eval().to(device), device, max_length

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> list[Any]:
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        found: list[Any] = [None] * len(texts)
        for rows in batches([len(each) for each in ids]):
            padded = self.tokenizer.pad(
                {"input_ids": [ids[row] for row in rows]}, return_tensors="pt"
            )
            padded = {name: values.to(self.device) for name, values in padded.items()}
            for row, values in zip(rows, self.read(padded), strict=True):
                found[row] = values
        return found

    def read(self, batch: dict[str, torch.Tensor]) -> Sequence[Any]:
        """What is kept of each text."""
        raise NotImplementedError


class BareEncoder(Bare):
    """The mean of the last hidden states."""

    auto = "AutoModel"

    def read(self, batch: dict[str, torch.Tensor]) -> Sequence[Any]:
        states = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        return ((states * mask).sum(1) / mask.sum(1)).float().cpu().numpy()


class BareTopK(Bare):
    """The 64 most probable tokens at each position."""

    auto = "AutoModelForCausalLM"

    def read(self, batch: dict[str, torch.Tensor]) -> Sequence[Any]:
        found = []
        lengths = batch["attention_mask"].sum(1).tolist()
        states = self.model.get_decoder()(**batch).last_hidden_state
        for row, length in enumerate(lengths):
            logits = self.model.lm_head(states[row, : length - 1]).float()
            top = logits.log_softmax(1).topk(min(64, logits.shape[1]))
            found.append((top.indices.int().cpu().numpy(), top.values.half().cpu().numpy()))
        return found


class SentenceTransformers:
    """`SentenceTransformer.encode`, which sorts by length as well."""

    def __init__(self, folder: str, device: torch.device, max_length: int) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(folder, device=str(device))
        self.model.max_seq_length = max_length

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.model.encode(list(texts), batch_size=64, show_progress_bar=False)


class Armada:
    """`armada.precompute` into a new cache; of the call, what comes after the model is loaded."""

    def __init__(self, teacher: str, device: torch.device, **settings: Any) -> None:
        self.teacher, self.settings = teacher, {**settings, "device": str(device)}

    def __call__(self, texts: Sequence[str]) -> float:
        """Seconds."""
        import armada
        from armada.stages.precompute import precompute as stage

        begun: list[float] = []
        whole = stage.precompute

        def noting(*arguments: Any) -> None:
            begun.append(time.perf_counter())
            whole(*arguments)

        with _empty_folder() as folder:
            stage.precompute = noting
            try:
                armada.precompute(
                    corpus=pa.table(self.columns(texts)),
                    text_column=list(self.columns(texts)),
                    teacher=self.teacher,
                    cache=folder / "cache",
                    **self.settings,
                )
            finally:
                stage.precompute = whole
            taken = time.perf_counter() - begun[0]
            self.look(folder / "cache")
            return taken

    def columns(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """The corpus."""
        return {"text": list(texts)}

    def look(self, cache: Path) -> None:
        """See what was computed."""


@contextmanager
def _empty_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="armada-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def seconds(way: Way, texts: Sequence[str]) -> float:
    """How long a way takes."""
    started = time.perf_counter()
    found = way(texts)
    return found if isinstance(way, Armada) else time.perf_counter() - started


def made_up_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 3 to 100 words, most of them short, each another."""
    random = np.random.default_rng(seed)
    words = [f"{a}{b}" for a in ("ba", "ke", "li", "mo", "nu") for b in ("rn", "st", "ck", "ld")]
    sizes = np.clip(random.lognormal(3, 0.7, count), 3, 100).astype(int)
    return [" ".join(random.choice(words, size)) + f" {n}" for n, size in enumerate(sizes)]
