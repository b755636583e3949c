"""The demo's teacher: a small CLIP, trained in place on pictures and captions, left as an open_clip
folder that the ordinary `open_clip` teacher loads.

Contrastive training as in Radford et al., arXiv 2103.00020: in a batch, each caption has to find
its own picture and each picture its caption.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...stages.precompute.teachers.open_clip import quiet_open_clip
from ...stages.store.files.atomic import follow_umask
from .world import Scene, draw_scene, picture

if TYPE_CHECKING:
    import torch

PIXELS = 32
PAIRS = 4_000
EPOCHS = 8
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
HELD_OUT = 200

_MEAN, _STD = 0.5, 0.25
"""Mean and deviation of each colour channel."""
_MODEL = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": PIXELS,
        "patch_size": 8,
        "layers": 2,
        "width": 64,
        "head_width": 32,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}
_LARGEST_SCALE = 4.6052
"""ln 100, as the paper clips it."""


@dataclass(frozen=True, slots=True)
class Teachers:
    """Folders of the trained CLIP and of the same one before its training; and for which share of
    captions that it was not trained on the nearest of HELD_OUT pictures has the right colour and
    shape."""

    trained: Path
    untrained: Path
    right_pictures: float


def train_teachers(folder: Path, unseen: frozenset[str], seed: int) -> Teachers:
    """Draw pictures, train, write both folders. Captions in `unseen` are not trained on."""
    import torch

    rng = np.random.default_rng([seed, 1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokenize = _make(folder / "untrained")
        _save(model, folder / "untrained")
        scenes = list(_scenes(rng, unseen, PAIRS))
        looked_at = unseen | {scene.caption for scene in scenes}
        scenes += _scenes(rng, looked_at, HELD_OUT)
        pictures = torch.from_numpy(np.stack([_pixels(scene, rng) for scene in scenes]))
        texts = tokenize([scene.caption for scene in scenes])
        _train(model, pictures[:PAIRS], texts[:PAIRS])
        right = _right_pictures(model, pictures[PAIRS:], texts[PAIRS:], scenes[PAIRS:])
    _write_config(folder / "trained")
    _save(model, folder / "trained")
    return Teachers(folder / "trained", folder / "untrained", right)


def _scenes(rng: np.random.Generator, unseen: frozenset[str], count: int) -> Iterator[Scene]:
    while count:
        scene = draw_scene(rng)
        if scene.caption not in unseen:
            count -= 1
            yield scene


def _pixels(scene: Scene, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A picture as the model's own preprocessing leaves it, [3, PIXELS, PIXELS]."""
    values = np.asarray(picture(scene, rng, PIXELS), dtype=np.float32) / 255
    return ((values - _MEAN) / _STD).transpose(2, 0, 1).astype(np.float32)


def _make(folder: Path) -> tuple[Any, Callable[[list[str]], "torch.Tensor"]]:
    import open_clip

    _write_config(folder)
    with quiet_open_clip():
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    return model, open_clip.get_tokenizer(f"local-dir:{folder}")


def _write_config(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": _MODEL, "preprocess_cfg": {"mean": [_MEAN] * 3, "std": [_STD] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))


def _save(model: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    follow_umask(folder)


def _train(model: Any, pictures: "torch.Tensor", texts: "torch.Tensor") -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(pictures)), BATCH_SIZE):
            image, text, scale = model(pictures[batch], texts[batch])[:3]
            optimizer.zero_grad()
            loss = _contrastive_loss(scale * image @ text.T)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            model.logit_scale.data.clamp_(0, _LARGEST_SCALE)
    model.eval()


def _contrastive_loss(likeness: "torch.Tensor") -> "torch.Tensor":
    import torch
    from torch.nn.functional import cross_entropy

    own = torch.arange(len(likeness))
    return (cross_entropy(likeness, own) + cross_entropy(likeness.T, own)) / 2


def _right_pictures(
    model: Any, pictures: "torch.Tensor", texts: "torch.Tensor", scenes: list[Scene]
) -> float:
    import torch

    with torch.inference_mode():
        image, text = model(pictures, texts)[:2]
        nearest = (text @ image.T).argmax(dim=1).tolist()
    found = [_looks_like(scenes[i], scenes[j]) for i, j in enumerate(nearest)]
    return sum(found) / len(found)


def _looks_like(scene: Scene, other: Scene) -> bool:
    return (scene.colour.family, scene.shape.family) == (other.colour.family, other.shape.family)
