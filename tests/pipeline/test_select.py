"""`select`: training rows chosen by cached scores, counted and listed, however a job is run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada import open_cache
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.keys import example_key
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.jobs import make
from armada.pipeline.run_data import read_data
from armada.pipeline.student_data import StudentData
from armada.pipeline.terms import terms_of
from armada.stages.ragged import joined
from armada.stages.store.writing.writer import CacheWriter
from command_line import CommandLine
from small_caches import keys_of, make_manifest
from tiny_runs import TEXTS, class_labels

Job = dict[str, Any]
LABELS = class_labels(len(TEXTS), 3)
LENGTHS = 1 + np.arange(len(TEXTS)) % 5
OWN = FeatureSpec(name="own_log_probs", shape=(), dtype="float16", axis="predictions", max_length=8)
LOGITS = FeatureSpec(name="logits", shape=(3,), dtype="float32")
CLUSTER = FeatureSpec(name="cluster", shape=(), dtype="uint16")


def token_values(seed: int) -> list[Any]:
    random = np.random.default_rng(seed)
    return [-random.random(length).astype(np.float16) for length in LENGTHS]


LARGER, SMALLER = token_values(1), token_values(2)
GAINS = np.array(
    [
        (a.astype(np.float64).sum() - b.astype(np.float64).sum()) / len(a)
        for a, b in zip(LARGER, SMALLER, strict=True)
    ]
)
SCORES = np.random.default_rng(7).standard_normal((len(TEXTS), 3)).astype(np.float32) * 2
P = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)
CLUSTERS = (np.arange(len(TEXTS)) % 7 % 3).astype(np.uint16)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of two language models and of a classifier with clusters."""
    folder = tmp_path_factory.mktemp("scored")
    for name, values in (("larger", LARGER), ("smaller", SMALLER)):
        with CacheWriter(folder / name, make_manifest([OWN], model=name)) as writer:
            features = {"own_log_probs": joined(values, (), "float16")}
            writer.commit(keys_of(TEXTS), features, np.zeros(len(TEXTS), dtype=bool))
    with CacheWriter(folder / "classes", make_manifest([LOGITS, CLUSTER])) as writer:
        turned = slice(None, None, -1)
        values = {"logits": SCORES[turned], "cluster": CLUSTERS[turned]}
        writer.commit(keys_of(TEXTS[turned]), values, np.zeros(len(TEXTS), dtype=bool))
    pair = FeatureSpec(name="logits", shape=(2,), dtype="float32")
    score = FeatureSpec(name="score", shape=(), dtype="float32")
    with CacheWriter(folder / "two", make_manifest([pair, score])) as writer:
        values = {"logits": SCORES[:, :2], "score": SCORES[:, 0]}
        writer.commit(keys_of(TEXTS), values, np.zeros(len(TEXTS), dtype=bool))
    with CacheWriter(folder / "pairs", make_manifest([score])) as writer:
        keys = keys_of([(text, other) for text, other in zip(TEXTS, TEXTS[::-1], strict=True)])
        writer.commit(keys, {"score": SCORES[:, 0]}, np.zeros(len(TEXTS), dtype=bool))
    named = LOGITS.model_copy(update={"labels": ("low", "middle", "high")})
    with CacheWriter(folder / "named", make_manifest([named])) as writer:
        writer.commit(keys_of(TEXTS), {"logits": SCORES}, np.zeros(len(TEXTS), dtype=bool))
    return folder


@pytest.fixture
def job(distill_bench: Any, scored: Path, tmp_path: Path) -> Job:
    return {
        "train": str(distill_bench.train),
        "validation": str(distill_bench.validation),
        "text_column": "text",
        "label_column": "label",
        "student": str(distill_bench.student),
        "output": str(tmp_path / "run"),
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "device": "cpu",
        "teachers": {
            "made": {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up[:8]},
            "llm": {"cache": str(scored / "larger")},
            "slm": {"cache": str(scored / "smaller")},
            "classes": {"cache": str(scored / "classes")},
        },
        "objectives": [{"name": "kd", "teacher": "made"}],
    }


def write(job: Job, folder: Path) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def best(count: int) -> set[int]:
    return set(np.argsort(-GAINS)[:count].tolist())


