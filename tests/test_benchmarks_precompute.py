"""The benchmark of stage 1: it runs, and what it compares is the same."""

import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hangs import HANG_S

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_quick_run_prints_four_tables(commands: Path) -> None:
    command = [str(commands / "python"), str(BENCHMARKS / "precompute.py"), "--quick", "--markdown"]
    run = subprocess.run(
        [*command, "--device", "cpu"], capture_output=True, text=True, timeout=2 * HANG_S
    )
    assert run.returncode == 0, run.stderr
    rows = [line.strip("|").split("|") for line in run.stdout.splitlines() if "|" in line]
    lines = [[cell.strip() for cell in row] for row in rows]
    ways = {(row[0].partition(",")[0], row[1]): row[2:] for row in lines if len(row) == 4}
    for kind in ("encoder", "causal_lm top_k", "classifier", "open_clip", "diffusers latents"):
        assert ways[kind, "plain loop"][1] == "1.00x"
        assert float(ways[kind, "armada"][0]) > 0
    said = {row[0]: row[1:] for row in lines if len(row) == 4}
    for way in ("transformers.generate", "armada, batched", "armada, exact"):
        assert int(said[way][2]) == int(said["transformers.generate"][2]) > 8
    stub = [row for row in lines if row[0].endswith(" us")]
    assert len(stub) == 6
    assert all(0 < float(row[4]) <= float(row[2]) for row in stub)
    assert any("first look-up of 1,000 of 10,000 keys" in row[0] for row in lines)
    assert any("3 shards there" in row[0] for row in lines)


def test_the_ways_compute_the_same(tmp_path: Path) -> None:
    import armada
    from model_families.tiny import make_model, make_tokenizer, tiny_config
    from precompute_ways.ways import BareEncoder, BareTopK, batches, made_up_texts

    texts = made_up_texts(40)
    assert len(set(texts)) == 40
    assert sorted(row for rows in batches([5, 9000, 7, 100]) for row in rows) == [0, 1, 2, 3]
    for family, auto in (("bert", "AutoModel"), ("llama", "AutoModelForCausalLM")):
        make_model(tiny_config(family), auto).save_pretrained(tmp_path / family)
        make_tokenizer().save_pretrained(tmp_path / family)
    device = torch.device("cpu")
    given = {"corpus": pa.table({"text": texts}), "text_column": "text", "max_length": 64}
    armada.precompute(
        teacher=f"encoder:{tmp_path / 'bert'}", cache=tmp_path / "one", pooling="mean", **given
    )
    plain = np.stack(BareEncoder(str(tmp_path / "bert"), device, 64)(texts))
    cache = armada.open_cache(tmp_path / "one")
    np.testing.assert_allclose(cache["pooled"][cache.lookup(texts)], plain, atol=1e-5)
    armada.precompute(
        teacher=f"causal_lm:{tmp_path / 'llama'}", cache=tmp_path / "two", top_k=8, **given
    )
    top = BareTopK(str(tmp_path / "llama"), device, 64)(texts)
    cache = armada.open_cache(tmp_path / "two")
    lengths = cache.ragged("top_k").lengths(cache.lookup(texts))
    # armada ends a text with the end-of-sequence token, the plain loop does not.
    assert (lengths - [len(ids) for ids, _ in top] <= 1).all()


def test_responses_have_as_many_tokens_whoever_generates_them(tmp_path: Path) -> None:
    from model_families.tiny import make_model, make_tokenizer, tiny_config
    from precompute_ways.generation import ArmadaResponses, Prompts, TransformersGenerate
    from precompute_ways.ways import made_up_texts

    folder = str(tmp_path / "llama")
    make_model(tiny_config("llama"), "AutoModelForCausalLM").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    device, prompts = torch.device("cpu"), Prompts(folder, 12)
    texts = prompts.fitting(made_up_texts(40))
    assert len(texts) > 8
    ways = [
        TransformersGenerate(prompts, device),
        *(ArmadaResponses(folder, device, 12, mode) for mode in ("exact", "batched")),
    ]
    for way in ways:
        way(texts)
    assert len({way.tokens for way in ways}) == 1
    assert ways[0].tokens > len(texts)


def test_so_do_those_of_classifiers_and_clip(tmp_path: Path) -> None:
    import armada
    from model_families.tiny import make_model, make_tokenizer, tiny_config
    from precompute_ways.other_teachers import classifier_ways, clip_ways
    from precompute_ways.ways import made_up_texts

    texts, cpu = made_up_texts(20), torch.device("cpu")
    make_model(tiny_config("bert"), "AutoModel").save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    classified = classifier_ways(str(tmp_path / "bert"), tmp_path / "classifier", cpu)
    embedded = clip_ways(tmp_path / "clip", cpu, tiny=True)
    given = {"corpus": pa.table({"text": texts}), "text_column": "text"}
    for ways, feature in ((classified, "logits"), (embedded, "embedding")):
        ours = ways["armada"]
        armada.precompute(teacher=ours.teacher, cache=tmp_path / feature, **given, **ours.settings)
        cache = armada.open_cache(tmp_path / feature)
        plain = np.stack(ways["plain loop"](texts))
        np.testing.assert_allclose(cache[feature][cache.lookup(texts)], plain, atol=1e-5)
