"""Language models by the command line: a teacher asked once, students of every kind, what is
refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada import open_cache
from armada.pipeline import run_folder, seed_run
from armada.pipeline.language import datasets
from armada.stages.language import tokens
from armada.stages.language.tokens import TokenTexts
from command_line import CommandLine
from file_server import serving
from safetensors.torch import load_file, save_file
from tiny_language_models import make_causal_lm, make_chat_tokenizer
from transfers import serve_ready
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.long

COUNT = 40
WORDS = ["red", "bird", "sings", "at", "dawn", "two", "dogs", "run", "along", "river", "why"]
COLUMNS = ("instruction", "context?", "response")
Refused = Callable[..., str]


def instructions() -> dict[str, Any]:
    random = np.random.default_rng(0)
    pick = [list(random.choice(WORDS, 4)) for _ in range(COUNT)]
    return {
        "instruction": [f"say {n} {words[0]}" for n, words in enumerate(pick)],
        "context": ["" if n % 3 else words[1] for n, words in enumerate(pick)],
        "response": [" ".join(words) for words in pick],
        "label": [n % 2 for n in range(COUNT)],
    }


@dataclass(frozen=True)
class Bench:
    """A teacher, students and a cache; every test has folders of its own beside them."""

    train: Path
    validation: Path
    cache: Path
    features: Path
    teacher: Path
    student: Path
    other: Path

    def words(self, output: Path, *more: str, **keys: object) -> list[object]:
        """`armada distill` of a language model, its keys as settings."""
        given: dict[str, object] = {
            "task": "language",
            "objective": "tokens",
            "feature": "top_k",
            "cache": self.cache,
            "student": self.student,
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 1e-3,
        }
        settings = [
            part
            for name, value in (given | keys).items()
            if value is not None
            for part in ("--set", f"{name}={value}")
        ]
        files = ["--train", self.train, "--validation", self.validation, *columns()]
        return ["distill", *files, *settings, "--output", output, "--quiet", *more]


def columns() -> list[str]:
    return [part for name in COLUMNS for part in ("--text-column", name)]


def asked(corpus: Path, teacher: str, cache: Path, **keys: object) -> list[object]:
    settings = [part for k, v in keys.items() for part in ("--set", f"{k}={v}")]
    words = ["--teacher", teacher, "--corpus", corpus, *columns(), "--cache", cache, "--quiet"]
    return ["precompute", *words, *settings]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    from armada.cli import main

    root = tmp_path_factory.mktemp("language")
    table = pa.table(instructions())
    for name in ("train", "validation"):
        pq.write_table(table if name == "train" else table.slice(0, 12), root / f"{name}.parquet")
    other = make_chat_tokenizer(["the quick brown fox", "jumps over it 1 2 3"])
    made = Bench(
        train=root / "train.parquet",
        validation=root / "validation.parquet",
        cache=root / "cache",
        features=root / "features",
        teacher=make_causal_lm(root / "teacher", "llama"),
        student=make_causal_lm(root / "student", "llama", seed=3),
        other=make_causal_lm(root / "other", "gpt2", tokenizer=other),
    )
    kept = {"samples": 5, "dense": "true", "max_new_tokens": 6, "characters": "true"}
    plain = {"text_format": "plain", "temperatures": "[1.0, 2.0]", "top_k": 12}
    for words in (
        asked(made.train, f"causal_lm:{made.teacher}", made.cache, **kept, **plain),
        asked(made.train, "hash:6", made.features),
    ):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        assert ended.value.code == 0
    return made


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def metrics(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found


VARIANTS: dict[str, dict[str, object]] = {
    "top_k": {"token_temperature": 2.0, "divergence": "jsd"},
    "samples": {"feature": "samples"},
    "dense": {"feature": "dense", "divergence": "reverse_kl"},
    "renormalised": {"tail": "renormalised", "token_temperature": 3.0},
    "document_mask": {"packing": "document_mask", "max_length": 100},
    "concat": {
        **{"packing": "concat", "max_length": 100},
        **{"divergence": "self_evolution", "token_temperatures": "[1, 2]"},
    },
    "generated": {"responses": "generated"},
    "generated, and nothing else": {"responses": "generated", "cache": "SAID", "feature": None},
    "longer texts": {"max_length": 18, "skip_bad_rows": "true"},
    "accumulated": {"gradient_accumulation": 2, "group_by_length": "true"},
}


GIVEN = ("loss", "perplexity", "bits_per_byte")
MEASURED = ("ece", "agreement", "teacher_kl", "teacher_accuracy", "teacher_ece")
"""What there is beside it where the teacher's distributions of the validation tokens are cached."""


