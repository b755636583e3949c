"""Masked language models by the command line: a teacher asked once, students that read the same
masked texts, what is saved, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import armada as library
import language_processes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada import open_cache
from armada.pipeline import seed_run
from armada.pipeline.ablation.ablate import plan
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import read_run
from armada.stages.distill.language.source import load_masked_student
from armada.stages.distill.settings import StudentSettings
from command_line import CommandLine
from safetensors.torch import load_file
from tiny_masked_models import make_masked_lm
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

pytestmark = pytest.mark.long

WORDS = ("the", "red", "bird", "sings", "at", "dawn", "over", "river", "two", "dogs", "run", "rain")
COUNT = 48


def texts() -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, 3 + n % 12)) for n in range(COUNT)]


class Bench:
    """A teacher, a student and a cache."""

    def __init__(self, root: Path) -> None:
        self.train, self.validation = root / "train.parquet", root / "validation.parquet"
        pq.write_table(pa.table({"text": texts()[:40]}), self.train)
        pq.write_table(pa.table({"text": texts()[36:]}), self.validation)
        self.teacher = make_masked_lm(root / "teacher", texts=texts())
        self.student = make_masked_lm(root / "student", texts=texts(), seed=5)
        self.cache = root / "cache"
        library.precompute(
            corpus=[str(self.train), str(self.validation)],
            text_column="text",
            teacher=f"masked_lm:{self.teacher}",
            cache=self.cache,
            max_length=64,
            masks_per_text=2,
            dense=True,
            top_k=8,
            temperatures=[2.0],
        )

    def job(self, output: Path, **changes: Any) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "train": str(self.train),
            "validation": str(self.validation),
            "text_column": "text",
            "task": "masked_language",
            "objective": "tokens",
            "cache": str(self.cache),
            "feature": "dense",
            "student": str(self.student),
            "output": str(output),
            "max_length": 64,
            "masks_per_text": 2,
            "epochs": 2,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "device": "cpu",
        }
        return {k: v for k, v in (keys | changes).items() if v is not None}

    def words(self, output: Path, **changes: Any) -> list[object]:
        """`armada distill` and its options."""
        keys = self.job(output, **changes)
        files = [w for name in ("train", "validation") for w in (f"--{name}", keys.pop(name))]
        return ["distill", *files, *settings(keys), "--quiet"]


def settings(keys: dict[str, Any]) -> list[object]:
    return [w for name, value in keys.items() for w in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def run(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs' worth of steps, alpha 1: the teacher's predictions alone."""
    output = tmp_path_factory.mktemp("runs") / "run"
    library.distill(**bench.job(output, alpha=1.0, learning_rate=1e-2, epochs=6))
    return output


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_bytes())


def losses(folder: Path, name: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row and "perplexity" not in row]


def test_a_student_nears_its_teacher(run: Path) -> None:
    epochs = metrics(run)["epochs"]
    assert metrics(run)["train_examples"] == 80  # each under two masks
    assert epochs[-1]["teacher_kl"] < 0.7 * epochs[0]["teacher_kl"]
    assert {"loss", "perplexity", "accuracy", "ece", "agreement"} <= epochs[-1].keys()
    assert "fill-mask" in (run / "student" / "README.md").read_text()


def test_the_first_loss_is_that_of_both_models_on_the_same_texts(
    bench: Bench, tmp_path: Path
) -> None:
    """Cross entropy and KL of the whole training set, from transformers alone."""
    output = tmp_path / "run"
    one = bench.job(output, batch_size=80, epochs=1, alpha=0.25, student=frozen(bench, tmp_path))
    library.distill(**one)
    cache = open_cache(bench.cache)
    teacher, student = (
        AutoModelForMaskedLM.from_pretrained(each).eval()
        for each in (bench.teacher, one["student"])
    )
    entropies, divergences = [], []
    for text in texts()[:40]:
        answers = of_text(cache, text)
        half = len(answers["masked_ids"]) // 2
        for part in (slice(0, half), slice(half, None)):
            ids = torch.from_numpy(answers["token_ids"].astype(np.int64))
            at = torch.from_numpy(answers["masked_positions"][part].astype(np.int64))
            read = ids.clone()
            read[at] = torch.from_numpy(answers["masked_ids"][part].astype(np.int64))
            with torch.no_grad():
                p, q = (
                    m(input_ids=read[None]).logits[0, at].log_softmax(-1)
                    for m in (teacher, student)
                )
            entropies += (-q.gather(1, ids[at][:, None])).flatten().tolist()
            divergences += (p.exp() * (p - q)).sum(1).tolist()
    assert losses(output, "language")[0] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert losses(output, "distillation")[0] == pytest.approx(np.mean(divergences), rel=1e-4)