DIFFERENCE = {"rule": "difference", "larger": "llm", "smaller": "slm", "keep": 0.5}
N = len(TEXTS)
ENTROPY = -(P * np.log(P)).sum(axis=1)
RULES: dict[str, tuple[Job, set[int]]] = {
    "difference": (DIFFERENCE, best(round(N / 2))),
    "learnability": (
        {"rule": "learnability", "learner": "slm", "reference": "llm", "keep": 20},
        best(20),
    ),
    "entropy": (
        {"rule": "entropy", "teacher": "classes", "most": 0.7},
        set(np.flatnonzero(ENTROPY <= 0.7).tolist()),
    ),
    "confidence": (
        {"rule": "confidence", "teacher": "classes", "least": 0.5, "most": 0.9},
        set(np.flatnonzero((P.max(axis=1) >= 0.5) & (P.max(axis=1) <= 0.9)).tolist()),
    ),
    "agreement": (
        {"rule": "agreement", "teacher": "classes"},
        set(np.flatnonzero(SCORES.argmax(axis=1) == LABELS).tolist()),
    ),
}


PLAIN: Job = {"control": "undistilled", "objectives": None, "validation": []}


def chosen(keys: Job) -> StudentData:
    """The data of a job, as far as it goes before a model loads."""
    job = make(DistillJob, keys)
    return read_data(job, terms_of(job))


def rows_of(left: pa.Table) -> set[int]:
    keys = {example_key(text).hex(): row for row, text in enumerate(TEXTS)}
    return {keys[key] for key in left["key"].to_pylist()}


@pytest.mark.parametrize(("rule", "kept"), RULES.values(), ids=RULES)
def test_what_each_rule_keeps(job: Job, rule: Job, kept: set[int]) -> None:
    data = chosen(job | PLAIN | {"select": [rule]})
    assert len(data.train.labels) == len(kept)
    np.testing.assert_array_equal(data.train.labels, LABELS[sorted(kept)])
    found = data.selection
    assert found is not None
    counts = {"rule": rule["rule"], "kept": len(kept), "left_out": N - len(kept)}
    assert found.figures() == {"of": N, "kept": len(kept), "rules": [counts]}
    left = found.left_out.to_pydict()
    assert rows_of(found.left_out) == set(range(N)) - kept
    assert set(left["rule"]) == {f"select.0 ({rule['rule']})"}
    assert left["row"][0].endswith(f"train.parquet row {min(set(range(N)) - kept) + 1}")
    if rule["rule"] == "difference":
        np.testing.assert_allclose(left["score"], GAINS[sorted(set(range(N)) - kept)], rtol=1e-9)


def test_learnability_of_class_logits_is_the_difference_of_their_losses(job: Job) -> None:
    rule = {"rule": "learnability", "learner": "classes", "reference": "made", "keep": 9}
    data = chosen(job | PLAIN | {"select": [rule | {"feature": "logits"}]})
    made = open_cache(job["teachers"]["made"]["cache"], job["teachers"]["made"]["teacher"])
    reference = made["logits"][made.lookup(TEXTS)].astype(np.float64)
    reference -= np.log(np.exp(reference).sum(axis=1, keepdims=True))
    gains = reference[np.arange(N), LABELS] - np.log(P[np.arange(N), LABELS])
    assert data.selection is not None
    left = rows_of(data.selection.left_out)
    assert left == set(range(N)) - set(np.argsort(-gains)[:9].tolist())


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        ({"rule": "balance", "teacher": "classes", "most": 4}, 4),
        ({"rule": "balance", "teacher": "classes", "keep": 12}, 4),
        ({"rule": "balance", "most": 3}, 3),
        ({"rule": "balance", "teacher": "classes", "feature": "logits", "most": 2}, 2),
    ],
)
def test_balance(job: Job, rule: Job, most: int) -> None:
    found = chosen(job | PLAIN | {"select": [rule]}).selection
    assert found is not None
    kept = sorted(set(range(N)) - rows_of(found.left_out))
    clusters = CLUSTERS if rule.get("teacher") else LABELS
    clusters = SCORES.argmax(axis=1) if rule.get("feature") else clusters
    assert np.bincount(clusters[kept], minlength=3).tolist() == [most] * 3


