"""Rows of which a language model could learn nothing are refused, or left out and listed; and what
is responded to prompts that leave no place for a response."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import StudentSourceError
from armada.pipeline.language.datasets import Encoding
from armada.stages.distill.language.evaluation import respond
from armada.stages.language.recipe import Recipe
from command_line import CommandLine
from tiny_language_models import POSITIONS, TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

LONG = "why do the stars shine over the sea at night " * 20
PROMPTS = ["what next?", "and then?", LONG, "at last?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    make_causal_lm(root / "teacher")
    make_causal_lm(root / "student", seed=1)
    table = {"prompt": PROMPTS, "response": TEXTS[:4], "label": [0, 1, 0, 1]}
    pq.write_table(pa.table(table), root / "train.parquet")
    return root


@pytest.fixture
def armada(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    monkeypatch.chdir(folder)
    return CommandLine(capsys)


COLUMNS = ("--text-column", "prompt", "--text-column", "response")
TRAIN = ("--train", "train.parquet")
DISTILL = (
    *("distill", *COLUMNS, "--student", "student", "--quiet"),
    *("--set", "task=language", "--set", "epochs=1", "--set", "batch_size=1"),
    *("--cache", "cache", "--set", "objective=tokens", "--set", "feature=top_k"),
)


def test_a_prompt_that_fills_a_row_is_refused_or_left_out(armada: CommandLine) -> None:
    words = ("--teacher", "causal_lm:teacher", "--cache", "cache", "--set", "text_format=plain")
    printed = armada.done("precompute", "--corpus", "train.parquet", *COLUMNS, *words)
    assert "4 rows, 4 unique; 0 already cached, 4 computed" in printed
    refused = armada(*DISTILL, *TRAIN, "--output", "refused")
    assert refused.code == 2
    assert (
        "train.parquet row 3: no tokens left to predict: its prompt fills max_length" in refused.err
    )
    assert "(1 such row); raise max_length, fix the file, or set skip_bad_rows" in refused.err

    armada.done(*DISTILL, *TRAIN, "--output", "run", "--set", "skip_bad_rows=true")
    metrics = json.loads(Path("run/metrics.json").read_bytes())
    (skipped,) = metrics["skipped_rows"]
    assert skipped.endswith("row 3: no tokens left to predict")
    assert metrics["train_examples"] == metrics["steps"] == 3

    # The others learn from their own answers: as if the row had never been there.
    rest = pq.read_table("train.parquet").take([0, 1, 3])
    pq.write_table(rest, "rest.parquet")
    armada.done(*DISTILL, "--output", "same", "--train", "rest.parquet")
    terms = [Path(name, "student", "model.safetensors").read_bytes() for name in ("run", "same")]
    assert terms[0] == terms[1]


def test_where_nothing_is_left_at_all_there_is_nothing_to_learn(armada: CommandLine) -> None:
    words = ("--set", "skip_bad_rows=true", "--set", "max_length=3", "--control", "undistilled")
    none = (*DISTILL[: DISTILL.index("--cache")], "--set", "objective=undistilled")
    refused = armada(*none, *TRAIN, *words, "--set", "text_format=plain", "--output", "none")
    assert refused.code == 2
    assert "(4 such rows); raise max_length" in refused.err


def test_a_tokenizer_with_nothing_to_fill_rows_with(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    assert Encoding(tokenizer, Recipe(), 9).pad_id == tokenizer.pad_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(StudentSourceError, match="neither a padding nor an end token"):
        _ = Encoding(tokenizer, Recipe(), 9).pad_id


def test_responses_end_where_the_model_has_no_more_places(tmp_path: Path) -> None:
    """GPT-2 has numbers for so many places and no more; other prompts of a batch do not matter."""
    folder = make_causal_lm(tmp_path / "gpt2", "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer.eos_token_id = None  # it says as much as it may
    prompts = [[5 + n % 7 for n in range(size)] for size in (3, POSITIONS - 2, POSITIONS, 4)]
    said = respond(model, tokenizer, prompts, 6, 4, ())
    alone = [respond(model, tokenizer, [prompt], 6, 1, ())[0] for prompt in prompts]
    assert said == alone
    assert said[2] == ""
    assert 0 < len(said[1]) < len(said[0])


def test_a_prompt_that_is_cut_is_responded_nothing(armada: CommandLine) -> None:
    make_causal_lm(Path("gpt2"), "gpt2")
    undistilled = ("--student", "gpt2", "--set", "objective=undistilled", "--output", "cut")
    plain = (*TRAIN, "--set", "text_format=plain", "--set", "skip_bad_rows=true")
    armada.done(*DISTILL[: DISTILL.index("--cache")], *undistilled, *plain)
    words = ("--corpus", "train.parquet", "--set", "max_new_tokens=8", "--json")
    result = json.loads(armada.done("evaluate", "cut", *words))
    assert (result["examples"], result["truncated_examples"]) == (4, 1)
    assert 0 <= result["metrics"]["rouge_l"] <= 0.75
