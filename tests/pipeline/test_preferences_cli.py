"""Language models that learn which of two responses is preferred, from a reference's cached
log-probabilities and without one; what is refused."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError
from armada.pipeline import seed_run
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import find_runs
from armada.pipeline.run_data import figure_names, read_data
from armada.pipeline.terms import terms_of
from command_line import CommandLine
from cuts import cut_at
from language_processes import losses, run, run_in_two_processes, weights
from tiny_language_models import make_causal_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.long

Keys = dict[str, Any]
ROWS, HELD_OUT = 29, 7
WORDS = ["red", "bird", "sings", "at", "dawn", "two", "dogs", "run", "along", "river", "why"]


def responses(rows: int, seed: int) -> dict[str, list[str]]:
    draw = np.random.default_rng(seed)

    def text(least: int) -> str:
        return " ".join(draw.choice(WORDS, int(draw.integers(least, least + 3))))

    return {
        "prompt": [f"say {row} {text(1)}" for row in range(rows)],
        "chosen": [text(2) for _ in range(rows)],
        "rejected": [f"{text(2)} no" for _ in range(rows)],
    }


def chats(table: dict[str, list[str]], column: str) -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]
        for ask, say in zip(table["prompt"], table[column], strict=True)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to train on and to validate by; the student's own start, in whose words both are
    cached; one that has read less of each."""
    folder = tmp_path_factory.mktemp("preferences")
    for name, rows in (("train", ROWS), ("validation", HELD_OUT)):
        table = responses(rows, seed=rows)
        weighted = table | {"weight": [n % 4 / 2 for n in range(rows)]}
        of_chats = {column: chats(table, column) for column in ("chosen", "rejected")}
        pq.write_table(pa.table(weighted), folder / f"{name}.parquet")
        pq.write_table(pa.table(of_chats), folder / f"{name}-chats.parquet")
    make_causal_lm(folder / "student", seed=2)
    for column in ("chosen", "rejected"):
        precompute(folder, "reference", ["prompt", column], text_format="plain")
        precompute(folder, "chats", [column], "-chats", text_format="chat")
    precompute(folder, "short", ["prompt", "chosen"], text_format="plain", max_length=12)
    precompute(folder, "short", ["prompt", "rejected"], text_format="plain", max_length=12)
    precompute(folder, "half", ["prompt", "chosen"], text_format="plain")
    precompute(folder, "other", ["prompt", "chosen"], own=False, text_format="plain", top_k=4)
    return folder


def precompute(
    root: Path, cache: str, columns: list[str], files: str = "", own: bool = True, **options: Any
) -> None:
    options = {"own_log_probs": True, "top_k": None, **options} if own else options
    library.precompute(
        corpus=[str(root / f"{name}{files}.parquet") for name in ("train", "validation")],
        text_column=columns,
        teacher=f"causal_lm:{root / 'student'}",
        cache=root / cache,
        quiet=True,
        **options,
    )


def job(root: Path, output: Path, **keys: Any) -> Keys:
    return {
        **{"train": str(root / "train.parquet"), "text_column": ["prompt", "chosen"]},
        **{"rejected_column": "rejected", "task": "language", "objective": "dpo"},
        **{"cache": str(root / "reference"), "student": str(root / "student")},
        **{"output": str(output), "device": "cpu", "epochs": 2, "batch_size": 8},
        **{"learning_rate": 2e-3, "logging_steps": 1, "report_to": "none", "seed": 3},
        **keys,
    }


def without_reference(root: Path, output: Path, **keys: Any) -> Keys:
    told = {"objective": "plad", "cache": None, "control": "none", "text_format": "plain"}
    return job(root, output, **told, **keys)


