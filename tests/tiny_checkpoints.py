"""Real checkpoints of a few thousand weights, seeded, saved the way published models are.

Each `make_*` writes configuration, tokenizer and safetensors weights into a folder, which the
libraries then open like any other model. Weights have a spread of 0.2, ten times the usual: with
two small layers, different texts would hardly give different numbers otherwise.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POSITIONS = 64
"""Most tokens of the models with absolute positions."""
SPREAD = 0.2
CLIP_VOCABULARY = 49_408


def make_tokenizer(texts: Iterable[str], **settings: Any) -> Any:
    """A WordPiece tokenizer (PreTrainedTokenizerFast) with BERT's pair form and token types.

    Its vocabulary is the words and letters of the texts, not a trained one: the trainer of
    `tokenizers` chooses other pieces in every process, and tests want the same numbers."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(_word_pieces(texts), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        **{"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} | settings,
    )


def make_byte_tokenizer(
    texts: Iterable[str], *, bos: str, eos: str, pad: str | None, ends: bool = False
) -> Any:
    """A byte-level BPE tokenizer as decoders have: one token before a text, none after it unless it
    `ends` texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(token for token in (bos, pad, eos) if token is not None))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    after = f" {eos}" if ends else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A{after}",
        pair=f"{bos} $A {bos} $B{after}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in sorted({bos, eos})],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad
    )


def make_bert(
    folder: Path, texts: Sequence[str], *, layers: int = 2, hidden: int = 32, heads: int = 2
) -> Path:
    """A BERT encoder with a pooler."""
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer(texts)
    config = BertConfig(**_bert_settings(tokenizer, layers, hidden, heads))
    return _save(folder, BertModel, config, tokenizer)


def make_bert_classifier(folder: Path, texts: Sequence[str], label_names: Sequence[str]) -> Path:
    """A BERT classifier with those labels, in order."""
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_tokenizer(texts)
    settings = _bert_settings(tokenizer, 2, 32, 2) | _labels(label_names)
    return _save(folder, BertForSequenceClassification, BertConfig(**settings), tokenizer)


def make_roberta(folder: Path, texts: Sequence[str]) -> Path:
    """A RoBERTa encoder: its positions start behind the padding index, so of POSITIONS + 1 it can
    use POSITIONS."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer = make_tokenizer(texts, model_input_names=["input_ids", "attention_mask"])
    settings = _bert_settings(tokenizer, 2, 32, 2) | {"max_position_embeddings": POSITIONS + 1}
    return _save(folder, RobertaModel, RobertaConfig(**settings), tokenizer)


def make_distilbert(folder: Path, texts: Sequence[str]) -> Path:
    """A DistilBERT encoder: no pooler, no token types though the tokenizer gives them."""
    from transformers import DistilBertConfig, DistilBertModel

    tokenizer = make_tokenizer(texts)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=POSITIONS,
        initializer_range=SPREAD,
        pad_token_id=0,
    )
    return _save(folder, DistilBertModel, config, tokenizer)


def make_deberta(folder: Path, texts: Sequence[str]) -> Path:
    """A DeBERTa v2 encoder with relative positions."""
    from transformers import DebertaV2Config, DebertaV2Model

    tokenizer = make_tokenizer(texts)
    settings = _bert_settings(tokenizer, 2, 32, 2) | {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    }
    return _save(folder, DebertaV2Model, DebertaV2Config(**settings), tokenizer)


def make_opt(folder: Path, texts: Sequence[str]) -> Path:
    """An OPT decoder."""
    from transformers import OPTModel

    tokenizer = make_byte_tokenizer(texts, bos="</s>", eos="</s>", pad="<pad>")
    return _save(folder, OPTModel, _opt_config(tokenizer), tokenizer)


def make_opt_350m(folder: Path, texts: Sequence[str]) -> Path:
    """An OPT decoder whose states come out narrower than they are inside, as those of the 350 M
    model."""
    from transformers import OPTModel

    tokenizer = make_byte_tokenizer(texts, bos="</s>", eos="</s>", pad="<pad>")
    config = _opt_config(tokenizer)
    config.word_embed_proj_dim, config.do_layer_norm_before = 16, False
    return _save(folder, OPTModel, config, tokenizer)