def frozen(bench: Bench, folder: Path) -> str:
    """The student without dropout."""
    path = folder / "plain"
    path.mkdir()
    for file in bench.student.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_bytes())
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (path / "config.json").write_text(json.dumps(config | quiet))
    return str(path)


def of_text(cache: Any, text: str) -> dict[str, np.ndarray]:
    from armada.cache_schemas.keys import example_key, keys_to_array

    (row,) = cache.find(keys_to_array([example_key((text,))]), "dense")
    names = ("token_ids", "masked_positions", "masked_ids", "dense")
    return {name: cache.ragged(name)[int(row)] for name in names}


def test_a_cut_run_goes_on_with_the_same_losses(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"save_steps": 1, "gradient_accumulation": 2, "feature": "top_k", "token_temperature": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    library.distill(**bench.job(whole, **keys))

    def stop(folder: Path, row: dict[str, Any]) -> None:
        append(folder, row)
        if row.get("step") == 4:
            raise KeyboardInterrupt

    append = seed_run.append_log
    monkeypatch.setattr(seed_run, "append_log", stop)
    with pytest.raises(KeyboardInterrupt):
        library.distill(**bench.job(cut, **keys))
    monkeypatch.undo()
    library.distill(**bench.job(cut, **keys), resume=True)
    assert len(losses(whole)) == 6
    assert losses(cut) == losses(whole)
    assert metrics(cut)["validation"] == metrics(whole)["validation"]
    for name, weight in load_file(whole / "student" / "model.safetensors").items():
        assert torch.equal(weight, load_file(cut / "student" / "model.safetensors")[name])


def test_an_undistilled_student_reads_the_same_masks(bench: Bench, tmp_path: Path) -> None:
    """Cross entropy in the first step is that of a distilled one, which is made as it is."""
    for name, more in (("with", {}), ("without", {"control": "undistilled"})):
        library.distill(**bench.job(tmp_path / name, epochs=1, **more))
    first = [losses(tmp_path / name, "language")[0] for name in ("with", "without")]
    assert first[0] == first[1]
    measured = metrics(tmp_path / "without")["validation"]
    assert measured["teacher_kl"] > 0  # compared all the same
    other = {"control": "undistilled", "mask_share": 0.4, "masks_per_text": 1}
    library.distill(**bench.job(tmp_path / "other", epochs=1, **other))
    runs = [read_run(tmp_path / name) for name in ("with", "without", "other")]
    counts = [sum(len(row.condition.runs) for row in each.rows) for each in find(runs).studies]
    assert counts == [2, 1]  # losses under other masks are compared with none


def test_its_folder_opens_in_transformers(bench: Bench, run: Path, tmp_path: Path) -> None:
    folder = run / "student"
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight is table.weight
    assert not torch.equal(
        table.weight,
        AutoModelForMaskedLM.from_pretrained(bench.student).get_input_embeddings().weight,
    )
    fill = pipeline("fill-mask", str(folder))
    found = fill("the red [MASK] sings", top_k=2)
    ids = fill.tokenizer("the red [MASK] sings", return_tensors="pt")
    with torch.no_grad():
        probable = model(**ids).logits[0, 3].softmax(-1).topk(2)
    assert [each["token"] for each in found] == probable.indices.tolist()
    assert [each["score"] for each in found] == pytest.approx(probable.values.tolist(), rel=1e-5)
    kept = AutoTokenizer.from_pretrained(folder)
    assert kept.get_vocab() == AutoTokenizer.from_pretrained(bench.student).get_vocab()


def test_evaluate_measures_what_training_did(bench: Bench, run: Path, armada: CommandLine) -> None:
    words = ["evaluate", run, "--corpus", bench.validation, "--cache", bench.cache, "--json"]
    found = json.loads(armada.done(*words, "--set", "feature=dense", "--set", "device=cpu"))
    expected = metrics(run)["validation"]
    assert found["compared_examples"] == 12
    assert found["metrics"] == pytest.approx(expected, rel=1e-5)
    assert "max_new_tokens: a masked" in armada(*words, "--set", "max_new_tokens=3").error


def test_a_classifier_starts_from_it_and_a_teacher_is_made_of_it(
    bench: Bench, run: Path, tmp_path: Path
) -> None:
    labelled = tmp_path / "labelled.parquet"
    pq.write_table(pa.table({"text": texts(), "label": [n % 2 for n in range(COUNT)]}), labelled)
    library.distill(
        **{"train": str(labelled), "text_column": "text", "label_column": "label", "epochs": 1},
        **{"control": "undistilled", "student": str(run / "student"), "device": "cpu"},
        output=str(tmp_path / "classifier"),
    )
    report = library.precompute(
        corpus=str(bench.validation),
        text_column="text",
        teacher=f"student:{run / 'student'}",
        cache=tmp_path / "cache",
        top_k=4,
    )
    cache = open_cache(tmp_path / "cache")
    assert report.fingerprint == cache.teacher.fingerprint
    assert cache.teacher.spec.settings["masks_per_text"] == 2
    again = bench.job(tmp_path / "again", cache=str(tmp_path / "cache"), feature="top_k", epochs=1)
    again["train"] = again["validation"]
    library.distill(**again)
    assert metrics(tmp_path / "again")["validation"]["agreement"] >= 0


def test_layers_beside_masked_tokens(bench: Bench, tmp_path: Path) -> None:
    """Token states of an encoder that reads the text without a mask."""
    library.precompute(
        corpus=str(bench.train),
        text_column="text",
        teacher=f"encoder:{bench.teacher}",
        cache=tmp_path / "states",
        token_layers=[1, 2],
        max_length=64,
    )
    two = {
        "teachers": {
            "mlm": {"cache": str(bench.cache)},
            "states": {"cache": str(tmp_path / "states")},
        },
        "objectives": [
            {"name": "tokens", "teacher": "mlm", "feature": "dense"},
            {
                "name": "token_states",
                "teacher": "states",
                "features": ["token_states_1", "token_states_2"],
            },
        ],
    }
    job = bench.job(tmp_path / "run", cache=None, feature=None, objective=None, epochs=1, **two)
    library.distill(**job)
    assert all(value > 0 for value in losses(tmp_path / "run", "token_states.token_states"))


def test_a_student_from_scratch_of_the_teachers_tokens(bench: Bench, tmp_path: Path) -> None:
    small = {"student_hidden_size": 16, "student_heads": 2, "student_layers": 1}
    for family in ("bert", "distilbert", "modernbert"):
        job = bench.job(tmp_path / family, student=f"scratch:{family}", epochs=1, **small)
        library.distill(**job, student_tokenizer=str(bench.teacher))
    cut = bench.job(tmp_path / "cut", student=str(bench.teacher), student_layers=1, epochs=1)
    library.distill(**cut)
    config = json.loads((tmp_path / "cut" / "student" / "config.json").read_bytes())
    assert config["num_hidden_layers"] == 1


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    bench: Bench, tmp_path: Path, torchrun: Sequence[str]
) -> None:
    """With accumulated gradients, an odd number of rows, and shares of different widths."""
    student = frozen(bench, tmp_path)
    keys = {"student": student, "batch_size": 7, "gradient_accumulation": 2, "epochs": 1}
    jobs = {name: bench.job(tmp_path / name, **keys) for name in ("one", "two")}
    language_processes.run(jobs["one"])
    language_processes.run_in_two_processes(torchrun, tmp_path / "plan.json", [jobs["two"]])
    for name in ("loss", "language", "distillation"):
        one, two = (losses(tmp_path / each, name) for each in jobs)
        assert len(one) == 6
        assert two == pytest.approx(one, rel=1e-9)
    one, two = (language_processes.weights(tmp_path / each) for each in jobs)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-6, atol=1e-8)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another share": (
        {"mask_share": 0.3},
        "'mask_share': is 0.3, and masked_lm:teacher was run with 0.15; set mask_share=0.15",
    ),
    "another seed": ({"mask_seed": 4}, "'mask_seed': is 4, and masked_lm:teacher was run with 0"),
    "fewer masks": ({"masks_per_text": None}, "'masks_per_text': is 1, and masked_lm:teacher was"),
    "another length": ({"max_length": 16}, "'max_length': is 16, and masked_lm:teacher was run wi"),
    "shares of more than all": (
        {"mask_token_share": 1},
        "mask_token_share=1 and random_token_share=0.1: are more than 1 together; lower one",
    ),
    "no share": ({"mask_share": 0}, "'mask_share': 0.0: Input should be greater than 0"),
    "labels": ({"label_column": "text"}, "label_column: a masked language model learns no labels"),
    "classes": ({"num_labels": 3}, "num_labels: a masked language model learns no labels"),
    "pairs": (
        {"objective": "plad", "cache": None, "feature": None},
        "objective plad: compares two responses to each prompt, and a masked language model has",
    ),
    "adapters": ({"lora_rank": 2}, "lora_rank: adapters are not for masked language models"),
    "a causal key": ({"packing": "concat"}, "'packing': is for language models; set task=language"),
    "other words": ({"cross_tokenizer": True}, "cross_tokenizer: "),
    "another objective": (
        {"objective": "feature"},
        "objective feature: reads what a masked langua",
    ),
    "another task": (
        {"task": "language", "mask_seed": 1},
        "'mask_seed': is for masked language models; set task=masked_language",
    ),
    "a causal student": ({"student": "scratch:llama"}, "a llama is not a masked language model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_in_a_line(
    bench: Bench, refused: Callable[..., str], tmp_path: Path, case: str
) -> None:
    changes, line = REFUSED[case]
    assert line in refused(*bench.words(tmp_path / "run", **changes))


