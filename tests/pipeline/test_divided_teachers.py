"""`torchrun -m armada.cli precompute` with `tensor_parallel`: several processes, one teacher."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from armada import open_cache
from armada.cache_schemas.errors import JobError
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from hangs import HANG_S
from tiny_language_models import TEXTS, make_causal_lm

OPTIONS = {
    "top_k": 8,
    "dense": True,
    "hidden_layers": [1],
    "text_format": "plain",
    "max_new_tokens": 6,
    "generation": "batched",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    rows = [{"ask": text, "say": f"{text} {n}"} for n, text in enumerate(TEXTS * 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def keys_of(corpus: Path, teacher: str, cache: Path) -> dict[str, object]:
    named = {"corpus": str(corpus), "teacher": teacher, "cache": str(cache)}
    return named | {"text_column": ["ask", "say"], **OPTIONS}


@pytest.fixture
def divided(torchrun: Sequence[str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `precompute` in two processes."""

    def run(keys: dict[str, object], *words: str) -> subprocess.CompletedProcess[str]:
        job = tmp_path / "job.yaml"
        job.write_text(json.dumps(keys | {"tensor_parallel": True}))
        return subprocess.run(
            [*torchrun, "-m", "armada.cli", "precompute", str(job), *words],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )

    return run


def test_two_processes_compute_what_one_does(divided, corpus, tmp_path):
    # A size that two processes do not divide evenly.
    teacher = f"causal_lm:{make_causal_lm(tmp_path / 'lm', intermediate_size=63)}"
    run_precompute(make_precompute_job(keys_of(corpus, teacher, tmp_path / "one")), quiet=True)
    keys = keys_of(corpus, teacher, tmp_path / "two")

    expected = divided(keys, "--json", "--dry-run")
    assert expected.returncode == 0, expected.stderr
    assert json.loads(expected.stdout)["unique"] == 18  # said once
    assert not (tmp_path / "two").exists()

    done = divided(keys, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["computed"] == 18
    one, two = open_cache(tmp_path / "one"), open_cache(tmp_path / "two")
    assert two.teacher == one.teacher
    assert len(two.runs()) == 1
    rows = two.find(one.keys)
    for name in ("token_ids", "generated_ids"):
        for mine, row in zip(one.ragged(name), rows, strict=True):
            np.testing.assert_array_equal(two.ragged(name)[row], mine)
    differs = False
    for name in ("dense", "hidden", "generated_log_probs"):
        for mine, row in zip(one.ragged(name), rows, strict=True):
            np.testing.assert_allclose(two.ragged(name)[row], mine, atol=5e-5)
            differs |= bool((two.ragged(name)[row] != mine).any())
    assert differs, "bit for bit: were weights divided at all?"

    again = divided(keys, "--json")
    assert json.loads(again.stdout)["already_cached"] == 18


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("gpt2", {}, "has no plan to divide a GPT2LMHeadModel"),
        (
            "llama",
            {"num_key_value_heads": 1},
            "its 1 num_key_value_heads cannot be divided among 2",
        ),
    ],
)
def test_a_model_that_cannot_be_divided(divided, corpus, tmp_path, family, settings, reason):
    teacher = f"causal_lm:{make_causal_lm(tmp_path / 'lm', family, **settings)}"
    done = divided(keys_of(corpus, teacher, tmp_path / "cache"))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    assert reason in lines[0]
    assert not (tmp_path / "cache").exists()


def test_one_process_divides_nothing(corpus, tmp_path):
    teacher = f"causal_lm:{make_causal_lm(tmp_path / 'lm')}"
    keys = keys_of(corpus, teacher, tmp_path / "cache") | {"tensor_parallel": True}
    with pytest.raises(JobError, match=r"needs several processes.*torchrun --nproc-per-node N"):
        run_precompute(make_precompute_job(keys))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"workers": 2}, "'workers' and option 'tensor_parallel'"),
        ({"dask": "tcp://127.0.0.1:1"}, "'dask' and option 'tensor_parallel'"),
        ({"part": "1/2"}, "'part' and option 'tensor_parallel'"),
        ({"device": "cuda:1"}, "each process has its own"),
        ({"device_map": "auto"}, "device_map and tensor_parallel: name only one"),
    ],
)
def test_other_ways_to_use_several_devices(corpus, tmp_path, other, reason):
    keys = keys_of(corpus, "causal_lm:x", tmp_path / "cache")
    with pytest.raises(JobError, match=reason):
        make_precompute_job(keys | {"tensor_parallel": True} | other)
