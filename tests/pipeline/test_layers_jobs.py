"""Objectives of layers as jobs: an encoder's layers cached, a student learns them, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import armada as library
import pytest
import torch
import yaml
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.run_data import read_data
from armada.pipeline.terms import terms_of
from command_line import CommandLine
from tiny_runs import TEXTS
from transformers import AutoModel, AutoTokenizer

Job = dict[str, Any]


@pytest.fixture(scope="module")
def cache(
    distill_bench: Any,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What a BERT of two layers answers about the training texts."""
    folder = tmp_path_factory.mktemp("layers") / "cache"
    library.precompute(
        corpus=str(distill_bench.train),
        text_column="text",
        teacher=f"encoder:{checkpoint('bert')}",
        cache=folder,
        layers=[1, 2],
        token_layers=[1, 2],
        attention_layers=[2],
    )
    return folder


@pytest.fixture
def job(distill_bench: Any, cache: Path, tmp_path: Path) -> Job:
    return {
        **{"train": str(distill_bench.train), "validation": str(distill_bench.validation)},
        **{"text_column": "text", "label_column": "label", "student": str(distill_bench.student)},
        **{"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1},
        **{"output": str(tmp_path / "run"), "teachers": {"bert": {"cache": str(cache)}}},
        "objectives": [{"name": "hidden_layers", "features": ["layer_1", "layer_2"]}],
    }


@pytest.fixture
def distill(armada: CommandLine, tmp_path: Path) -> Callable[..., str]:
    """Runs a job with changes; its one line if it is refused."""

    def run(job: Job, **changes: Any) -> str:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(job | changes))
        result = armada("distill", file, "--quiet")
        assert result.code in (0, 2), result.error
        return result.error if result.code else ""

    return run


def test_a_student_learns_layers(distill: Callable[..., str], job: Job, tmp_path: Path) -> None:
    """As an objective of its own, and beside another, with adapters and checkpointing."""
    assert distill(job) == ""
    rows = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    steps = [row for row in rows if "layers" in row]
    assert len(steps) == 4
    assert steps[0]["loss"] == pytest.approx(steps[0]["task"] + steps[0]["layers"], rel=1e-5)
    more = {"name": "hidden_layers", "feature": "layer_1", "map": [-2], "weight": 0.5}
    other = {"objectives": [{"name": "undistilled"}, more], "output": str(tmp_path / "other")}
    assert distill(job, **other, lora_rank=2, gradient_checkpointing=True) == ""


REFUSED: dict[str, tuple[Job, str]] = {
    "a layer that is not cached": (
        {"features": ["layer_2", "layer_9"]},
        "(encoder) has pooled, layer_1, layer_2, token_ids, token_states_1, token_states_2, "
        "attention_2; precompute with layers=[9] and add_features=true",
    ),
    "too many layers": (
        {"features": ["layer_1", "layer_2", "pooled"]},
        "map=uniform: 3 features for a student of 2 layers; name fewer features, or "
        "use map=learned",
    ),
    "a layer that the student lacks": (
        {"features": ["layer_1"], "map": [3]},
        "objective hidden_layers: layer 3 is beyond the student's; choose from 0",
    ),
    "a list of another length": (
        {"features": ["layer_1"], "map": [1, 2]},
        "map: names 2 layers of the student for 1 features of the teacher; name a layer for each",
    ),
    "no such map": ({"features": ["layer_1"], "map": "skip"}, "job key 'map"),
    "lengths that do not count": (
        {"features": ["layer_1"], "normalize": True, "distance": "cosine"},
        "normalize: cosine compares directions alone; leave it out",
    ),
}