@pytest.mark.parametrize(
    "rule",
    [{"rule": "balance", "most": 3}, DIFFERENCE, *(rule for rule, _ in RULES.values())],
    ids=lambda rule: str(rule["rule"]),
)
def test_the_job_of_a_run_can_be_read_again(job: Job, rule: Job) -> None:
    made = make(DistillJob, job | PLAIN | {"select": [rule]})
    assert make(DistillJob, made.model_dump(mode="json")) == made


def test_rows_are_the_same_in_another_order(job: Job, write_parquet: Any) -> None:
    """Of rows with equal scores, keys decide."""
    turned = {"text": TEXTS[::-1], "label": LABELS[::-1].tolist()}
    other = {"train": write_parquet("turned", turned)}
    for rule in ({"rule": "balance", "most": 3}, DIFFERENCE):
        pair = [chosen(job | PLAIN | more | {"select": [rule]}).selection for more in ({}, other)]
        assert pair[0] is not None
        assert pair[1] is not None
        assert rows_of(pair[0].left_out) == rows_of(pair[1].left_out)


GAP = {"rule": "domain_gap", "domain_column": "name", "learner": "slm", "teacher": "llm"}


def test_domains_where_a_learner_lags_are_drawn_more(job: Job) -> None:
    data = chosen(job | PLAIN | {"select": [GAP, {"rule": "balance", "most": 12}]})
    assert data.selection is not None
    assert len(rows_of(data.selection.left_out)) == N - len(data.train.labels)
    gaps = []
    for label in range(3):
        own = np.flatnonzero(label == LABELS)
        gaps.append((GAINS[own] * LENGTHS[own]).sum() / LENGTHS[own].sum())
    ratios = np.exp(gaps)
    shares = 0.5 * ratios / ratios.sum() + 0.5 / 3
    assert data.selection is not None
    first, second = data.selection.figures()["rules"]
    domains = {"low": 0, "middle": 1, "high": 2}
    assert {domains[name]: each["share"] for name, each in first["domains"].items()} == {
        label: pytest.approx(share, abs=1e-6) for label, share in enumerate(shares)
    }
    assert second["kept"] == len(data.train.labels)
    assert data.train.weights is not None
    of_rows = np.bincount(LABELS)
    expected = (shares / of_rows)[data.train.labels]
    np.testing.assert_allclose(data.train.weights, expected, rtol=1e-9)


