"""`armada cache export` of what a language model says: ids and numbers in lists, texts decoded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.pipeline.caches import export_rows
from command_line import CommandLine
from tiny_language_models import make_causal_lm, make_chat_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = [f"say {n} birds" for n in range(30)]
ANSWERS = [" ".join(["red", "bird", "sings"][: 1 + n % 3]) for n in range(30)]
K, SAMPLES = 5, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a corpus and a cache of all that a language model can be asked for."""
    from armada.cli import main

    root = tmp_path_factory.mktemp("words")
    make_causal_lm(root / "teacher", "llama")
    columns = {"id": [f"n{n}" for n in range(30)], "question": QUESTIONS, "answer": ANSWERS}
    pq.write_table(pa.table(columns), root / "corpus.parquet")
    asked = {"top_k": K, "samples": SAMPLES, "samples_log_probs": "true", "dense": "true"}
    asked |= {"hidden_layers": "[1, 2]", "max_new_tokens": 6, "text_format": "plain"}
    asked |= {"temperatures": "[1.0, 2.0]", "top_k_bits": 16, "store_dtype": "float32"}
    settings = [word for key, value in asked.items() for word in ("--set", f"{key}={value}")]
    teacher = ["--teacher", f"causal_lm:{root / 'teacher'}", "--cache", root / "cache"]
    with pytest.raises(SystemExit) as ended:
        main([str(w) for w in ["precompute", *corpus(root), *teacher, *settings, "--quiet"]])
    assert ended.value.code == 0
    return root


def corpus(root: Path) -> list[object]:
    columns = ["--text-column", "question", "--text-column", "answer"]
    return ["--corpus", root / "corpus.parquet", *columns]


def export(root: Path, output: Path, *more: object) -> list[object]:
    words = ["cache", "export", root / "cache", *corpus(root), "--output", output, "--quiet"]
    return [*words, "--format", *more]


