"""`armada predict`: the same numbers as `armada evaluate` and transformers, row for row."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.pipeline import predict
from armada.pipeline.outputs import new_file
from armada.stages.corpus import files, json_files, text_files
from armada.stages.distill.export import load_saved_student
from command_line import CommandLine
from scipy.special import softmax
from tiny_language_models import make_causal_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.long

Predict = Callable[..., pa.Table]
KINDS = {
    "names": ("--label-column", "name", "--set", "epochs=1"),
    "numbers": ("--set", "epochs=1", "--set", "seed=[3]"),
    "mean": ("--set", "epochs=1", "--set", "pooling=mean"),
    "regression": ("--label-column", "score", "--set", "task=regression", "--set", "epochs=1"),
    "embedding": ("--objective", "feature", "--set", "label_column=null", "--set", "epochs=1"),
}


@pytest.fixture
def student(
    armada: CommandLine, distill_bench: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run of a student of some kind, trained when first asked for."""

    def trained(kind: str) -> Path:
        output = tmp_path_factory.getbasetemp() / "predicting" / kind
        if not output.exists():
            changes = {"validation": None} if kind == "embedding" else {}
            armada.done(*distill_bench.words(output, *KINDS[kind], **changes))
        return output

    return trained


@pytest.fixture
def predicted(armada: CommandLine, tmp_path: Path) -> Predict:
    def ask(student: Path, corpus: Path, *more: object) -> pa.Table:
        output = tmp_path / "said.parquet"
        armada.done("predict", student, "--corpus", corpus, "--output", output, "--quiet", *more)
        return pq.read_table(output)

    return ask


@pytest.fixture
def unlabelled(distill_bench: Any, tmp_path: Path) -> Path:
    """The texts to validate by, with ids, and nothing else."""
    texts = pq.read_table(distill_bench.validation)["text"]
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"id": [f"n{n}" for n in range(len(texts))], "text": texts}), path)
    return path


def outputs(run: Path, corpus: Path) -> np.ndarray[Any, Any]:
    """What the trained module answers to each text alone."""
    model, tokenizer, card = load_saved_student(run)
    found = []
    for text in pq.read_table(corpus)["text"].to_pylist():
        batch = tokenizer(text, truncation=True, max_length=card.max_length, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**batch)[1][0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("kind", ["names", "numbers", "mean"])
def test_classes_are_those_that_evaluate_counts(
    armada: CommandLine,
    student: Callable[[str], Path],
    predicted: Predict,
    distill_bench: Any,
    unlabelled: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predict, "BLOCK_ROWS", 7)
    run = student(kind)
    table = predicted(run, unlabelled, "--set", "batch_size=3")
    assert table.column_names == ["id", "class", "probabilities"]
    assert table["id"].to_pylist() == [f"n{n}" for n in range(len(table))]
    expected = softmax(outputs(run, unlabelled), axis=1)
    np.testing.assert_allclose(np.stack(table["probabilities"].to_numpy()), expected, atol=1e-5)
    labels = pq.read_table(distill_bench.validation)["name" if kind == "names" else "label"]
    right = np.mean(np.array(table["class"].to_pylist()) == np.array(labels.to_pylist()))
    told = json.loads(armada.done("evaluate", run, "--corpus", distill_bench.validation, "--json"))
    assert right == pytest.approx(told["metrics"]["accuracy"])


def test_scores_are_those_that_evaluate_measures(
    armada: CommandLine,
    student: Callable[[str], Path],
    predicted: Predict,
    distill_bench: Any,
    unlabelled: Path,
) -> None:
    run = student("regression")
    scores = np.array(predicted(run, unlabelled)["score"].to_pylist())
    np.testing.assert_allclose(scores, outputs(run, unlabelled)[:, 0], atol=1e-5)
    labels = np.array(pq.read_table(distill_bench.validation)["score"].to_pylist())
    told = json.loads(armada.done("evaluate", run, "--corpus", distill_bench.validation, "--json"))
    assert np.mean((scores - labels) ** 2) == pytest.approx(told["metrics"]["mse"], rel=1e-4)


def test_embeddings_are_in_the_space_of_the_feature(
    student: Callable[[str], Path], predicted: Predict, unlabelled: Path
) -> None:
    import armada

    run = student("embedding")
    table = predicted(run, unlabelled)
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 6)
    texts = pq.read_table(unlabelled)["text"].to_pylist()
    own = [each["embedding"] for each in armada.load_student(run).predict(texts)]
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), own, atol=1e-5)