@pytest.fixture
def without_weights(distill_bench: Any, tmp_path: Path) -> str:
    """The student with weights that cannot be read."""
    folder = shutil.copytree(distill_bench.student, tmp_path / "student")
    (folder / "model.safetensors").write_bytes(b"cut")
    return str(folder)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(
    distill: Callable[..., str], job: Job, without_weights: str, tmp_path: Path, name: str
) -> None:
    """Before any weights are read."""
    keys, message = REFUSED[name]
    objectives = [{"name": "hidden_layers"} | keys]
    assert message in distill(job, student=without_weights, objectives=objectives)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            {"name": "token_states", "features": ["token_states_1"], "map": [-4]},
            "objective token_states: layer -4 is beyond the student's; choose from 0",
        ),
        (
            {"name": "token_relations", "features": ["token_states_1"], "map": [1, 2]},
            "map: names 2 layers of the student for 1 features of the teacher",
        ),
        (
            {"name": "norm_direction", "features": ["pooled", "made.embedding"]},
            "objective norm_direction: features of the shapes ",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_configurations(
    distill: Callable[..., str],
    job: Job,
    without_weights: str,
    distill_bench: Any,
    objective: Job,
    message: str,
) -> None:
    teachers = dict(job["teachers"])
    if objective["name"] == "norm_direction":
        teachers["made"] = {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}
    own = {"teacher": "bert", **objective}
    found = distill(job, student=without_weights, objectives=[own], teachers=teachers)
    assert message in found


def test_a_student_from_scratch_has_the_layers_of_its_job(
    distill: Callable[..., str], job: Job
) -> None:
    found = distill(job, student="scratch:bert", student_layers=1)
    assert "map=uniform: 2 features for a student of 1 layers" in found


def test_weights_that_cannot_be_read_are_met_last(
    distill: Callable[..., str], job: Job, without_weights: str
) -> None:
    """As they are where all else fits."""
    assert "the weights are damaged" in distill(job, student=without_weights)


def test_a_finished_run_is_read_without_what_its_student_began_with(
    job: Job, tmp_path: Path
) -> None:
    """As reports do."""
    gone = make(DistillJob, job | {"student": str(tmp_path / "gone")})
    assert len(read_data(gone, terms_of(gone)).sources) == 2


def test_token_states_are_those_of_transformers(
    cache: Path, checkpoint: Callable[[str], Path]
) -> None:
    """In half precision, for the tokens that the tokenizer gives, whatever batch they were in."""
    opened = library.open_cache(cache)
    folder = checkpoint("bert")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    rows = opened.lookup(TEXTS[:3])
    for text, row in zip(TEXTS[:3], rows.tolist(), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            states = model.eval()(**inputs, output_hidden_states=True).hidden_states
        assert opened.ragged("token_ids")[row].tolist() == inputs["input_ids"][0].tolist()
        for layer in (1, 2):
            found = torch.from_numpy(opened.ragged(f"token_states_{layer}")[row]).float()
            torch.testing.assert_close(found, states[layer][0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "term", "keys"),
    [
        ("token_states", "tokens", {"features": ["token_states_1", "token_states_2"]}),
        ("token_relations", "relations", {"features": ["token_states_1", "token_states_2"]}),
        ("attention_relations", "relations", {"feature": "attention_2", "relation_heads": 2}),
    ],
)
def test_a_student_learns_tokens(
    distill: Callable[..., str], job: Job, tmp_path: Path, name: str, term: str, keys: Job
) -> None:
    asked = {"name": name} | keys
    assert distill(job, objectives=[asked]) == ""
    rows = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    steps = [row for row in rows if term in row]
    assert len(steps) == 4
    assert steps[0]["loss"] == pytest.approx(steps[0]["task"] + steps[0][term], rel=1e-5)


def test_a_student_of_states_alone_is_validated_by_them(
    distill: Callable[..., str], job: Job, distill_bench: Any, tmp_path: Path
) -> None:
    """Without labels; the validation texts are cached."""
    more: Job = {"label_column": None, "validation": str(distill_bench.train)}
    assert (
        distill(job, objectives=[{"name": "token_states", "feature": "token_states_2"}], **more)
        == ""
    )
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["validation"]["loss"] > 0


OF_TOKENS: dict[str, tuple[Job, Job, str]] = {
    "a layer that is not cached": (
        {"feature": "token_states_0"},
        {},
        "'token_states_0' is not of tokens; teacher ",
    ),
    "what to ask for": (
        {"feature": "token_states_0"},
        {},
        "precompute with token_layers=[0] of an encoder, and add_features=true",
    ),
    "a feature of whole texts": ({"feature": "layer_1"}, {}, "'layer_1' is not of tokens"),
    "none named": ({}, {}, "job key 'feature': is missing"),
    "attention that is not cached": (
        {"name": "attention_relations", "feature": "attention_1"},
        {},
        "precompute with attention_layers=[1] of an encoder, and add_features=true",
    ),
    "attention of states": (
        {"name": "attention_relations", "feature": "token_states_1"},
        {},
        "not that of queries, keys and values; name one of attention_layers of an encoder",
    ),
    "heads that do not divide": (
        {"name": "attention_relations", "feature": "attention_2", "relation_heads": 7},
        {},
        "relation_heads: 7 does not divide the ",
    ),
    "a layer that the student lacks": (
        {"name": "attention_relations", "feature": "attention_2", "student_layer": 3},
        {},
        "attention layer 3 is beyond the student's; choose from 1 to 2 (its last)",
    ),
    "compiled layers": (
        {"name": "attention_relations", "feature": "attention_2"},
        {"compile_student": True},
        "compile_student: objective attention_relations records queries, keys and values",
    ),
    "another family": (
        {"name": "attention_relations", "feature": "attention_2"},
        {"student": "scratch:llama", "student_layers": 2, "student_hidden_size": 16},
        "has no separate queries, keys and values in each layer; use a BERT",
    ),
    "another text's tokens": (
        {"feature": "token_states_1"},
        {"teachers": {"bert": {"cache": "CACHE", "control": "shuffled"}}},
        "control shuffled: objective token_states compares token with token",
    ),
    "on the device": (
        {"feature": "token_states_1"},
        {"placement": "resident"},
        "placement resident: features along tokens are of different lengths; use mapped",
    ),
    "shorter texts": (
        {"feature": "token_states_1"},
        {"max_length": 6},
        "its tokens differ from the teacher's (53 of 53 such rows)",
    ),
    "another tokenizer": (
        {"feature": "token_states_1"},
        {"student": "scratch:bert", "student_layers": 2, "student_hidden_size": 16},
        "use a student with the tokenizer of encoder:",
    ),
}


@pytest.mark.parametrize("name", OF_TOKENS)
def test_what_is_refused_of_tokens(
    distill: Callable[..., str], job: Job, cache: Path, tmp_path: Path, name: str
) -> None:
    keys, more, message = OF_TOKENS[name]
    more = json.loads(json.dumps(more).replace("CACHE", str(cache)))
    assert message in distill(job, objectives=[{"name": "token_states"} | keys], **more)
    assert not (tmp_path / "run").exists()
