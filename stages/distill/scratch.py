"""Students from nothing: a configuration of any model type, a vocabulary from the corpus."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from ...cache_schemas.errors import StudentSourceError
from .settings import StudentSettings
from .student import check_kind

POSITIONS = 512
DEFAULT_LAYERS = 2
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def plain_config(settings: StudentSettings) -> Any:
    """The default configuration of the model type in `scratch:TYPE`.

    Raises StudentSourceError for a type or a size that cannot be made."""
    from transformers import AutoConfig

    kind = settings.student.partition(":")[2]
    width, heads = settings.student_hidden_size, settings.student_heads
    if width % heads:
        raise StudentSourceError(
            f"student_hidden_size {width}: is not a multiple of student_heads {heads}"
        )
    try:
        config = AutoConfig.for_model(kind)
    except ValueError as cause:
        raise StudentSourceError(f"student scratch:{kind}: is not a model type") from cause
    if reason := check_kind(config):
        raise StudentSourceError(f"student scratch:{kind}: {reason}")
    if not hasattr(config, "vocab_size"):
        raise StudentSourceError(f"student scratch:{kind}: a {kind} does not read tokens of text")
    return config


def make_config(settings: StudentSettings, tokenizer: Any) -> Any:
    """A configuration of the model type in `scratch:TYPE`, sized by the settings."""
    config = plain_config(settings)
    width, heads = settings.student_hidden_size, settings.student_heads
    sizes = {
        "hidden_size": width,
        "pooler_hidden_size": width,  # DeBERTa
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "d_head": width // heads,  # XLNet
        "num_hidden_layers": settings.student_layers or DEFAULT_LAYERS,
        "intermediate_size": 4 * width,
        "ffn_dim": 4 * width,  # OPT
        "hidden_dim": 4 * width,  # DistilBERT
        "word_embed_proj_dim": width,  # OPT
        "max_position_embeddings": max(POSITIONS, settings.max_length or 0),
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": _first(tokenizer.cls_token_id, tokenizer.bos_token_id),
        "eos_token_id": _first(tokenizer.sep_token_id, tokenizer.eos_token_id),
    }
    for name, value in sizes.items():
        if hasattr(config, name):
            with suppress(NotImplementedError):  # XLNet has a limit that it cannot have
                setattr(config, name, value)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        config.layer_types = [kinds[at % len(kinds)] for at in range(config.num_hidden_layers)]
    return config


def _first(*ids: int | None) -> int | None:
    return next((each for each in ids if each is not None), None)


def train_byte_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A byte-level subword tokenizer trained on `texts`, as causal language models have: every text
    can be written with it, and comes back as it was. `<s>` before a text, `</s>` ends sequences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", first)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A lower-casing subword tokenizer trained on `texts`, with BERT's special tokens.

    Byte-pair encoding: the same texts give the same vocabulary each time, which the library's
    WordPiece trainer does not (seen with tokenizers 0.23)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=_SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=POSITIONS,
    )