@pytest.fixture
def causal(armada: CommandLine, tmp_path: Path) -> tuple[Path, Path]:
    """A language student that responds to prompts, and its corpus."""
    words = ["red", "bird", "sings", "at", "dawn"]
    rows = {"q": [f"say {w} {n}" for n, w in enumerate(words)], "a": words}
    corpus = tmp_path / "instructions.parquet"
    pq.write_table(pa.table(rows), corpus)
    make_causal_lm(tmp_path / "base", "llama")
    keys = ("task=language", "text_format=plain", "epochs=1", "control=undistilled")
    settings = [word for key in keys for word in ("--set", key)]
    columns = ("--text-column", "q", "--text-column", "a", "--student", tmp_path / "base")
    run = tmp_path / "language"
    armada.done("distill", "--train", corpus, *columns, *settings, "--output", run, "--quiet")
    return run, corpus


def test_language_models_respond_without_a_column_of_responses(
    causal: tuple[Path, Path], predicted: Predict, tmp_path: Path
) -> None:
    run, corpus = causal
    prompts = pq.read_table(corpus, columns=["q"])
    pq.write_table(prompts, tmp_path / "prompts.parquet")
    more = ("--text-column", "q", "--set", "max_new_tokens=4")
    table = predicted(run / "student", tmp_path / "prompts.parquet", *more)
    assert table.column_names == ["row", "generated_text"]
    assert table["row"].to_pylist() == [1, 2, 3, 4, 5]
    model = AutoModelForCausalLM.from_pretrained(run / "student")
    tokenizer = AutoTokenizer.from_pretrained(run / "student")
    for prompt, said in zip(
        prompts["q"].to_pylist(), table["generated_text"].to_pylist(), strict=True
    ):
        asked = tokenizer(f"{prompt}\n", return_tensors="pt")
        ids = model.generate(**asked, max_new_tokens=4, do_sample=False)[0]
        assert said == tokenizer.decode(
            ids[asked["input_ids"].shape[1] :], skip_special_tokens=True
        )


def test_the_column_of_responses_is_not_read(
    causal: tuple[Path, Path], armada: CommandLine, tmp_path: Path
) -> None:
    run, corpus = causal
    words = ("predict", run, "--corpus", corpus, "--set", "max_new_tokens=2", "--quiet")
    armada.done(*words, "--output", tmp_path / "as-trained.jsonl")
    armada.done(*words, "--output", tmp_path / "named.jsonl", "--text-column", "q")
    said = (tmp_path / "as-trained.jsonl").read_text()
    assert said == (tmp_path / "named.jsonl").read_text()
    assert [json.loads(line)["row"] for line in said.splitlines()] == [1, 2, 3, 4, 5]


def test_json_lines_say_the_same(
    armada: CommandLine,
    student: Callable[[str], Path],
    predicted: Predict,
    unlabelled: Path,
    tmp_path: Path,
) -> None:
    run = student("names")
    lines = tmp_path / "new" / "said.jsonl"
    armada.done("predict", run, "--corpus", unlabelled, "--output", lines, "--quiet")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows == predicted(run, unlabelled).to_pylist()


def test_bad_rows_are_named_or_left_out(
    armada: CommandLine, refused: Any, student: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus, output = tmp_path / "bad.csv", tmp_path / "said.jsonl"
    corpus.write_text('text,id\na cook,x\n"",y\na dog,z\n')
    words = ("predict", student("names"), "--corpus", corpus, "--output", output, "--quiet")
    assert "bad.csv row 2: column 'text' is empty" in refused(*words)
    told = armada(*words, "--skip-bad-rows")
    assert told.err.startswith("warning: 1 rows were skipped\n")
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert ids == ["x", "z"]


WRITTEN: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "a.csv": lambda rows: "".join(
        ["id,text\n", *(f'{row["id"]},"{row["text"]}"\n' for row in rows)]
    ).encode(),
    "a.parquet": lambda rows: _parquet(rows),
}


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=50)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_ROWS", 8)
    for module in (json_files, text_files):
        monkeypatch.setattr(module, "BLOCK_BYTES", 200)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.usefixtures("small_blocks")
def test_a_corpus_comes_block_by_block(
    student: Callable[[str], Path],
    predicted: Predict,
    refused: Any,
    tmp_path: Path,
    name: str,
) -> None:
    run, corpus = student("names"), tmp_path / name
    rows = [{"id": f"{n:03}", "text": f"a cook\nand {n} dogs"} for n in range(100)]
    corpus.write_bytes(WRITTEN[name](rows))
    table = predicted(run, corpus)
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": [row["text"] for row in rows]}), texts)
    expected = softmax(outputs(run, texts), axis=1)
    np.testing.assert_allclose(np.stack(table["probabilities"].to_numpy()), expected, atol=1e-5)

    words = ("predict", run, "--corpus", corpus, "--output", tmp_path / "again.jsonl", "--quiet")
    rows[70]["id"] = "003"
    corpus.write_bytes(WRITTEN[name](rows))
    assert f"{name} row 71: id '003' is also that of row 4; fix" in refused(*words)
    rows[80]["text"] = rows[99]["text"] = ""
    corpus.write_bytes(WRITTEN[name](rows))
    assert f"{name} row 81: column 'text' is empty (2 such rows); fix" in refused(*words)
    assert not list(tmp_path.glob("again*"))


