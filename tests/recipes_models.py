"""The models that the recipes name, in small, and commands that get them from a hub.

`python recipes_models.py FOLDER` makes FOLDER/OWNER/NAME for each hub id: the classes and files of
the published ones, with a few thousand seeded weights; and a LoRA, FOLDER/LORA.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes_material import TEXTS

DIFFUSION = "CompVis/stable-diffusion-v1-4"
CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
CLIP_OF_PICTURES = "openai/clip-vit-large-patch14"
BERT = "google-bert/bert-base-uncased"
DEBERTA = "microsoft/deberta-v2-xxlarge"
OPT = "facebook/opt-1.3b"
LLAMAS = ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B")
SPEAKER = "meta-llama/Llama-3.1-8B"
SMOLLMS = tuple(f"HuggingFaceTB/SmolLM2-{size}-Instruct" for size in ("1.7B", "135M"))
LLAVA = "llava-hf/llava-1.5-7b-hf"
VIDEOS = "damo-vilab/text-to-video-ms-1.7b"
SOUNDS = "cvssp/audioldm2"
WAV2VEC2 = "facebook/wav2vec2-base-960h"
REPOSITORIES = (
    *(DIFFUSION, CLIP, CLIP_OF_PICTURES, BERT, DEBERTA, OPT, *LLAMAS, SPEAKER),
    *SMOLLMS,
    *(LLAVA, VIDEOS, SOUNDS, WAV2VEC2),
)
LORA = "style-lora.safetensors"

MOST_TOKENS = 128
"""As many as the recipes ask for, of students that give an answer to a text."""
WRITERS_MOST_TOKENS = 512
"""The same of students that write."""


def make_models(folder: Path) -> None:
    """A checkpoint for each of `REPOSITORIES`, and the LoRA."""
    import tiny_checkpoints
    import tiny_diffusion
    import tiny_generators
    import tiny_vlms

    tiny_checkpoints.POSITIONS = MOST_TOKENS
    tiny_diffusion.make_stable_diffusion(folder / DIFFUSION)
    tiny_diffusion.make_lora(folder / "lora").rename(folder / LORA)
    tiny_checkpoints.make_open_clip(folder / CLIP)
    _make_clip(folder / CLIP_OF_PICTURES)
    tiny_vlms.make_vlm(folder / LLAVA, "llava", TEXTS)
    tiny_generators.make_text_to_video(folder / VIDEOS)
    tiny_generators.make_audioldm2(folder / SOUNDS)
    tiny_generators.make_wav2vec2(folder / WAV2VEC2)
    tiny_checkpoints.make_bert(folder / BERT, TEXTS, layers=12, hidden=16)
    _make_deberta(folder / DEBERTA)
    _make_writers(folder)


def _make_writers(folder: Path) -> None:
    """Decoders with their heads, as they are published."""
    from tiny_checkpoints import make_byte_tokenizer
    from tiny_language_models import make_causal_lm

    most = {"max_position_embeddings": WRITERS_MOST_TOKENS}
    of_opt = make_byte_tokenizer(TEXTS, bos="</s>", eos="</s>", pad="<pad>")
    make_causal_lm(folder / OPT, "opt", tokenizer=of_opt, **most)
    of_llama = make_byte_tokenizer(TEXTS, bos="<s>", eos="</s>", pad=None)
    for number, name in enumerate([*LLAMAS, SPEAKER]):
        make_causal_lm(folder / name, "llama", tokenizer=of_llama, seed=number, **most)
    for number, name in enumerate(SMOLLMS):
        make_causal_lm(folder / name, "llama", texts=TEXTS, seed=number, **most)


def _make_clip(folder: Path) -> None:
    """A whole CLIP, both towers, as OpenAI's are published for transformers."""
    import torch
    from tiny_diffusion import make_image_processor
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    tower |= {"num_attention_heads": 2, "projection_dim": 12}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 63},
        vision_config=tower | {"image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    make_image_processor().save_pretrained(folder)


def _make_deberta(folder: Path) -> None:
    """A DeBERTa v2 with the convolution beside its first layer that the two largest have."""
    import torch
    from tiny_checkpoints import SPREAD, make_tokenizer
    from transformers import DebertaV2Config, DebertaV2Model

    torch.manual_seed(0)
    tokenizer = make_tokenizer(TEXTS)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_head_size=8,
        intermediate_size=32,
        max_position_embeddings=MOST_TOKENS,
        type_vocab_size=0,
        initializer_range=SPREAD,
        relative_attention=True,
        position_buckets=8,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
        conv_act="gelu",
    )
    DebertaV2Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def small_commands(models: Path) -> Iterator[Path]:
    """Commands, to be put first in PATH, that see a hub with these models and no other; the LoRA
    lies beside them."""
    from hub_server import hub
    from warm_python import warm_python

    with (
        hub({name: models / name for name in REPOSITORIES}, "main") as (address, _),
        tempfile.TemporaryDirectory() as home,
    ):
        environment = {
            "HF_ENDPOINT": address,
            "HF_HOME": home,
        }
        with warm_python(environment) as folder:
            subprocess.run([folder / "python", __file__, models], check=True)
            (models / LORA).rename(folder / LORA)
            yield folder


if __name__ == "__main__":
    make_models(Path(sys.argv[1]))