def log_probs(model: Path, table: dict[str, list[str]], column: str) -> np.ndarray:
    """Sums and means of the tokens of responses, one text at a time."""
    network, tokenizer = (
        kind.from_pretrained(model) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    found = []
    for ask, say in zip(table["prompt"], table[column], strict=True):
        prompt = tokenizer(f"{ask}\n")["input_ids"]
        said = tokenizer(say, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        ids = torch.tensor([prompt + said])
        with torch.no_grad():
            logits = network(ids).logits[0].double().log_softmax(1)
        own = logits[len(prompt) - 1 : -1].gather(1, torch.tensor(said)[:, None])
        found.append([float(own.sum()), float(own.mean())])
    return np.array(found)


def test_a_student_learns_from_the_cached_reference(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its metrics are those of two models in memory, and `evaluate` says the same."""
    validation = root / "validation.parquet"
    library.distill(**job(root, tmp_path / "run", validation=str(validation)))
    first = losses(tmp_path / "run", "preference")
    assert first[0] == pytest.approx(math.log(2), abs=1e-3)  # it is the reference
    assert first[-1] < first[0]
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["metric"] == "reward_accuracy"
    assert found["validation"]["reward_margin"] > 0.5
    table = pq.read_table(validation).to_pydict()
    sums, means = (
        np.stack([log_probs(model, table, name)[:, at] for name in ("chosen", "rejected")])
        for model, at in ((tmp_path / "run" / "student", 0), (tmp_path / "run" / "student", 1))
    )
    start = np.stack([log_probs(root / "student", table, n)[:, 0] for n in ("chosen", "rejected")])
    rewards = sums - start
    expected = {
        "preference_accuracy": (means[0] > means[1]).mean(),
        "preference_margin": (means[0] - means[1]).mean(),
        "reward_accuracy": (rewards[0] > rewards[1]).mean(),
        "reward_margin": (rewards[0] - rewards[1]).mean(),
        "chosen_reward": rewards[0].mean(),
        "rejected_reward": rewards[1].mean(),
    }
    told = {name: found["validation"][name] for name in expected}
    # what is cached is rounded to float16
    assert told == pytest.approx(expected, rel=1e-3, abs=5e-3)
    armada = CommandLine(capsys)
    words = ("evaluate", tmp_path / "run", "--corpus", validation, "--json", "--set")
    again = json.loads(
        armada.done(*words, "rejected_column=rejected", "--cache", root / "reference")
    )
    assert again["metrics"] == pytest.approx(found["validation"], rel=1e-4)
    alone = json.loads(armada.done(*words, "rejected_column=rejected"))
    assert alone["metrics"].keys() == found["validation"].keys() - {
        *("reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward")
    }
    assert "rejected_column" not in json.loads(armada.done(*words[:-1]))["metrics"]


def test_a_cut_and_resumed_run_is_a_whole_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving = {"beta": {"from": 0.5, "to": 0.1}, "sft_weight": 0.5, "preference_loss": "ipo"}
    keys = job(root, tmp_path / "whole", save_steps=1, **moving)
    library.distill(**keys)
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(5))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys | {"output": tmp_path / "cut"})
    library.distill(**keys | {"output": tmp_path / "cut", "resume": True})
    for term in ("loss", "preference", "language", "beta"):
        assert losses(tmp_path / "cut", term) == losses(tmp_path / "whole", term)
    one, other = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_two_processes_and_batches_put_together_are_one_batch(
    root: Path, tmp_path: Path, torchrun: Sequence[str]
) -> None:
    """To rounding in float64; the last batch, of 5 rows, is shared as 3 and 2, or put together of
    4 and 1."""
    apart = {"batch_size": 4, "gradient_accumulation": 2}
    tokens = {"objective": "tokens", "cache": str(root / "other"), "weight_column": "weight"}
    plans: dict[str, Keys] = {
        "dpo": job(root, tmp_path / "two dpo", sft_weight=0.5, **apart),
        "plad": without_reference(root, tmp_path / "two plad", weight_column="weight", **apart),
        "tokens": job(root, tmp_path / "two tokens", **tokens, **apart),
    }
    run_in_two_processes(torchrun, tmp_path / "plan.json", list(plans.values()))
    whole = {"batch_size": 8, "gradient_accumulation": 1}
    for name, plan in plans.items():
        run(plan | whole | {"output": str(tmp_path / name)})
        one, other = weights(tmp_path / name), weights(tmp_path / f"two {name}")
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-8, atol=1e-11)
        expected = losses(tmp_path / name)
        assert losses(tmp_path / f"two {name}") == pytest.approx(expected, rel=4e-7)


def test_beside_tokens_adapters_and_parts(root: Path, tmp_path: Path) -> None:
    """A sum of objectives learns tokens from the preferred responses alone."""
    keys = {
        "objective": None,
        "cache": None,
        "teachers": {
            "start": {"cache": str(root / "reference")},
            "llm": {"cache": str(root / "other")},
        },
        "objectives": [
            {"name": "dpo", "teacher": "start", "weight": 0.5},
            {"name": "tokens", "teacher": "llm", "alpha": 1.0},
            {"name": "plad", "beta": 0.0, "sft_weight": 1.0},
        ],
        "lora_rank": 2,
        "validation": str(root / "validation.parquet"),
    }
    library.distill(**job(root, tmp_path / "run", **keys))
    assert losses(tmp_path / "run", "tokens.language") == pytest.approx(
        losses(tmp_path / "run", "plad.language"), rel=1e-5
    )
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"reward_accuracy", "agreement"} <= found["validation"].keys()
    assert (tmp_path / "run" / "student" / "adapter_model.safetensors").is_file()


def test_chats(root: Path, tmp_path: Path) -> None:
    """Two columns of whole chats, with the same turns but the last."""
    files = {name: str(root / f"{name}-chats.parquet") for name in ("train", "validation")}
    keys = {"cache": str(root / "chats"), "text_column": "chosen", **files}
    library.distill(**job(root, tmp_path / "run", **keys))
    assert losses(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-3)
    table = pq.read_table(files["train"]).to_pydict()
    table["rejected"][2][0]["content"] = "another question"
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(ArmadaError, match=r"train.parquet row 3: the two chats differ before"):
        library.distill(
            **job(root, tmp_path / "no", **keys | {"train": tmp_path / "train.parquet"})
        )


def test_rows_that_are_left_out_are_listed(root: Path, tmp_path: Path) -> None:
    table = pq.read_table(root / "train.parquet").to_pydict()
    table["rejected"][3] = table["chosen"][3]
    table["rejected"][5] = "never cached"
    table["rejected"][6] = " "
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    keys = job(root, tmp_path / "run", train=str(tmp_path / "train.parquet"), epochs=1)
    with pytest.raises(ArmadaError, match="row 7: column 'rejected' is empty"):
        library.distill(**keys)
    library.distill(**keys, skip_bad_rows=True)
    listed = json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped_rows"]
    assert [re.search(r"row (\d+)", each)[1] for each in listed] == ["7", "4", "6"]
    assert "the same response" in listed[1]


def test_runs_on_pairs_are_compared_with_those_of_the_preferred_alone(
    root: Path, tmp_path: Path
) -> None:
    """They are on the same rows: those of which both responses have a token to predict."""
    table = pq.read_table(root / "train.parquet").to_pydict()
    table["prompt"][1] = "say " * 24
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    files = {"train": tmp_path, "validation": root}
    same: Keys = {name: str(folder / f"{name}.parquet") for name, folder in files.items()}
    same |= {"metric": "preference_accuracy", "max_length": 24, "skip_bad_rows": True, "epochs": 1}
    library.distill(**without_reference(root, tmp_path / "runs" / "plad", **same))
    plain = {"objective": "undistilled", "cache": None, "text_format": "plain"}
    library.distill(**job(root, tmp_path / "runs" / "plain", **same, **plain))
    (study,) = find(find_runs((tmp_path / "runs",)).runs).studies
    assert [row.base and row.base.name for row in study.rows] == [None, "undistilled"]
    assert {row.condition.first.metrics.train_examples for row in study.rows} == {ROWS - 1}


def test_evaluate_reads_pairs_as_distill_does(root: Path, tmp_path: Path) -> None:
    keys = without_reference(root, tmp_path / "run", epochs=1, max_length=24)
    library.distill(**keys)
    table = pq.read_table(root / "validation.parquet").to_pydict()
    table["prompt"][0] = "say " * 24  # no response is within max_length
    table["rejected"][3] = table["chosen"][3]
    pq.write_table(pa.table(table), tmp_path / "some.parquet")
    asked = {"student": tmp_path / "run", "corpus": str(tmp_path / "some.parquet")}
    asked |= {"rejected_column": "rejected", "batch_size": 3}
    with pytest.raises(ArmadaError, match=r"row 4: columns 'chosen' and 'rejected' are the same"):
        library.evaluate(**asked)
    found = library.evaluate(**asked, skip_bad_rows=True)
    assert [each.split(": ")[0].rpartition(" ")[2] for each in found["skipped_rows"]] == ["4"]
    rest = pa.table(table).take([1, 2, 4, 5, 6])
    pq.write_table(rest, tmp_path / "rest.parquet")
    expected = library.evaluate(**asked | {"corpus": str(tmp_path / "rest.parquet")})["metrics"]
    assert found["metrics"] == pytest.approx(expected, rel=1e-5)
    for column, message in {"chosen": "is in text_column too", "rejected?": "without '?'"}.items():
        with pytest.raises(ArmadaError, match=re.escape(message)):
            library.evaluate(**asked | {"rejected_column": column})


def test_figures_of_a_reference_may_be_compared(root: Path, tmp_path: Path) -> None:
    plain = DistillJob(**job(root, tmp_path, validation=str(root / "validation.parquet")))
    data = read_data(plain, terms_of(plain))
    assert {"reward_margin", "chosen_reward", "rejected_reward"} < {*figure_names(plain, data)}


REFUSED: dict[str, tuple[Keys, str]] = {
    "no column": ({"rejected_column": None}, "objective dpo: compares two responses to each"),
    "a missing column": (
        {"rejected_column": "worse"},
        "no column 'worse'; it has prompt, chosen, rejected, weight",
    ),
    "the same column": ({"rejected_column": "chosen"}, "is in text_column too"),
    "a column that may be blank": ({"rejected_column": "rejected?"}, "without '?'"),
    "another task": ({"task": "classification", "objective": "kd"}, "is for language models"),
    "packed": ({"packing": "document_mask"}, "a row has two responses"),
    "generated": ({"responses": "generated", "objective": "tokens"}, "`armada corpus`"),
    "beta of 0": ({"beta": 0}, "'beta': 0"),
    "a beta below 0": ({"beta": -0.1}, "'beta': -0.1"),
    "half of them wrong": ({"label_smoothing": 0.5}, "'label_smoothing': 0.5"),
    "less than none wrong": ({"label_smoothing": -0.1}, "'label_smoothing': -0.1"),
    "ipo, smoothed": (
        {"label_smoothing": 0.1, "preference_loss": "ipo"},
        "is for preference_loss=sigmoid",
    ),
    "another loss": ({"preference_loss": "exo"}, "'preference_loss': 'exo'"),
    "no log-probabilities": ({"cache": "other"}, "precompute with own_log_probs=true"),
    "predictions as log-probabilities": (
        {"cache": "other", "feature": "top_k"},
        "feature 'top_k': teacher",
    ),
    "one of both": (
        {"cache": "half"},
        "of 29 rows, not in the cache: 29 in that of teacher.rejected",
    ),
    "another template": (
        {"prompt_template": "Q: {text}\n"},
        "job key 'prompt_template': 'Q: {text}\\n', but the teacher was run with '{text}\\n'",
    ),
    "texts without a prompt": (
        {"objective": "plad", "cache": None, "text_format": "text"},
        "rejected_column: needs a prompt that both responses answer",
    ),
    "a reference that read less": ({"cache": "short"}, "set max_length=12 as it has"),
    "rows without it": (
        {"missing": "without_teacher"},
        "is a reference, whose log-probabilities of both responses have to be there",
    ),
    "a control": ({"control": "shuffled"}, "control shuffled"),
    "a margin below 0": ({"objective": "plad", "cache": None, "margin": -1}, "'margin': -1"),
    "plad without weights": (
        {"objective": "plad", "cache": None, "beta": 0, "sft_weight": 0},
        "beta=0 and sft_weight=0: nothing is left to learn",
    ),
    "a metric of a reference, without one": (
        {"objective": "plad", "cache": None, "text_format": "plain", "metric": "reward_margin"},
        "'reward_margin' is not one of preference_accuracy, preference_margin, loss",
    ),
}


@pytest.mark.parametrize(("keys", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(root: Path, tmp_path: Path, keys: Keys, message: str) -> None:
    keys = {**keys, **({"cache": str(root / keys["cache"])} if keys.get("cache") else {})}
    if "metric" in keys:
        keys["validation"] = str(root / "validation.parquet")
    with pytest.raises(ArmadaError) as caught:
        library.distill(**job(root, tmp_path / "run", **keys))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
