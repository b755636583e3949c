"""A real Stable Diffusion pipeline of a few thousand weights, and what goes with it.

Everything is made in place from a seed and saved the way published models are: the classes, files
and shapes of Stable Diffusion v1-4 (PNDM, a VAE of factor 8 with 4 channels), only small.
"""

from pathlib import Path
from typing import Any

import torch

PROMPT_TOKENS = 16
TEXT_WIDTH = 16
EMBEDDING_WIDTH = 12


def make_tokenizer() -> Any:
    """A CLIP tokenizer that knows single bytes only: one token a letter."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: position for position, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=PROMPT_TOKENS)


def make_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=PROMPT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def make_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def make_vae() -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    )
    with torch.no_grad():  # else every picture is nearly the same grey
        vae.decoder.conv_out.weight.mul_(4)
    return vae


def make_scheduler() -> Any:
    """The scheduler of Stable Diffusion v1-4."""
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def make_stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """Save a tiny Stable Diffusion to `folder`; 4 prompt words or so are 16 tokens."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=make_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=make_unet(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_lora(folder: Path, seed: int = 1) -> Path:
    """Save a LoRA of the tiny UNet's attention; returns its file. Both factors are non-zero."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(seed)
    unet = make_unet()
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet), safe_serialization=True
    )
    return folder / "pytorch_lora_weights.safetensors"


def make_image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def make_clip_vision(folder: Path, seed: int = 2) -> Path:
    """Save a tiny CLIP vision tower with its projection and its image processor."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=EMBEDDING_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    make_image_processor().save_pretrained(folder)
    return folder


def make_vit(folder: Path, seed: int = 3, pooler: bool = True) -> Path:
    """Save a tiny ViT, as DINO is published (`pooler=False`) or as ViT is."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=EMBEDDING_WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    ViTModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def make_open_clip(folder: Path, seed: int = 4) -> Path:
    """Save a tiny open_clip model as open_clip publishes its own."""
    import json

    from open_clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    config = {
        "embed_dim": EMBEDDING_WIDTH,
        "vision_cfg": {
            "image_size": 16,
            "layers": 1,
            "width": 16,
            "head_width": 8,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 8,
            "vocab_size": 49408,
            "width": 8,
            "heads": 1,
            "layers": 1,
        },
    }
    folder.mkdir(parents=True)
    document = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file(CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return folder
