"""Tokenizers of every kind that published models have, trained on a few sentences."""

from collections.abc import Callable, Sequence
from typing import Any

SENTENCES = (
    "the red bird sings at dawn, and two dogs run along the river 42 times",
    "it's a cat; why do the stars shine over the sea at night? 1999 stars!",
    "Привет мир, это река и море   и ещё раз море",
    "红色的鸟在黎明歌唱，河流奔向大海。鸟在黎明歌唱！",  # noqa: RUF001
    "def run(x):\n    return x[10] + 2\n\n\nprint(run(3))",
    "aaaa aaaaaaa aaa ababab abababababab babab aaabbb",
)
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_kind(kind: str, texts: Sequence[str] = SENTENCES) -> Any:
    """A fast tokenizer of one of `KINDS`, with an unknown token and an end token."""
    from transformers import PreTrainedTokenizerFast

    backend = KINDS[kind](texts)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )


def _trained(backend: Any, texts: Sequence[str], *, trainer: str, **settings: Any) -> Any:
    from tokenizers import trainers

    special = ["<unk>", "</s>"]
    more: dict[str, Any] = {"special_tokens": special, "show_progress": False, **settings}
    backend.train_from_iterator(texts, getattr(trainers, trainer)(vocab_size=400, **more))
    return backend


def _bytes(texts: Sequence[str], *split: Any, use_regex: bool = False, **model: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend = Tokenizer(models.BPE(**model))
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _trained(backend, texts, trainer="BpeTrainer", initial_alphabet=alphabet)


def _split(pattern: str, behaviour: str = "isolated") -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(pattern), behaviour)


def _bert(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model = models.WordPiece(unk_token="<unk>", max_input_chars_per_word=20)  # type: ignore[call-arg]
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(backend, texts, trainer="WordPieceTrainer")


def _words(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(backend, texts, trainer="WordLevelTrainer")


def _whole(texts: Sequence[str]) -> Any:
    """As Llama 2: spaces are signs, and a text is one word, of which no merge crosses a space."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    _trained(trained, texts, trainer="BpeTrainer")
    trained.pre_tokenizer = None  # type: ignore[assignment]
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return trained


def _across(texts: Sequence[str]) -> Any:
    """A text is one word, and merges cross spaces."""
    from tokenizers import Tokenizer, models, normalizers

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    return _trained(backend, texts, trainer="BpeTrainer")


def _unigram(texts: Sequence[str], *, split: bool, words_first: bool = False) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    first = [pre_tokenizers.WhitespaceSplit()] if words_first else []
    backend.pre_tokenizer = pre_tokenizers.Sequence([*first, pre_tokenizers.Metaspace(split=split)])
    return _trained(backend, texts, trainer="UnigramTrainer", unk_token="<unk>")


def _digits(texts: Sequence[str]) -> Any:
    from tokenizers import pre_tokenizers

    return _bytes(texts, pre_tokenizers.Digits(individual_digits=True), use_regex=True)


def _clip(texts: Sequence[str]) -> Any:
    """As CLIP: only what a pattern matches is read, and the last piece of a word is another one."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    more: dict[str, Any] = {"initial_alphabet": alphabet, "end_of_word_suffix": "</w>"}
    return _trained(backend, texts, trainer="BpeTrainer", **more)


KINDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "bert": _bert,
    "words": _words,
    "gpt2": lambda texts: _bytes(texts, use_regex=True),
    "cl100k": lambda texts: _bytes(texts, _split(CL100K)),
    "o200k": lambda texts: _bytes(texts, _split(O200K), ignore_merges=True),
    "digits": _digits,
    "clip": _clip,
    "trailing": lambda texts: _bytes(texts, _split(r"\p{L}+ ?|\p{N}+|\s+")),
    "lookahead": lambda texts: _bytes(texts, _split(r"\w+(?= \w+ a)|\w|\s")),
    "previous": lambda texts: _bytes(texts, _split(" ", "merged_with_previous")),
    "lines": lambda texts: _bytes(texts, _split(r"[^\n]+")),
    "bare": lambda texts: _bytes(texts),
    "whole": _whole,
    "across": _across,
    "unigram": lambda texts: _unigram(texts, split=True),
    "unigram_words": lambda texts: _unigram(texts, split=True, words_first=True),
    "unigram_whole": lambda texts: _unigram(texts, split=False),
}
"""Kind -> from texts to its backend."""