def measured(keys: dict[str, object]) -> bool:
    return keys.get("feature") != "samples" and keys.get("responses") != "generated"


@pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)
def test_a_student_of_each_kind_learns_and_opens(
    armada: CommandLine, bench: Bench, tmp_path: Path, keys: dict[str, object]
) -> None:
    output = tmp_path / "run"
    if keys.get("cache") == "SAID":
        said = {"text_format": "plain", "top_k": "null", "max_new_tokens": 5}
        teacher = f"causal_lm:{bench.teacher}"
        armada.done(*asked(bench.train, teacher, tmp_path / "said", **said))
        keys = keys | {"cache": tmp_path / "said"}
    armada.done(*bench.words(output, **keys))
    found = metrics(output)
    assert found["validation"].keys() == {*GIVEN, *(MEASURED if measured(keys) else ())}
    logged = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if "loss" in row]
    assert losses[-1] < losses[0]
    parts = {name for row in logged for name in row} & {"language", "distillation"}
    alone = keys.get("responses") == "generated"
    assert parts == ({"language"} if alone else {"language", "distillation"})
    model = AutoModelForCausalLM.from_pretrained(output / "student")
    assert model.config.model_type == "llama"
    words = ("evaluate", output, "--corpus", bench.validation)
    result = json.loads(armada.done(*words, "--json"))
    expected = {name: found["validation"][name] for name in GIVEN}
    assert result["metrics"] == pytest.approx(expected, rel=1e-5)
    told = armada(*words, "--cache", bench.cache)
    assert told.code == 2
    assert "feature: is missing; the teacher has top_k, dense" in told.error


