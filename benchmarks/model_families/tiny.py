"""A model of any family that transformers has, of a few thousand weights.

A family's own default configuration is made small by the names of its sizes, those of its parts
too; what a name alone does not tell is in HELP. A tokenizer is trained in place.
"""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

TEXTS = (
    "the red bird sings at dawn",
    "two dogs run along the river",
    "a cat sleeps",
    "rain falls on the sea",
)

AUTO_CLASSES = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")

WIDTH, HEADS, LAYERS, INNER, EXPERTS, POSITIONS = 32, 2, 2, 64, 4, 128

NAMES: dict[int | tuple[int, str], str] = {
    (WIDTH, "width"): "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size n_embed "
    "word_embed_proj_dim attention_hidden_size encoder_hidden_size decoder_hidden_size "
    "projection_dim lru_width embedding_dim text_hidden_size model_dim",
    (LAYERS, "layers"): "num_hidden_layers n_layer n_layers num_layers encoder_layers num_blocks "
    "decoder_layers num_decoder_layers num_encoder_layers depth",
    (HEADS, "heads"): "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
    "decoder_attention_heads num_key_value_heads num_kv_heads n_head_kv num_attention_groups "
    "multi_query_group_num linear_num_key_heads linear_num_value_heads",
    (WIDTH // HEADS, "head"): "head_dim d_kv attention_head_dim v_head_dim qk_nope_head_dim d_head "
    "qk_rope_head_dim kv_channels attention_head_size linear_key_head_dim linear_value_head_dim "
    "mamba_d_head mamba_head_dim moe_intermediate_size shared_expert_intermediate_size "
    "expert_intermediate_size kv_lora_rank q_lora_rank",
    (INNER, "inner"): "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim "
    "d_inner ffn_hidden_size feed_forward_size hidden_dim dim_ff",
    (EXPERTS, "experts"): "num_experts n_routed_experts num_local_experts moe_num_experts "
    "mamba_n_heads mamba_num_heads",
    2: "num_experts_per_tok moe_topk moe_k num_experts_per_token type_vocab_size",
    1: "n_group topk_group n_shared_experts first_k_dense_replace",
    8: "rotary_dim hidden_size_per_layer_input patch_size",
    POSITIONS: "max_position_embeddings n_positions max_seq_len max_target_positions seq_length "
    "n_ctx max_sequence_length sliding_window",
    INNER // 2: "image_size",
}
"""What sizes are called, and how small they become."""

SIZES: dict[str, int] = {
    name: size[0] if isinstance(size, tuple) else size
    for size, names in NAMES.items()
    for name in names.split()
}

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]}

DERIVED = ("head_dim", "num_key_value_heads")
"""Sizes that some families leave open, and then miss."""

HELP: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": EXPERTS},
    "dots1": {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1]},
    "gemma3n": {"text_config": {"num_kv_shared_layers": 0}},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "glm4v_text": {"rope_parameters": _ROPE},
    "glm_image_text": {"rope_parameters": _ROPE},
    "glm_ocr_text": {"rope_parameters": _ROPE},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    "xmod": {"default_language": "en_XX"},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
}
"""Settings of families whose sizes depend on each other in ways of their own."""


@cache
def make_tokenizer() -> Any:
    """A byte-level tokenizer with every special token that a family may ask for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    names = {role: f"<{role}>" for role in ("pad", "bos", "eos", "unk", "cls", "sep", "mask")}
    tokenizer = Tokenizer(models.BPE(unk_token=names["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(names.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> $B <eos>",
        special_tokens=[("<bos>", 1), ("<eos>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in names.items()},
    )


def families() -> list[str]:
    """Every model type with a class in one of the AUTO_CLASSES."""
    import transformers

    types = {config: name for name, config in transformers.CONFIG_MAPPING.items()}
    mappings = [getattr(transformers, auto)._model_mapping for auto in AUTO_CLASSES]
    return sorted({types[config] for mapping in mappings for config in mapping if config in types})


def tiny_config(family: str) -> Any:
    """The configuration of a tiny model of a family."""
    from transformers import AutoConfig

    changes = _smaller(AutoConfig.for_model(family), len(make_tokenizer()))
    return AutoConfig.for_model(family, **_joined(changes, HELP.get(family, {})))


def make_model(config: Any, auto_class: str) -> Any:
    """A model of a configuration, with its seeded random weights."""
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, auto_class).from_config(config)


def class_of(family: str, auto_class: str) -> Any:
    """The class that transformers has for a family, or None."""
    import transformers

    mapping = getattr(transformers, auto_class)._model_mapping
    try:
        found = mapping.get(transformers.CONFIG_MAPPING[family], None)
    except ValueError:  # a name in the table that nothing answers to
        return None
    return found[0] if isinstance(found, tuple) else found


def reads_text(model_class: Any) -> bool:
    """Whether a class takes token ids."""
    try:
        return "input_ids" in inspect.signature(model_class.forward).parameters
    except ImportError:  # a class that needs a package to be looked at
        return False


def _joined(changes: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    joined = dict(changes)
    for name, value in more.items():
        within = isinstance(value, Mapping) and name in joined
        joined[name] = _joined(joined[name], value) if within else value
    return joined


def _smaller(config: Any, vocab_size: int) -> dict[str, Any]:
    """The settings of a configuration, and of those inside it, that have to change."""
    from transformers import PretrainedConfig

    changes: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            changes[name] = {"model_type": value.model_type} | _smaller(value, vocab_size)
        elif (new := _small(name, value, vocab_size)) is not None:
            changes[name] = new
    renamed = config.attribute_map.items()
    changes |= {
        own: SIZES[name]
        for name, own in renamed
        if name in SIZES and isinstance(getattr(config, own, None), int)
    }
    if hasattr(config, "vocab_size"):
        changes[config.attribute_map.get("vocab_size", "vocab_size")] = vocab_size
    return changes | _special(config)


def _special(config: Any) -> dict[str, int]:
    tokenizer, roles = make_tokenizer(), ("pad", "bos", "eos")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    ids = {name: value for name, value in ids.items() if hasattr(config, name)}
    if config.is_encoder_decoder:
        ids["decoder_start_token_id"] = tokenizer.bos_token_id
    return ids


def _small(name: str, value: Any, vocab_size: int) -> Any:
    """The value of a setting that has to change, None of another."""
    if name == "layer_types" and isinstance(value, list):
        kinds = list(dict.fromkeys(value))
        return (kinds * LAYERS)[:LAYERS]
    if name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
        return _small_rope(value)
    if value is None and name in DERIVED:
        return SIZES[name]
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if name.endswith(("_token_id", "_token_index")):
        return min(value, vocab_size - 1)
    if name in SIZES and value > 0:
        return min(value, SIZES[name])
    return None


def _small_rope(rope: dict[str, Any]) -> dict[str, Any] | None:
    if "mrope_section" not in rope:
        return None
    half = int(WIDTH // HEADS * rope.get("partial_rotary_factor", 1.0)) // 2
    third = half // 3
    return rope | {"mrope_section": [half - 2 * third, third, third]}
