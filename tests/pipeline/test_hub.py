"""Teachers and students from a hub: fetched once at a revision, then found without a network."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from armada import open_cache
from armada.pipeline.precompute_job import make_precompute_job, make_teacher
from command_line import RUN
from hangs import HANG_S
from hub_server import COMMIT, REPOSITORY, REVISION, hub
from huggingface_hub import ModelCard
from tiny_checkpoints import make_bert
from tiny_embeddings import dense, encode, make_embedding_model

pytestmark = pytest.mark.long

TEXTS = [f"{count} grey geese over the {place}" for count in ("two", "nine") for place in "abcdef"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = make_bert(tmp_path / "model", TEXTS)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle nobody should fetch")
    (folder / "model.fp16.safetensors").write_bytes(b"a variant nobody should fetch")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def served(model: Path) -> Iterator[tuple[str, list[str]]]:
    with hub({REPOSITORY: model}) as address_and_paths:
        yield address_and_paths


def armada(home: Path, address: str, *words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def precompute(source: str, corpus: Path, cache: Path, *settings: str) -> list[object]:
    words = ["precompute", "--corpus", corpus, "--text-column", "text", "--cache", cache, "--json"]
    return [*words, "--teacher", source, *(w for s in settings for w in ("--set", s))]


def test_a_hub_id_is_fetched_at_its_revision_and_then_found_offline(
    served: tuple[str, list[str]], model: Path, corpus: Path, tmp_path: Path
) -> None:
    address, asked = served
    source, revision = f"encoder:{REPOSITORY}", f"revision={REVISION}"
    fetched = armada(
        tmp_path / "home", address, *precompute(source, corpus, tmp_path / "hub", revision)
    )
    assert fetched.returncode == 0, fetched.stderr
    files = {path.rpartition("/")[2] for path in asked if f"/resolve/{COMMIT}/" in path}
    assert {"config.json", "model.safetensors"} <= files
    assert not files & {"pytorch_model.bin", "model.fp16.safetensors"}

    # The same model in a folder is the same teacher, and so is the fetched one without a hub.
    (model / "model.fp16.safetensors").unlink()
    nowhere = "http://127.0.0.1:9"
    keys = {"corpus": str(corpus), "text_column": "text", "cache": str(tmp_path / "folder")}
    local = make_teacher(make_precompute_job(keys | {"teacher": f"encoder:{model}"}))
    again = armada(
        tmp_path / "home", nowhere, *precompute(source, corpus, tmp_path / "again", revision)
    )
    assert again.returncode == 0, again.stderr
    prints = {json.loads(run.stdout)["fingerprint"] for run in (fetched, again)}
    assert prints == {local.spec.fingerprint}


def test_folders_of_sentence_transformers_come_whole(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    folder = make_embedding_model(
        tmp_path / "embeds", model, "cls", [dense(32, 8, torch.nn.Tanh())], max_length=12
    )
    with hub({REPOSITORY: folder}) as (address, asked):
        words = precompute(
            f"encoder:{REPOSITORY}", corpus, tmp_path / "cache", f"revision={REVISION}"
        )
        result = armada(tmp_path / "home", address, *words)
    assert result.returncode == 0, result.stderr
    files = {path.partition(f"/resolve/{COMMIT}/")[2] for path in asked}
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= files
    cache = open_cache(tmp_path / "cache")
    found = cache["pooled"][cache.lookup(TEXTS)]
    np.testing.assert_allclose(found, encode(folder, TEXTS), atol=2e-5)


def test_an_unknown_revision_is_one_line(
    served: tuple[str, list[str]], corpus: Path, tmp_path: Path
) -> None:
    words = precompute(f"encoder:{REPOSITORY}", corpus, tmp_path / "cache", "revision=v9")
    result = armada(tmp_path / "home", served[0], *words)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: source {REPOSITORY}: ")
    assert "v9" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_student_comes_from_a_hub_too_and_its_card_says_so(
    served: tuple[str, list[str]], model: Path, corpus: Path, tmp_path: Path
) -> None:
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Tiny\n")
    words = ["distill", "--train", corpus, "--text-column", "text", "--label-column", "label"]
    words += ["--control", "undistilled", "--student", REPOSITORY, "--output", tmp_path / "run"]
    settings = ["epochs=1", f"student_revision={REVISION}"]
    words += [word for setting in settings for word in ("--set", setting)]
    result = armada(tmp_path / "home", served[0], *words)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()
    head = ModelCard.load(tmp_path / "run" / "student" / "README.md").data
    assert (head.base_model, head.license, head.language) == (REPOSITORY, "mit", "en")
