"""The teacher's log-probabilities of a text's own tokens: added to a cache, read as a score."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from response_caches import response, write_responses
from tiny_language_models import TEXTS, make_causal_lm
from transformers import AutoModelForCausalLM

SAID = {TEXTS[0]: ["yes", "a red bird"], TEXTS[1]: ["two dogs and a bird", "no"]}


def test_they_are_added_later_and_choose_among_responses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    armada = CommandLine(capsys)
    model = make_causal_lm(tmp_path / "model")
    rows = [{"ask": ask, "say": say} for ask, both in SAID.items() for say in both]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps({"ask": a}) + "\n" for a in SAID))
    command = [
        *("precompute", "--corpus", tmp_path / "pairs.jsonl", "--text-column", "ask"),
        *("--text-column", "say", "--teacher", f"causal_lm:{model}", "--cache", tmp_path / "words"),
        *("--set", "text_format=plain", "--set", "top_k=4"),
    ]
    armada.done(*command)
    before = open_cache(tmp_path / "words").teacher.fingerprint
    armada.done(*command, "--set", "own_log_probs=true", "--set", "add_features=true")
    cache = open_cache(tmp_path / "words")
    assert cache.teacher.fingerprint == before
    assert cache.feature_spec("own_log_probs").row_bytes == 2
    network = AutoModelForCausalLM.from_pretrained(model)
    sums, means = {}, {}
    for row in rows:
        at = cache.lookup([(row["ask"], row["say"])], "own_log_probs")
        ids = cache.ragged("token_ids").gather(at).values.astype(np.int64)
        prompt = int(cache["prompt_tokens"][at][0])
        with torch.no_grad():
            logits = network(torch.from_numpy(ids)[None]).logits[0].double().log_softmax(1)
        own = logits[prompt - 1 : -1].gather(1, torch.from_numpy(ids[prompt:])[:, None])[:, 0]
        found = cache.ragged("own_log_probs").gather(at).values
        np.testing.assert_allclose(found, own, rtol=1e-3)
        sums[row["ask"], row["say"]], means[row["ask"], row["say"]] = own.sum(), own.mean()
    said = {(ask,): list(map(response, both)) for ask, both in SAID.items()}
    write_responses(tmp_path / "cache", said)
    for each, values in (("response", sums), ("token", means)):
        critic = f"{{cache: {tmp_path / 'words'}, feature: own_log_probs, each: {each}}}"
        out = tmp_path / f"{each}.parquet"
        armada.done(
            *("corpus", tmp_path / "cache", "--corpus", tmp_path / "asks.jsonl", "--output", out),
            *("--text-column", "ask", "--set"),
            f"rules=[{{rule: best, by: score, critic: {critic}}}]",
        )
        best = [max(both, key=lambda say: values[ask, say]) for ask, both in SAID.items()]
        assert pq.read_table(out)["response"].to_pylist() == best