@pytest.fixture
def table(
    armada: CommandLine, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pa.Table:
    monkeypatch.setattr(export_rows, "BATCH_BYTES", 50_000)  # several batches, of unlike sizes
    told = armada(*export(made, tmp_path / "out", "parquet", "--tokenizer", made / "teacher"))
    assert (told.code, told.err) == (0, "")
    return pq.read_table(tmp_path / "out")


def test_answers_are_those_of_the_model_itself(made: Path, table: pa.Table) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(made / "teacher")
    for row in table.to_pylist():
        prompt = tokenizer(f"{row['question']}\n")["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        assert row["token_ids"] == ids
        assert row["prompt_tokens"] == len(prompt)
        with torch.no_grad():
            said = model(torch.tensor([ids]), output_hidden_states=True)
        predicted = slice(len(prompt) - 1, len(ids) - 1)
        log_probs = said.logits[0, predicted].log_softmax(1)
        best = log_probs.topk(K)
        close(row["top_k_log_probs"], best.values, 2e-3)
        close(log_probs.gather(1, torch.tensor(row["top_k_ids"])), best.values, 1e-5)
        close(row["dense"], log_probs, 1e-4)
        tails = log_probs.scatter(1, best.indices, -torch.inf).logsumexp(1)
        close(row["top_k_log_tail"], tails, 2e-3)
        close(row["samples_log_probs"], log_probs.gather(1, torch.tensor(row["samples_ids"])), 1e-3)
        hidden = torch.stack([said.hidden_states[n][0, predicted] for n in (1, 2)], 1)
        close(row["hidden"], hidden.flatten(1), 1e-4)


def close(found: Any, expected: torch.Tensor, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(found), expected.numpy(), rtol=0, atol=tolerance)


def test_what_was_generated_has_its_ids_and_its_text(made: Path, table: pa.Table) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(made / "teacher")
    assert table["id"].to_pylist() == [f"n{n}" for n in range(30)]
    for row in table.to_pylist()[:5]:
        prompt = tokenizer(f"{row['question']}\n", return_tensors="pt")
        said = model.generate(**prompt, max_new_tokens=6, do_sample=False)
        new = said[0, prompt["input_ids"].shape[1] :].tolist()
        assert row["generated_ids"] == new[: len(row["generated_ids"])]
        assert set(new[len(row["generated_ids"]) :]) <= {tokenizer.eos_token_id}
        assert row["generated_text"] == tokenizer.decode(new, skip_special_tokens=True)
        assert len(row["generated_log_probs"]) == len(row["generated_ids"])


def test_each_of_several_responses_is_a_text(
    armada: CommandLine, refused: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    asked = {"text_format": "plain", "top_k": "null", "max_new_tokens": 5}
    asked |= {"generation_temperature": 1.0, "responses_per_prompt": 3}
    settings = [word for key, value in asked.items() for word in ("--set", f"{key}={value}")]
    teacher = ["--teacher", f"causal_lm:{made / 'teacher'}", "--cache", tmp_path / "cache"]
    armada.done("precompute", *corpus(made), *teacher, *settings, "--quiet")
    words = ["cache", "export", tmp_path / "cache", *corpus(made), "--output", tmp_path / "out"]
    armada.done(*words, "--quiet", "--format", "parquet", "--tokenizer", made / "teacher")
    table = pq.read_table(tmp_path / "out")
    assert table.schema.field("generated_text").type == pa.list_(pa.string())
    tokenizer = AutoTokenizer.from_pretrained(made / "teacher")
    for row in table.to_pylist():
        ends = np.cumsum(row["generated_lengths"])
        assert ends[-1] == len(row["generated_ids"]) == len(row["generated_log_probs"])
        responses = np.split(row["generated_ids"], ends[:-1])
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in responses]
        assert row["generated_text"] == texts
    assert len({text for texts in table["generated_text"].to_pylist() for text in texts}) > 30
    student = [
        "distill",
        "--train",
        made / "corpus.parquet",
        "--validation",
        made / "corpus.parquet",
    ]
    student += ["--text-column", "question", "--text-column", "answer", "--output", tmp_path / "s"]
    student += ["--cache", tmp_path / "cache", "--student", made / "teacher"]
    keys = ("task=language", "objective=tokens", "responses=generated")
    told = refused(*student, *(word for key in keys for word in ("--set", key)))
    assert "has several responses to each prompt, and a student reads one" in told


def test_columns_are_lists_of_an_example(table: pa.Table) -> None:
    types = {field.name: field.type for field in table.schema}
    assert types["token_ids"] == pa.list_(pa.uint32())
    assert types["top_k_ids"] == pa.list_(pa.list_(pa.int32(), K))
    assert types["top_k_log_tail"] == pa.list_(pa.float32())
    assert types["samples_log_probs"] == pa.list_(pa.list_(pa.float32(), SAMPLES))
    assert types["hidden"] == pa.list_(pa.list_(pa.float32(), 64))
    assert json.loads(table.schema.field("hidden").metadata[b"shape"]) == [2, 32]
    assert types["generated_text"] == pa.string()


def test_datasets_opens_them(armada: CommandLine, made: Path, tmp_path: Path) -> None:
    armada.done(*export(made, tmp_path / "out", "datasets", "--feature", "top_k"))
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "- `top_k_ids`: list<" in readme
    (file,) = (tmp_path / "out" / "data").iterdir()
    assert pq.read_schema(file).names[-3:] == ["top_k_ids", "top_k_log_probs", "top_k_log_tail"]


def test_where_the_tokenizer_is_not_at_hand_ids_stay_ids_and_that_is_said(
    armada: CommandLine, made: Path, tmp_path: Path
) -> None:
    told = armada(*export(made, tmp_path / "out", "parquet", "--feature", "generated_ids"))
    assert told.err == (
        "warning: generated_ids: exported as token ids without text: the cache records no path to "
        "the model folder; --tokenizer names it\n"
    )
    assert pq.read_schema(tmp_path / "out" / "part-00000-of-00001.parquet").names[-2:] == [
        "key",
        "generated_ids",
    ]


def test_another_tokenizer_decodes_nothing(
    refused: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    make_chat_tokenizer(["another one"]).save_pretrained(tmp_path / "other")
    words = export(made, tmp_path / "out", "parquet", "--tokenizer", tmp_path / "other")
    assert "its tokenizer is not that of teacher teacher" in refused(*words)


def test_npy_leaves_them_out_and_says_so(
    armada: CommandLine, refused: Callable[..., str], made: Path, tmp_path: Path
) -> None:
    told = armada(*export(made, tmp_path / "out", "npy", "--json"))
    report = json.loads(told.out)
    assert report["features"] == ["prompt_tokens"]
    assert set(report["left_out"]) == {
        *("token_ids", "top_k", "samples", "dense", "hidden"),
        *("generated_ids", "generated_log_probs"),
    }
    assert "not exported: several entries for each example" in told.err
    asked = refused(*export(made, tmp_path / "other", "npy", "--feature", "top_k"))
    assert asked == ("format npy: top_k have several entries for each example; use format parquet")