def test_a_domain_is_not_a_row(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armada.pipeline.choosing._MOST_DOMAINS", 52)
    with pytest.raises(JobError, match="'text' holds 53 different names in 53 rows; name a column"):
        chosen(job | PLAIN | {"select": [GAP | {"domain_column": "text"}]})


def test_a_run_with_weights(armada: CommandLine, job: Job, tmp_path: Path) -> None:
    job |= PLAIN
    armada.done("distill", write(job | {"select": [GAP]}, tmp_path), "--quiet")
    run = tmp_path / "run"
    assert read(run / "metrics.json")["train_examples"] == N
    assert pq.read_table(run / "left_out.parquet").num_rows == 0
    armada.done("distill", write(job, tmp_path), "--output", tmp_path / "plain", "--quiet")
    assert len(losses(run)) == len(losses(tmp_path / "plain"))
    assert losses(run) != losses(tmp_path / "plain")


def losses(run: Path) -> list[float]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.usefixtures("forked_workers")
def test_two_rules_one_after_another_by_a_grid_and_from_the_command_line(
    armada: CommandLine, job: Job, tmp_path: Path
) -> None:
    select = [DIFFERENCE, {"rule": "agreement", "teacher": "classes"}]
    armada.done("distill", write(job | {"select": select}, tmp_path), "--quiet")
    run = tmp_path / "run"
    kept = best(round(N / 2)) & RULES["agreement"][1]
    assert rows_of(pq.read_table(run / "left_out.parquet")) == set(range(N)) - kept
    assert set(read(run / "run.json")["select"]) == {"llm", "slm", "classes"}
    metrics = read(run / "metrics.json")
    assert metrics["train_examples"] == len(kept)
    assert [rule["left_out"] for rule in metrics["selection"]["rules"]] == [
        N - round(N / 2),
        round(N / 2) - len(kept),
    ]
    other = ("--output", tmp_path / "other", "--set", f"select={json.dumps(select)}", "--quiet")
    armada.done("distill", write(job, tmp_path), *other)
    assert losses(run) == losses(tmp_path / "other")
    grid = {"select.0.keep": [0.5, 0.25], "control": ["none", "undistilled"]}
    teachers = {name: job["teachers"][name] for name in ("made", "llm", "slm")}
    ablation = job | {
        "teachers": teachers,
        "select": [DIFFERENCE],
        "grid": grid,
        "output": str(tmp_path / "grid"),
        "workers": 1,
    }
    table = json.loads(armada.done("ablate", write(ablation, tmp_path), "--json", "--quiet"))
    (study,) = table["studies"]  # one corpus, of which each cell takes other rows
    assert {row["name"]: row["undistilled"] for row in study["conditions"]} == {
        f"select.0.keep={keep}, {name}": base and f"select.0.keep={keep}, {base}"
        for keep in (0.5, 0.25)
        for name, base in (("undistilled", None), ("distilled", "undistilled"))
    }
    assert len(list((tmp_path / "grid").glob("*/seed-0/left_out.parquet"))) == 4
    armada.done("report", tmp_path / "grid", "--out", tmp_path / "page.html")


EMBEDDING: Job = {
    "task": "embedding",
    "label_column": None,
    "validation": [],
    "text_column": ["a", "b"],
    "objectives": [{"name": "feature", "teacher": "texts", "feature": "embedding"}],
}


def test_rows_of_a_student_that_embeds(
    armada: CommandLine, job: Job, scored: Path, tmp_path: Path, distill_bench: Any
) -> None:
    """Rules read the first text, or the texts that their teacher names; what is learned is what a
    corpus of the chosen rows teaches."""
    made, llm, slm = (job["teachers"][name] for name in ("made", "llm", "slm"))
    pairs = {"cache": str(scored / "pairs"), "text_column": ["a", "b"]}
    job |= EMBEDDING | {"seed": 1}
    job["teachers"] = {"texts": made, "llm": llm, "slm": slm, "pairs": pairs}
    rules = [
        {"rule": "score", "teacher": "pairs", "least": -1.5},
        {"rule": "difference", "larger": "llm", "smaller": "slm", "keep": 30},
    ]
    above = np.flatnonzero(SCORES[:, 0] >= -1.5)
    kept = np.sort(above[np.argsort(-GAINS[above])[:30]])
    armada.done("distill", write(job | {"select": rules}, tmp_path), "--quiet")
    figures = read(tmp_path / "run" / "metrics.json")
    assert figures["train_examples"] == len(kept) == 30
    assert figures["selection"]["rules"][0]["kept"] == len(above)
    table = pq.read_table(distill_bench.train).take(kept)
    pq.write_table(table, tmp_path / "kept.parquet")
    alone = job | {"train": str(tmp_path / "kept.parquet"), "output": str(tmp_path / "alone")}
    alone["teachers"] = {"texts": made}
    armada.done("distill", write(alone, tmp_path), "--quiet")
    assert losses(tmp_path / "run") == losses(tmp_path / "alone")
    drawn = job | {"select": [GAP], "output": str(tmp_path / "drawn")}
    drawn["teachers"] = {"texts": made, "llm": llm, "slm": slm}
    armada.done("distill", write(drawn, tmp_path), "--quiet")
    plain = alone | {"train": job["train"], "output": str(tmp_path / "plain")}
    armada.done("distill", write(plain, tmp_path), "--quiet")
    assert len(losses(tmp_path / "drawn")) == len(losses(tmp_path / "plain"))
    assert losses(tmp_path / "drawn") != losses(tmp_path / "plain")


@pytest.mark.parametrize(
    ("own", "rule", "message"),
    [
        ({}, {"rule": "score", "least": 0}, "teacher texts has no feature 'score'; it has "),
        ({}, {"rule": "score", "feature": "logits", "most": 0}, "not a number a text"),
        ({}, {"rule": "agreement"}, "reads classes, and the job has none"),
        ({"text_column": ["b"]}, {"rule": "entropy", "least": 9}, "leaves none of 53 rows"),
    ],
)
def test_rules_that_do_not_fit_a_student_that_embeds(
    job: Job, own: Job, rule: Job, message: str
) -> None:
    job |= EMBEDDING | {"text_column": ["a"], "select": [rule | {"teacher": "texts"}]}
    job["teachers"] = {"texts": job["teachers"]["made"] | own}
    with pytest.raises(JobError, match=re.escape(message)):
        chosen(job)


REFUSED: dict[str, tuple[list[Job], str]] = {
    "nothing left": (
        [{"rule": "confidence", "teacher": "classes", "least": 1.5}],
        "select.0 (confidence): leaves none of 53 rows; scores are 0.",
    ),
    "a teacher of nobody": (
        [DIFFERENCE | {"larger": "gpt"}],
        "select.0 (difference): teacher 'gpt' is not in the job; choose one of made, llm, slm",
    ),
    "no such rule": (
        [DIFFERENCE, {"rule": "agrement"}],
        "select.1: rule 'agrement' is unknown; did you mean 'agreement'? Rules are difference, ",
    ),
    "an unknown key": (
        [DIFFERENCE | {"kep": 1}],
        "select.0 (difference) key 'kep' is unknown; did you mean 'keep'? Keys are feature, keep,",
    ),
    "a missing key": (
        [{"rule": "agreement"}],
        "select.0 (agreement) key 'teacher' is missing (teacher of the logits)",
    ),
    "no rule": ([{"keep": 3}], "select.0: {'keep': 3} is not {rule: NAME, ...}; name one of the"),
    "nothing to keep": ([{"rule": "balance"}], "select.0 (balance): keep, most: set one of them"),
    "both": ([{"rule": "balance", "keep": 3, "most": 3}], "keep, most: set one of them"),
    **{
        f"keep {keep}": (
            [DIFFERENCE | {"keep": keep}],
            f"select.0 (difference) key 'keep': {keep!r}: is neither a number of rows from 1 nor a "
            "share between 0 and 1 (how many rows to keep: a number of them, or, below 1, a share)",
        )
        for keep in (1.5, 0, True, "half", "1.5", float("nan"))
    },
    "more than there are": ([DIFFERENCE | {"keep": 54}], "keep 54: only 53 rows are there"),
    "bounds the wrong way": (
        [{"rule": "entropy", "teacher": "classes", "least": 1, "most": 0.5}],
        "least 1.0 is above most 0.5",
    ),
    "no bounds": ([{"rule": "entropy", "teacher": "classes"}], "set at least one of them"),
    "no such feature": (
        [DIFFERENCE | {"larger": "classes"}],
        "select.0 (difference): teacher classes has no feature 'own_log_probs'; it has logits",
    ),
    "not of tokens": (
        [DIFFERENCE | {"larger": "classes", "smaller": "made", "feature": "logits"}],
        "select.0 (difference): feature 'logits' has no number for each token",
    ),
    "not of classes": (
        [{"rule": "entropy", "teacher": "llm", "feature": "own_log_probs", "most": 1}],
        "llm: 'own_log_probs' is float16[] x predictions, not a number a class",
    ),
    "one domain": (
        [GAP | {"domain_column": "same"}],
        "select.0 (domain_gap): domain_column 'same' holds 'all' alone",
    ),
    "no such column": ([GAP | {"domain_column": "topic"}], "topic"),
    "two of them": ([GAP, GAP], "select: domain_gap is there twice; name it once"),
    "no strength": (
        [GAP | {"strength": 0}],
        "select.0 (domain_gap) key 'strength': 0: Input should be greater than 0 (share of draws",
    ),
    "other classes": (
        [{"rule": "agreement", "teacher": "two"}],
        "select.0 (agreement): two: 'logits' has 2 classes, the job 3",
    ),
    "no number of a cluster": (
        [{"rule": "balance", "teacher": "two", "feature": "score", "keep": 9}],
        "select.0 (balance): two: 'score' is float32[], not the number of a cluster; name one of",
    ),
    "a cluster has no entropy": (
        [{"rule": "entropy", "teacher": "classes", "feature": "cluster", "most": 1}],
        "classes: 'cluster' is uint16[], not a number a class",
    ),
}


@pytest.mark.parametrize(("select", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(
    refused: Callable[..., str],
    job: Job,
    scored: Path,
    tmp_path: Path,
    select: list[Job],
    message: str,
) -> None:
    job["teachers"]["two"] = {"cache": str(scored / "two")}
    if select[-1].get("domain_column") == "same":
        table = pq.read_table(job["train"])
        job["train"] = str(tmp_path / "same.parquet")
        pq.write_table(table.append_column("same", [["all"] * N]), job["train"])
    assert message in refused("distill", write(job | PLAIN | {"select": select}, tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"placement": "streamed"}, "draws rows in random order, and placement=streamed follows"),
        ({"task": "language", "packing": "concat"}, "draws single texts; packing=concat joins"),
    ],
)
def test_what_weights_do_not_fit(
    refused: Callable[..., str], job: Job, tmp_path: Path, more: Job, message: str
) -> None:
    assert message in refused("distill", write(job | more | {"select": [GAP]}, tmp_path))


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "agreement", "teacher": "named"},
        GAP | {"learner": "named", "teacher": "named", "feature": "logits"},
    ],
)
def test_classes_in_another_order(
    refused: Callable[..., str], job: Job, scored: Path, tmp_path: Path, rule: Job
) -> None:
    teachers = job["teachers"] | {"named": {"cache": str(scored / "named")}}
    keys = job | PLAIN | {"teachers": teachers, "select": [rule], "label_column": "name"}
    line = refused("distill", write(keys, tmp_path))
    assert "named: 'logits' has the classes low, middle, high, the job high, low, middle" in line