def test_evaluate_compares_with_a_teacher(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    """Its predictions, and its responses, of which the teacher itself has the very same."""
    output = tmp_path / "run"
    armada.done(*bench.words(output, metric="teacher_kl"))
    found = metrics(output)
    assert found["measured_examples"] == {"teacher": 12}
    values = [row["teacher_kl"] for row in found["epochs"]]
    assert found["best_epoch"] == 1 + values.index(min(values))
    words = ("evaluate", output, "--corpus", bench.validation, "--json", "--cache", bench.cache)
    result = json.loads(armada.done(*words, "--set", "feature=top_k"))
    assert result["compared_examples"] == 12
    assert result["metrics"] == pytest.approx(found["validation"], rel=1e-5)
    exact = json.loads(armada.done(*words, "--set", "feature=dense"))["metrics"]
    assert exact["teacher_kl"] >= result["metrics"]["teacher_kl"] > 0
    assert exact["agreement"] == result["metrics"]["agreement"]
    told = ("--set", "feature=generated_ids", "--set", "max_new_tokens=6")
    responses = json.loads(armada.done(*words, *told))["metrics"]
    names = {"rouge_l", "exact_match", "teacher_rouge_l", "teacher_exact_match"}
    assert responses.keys() == {*GIVEN, *names}
    assert 0 <= responses["teacher_rouge_l"] < 1
    for file in (bench.teacher).glob("*.safetensors"):
        shutil.copy(file, output / "student")
    itself = json.loads(armada.done(*words, *told))["metrics"]
    assert itself["teacher_exact_match"] == 1
    assert itself["teacher_rouge_l"] > 0.9  # two responses without a word have nothing in common
    assert "to compare a language model with (top_k, dense); set max_new_tokens" in (
        armada(*words, "--set", "feature=generated_ids").error
    )
    assert "feature 'samples': does not tell distributions" in (
        armada(*words, "--set", "feature=samples").error
    )


def test_several_seeds_read_texts_once_and_learn_as_each_alone(
    armada: CommandLine, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def encode_texts(*given: Any) -> TokenTexts:
        encoded.append(len(given[2]))
        return tokens.encode_texts(*given)

    monkeypatch.setattr(datasets, "encode_texts", encode_texts)
    short: dict[str, object] = {"epochs": 1, "dropout": 0.1}
    armada.done(*bench.words(tmp_path / "runs", seed="[0, 1, 2]", **short))
    assert sorted(encoded) == [12, COUNT]
    armada.done(*bench.words(tmp_path / "alone", seed=2, **short))
    weights = [
        (folder / "student/model.safetensors").read_bytes()
        for folder in (tmp_path / "runs/seed-2", tmp_path / "alone")
    ]
    assert weights[0] == weights[1]


def test_names_of_an_earlier_release_mean_those_of_today(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    losses = []
    for feature, packing in (("samples", "document_mask"), ("draws", "apart")):
        output = tmp_path / packing
        told = armada(*bench.words(output, feature=feature, packing=packing, max_length=100))
        assert told.code == 0
        warned = "packing=apart: deprecated, removed in the next release; use document_mask"
        assert told.err.count(warned) == (packing == "apart")
        losses.append(metrics(output)["validation"])
    assert losses[0] == losses[1]


def test_options_of_an_earlier_release_ask_the_same_teacher(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    teacher, cache = f"causal_lm:{bench.teacher}", tmp_path / "cache"
    earlier = {"draws": 3, "draws_log_probs": "true"}
    told = armada(*asked(bench.train, teacher, cache, **earlier))
    assert told.code == 0
    for old in earlier:
        new = old.replace("draws", "samples")
        warned = f"{old}: deprecated, removed in the next release; use {new}"
        assert told.err.count(warned) == 1
    before = open_cache(cache)
    assert "samples" in before.features
    armada.done(*asked(bench.train, teacher, cache, samples=3, samples_log_probs="true"))
    assert len(open_cache(cache)) == len(before)
    both = armada(*asked(bench.train, teacher, cache, samples=3, draws=3))
    assert both.code == 2
    assert "draws: deprecated name of samples, and both are given; leave it out" in both.err


def test_what_the_loss_says_is_what_plain_torch_says(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    """Undistilled, the first loss is the untouched student's mean cross entropy of responses."""
    words = bench.words(
        tmp_path / "run",
        objective="undistilled",
        cache=None,
        feature=None,
        text_format="plain",
        batch_size=COUNT,
        logging_steps=1,
        epochs=1,
    )
    armada.done(*words)
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    model = AutoModelForCausalLM.from_pretrained(bench.student)
    tokenizer = AutoTokenizer.from_pretrained(bench.student)
    rows = instructions()
    total = count = 0.0
    for asked_for, context, response in zip(
        rows["instruction"], rows["context"], rows["response"], strict=True
    ):
        prompt = f"{asked_for}\n\n{context}\n" if context else f"{asked_for}\n"
        given = tokenizer(prompt)["input_ids"]
        said = [*tokenizer(response, add_special_tokens=False)["input_ids"], 2]
        assert tokenizer.eos_token_id == said[-1]
        ids = torch.tensor([[*given, *said]])
        labels = torch.tensor([[-100] * len(given) + said])
        with torch.no_grad():
            total += model(ids, labels=labels).loss.item() * len(said)
        count += len(said)
    assert first["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters_open_in_peft_and_are_small(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    from peft import PeftModel

    output = tmp_path / "run"
    armada.done(*bench.words(output, lora_rank=3, learning_rate=1e-2))
    found = metrics(output)
    base = AutoModelForCausalLM.from_pretrained(bench.student)
    adapted = PeftModel.from_pretrained(base, output / "student")
    names = {file.name for file in (output / "student").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names
    weights = load_file(output / "student" / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert any(float(w.abs().max()) > 0 for name, w in weights.items() if "lora_B" in name)
    assert adapted.peft_config["default"].r == 3
    result = json.loads(
        armada.done(
            *("evaluate", output, "--corpus", bench.validation, "--json"),
            *("--set", "max_new_tokens=5"),
        )
    )
    assert result["metrics"].keys() == {
        *("loss", "perplexity", "bits_per_byte", "rouge_l", "exact_match")
    }
    assert {n: result["metrics"][n] for n in GIVEN} == pytest.approx(
        {n: found["validation"][n] for n in GIVEN}, rel=1e-5
    )


def test_a_finished_student_is_a_teacher(armada: CommandLine, bench: Bench, tmp_path: Path) -> None:
    armada.done(*bench.words(tmp_path / "run"))
    words = asked(
        bench.train, f"causal_lm:{tmp_path / 'run' / 'student'}", tmp_path / "cache", top_k=5
    )
    armada.done(*words)
    assert open_cache(tmp_path / "cache").features == ("token_ids", "prompt_tokens", "top_k")


class CutError(Exception):
    """Stands for whatever ends a run early."""


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lora_rank": 2, "average": "mean", "average_from": 0.3},
        {"optimizer": "dot", "learning_rate": 0.01},
    ],
    ids=["whole", "averaged-adapters", "two-momenta"],
)
def test_a_run_that_was_cut_ends_like_one_that_was_not(
    armada: CommandLine,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, object],
) -> None:
    keys = {**keys, "epochs": 3, "gradient_accumulation": 2}
    armada.done(*bench.words(tmp_path / "whole", **keys))
    real, steps = seed_run.CountProgress.advance, []

    def cut(progress: Any, count: int) -> None:
        real(progress, count)
        steps.append(count)
        if len(steps) == 5:
            raise CutError

    with monkeypatch.context() as patched:
        patched.setattr(seed_run.CountProgress, "advance", cut)
        with pytest.raises(CutError):
            armada(*bench.words(tmp_path / "cut", **keys))
    assert not (tmp_path / "cut" / "metrics.json").exists()
    armada.done(*bench.words(tmp_path / "cut", **keys, resume="true"))
    name = "adapter_model.safetensors" if "lora_rank" in keys else "model.safetensors"
    one, other = (load_file(tmp_path / run / "student" / name) for run in ("whole", "cut"))
    assert one.keys() == other.keys()
    for weight, tensor in one.items():
        torch.testing.assert_close(tensor, other[weight], rtol=0, atol=0, msg=weight)
    epochs = metrics(tmp_path / "whole")["epochs"]
    assert epochs == metrics(tmp_path / "cut")["epochs"]
    assert ("unaveraged_perplexity" in epochs[-1]) == ("average" in keys)


def test_checkpoints_of_adapters_hold_no_frozen_weight(
    armada: CommandLine, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = run_folder.shutil.rmtree

    def look(folder: Any, **more: Any) -> None:
        for file in Path(folder).rglob("*.safetensors"):
            seen.extend(load_file(file))
        real(folder, **more)

    monkeypatch.setattr(run_folder.shutil, "rmtree", look)
    armada.done(*bench.words(tmp_path / "run", lora_rank=2))
    assert seen
    assert all("lora_" in name for name in seen), [n for n in seen if "lora_" not in n]


@pytest.mark.parametrize("labels", [False, True], ids=["without labels", "with labels"])
def test_armada_beside_the_words(
    armada: CommandLine, bench: Bench, tmp_path: Path, labels: bool
) -> None:
    keys: dict[str, object] = {
        **{"cache": None, "feature": None, "objective": None},
        "teachers": f"{{llm: {{cache: {bench.cache}, feature: top_k}}, "
        f"pictures: {{cache: {bench.features}}}}}",
        "objectives": "[{name: tokens, teacher: llm}, "
        "{name: armada, teacher: pictures, aligner_hidden_size: 8}]",
    }
    if labels:
        keys["label_column"] = "label"
    armada.done(*bench.words(tmp_path / "run", **keys))
    logged = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    terms = {"tokens.language", "tokens.distillation", "armada.manifold"}
    of_labels = {"armada.task", "armada.output"}
    named = {name for row in logged for name in row}
    assert terms <= named
    assert of_labels & named == (of_labels if labels else set())
    teachers = json.loads((tmp_path / "run/run.json").read_text())["teachers"]
    assert teachers["pictures"]["feature"] == "embedding"
    assert teachers["llm"]["feature"] == "top_k"
    assert teachers["llm"]["teacher_fingerprint"] == open_cache(bench.cache).teacher.fingerprint
    assert (tmp_path / "run/aligner/armada.safetensors").is_file()


def test_an_aligner_without_labels_stays_as_it_was_drawn(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    keys: dict[str, object] = {"objective": "armada", "cache": bench.features, "feature": None}
    found = []
    for epochs in (1, 2):
        output = tmp_path / str(epochs)
        armada.done(*bench.words(output, **keys, epochs=epochs, aligner_hidden_size=8))
        found.append(load_file(output / "aligner" / "aligner.safetensors"))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_a_teacher_with_another_tokenizer(
    armada: CommandLine, refused: Refused, bench: Bench, tmp_path: Path
) -> None:
    told = refused(*bench.words(tmp_path / "run", student=bench.other))
    digests = re.findall(r"\b[0-9a-f]{32}\b", told)
    assert len(set(digests)) == 2
    assert "cross_tokenizer=true" in told
    armada.done(*bench.words(tmp_path / "run", student=bench.other, cross_tokenizer="true"))
    assert metrics(tmp_path / "run")["validation"]["loss"] > 0
    told = refused(*bench.words(tmp_path / "same", cross_tokenizer="true"))
    assert "have the same tokenizer" in told


REFUSALS: dict[str, tuple[dict[str, object], str]] = {
    "a feature of no words": ({"feature": "token_ids"}, "'token_ids' is not a token feature"),
    "no feature named": ({"feature": None}, "is missing; the teacher has top_k, samples, dense"),
    "a temperature without its tail": ({"token_temperature": 4.0}, "only at 1.0, 2.0"),
    "temperatures without a tail": ({"token_temperatures": "[1, 4]"}, "only at 1.0, 2.0"),
    "samples at a temperature": (
        {"feature": "samples", "token_temperature": 2.0},
        "which are not cached",
    ),
    "samples by rank": (
        {"feature": "samples", "cross_tokenizer": "true", "student": "OTHER"},
        "which samples do not give",
    ),
    "another recipe": ({"text_format": "chat"}, "the teacher was run with 'plain'"),
    "an objective of classes": ({"objective": "kd"}, "objective kd: needs labels"),
    "a control of features": ({"control": "shuffled"}, "needs a cached feature"),
    "adapters from scratch": (
        {"student": "scratch:llama", "lora_rank": 2},
        "from scratch has no pretrained weights to adapt",
    ),
    "adapters and fewer layers": (
        {"lora_rank": 2, "student_layers": 1},
        "save the shortened one first",
    ),
    "packing with a feature": (
        {"objective": "armada", "packing": "document_mask", "cache": "FEATURES", "feature": None},
        "objective armada needs one text per row",
    ),
    "an unknown metric": ({"metric": "accuracy"}, "is not one of loss, perplexity, bits_per_byte"),
    "too long": ({"max_length": 500}, "takes at most 128 tokens"),
    "nothing left to predict": ({"max_length": 4}, "its prompt fills max_length"),
    "a temperature of classes": ({"temperature": 3.0}, "for tokens, use token_temperature"),
    "settings of adapters alone": ({"lora_targets": "[q_proj]"}, "need lora_rank"),
    "generated words of another tokenizer": (
        {"cross_tokenizer": "true", "responses": "generated", "student": "OTHER"},
        "needs the teacher's tokenizer",
    ),
    "a divergence by rank": (
        {"cross_tokenizer": "true", "divergence": "jsd", "student": "OTHER"},
        "by the sum of their differences",
    ),
    "a tail of samples": ({"feature": "samples", "tail": "renormalised"}, "samples have no tail"),
    "an image's teacher": ({"cache": "FEATURES", "feature": None}, "a hash has no token features"),
}


@pytest.mark.parametrize(("keys", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_is_refused_in_one_line(
    refused: Refused, bench: Bench, tmp_path: Path, keys: dict[str, object], told: str
) -> None:
    places = {"FEATURES": bench.features, "OTHER": bench.other}
    keys = {name: places.get(str(value), value) for name, value in keys.items()}
    assert told in refused(*bench.words(tmp_path / "run", **keys))


def test_tokens_are_of_language_models(refused: Refused, bench: Bench, tmp_path: Path) -> None:
    told = refused(*bench.words(tmp_path / "run", task="classification", label_column="label"))
    assert "set task=language" in told


def test_texts_whose_tokens_changed(
    armada: CommandLine, refused: Refused, bench: Bench, tmp_path: Path
) -> None:
    """The same keys and the same tokenizer; what was cached is of other tokens."""
    import shutil

    cache = Path(shutil.copytree(bench.cache, tmp_path / "cache"))
    opened = open_cache(cache)
    file = opened.folder / "token_ids" / "c" / "0"
    data = bytearray(file.read_bytes())
    data[4 * 5] ^= 1
    file.write_bytes(data)
    told = refused(*bench.words(tmp_path / "run", cache=cache))
    assert "its tokens differ from the teacher's (1 such rows)" in told
    assert "row 1" in told


def test_logits_that_are_no_numbers_name_their_text(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    import shutil

    broken = Path(shutil.copytree(bench.teacher, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(broken)
    word = tokenizer("say 7 ", add_special_tokens=False)["input_ids"][-2]
    weights["model.embed_tokens.weight"][word] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    words = asked(bench.train, f"causal_lm:{broken}", tmp_path / "cache", text_format="plain")
    result = armada(*words)
    assert result.code == 1
    assert "'logits' is not finite for 'say" in result.error
    armada.done(*words, "--set", "skip_bad_rows=true")
    assert 0 < len(open_cache(tmp_path / "cache")) < COUNT


def test_k_above_the_vocabulary(refused: Refused, bench: Bench, tmp_path: Path) -> None:
    words = asked(bench.train, f"causal_lm:{bench.teacher}", tmp_path / "cache", top_k=400)
    assert "above the tokenizer's vocabulary of 320" in refused(*words)


def test_empty_responses_are_bad_rows(refused: Refused, bench: Bench, tmp_path: Path) -> None:
    rows = instructions()
    rows["response"][4] = " "
    pq.write_table(pa.table(rows), tmp_path / "blank.parquet")
    words = asked(tmp_path / "blank.parquet", f"causal_lm:{bench.teacher}", tmp_path / "cache")
    assert "row 5: column 'response' is empty" in refused(*words)


def test_responses_that_are_cut_are_counted(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    words = asked(
        bench.train,
        f"causal_lm:{bench.teacher}",
        tmp_path / "c",
        text_format="plain",
        max_length=16,
    )
    report = json.loads(armada.done(*words, "--json"))
    assert report["truncated"] > 0
    armada.done(
        *bench.words(tmp_path / "run", cache=tmp_path / "c", max_length=16, skip_bad_rows="true")
    )
    found = metrics(tmp_path / "run")
    assert 0 < found["truncated_examples"] <= report["truncated"]
    left_out = COUNT - found["train_examples"]
    assert found["truncated_examples"] + left_out == report["truncated"]


def test_the_same_student_from_a_cache_at_a_url(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    served = serve_ready(bench.cache, tmp_path / "served")
    armada.done(*bench.words(tmp_path / "local"))
    with serving(served) as server:
        keys = {"cache": server.url, "mirror": tmp_path / "mirror"}
        armada.done(*bench.words(tmp_path / "remote", **keys))
        features = {name.split("/")[2] for name in server.asked if "/c/" in name}
    assert features == {"token_ids", "prompt_tokens", "top_k"}
    one, other = (
        load_file(tmp_path / run / "student" / "model.safetensors") for run in ("local", "remote")
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(("teachers", "students"), [(0, 9), (9, 0), (3, 9)])
def test_vocabularies_of_one_family_are_padded_differently(
    armada: CommandLine, bench: Bench, tmp_path: Path, teachers: int, students: int
) -> None:
    """Rows of logits beyond the tokenizer's words teach nothing, and are taught nothing."""
    teacher = make_causal_lm(tmp_path / "teacher", padding=teachers)
    student = make_causal_lm(tmp_path / "student", seed=3, padding=students)
    kept = {"text_format": "plain", "top_k": 320, "top_k_bits": 16, "dense": "true"}
    armada.done(*asked(bench.train, f"causal_lm:{teacher}", tmp_path / "cache", **kept))
    keys: dict[str, object] = {"cache": tmp_path / "cache", "student": student, "epochs": 1}
    losses = {}
    for feature in ("top_k", "dense"):
        armada.done(*bench.words(tmp_path / feature, **keys, feature=feature))
        rows = [json.loads(r) for r in (tmp_path / feature / "log.jsonl").read_text().splitlines()]
        losses[feature] = next(row["distillation"] for row in rows if "distillation" in row)
    # All words are among the most probable ones: the same answers but for their coding.
    assert losses["top_k"] == pytest.approx(losses["dense"], rel=1e-3)


def test_a_vocabulary_that_grew_after_its_adapters(
    armada: CommandLine, refused: Refused, bench: Bench, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    armada.done(*bench.words(output, lora_rank=2, epochs=1))
    tokenizer = AutoTokenizer.from_pretrained(output / "student")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(output / "student")
    told = refused("evaluate", output, "--corpus", bench.validation)
    assert "has 321 tokens, the model 320" in told
    assert "train adapters on the resized model" in told


def test_rows_without_the_teachers_predictions_learn_the_corpus_alone(
    armada: CommandLine, bench: Bench, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    teacher, plain = f"causal_lm:{bench.teacher}", {"text_format": "plain", "top_k": 12}
    armada.done(*asked(bench.train, teacher, cache, budget=15, max_new_tokens=3, **plain))
    refused = armada(*bench.words(tmp_path / "no", cache=cache))
    assert refused.code == 2
    assert f"{COUNT - 15} of {COUNT} rows are not in the cache" in refused.error
    words = {"cache": cache, "missing": "without_teacher", "logging_steps": 1}
    armada.done(*bench.words(tmp_path / "run", **words))
    found = metrics(tmp_path / "run")
    assert found["train_examples"] == COUNT
    assert found["answered_examples"] == {"teacher": 15}
    assert np.isfinite([*found["train_losses"].values()]).all()
    generated = armada(*bench.words(tmp_path / "said", **words, responses="generated"))
    assert generated.code == 2
    assert "without a teacher's response there is nothing to learn" in generated.error
