"""Classifiers, CLIP's text tower and diffusion: plain loops, and what people use instead.

Their models are made here, with random weights: a classification layer on a given encoder, a text
tower as large as that of ViT-B-32, a small Stable Diffusion of ordinary classes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .ways import Armada, Bare, Way

sys.path.append(str(Path(__file__).parents[2] / "tests"))

ROWS = 64
"""Texts of a batch where all are equally long."""

STEPS, SIDE = 4, 64
"""Of the diffusion: denoising steps, and pixels."""


def classifier_ways(encoder: str, folder: Path, device: torch.device) -> dict[str, Way]:
    """Logits of three classes."""
    import transformers

    made = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    made.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return {
        "plain loop": BareClassifier(str(folder), device, 128),
        "armada": Armada(f"classifier:{folder}", device, max_length=128),
        "transformers.pipeline": Pipeline(folder, device, 128),
    }


def clip_ways(folder: Path, device: torch.device, tiny: bool) -> dict[str, Way]:
    """Embeddings of a CLIP, of length 1."""
    from tiny_checkpoints import make_open_clip

    base = {"width": 512, "heads": 8, "layers": 12}
    if tiny:
        make_open_clip(folder, context=77)
    else:
        make_open_clip(folder, context=77, text=base, embed_dim=512)
    return {
        "plain loop": BareClip(folder, device),
        "armada": Armada(f"open_clip:{folder}", device, batch_size=ROWS),
        "open_clip, DataLoader": BareClip(folder, device, workers=1),
    }


def diffusion_ways(folder: Path, device: torch.device) -> dict[str, Way]:
    """Final latents of the first pass."""
    from tiny_diffusion import make_stable_diffusion

    make_stable_diffusion(folder)
    settings = {"source": "txt2img", "steps": STEPS, "height": SIDE, "width": SIDE}
    rows = 1 if device.type == "cpu" else 8  # armada's own on a processor
    return {
        "plain loop": BareDiffusion(folder, device, rows),
        "armada": Armada(f"diffusers:{folder}", device, dtype="float32", **settings),
        "diffusers, batches of 8": BareDiffusion(folder, device, 8),
    }


class BareClassifier(Bare):
    """The logits of its classes."""

    auto = "AutoModelForSequenceClassification"

    def read(self, batch: dict[str, torch.Tensor]) -> Sequence[Any]:
        return self.model(**batch).logits.float().cpu().numpy()


class Pipeline:
    """`transformers.pipeline`, in batches of texts as they come."""

    def __init__(self, folder: Path, device: torch.device, max_length: int) -> None:
        from transformers import pipeline

        self.pipeline = pipeline("text-classification", model=str(folder), device=device)
        self.more = {"truncation": True, "max_length": max_length, "top_k": None}

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.pipeline(list(texts), batch_size=ROWS, **self.more)


class BareClip:
    """open_clip's own calls; with `workers`, texts are tokenized in processes of a DataLoader."""

    def __init__(self, folder: Path, device: torch.device, workers: int = 0) -> None:
        import open_clip

        name = f"local-dir:{folder}"
        self.model = open_clip.create_model(name, require_pretrained=True).eval().to(device)
        self.tokenizer = open_clip.get_tokenizer(name)
        self.device, self.workers = device, workers

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Any:
        loader = torch.utils.data.DataLoader(
            list(texts), batch_size=ROWS, collate_fn=self.tokenizer, num_workers=self.workers
        )
        encode = self.model.encode_text
        found = [encode(ids.to(self.device), normalize=True).cpu().numpy() for ids in loader]
        return np.concatenate(found)


class BareDiffusion:
    """The pipeline's own call, a generator for each text."""

    def __init__(self, folder: Path, device: torch.device, rows: int) -> None:
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()  # that texts are truncated
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.rows = rows

    def __call__(self, texts: Sequence[str]) -> Any:
        found = []
        for start in range(0, len(texts), self.rows):
            prompts = list(texts[start : start + self.rows])
            seeds = [torch.Generator().manual_seed(start + row) for row in range(len(prompts))]
            latents = self.pipeline(
                prompts,
                num_inference_steps=STEPS,
                height=SIDE,
                width=SIDE,
                generator=seeds,
                output_type="latent",
            ).images
            found.append(latents.cpu().numpy())
        return np.concatenate(found)
