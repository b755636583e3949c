"""Model folders as they come that cannot be used: each made from a whole one by one change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXTS = ("a red bird sings", "two dogs run along the river", "rain falls")


def make_whole(folder: Path) -> Path:
    """A language model with its tokenizer, as encoder, classifier and causal model."""
    from tiny_language_models import make_causal_lm

    return make_causal_lm(folder, "gpt2", texts=TEXTS)


def changed(file: Path, **changes: Any) -> None:
    """Set keys of a JSON document; None removes one."""
    document = json.loads(file.read_text()) | changes
    kept = {key: value for key, value in document.items() if value is not None}
    file.write_text(json.dumps(kept))


def quantised(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "config.json", quantization_config=settings)


def tokenizer_of(kind: str, *files: str) -> Callable[[Path], None]:
    """A tokenizer without a fast form, which needs a package of its own, and its files."""

    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        changed(folder / "tokenizer_config.json", tokenizer_class=kind)
        for name in files:
            (folder / name).write_text('{"a": 0, "b": 1}\n')

    return change


def japanese(folder: Path) -> None:
    tokenizer_of("BertJapaneseTokenizer", "vocab.txt")(folder)
    changed(folder / "tokenizer_config.json", word_tokenizer_type="mecab")


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data) and None


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "config.json", **changes)


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def shard_that_is_not_there(folder: Path) -> None:
    from safetensors.torch import load_file

    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {
        name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(names)
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def own_code(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    changed(folder / "config.json", model_type="own", auto_map=auto_map)


def own_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    auto_map = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    changed(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=auto_map)


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


QUANTISED = ("bitsandbytes", "gptq", "awq", "compressed-tensors", "hqq", "quanto", "torchao")
"""Changes to checkpoints that need a package as teachers, and are no students at all."""

CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bitsandbytes": (quantised(quant_method="bitsandbytes", load_in_4bit=True), "bitsandbytes"),
    "gptq": (quantised(quant_method="gptq", bits=4, group_size=128), "requires optimum"),
    "awq": (
        quantised(quant_method="awq", bits=4, group_size=128, zero_point=True),
        "requires gptqmodel",
    ),
    "compressed-tensors": (
        quantised(quant_method="compressed-tensors", format="pack-quantized", config_groups={}),
        "compressed",
    ),
    "hqq": (quantised(quant_method="hqq", quant_config={}), "hqq"),
    "quanto": (quantised(quant_method="quanto", weights="int8"), "quanto"),
    "torchao": (quantised(quant_method="torchao", quant_type="int4_weight_only"), "torchao"),
    "unknown method": (quantised(quant_method="own"), "uses an unknown quantisation"),
    "no such type": (configured(model_type="gpt9"), "model type 'gpt9' is unknown"),
    "no type": (configured(model_type=None, architectures=None), "model_type"),
    "own code": (own_code, "needs custom code"),
    "code of the tokenizer": (own_tokenizer, "tokenizer"),
    "config is a list": (written("config.json", "[]"), "config.json: is not a JSON object"),
    "config is cut": (written("config.json", '{"model_type": '), "config.json: is not JSON"),
    "config is bytes": (written("config.json", b"\xff\xfe\x00"), "config.json: is not JSON"),
    "config of other sizes": (configured(n_embd=48), "by config.json ["),
    "config that fits nothing": (configured(n_embd=31), "must be divisible by num_heads"),
    "size is a word": (configured(n_embd="wide"), "n_embd"),
    "kind of text": (tokenizer_of("MarianTokenizer"), "tokenizer"),
    "sacremoses": (tokenizer_of("XLMTokenizer", "vocab.json", "merges.txt"), "sacremoses"),
    "fugashi": (japanese, "fugashi"),
    "rjieba": (tokenizer_of("RoFormerTokenizer", "vocab.txt"), "rjieba"),
    "jieba": (tokenizer_of("CpmTokenizer", "spiece.model"), "tokenizer"),
    "no tokenizer": (without("tokenizer.json"), "tokenizer"),
    "tokenizer is empty": (written("tokenizer.json", "{}"), "tokenizer"),
    "tokenizer has no bytes": (written("tokenizer.json", ""), "tokenizer"),
    "tokenizer is a list": (written("tokenizer.json", "[1]"), "tokenizer"),
    "tokenizer settings are cut": (written("tokenizer_config.json", '{"a": '), "tokenizer"),
    "weights are cut": (cut_weights, "damaged or incomplete"),
    "weights have no bytes": (written("model.safetensors", b""), "damaged or incomplete"),
    "weights are text": (written("model.safetensors", "version https://git-lfs"), "damaged"),
    "a shard is missing": (shard_that_is_not_there, "model-00002-of-00002.safetensors"),
    "pickles": (only_pickles, "pickled"),
    "no weights": (without("model.safetensors"), "no *.safetensors"),
}


def make_unusable(whole: Path, folder: Path, change: str) -> Path:
    """A copy of a whole checkpoint with one of CHANGES."""
    shutil.copytree(whole, folder)
    CHANGES[change][0](folder)
    return folder
