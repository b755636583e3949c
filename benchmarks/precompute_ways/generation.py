"""Greedy responses to prompts: by armada, by `transformers.generate` and by vLLM.

Each way gets the same token ids, ends at the same ones, and has in `tokens` how many it generated.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import armada
import numpy as np
import torch
from armada.stages.language.tokens import encode_texts, end_ids
from armada.stages.precompute.teachers.causal_options import CausalLMOptions

from .ways import BATCH_TOKENS, Armada

RESPONSE = "."
"""The given response of each text, which nothing reads."""


class ArmadaResponses(Armada):
    """Stage 1, one response to each prompt."""

    tokens = 0

    def __init__(self, folder: str, device: torch.device, most: int, generation: str) -> None:
        settings = {"text_format": "plain", "top_k": None, "max_new_tokens": most}
        super().__init__(f"causal_lm:{folder}", device, **settings, generation=generation)

    def columns(self, texts: Sequence[str]) -> dict[str, list[str]]:
        return {"prompt": list(texts), "response": [RESPONSE] * len(texts)}

    def look(self, cache: Path) -> None:
        opened = armada.open_cache(cache)
        self.tokens = int(opened.ragged("generated_ids").lengths(np.arange(len(opened))).sum())


class Prompts:
    """Prompts as armada's teacher reads them, and what ends a response."""

    def __init__(self, folder: str, most: int) -> None:
        import transformers

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.recipe = CausalLMOptions(text_format="plain", max_new_tokens=most)
        self.ends = sorted(end_ids(self.tokenizer, self.recipe, self.model.generation_config))
        self.most = most

    def fitting(self, texts: Sequence[str]) -> list[str]:
        """Texts that leave room for a whole response."""
        most = self.model.config.max_position_embeddings - self.most
        pairs = zip(texts, self.ids(texts), strict=True)
        return [text for text, ids in pairs if len(ids) <= most]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt."""
        written = [(text, RESPONSE) for text in texts]
        found = encode_texts(self.tokenizer, self.recipe, written, 1024)
        return [found.of(row)[: found.prompts[row]].tolist() for row in range(len(texts))]


class TransformersGenerate:
    """`model.generate` in batches sorted by length, padded on the left, of as many tokens as
    armada's."""

    tokens = 0

    def __init__(self, prompts: Prompts, device: torch.device) -> None:
        self.prompts, self.device = prompts, device
        self.model = prompts.model.to(device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> None:
        waiting = sorted(self.prompts.ids(texts), key=len, reverse=True)
        self.tokens = 0
        while waiting:
            width = len(waiting[0])
            rows = max(BATCH_TOKENS // (width + self.prompts.most), 1)
            self.tokens += self._continue(waiting[:rows], width)
            waiting = waiting[rows:]

    def _continue(self, batch: list[list[int]], width: int) -> int:
        ends = self.prompts.ends
        ids = torch.tensor([[ends[0]] * (width - len(each)) + each for each in batch])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in batch])
        found = self.model.generate(
            ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=self.prompts.most,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )[:, width:].tolist()
        return sum(_length(each, ends) for each in found)


def _length(ids: list[int], ends: Sequence[int]) -> int:
    return next((at + 1 for at, each in enumerate(ids) if each in ends), len(ids))


class VLLM:
    """vLLM under another Python, its model loaded once."""

    tokens = 0

    def __init__(self, python: str, folder: str, prompts: Prompts, threads: int) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "2",
        }
        worker = Path(__file__).with_name("vllm_worker.py")
        self.prompts = prompts
        self.process = subprocess.Popen(
            [python, str(worker), folder, "float32"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._answer()

    def __call__(self, texts: Sequence[str]) -> None:
        prompts = self.prompts.ids(texts)
        asked = {"prompts": prompts, "most": self.prompts.most, "ends": self.prompts.ends}
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._answer())
        self.tokens = sum(map(len, found["ids"]))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM ended with code {self.process.wait()}; run its worker by hand")
        return line
