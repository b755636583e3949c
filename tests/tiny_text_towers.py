"""Tiny models of texts and pictures, or sounds, as transformers saves them: CLIP and its kin."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import SPREAD, make_byte_tokenizer, make_tokenizer, save_quietly

POSITIONS = 24
PROJECTED = 20


def make_text_tower(folder: Path, name: str, texts: Sequence[str], image_size: int = 8) -> Path:
    """A whole model of a family, or its text tower alone (`clip_text`, `siglip_text`, ...)."""
    tokenizer = _tokenizer(name, texts)
    torch.manual_seed(0)
    model = _models(tokenizer, image_size)[name]()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=SPREAD)
    save_quietly(model.eval(), folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_clip_of_pictures(
    folder: Path, texts: Sequence[str] = ("a red bird", "two dogs"), image_size: int = 8
) -> Path:
    """A whole CLIP with its image processor."""
    from transformers import CLIPImageProcessor

    size = {"height": image_size, "width": image_size}
    make_text_tower(folder, "clip", texts, image_size)
    CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(folder)
    return folder


def _tokenizer(name: str, texts: Sequence[str]) -> Any:
    from tokenizers import processors

    if name in ("altclip", "chinese_clip", "clap", "clap_text", "align", "blip", "dual"):
        names = ["input_ids", "attention_mask"]
        if name in ("chinese_clip", "align"):
            names.append("token_type_ids")
        return make_tokenizer(texts, model_input_names=names, model_max_length=POSITIONS)
    if name == "siglip2":
        tokenizer = _gemma_tokenizer(texts)
    else:
        tokenizer = make_byte_tokenizer(texts, bos="<start>", eos="<end>", pad="<end>")
    tokenizer.model_max_length = POSITIONS
    # As published: the closing token is the padding too; SigLIP's has no opening one and no mask.
    start, end = tokenizer.bos_token, tokenizer.eos_token
    opening = "" if name.startswith("siglip") else f"{start} "
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (start, end)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{opening}$A {end}", pair=f"{opening}$A $B {end}", special_tokens=tokens
    )
    if name in ("siglip", "siglip_pair"):
        tokenizer.model_input_names = ["input_ids"]
    return tokenizer


def _gemma_tokenizer(texts: Sequence[str]) -> Any:
    """One token a letter, which it lower-cases."""
    from transformers import Siglip2Tokenizer

    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    letters = sorted({letter for text in texts for letter in text.lower()} - {" "})
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    return Siglip2Tokenizer(
        vocab={token: at for at, token in enumerate(vocabulary)}, merges=[], padding_side="right"
    )


def _models(tokenizer: Any, image_size: int) -> dict[str, Any]:
    import transformers as tf

    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = layers | {"hidden_size": 16, "vocab_size": len(tokenizer)} | ids
    text["max_position_embeddings"] = POSITIONS
    picture = layers | {"hidden_size": 12, "image_size": image_size, "patch_size": 4}
    both = {"text_config": text, "vision_config": picture}
    projected = {"projection_dim": PROJECTED}
    roberta = text | {"max_position_embeddings": POSITIONS + 1, "pad_token_id": 0}
    sounds = {
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "spec_size": 32,
        "window_size": 4,
        "num_mel_bins": 8,
    }
    siglip = text | {"projection_size": PROJECTED}
    return {
        "clip": lambda: tf.CLIPModel(tf.CLIPConfig(**both, **projected)),
        "clip_text": lambda: tf.CLIPTextModelWithProjection(tf.CLIPTextConfig(**text, **projected)),
        "siglip": lambda: tf.SiglipModel(tf.SiglipConfig(**both | {"text_config": siglip})),
        "siglip_pair": lambda: tf.SiglipModel(  # of texts and pictures that can be compared
            tf.SiglipConfig(**both | {"text_config": siglip | {"projection_size": 12}})
        ),
        "siglip_text": lambda: tf.SiglipTextModel(tf.SiglipTextConfig(**siglip)),
        "siglip2": lambda: tf.Siglip2Model(
            tf.Siglip2Config(text_config=siglip, vision_config=picture | {"num_patches": 4})
        ),
        "metaclip_2": lambda: tf.MetaClip2Model(tf.MetaClip2Config(**both, **projected)),
        "groupvit": lambda: tf.GroupViTModel(
            tf.GroupViTConfig(
                text_config=text,
                vision_config={"image_size": 8, "patch_size": 4, "hidden_size": 12},
                projection_intermediate_dim=16,
                **projected,
            )
        ),
        "altclip": lambda: tf.AltCLIPModel(
            tf.AltCLIPConfig(
                text_config=roberta | {"project_dim": 14}, vision_config=picture, **projected
            )
        ),
        "chinese_clip": lambda: tf.ChineseCLIPModel(tf.ChineseCLIPConfig(**both, **projected)),
        "clap": lambda: tf.ClapModel(
            tf.ClapConfig(text_config=roberta, audio_config=sounds, **projected)
        ),
        "clap_text": lambda: tf.ClapTextModelWithProjection(
            tf.ClapTextConfig(**roberta, **projected)
        ),
        "blip": lambda: tf.BlipModel(
            tf.BlipConfig(text_config=text, vision_config=picture, **projected)
        ),
        "dual": lambda: tf.VisionTextDualEncoderModel(
            tf.VisionTextDualEncoderConfig.from_vision_text_configs(
                tf.ViTConfig(**picture),
                tf.BertConfig(**text),
                **projected,
            )
        ),
        "flava": lambda: tf.FlavaModel(
            tf.FlavaConfig(
                text_config=text,
                image_config=picture,
                multimodal_config=layers | {"hidden_size": 16},
                hidden_size=16,
                **projected,
            )
        ),
    }