def test_a_dry_run_counts_rows_by_cell(armada: CommandLine, job: Job, tmp_path: Path) -> None:
    grid = {"select.0.keep": [0.25, 0.5, 54]}
    keys = job | PLAIN | {"select": [{"rule": "balance", "keep": 1}], "seed": 0}
    file = write(keys | {"grid": grid}, tmp_path)
    result = armada("ablate", file, "--dry-run")
    assert "grid, select.0.keep=54: select.0 (balance): keep 54: only 53 rows" in result.error
    file = write(keys | {"grid": {"select.0.keep": [0.25, 0.5]}}, tmp_path)
    cells = json.loads(armada.done("ablate", file, "--dry-run", "--json"))
    assert [cell["train_examples"] for cell in cells] == [13, 26]


def test_rows_without_a_score(
    refused: Callable[..., str], job: Job, write_parquet: Any, tmp_path: Path
) -> None:
    more = {"text": [*TEXTS[:20], "never scored"], "label": [*LABELS[:20].tolist(), 0]}
    keys = job | PLAIN | {"train": write_parquet("more", more), "select": [DIFFERENCE]}
    assert "1 of 21 rows are not in the cache" in refused("distill", write(keys, tmp_path))
    data = chosen(keys | {"skip_bad_rows": True})
    assert data.selection is not None
    assert (data.selection.of, len(data.train.labels)) == (20, 10)
    assert "not in the cache of llm" in data.train.corpus.skipped[0]


def test_labels_that_are_lacking(
    refused: Callable[..., str], job: Job, write_parquet: Any, tmp_path: Path
) -> None:
    gaps = {"text": TEXTS, "label": [None, *LABELS[1:].tolist()]}
    keys = job | PLAIN | {"train": write_parquet("gaps", gaps)}
    rule = {"rule": "learnability", "learner": "classes", "reference": "made", "keep": 9}
    file = write(keys | {"select": [rule | {"feature": "logits"}]}, tmp_path)
    assert "1 rows have no label, and so no loss of class logits" in refused("distill", file)
    numbers = {"label_column": "score", "train": job["train"]}
    agreement = {"select": [{"rule": "agreement", "teacher": "classes"}]}
    file = write(keys | numbers | agreement, tmp_path)
    assert "select.0 (agreement): reads classes, and the job has none" in refused("distill", file)