@pytest.mark.usefixtures("small_blocks")
def test_rows_that_are_left_out_are_left_out_of_every_block(
    armada: CommandLine, student: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus, output = tmp_path / "a.csv", tmp_path / "said.jsonl"
    lines = [f"n{n % 50},{'a dog' if n != 20 else ''}\n" for n in range(60)]
    corpus.write_text("".join(["id,text\n", *lines]))
    words = ("predict", student("names"), "--corpus", corpus, "--output", output, "--quiet")
    assert armada(*words, "--skip-bad-rows").err.startswith("warning: 11 rows were skipped\n")
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert ids == [f"n{n}" for n in range(50) if n != 20]


def test_prompts_that_were_cut_are_counted(
    causal: tuple[Path, Path], armada: CommandLine, tmp_path: Path
) -> None:
    run, _ = causal
    corpus = tmp_path / "long.jsonl"
    asked = ["say " * 2000, "say red"]
    corpus.write_text("".join(json.dumps({"q": text}) + "\n" for text in asked))
    words = ("--text-column", "q", "--set", "max_new_tokens=1", "--quiet", "--json")
    output = tmp_path / "said.jsonl"
    told = armada.done("predict", run, "--corpus", corpus, "--output", output, *words)
    assert json.loads(told)["truncated"] == 1


REFUSALS: dict[str, tuple[tuple[object, ...], str]] = {
    "an unknown kind of file": (("--output", "said.csv"), "name a .parquet or .jsonl file"),
    "no output": ((), "job key 'output' is missing"),
    "words of a classifier": (
        ("--output", "said.jsonl", "--set", "max_new_tokens=3"),
        "max_new_tokens: is for language models",
    ),
    "too many segments": (
        ("--output", "said.jsonl", "--text-column", "a", "--text-column", "b"),
        "text_column ['a', 'b']: the student was trained on 1 segments (text)",
    ),
    "a column that a prediction has": (
        ("--output", "said.jsonl", "--id-column", "class"),
        "id_column 'class': clashes with a column of the predictions",
    ),
}


@pytest.mark.parametrize(("more", "told"), REFUSALS.values(), ids=REFUSALS)
def test_what_is_refused_leaves_nothing(
    refused: Any,
    student: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[object, ...],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = tmp_path / "texts.csv"
    corpus.write_text("text,class\na cook,x\n")
    assert told in refused("predict", student("names"), "--corpus", corpus, *more)
    assert [file.name for file in tmp_path.iterdir()] == ["texts.csv"]


def test_nothing_is_written_over(
    refused: Any, student: Callable[[str], Path], unlabelled: Path, tmp_path: Path
) -> None:
    (tmp_path / "said.jsonl").write_text("mine")
    words = ("predict", student("names"), "--corpus", unlabelled)
    told = refused(*words, "--output", tmp_path / "said.jsonl")
    assert told.endswith("said.jsonl: already exists; choose another name")
    assert (tmp_path / "said.jsonl").read_text() == "mine"


def test_of_several_seeds_one_is_to_be_named(
    armada: CommandLine, refused: Any, distill_bench: Any, unlabelled: Path, tmp_path: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "said.jsonl"
    armada.done(*distill_bench.words(run, "--set", "epochs=1", "--set", "seed=[0, 1]"))
    words = ("--corpus", unlabelled, "--output", output, "--quiet")
    assert "holds one student per seed; name one of seed-0, seed-1" in refused(
        "predict", run, *words
    )
    armada.done("predict", run / "seed-1", *words)


def test_what_is_killed_leaves_no_file_under_the_name(
    armada: CommandLine, student: Callable[[str], Path], tmp_path: Path
) -> None:
    corpus, output = tmp_path / "many.csv", tmp_path / "said.parquet"
    corpus.write_text("text\n" + "a cook and a dog\n" * 200_000)
    words = ("predict", student("names"), "--corpus", corpus, "--output", output, "--quiet")
    process = subprocess.Popen(
        [sys.executable, "-m", "armada", *map(str, words)], env=os.environ, cwd=tmp_path
    )
    while not list(tmp_path.glob("said.parquet.*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    corpus.write_text("text\na cook\n")
    armada.done(*words)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["many.csv", "said.parquet"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    output = tmp_path / "said.jsonl"
    with new_file(output) as first:
        first(pa.table({"row": [1]}))
        held = list(tmp_path.iterdir())
        held[0].rename(tmp_path / "said.jsonl.1.partial")
        with new_file(output) as second:
            second(pa.table({"row": [2]}))
        assert json.loads(output.read_text()) == {"row": 2}
        (tmp_path / "said.jsonl.1.partial").rename(held[0])
        output.unlink()
    assert json.loads(output.read_text()) == {"row": 1}