def make_opt_classifier(folder: Path, texts: Sequence[str], label_names: Sequence[str]) -> Path:
    """An OPT classifier: its head runs on every token, the last one counts."""
    from transformers import OPTForSequenceClassification

    tokenizer = make_byte_tokenizer(texts, bos="</s>", eos="</s>", pad="<pad>")
    config = _opt_config(tokenizer, **_labels(label_names))
    return _save(folder, OPTForSequenceClassification, config, tokenizer)


def make_llama(folder: Path, texts: Sequence[str]) -> Path:
    """A Llama decoder, whose tokenizer has no padding token."""
    from transformers import LlamaConfig, LlamaModel

    tokenizer = make_byte_tokenizer(texts, bos="<s>", eos="</s>", pad=None)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=SPREAD,
        **_token_ids(tokenizer),
    )
    return _save(folder, LlamaModel, config, tokenizer)


def make_t5(folder: Path, texts: Sequence[str]) -> Path:
    """A T5 encoder-decoder, without any limit on its input."""
    from transformers import T5Config, T5Model

    tokenizer = make_tokenizer(texts, model_input_names=["input_ids", "attention_mask"])
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2
    )
    return _save(folder, T5Model, config, tokenizer)


def make_fnet(folder: Path, texts: Sequence[str]) -> Path:
    """An FNet encoder, which mixes all positions of its input, padding too."""
    from transformers import FNetConfig, FNetModel

    tokenizer = make_tokenizer(texts)
    settings = _bert_settings(tokenizer, 2, 32, 2)
    del settings["num_attention_heads"]
    return _save(folder, FNetModel, FNetConfig(**settings), tokenizer)


def make_open_clip(
    folder: Path,
    *,
    context: int = 16,
    tokenizer: Any = None,
    text: Mapping[str, Any] | None = None,
    **model: Any,
) -> Path:
    """An open_clip model of 0.8 M weights, nearly all of them its vocabulary.

    `tokenizer`: a transformers tokenizer to use in place of open_clip's own; `text` and `model`:
    more settings of the text tower and of the model."""
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = clip_config(context) | model
    config["text_cfg"] |= dict(text or {})
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        config["text_cfg"] |= {"hf_tokenizer_name": "in-this-folder", "vocab_size": len(tokenizer)}
    document = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(document, encoding="utf-8")
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # that weights are random is what is wanted here
    built = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    logging.disable(logging.NOTSET)
    weights = {name: value.contiguous() for name, value in built.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def clip_config(context: int = 16) -> dict[str, Any]:
    """The `model_cfg` of the tiny open_clip model."""
    return {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 8, "patch_size": 4, "layers": 1, "width": 16, "head_width": 8},
        "text_cfg": {
            "context_length": context,
            "vocab_size": CLIP_VOCABULARY,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }


def _word_pieces(texts: Iterable[str]) -> dict[str, int]:
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words = {word for text in texts for word, _ in split(text)}
    letters = {letter for word in words for letter in word}
    pieces = [*sorted(letters), *sorted(f"##{letter}" for letter in letters), *sorted(words)]
    return {piece: at for at, piece in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *pieces]))}


def _bert_settings(tokenizer: Any, layers: int, hidden: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": POSITIONS,
        "initializer_range": SPREAD,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _opt_config(tokenizer: Any, **more: Any) -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=POSITIONS,
        init_std=SPREAD,
        **_token_ids(tokenizer),
        **more,
    )


def _labels(names: Sequence[str]) -> dict[str, Any]:
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: at for at, name in enumerate(names)},
    }


def _token_ids(tokenizer: Any) -> dict[str, int | None]:
    return {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")
    }


def _save(folder: Path, model_class: Any, config: Any, tokenizer: Any) -> Path:
    torch.manual_seed(0)
    save_quietly(model_class(config), folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_quietly(model: Any, folder: Path) -> None:
    """As `save_pretrained`, without a progress bar."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
