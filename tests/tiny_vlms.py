"""Tiny models of images and text, as transformers saves them: a LLaVA, a Qwen2-VL and an Idefics3
(of which SmolVLM is a variant). Each has its processor and a chat template of its family.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_checkpoints import SPREAD, make_byte_tokenizer, save_quietly

PIXELS = 16
WIDTH = 16
LAYERS = 2
FAMILIES = ("llava", "qwen2_vl", "idefics3")

IMAGES = {
    "llava": "<image>\n",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "idefics3": "<image>",
}
"""What a prompt has where its image stands."""

_TURNS = (
    "{% for turn in messages %}{{ turn.role }}: {% for part in turn.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_vlm(folder: Path, family: str, texts: Sequence[str]) -> Path:
    """Save a tiny model of one of `FAMILIES` with its processor."""
    tokenizer = _tokenizer(family, texts)
    tokenizer.chat_template = _TURNS.replace("IMAGE", IMAGES[family])
    torch.manual_seed(0)
    model = _MODELS[family](tokenizer)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.5 if "visi" in name else SPREAD)
    save_quietly(model.eval(), folder)
    _PROCESSORS[family](tokenizer).save_pretrained(folder)
    return folder


def _tokenizer(family: str, texts: Sequence[str]) -> Any:
    names = {
        "llava": ["<image>"],
        "qwen2_vl": [f"<|{name}|>" for name in ("vision_start", "image_pad", "vision_end")]
        + ["<|video_pad|>"],
        "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"],
    }
    tokenizer = make_byte_tokenizer(texts, bos="<s>", eos="</s>", pad="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": names[family]})
    return tokenizer


def _text(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


_VISION = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": PIXELS,
    "patch_size": 8,
}


def _llava(tokenizer: Any) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={"model_type": "clip_vision_model", "projection_dim": 8, **_VISION},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    return LlavaForConditionalGeneration(config)


def _qwen2_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in [
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        ]
    }
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    config = Qwen2VLConfig(
        text_config={**_text(tokenizer), "rope_parameters": rope, "rope_scaling": rope},
        vision_config={
            **{"depth": 1, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2},
            **{"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
        },
        **ids,
    )
    return Qwen2VLForConditionalGeneration(config)


def _idefics3(tokenizer: Any) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    config = Idefics3Config(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=_VISION,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Idefics3ForConditionalGeneration(config)


def _llava_processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessor, LlavaProcessor

    images = CLIPImageProcessor(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _qwen2_vl_processor(tokenizer: Any) -> Any:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    sizes: dict[str, Any] = {
        **{"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2},
        **{"size": {"shortest_edge": PIXELS**2, "longest_edge": 4 * PIXELS**2}},
    }
    images, videos = Qwen2VLImageProcessor(**sizes), Qwen2VLVideoProcessor(**sizes)
    return Qwen2VLProcessor(images, tokenizer, videos, chat_template=tokenizer.chat_template)


def _idefics3_processor(tokenizer: Any) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor

    images = Idefics3ImageProcessor(
        size={"longest_edge": 2 * PIXELS}, max_image_size={"longest_edge": PIXELS}
    )
    return Idefics3Processor(
        images, tokenizer, image_seq_len=1, chat_template=tokenizer.chat_template
    )


_MODELS = {"llava": _llava, "qwen2_vl": _qwen2_vl, "idefics3": _idefics3}
_PROCESSORS = {
    "llava": _llava_processor,
    "qwen2_vl": _qwen2_vl_processor,
    "idefics3": _idefics3_processor,
}