def test_chats_are_refused(
    bench: Bench, run: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    chats, line = tmp_path / "chats.parquet", "its text column holds chats, but "
    turns = [{"role": role, "content": "the red bird"} for role in ("user", "assistant")]
    pq.write_table(pa.table({"text": [turns]}), chats)
    assert line in refused(*bench.words(tmp_path / "run", validation=str(chats)))
    assert line in refused("evaluate", run, "--corpus", chats)


def test_a_plan_counts_each_mask_of_a_text(bench: Bench, tmp_path: Path) -> None:
    """And refuses masks that are not the teacher's."""
    job = bench.job(tmp_path / "runs")
    (cell,) = plan(make_ablation(job | {"grid": {"alpha": [0.5]}}))
    assert (cell.train_examples, cell.steps) == (80, 10)
    with pytest.raises(library.ArmadaError, match=r"grid, .*'mask_seed': is 3"):
        plan(make_ablation(job | {"grid": {"mask_seed": [0, 3]}}))


def test_a_student_that_heeds_padding_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An FNet mixes all tokens of a row; of its batch, then, its predictions depend."""
    for family in ("fnet", "bert"):
        folder = make_masked_lm(tmp_path / family, family, texts=texts())
        load_masked_student(StudentSettings(student=str(folder)), texts(), 0.0)
    (record,) = (each for each in caplog.records if "padding" in each.message)
    assert "a fnet depends on padding (its outputs differ by " in record.message


def test_other_tokens_are_refused(
    bench: Bench, refused: Callable[..., str], tmp_path: Path
) -> None:
    other = make_masked_lm(tmp_path / "other", texts=["quite other words"])
    line = refused(*bench.words(tmp_path / "run", student=str(other)))
    assert "the teacher's is" in line
    assert "their tokens differ" in line


def test_texts_without_a_token_to_mask(
    bench: Bench, refused: Callable[..., str], tmp_path: Path
) -> None:
    """Listed and left out, if that is asked for."""
    strange = tmp_path / "strange.parquet"
    pq.write_table(pa.table({"text": [*texts()[:39], "☃"]}), strange)
    alone = {"control": "undistilled", "cache": None, "feature": None, "validation": None}
    job = bench.job(tmp_path / "run", **alone, epochs=1) | {"train": str(strange)}
    with pytest.raises(library.ArmadaError, match=r"strange.parquet.*no token to mask"):
        library.distill(**job)
    library.distill(**job, skip_bad_rows=True)
    done = metrics(tmp_path / "run")
    assert done["train_examples"] == 78
    assert "no token to mask" in done["skipped_rows"][0]
