"""Several teachers and objectives in one run: from YAML, from Python, from a grid; and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pytest
import torch
import yaml
from armada.pipeline import seed_run
from armada.pipeline.findings.runs import read_run
from command_line import CommandLine
from cuts import cut_at
from safetensors.torch import load_file
from tiny_runs import TEXTS, class_labels

pytestmark = pytest.mark.long

Job = dict[str, Any]


@pytest.fixture(scope="module")
def hints(distill_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second cache, of a teacher that reads a text and a hint, which the student never sees."""
    folder = tmp_path_factory.mktemp("hints")
    asked = {"text_column": ["text", "c"], "teacher": "hash:5", "cache": folder / "hints"}
    library.precompute(corpus=str(distill_bench.train), **asked)
    return folder / "hints"


@pytest.fixture
def job(distill_bench: Any, hints: Path, tmp_path: Path) -> Job:
    """Two caches, three objectives, a schedule, a shuffled teacher, a privileged one."""
    first = {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up[:8]}
    return {
        "train": str(distill_bench.train),
        "validation": str(distill_bench.validation),
        "text_column": "text",
        "label_column": "label",
        "student": str(distill_bench.student),
        "output": str(tmp_path / "run"),
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "device": "cpu",
        "teachers": {
            "made": first,
            "hint": {
                "cache": str(hints),
                "text_column": ["text", "c"],
                "control": "shuffled",
            },
        },
        "objectives": [
            {"name": "armada", "teacher": "made", "feature": "embedding", "aligner_hidden_size": 8},
            {"name": "kd", "teacher": "made", "weight": 0.5},
            {
                "name": "feature",
                "teacher": "hint",
                "distance": "cosine",
                "weight": {"from": 1, "to": 0, "until": 0.5},
            },
        ],
    }


def write(job: Job, folder: Path) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))
    return file


def rows(run: Path) -> list[dict[str, float]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in rows(run)]


@pytest.mark.usefixtures("forked_workers")
def test_by_yaml_by_python_and_by_a_grid_they_are_the_same(
    armada: CommandLine, job: Job, tmp_path: Path
) -> None:
    armada.done("distill", write(job, tmp_path), "--quiet")
    run = tmp_path / "run"
    library.distill(**job | {"output": tmp_path / "python"})
    grid = {"objectives.0.alpha": [0.5, 0.1], "teachers.hint.control": ["shuffled", "none"]}
    ablation = job | {"output": str(tmp_path / "grid"), "grid": grid, "workers": 1}
    table = json.loads(armada.done("ablate", write(ablation, tmp_path), "--json", "--quiet"))
    names = {row["name"] for row in table["studies"][0]["conditions"]}
    assert names == {
        f"objectives.0.alpha={alpha}, teachers.hint.control={control}"
        for alpha in (0.5, 0.1)
        for control in ("shuffled", "none")
    }
    cell = tmp_path / "grid" / "objectives.0.alpha=0.5-teachers.hint.control=shuffled" / "seed-0"
    assert losses(run) == losses(tmp_path / "python") == losses(cell)
    other = tmp_path / "grid" / "objectives.0.alpha=0.5-teachers.hint.control=none" / "seed-0"
    assert losses(run) != losses(other)
    assert {cost["teacher"] for cost in table["costs"]} == {"hash:5", "made_up:made up"}


def centred_gram(cache: Any, feature: str, texts: list[Any]) -> Any:
    """The Gram matrix HXX'H of a feature."""
    values = cache[feature].gather(cache.lookup(texts)).astype(np.float64)
    centre = np.eye(len(texts)) - 1 / len(texts)
    return centre @ values @ values.T @ centre


def test_terms_and_teachers_are_told_by_name(
    armada: CommandLine, job: Job, distill_bench: Any, hints: Path, tmp_path: Path
) -> None:
    armada.done("distill", write(job, tmp_path), "--quiet")
    run = tmp_path / "run"
    first = rows(run)[0]
    assert {"armada.task", "armada.output", "armada.manifold", "armada.aligner"} <= first.keys()
    assert {"kd.task", "kd.distillation", "feature.feature", "feature.weight"} <= first.keys()
    assert first["feature.weight"] == 1
    made = json.loads((run / "run.json").read_text())
    assert set(made["teachers"]) == {"made.embedding", "made.logits", "hint"}
    assert made["teachers"]["made.logits"]["teacher_fingerprint"] == distill_bench.made_up
    assert made["teachers"]["hint"]["feature"] == "embedding"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["objective"] == "armada+kd+feature"
    alike = metrics["teacher_conflicts"]["features"]
    assert alike["rows"] == len(TEXTS)
    cache = library.open_cache(distill_bench.cache, distill_bench.made_up)
    texts = [(text, f"{text} indeed") for text in TEXTS]
    hint = centred_gram(library.open_cache(hints), "embedding", texts)
    expected = []
    for feature in ("embedding", "logits"):
        own = centred_gram(cache, feature, TEXTS)
        expected.append((own * hint).sum() / np.sqrt((own**2).sum() * (hint**2).sum()))
    found = {tuple(each["teachers"]): each["cka"] for each in alike["pairs"]}
    assert found == {
        ("made.embedding", "hint"): pytest.approx(expected[0], rel=1e-6),
        ("made.logits", "hint"): pytest.approx(expected[1], rel=1e-6),
    }
    assert metrics["placement"] == dict.fromkeys(made["teachers"], "mapped")
    assert [file.name for file in (run / "aligner").iterdir()] == ["armada.safetensors"]
    card = (run / "student" / "README.md").read_text()
    assert card.count("Teacher `") == 3
    assert library.load_student(run).predict([TEXTS[0]])[0].keys() == {"class", "probabilities"}
    settings = read_run(run).settings
    assert settings["objectives.2.weight.until"] == 0.5
    assert settings["hint teacher"] == made["teachers"]["hint"]["teacher_fingerprint"]


def test_one_objective_in_a_list_is_the_short_form(
    armada: CommandLine, job: Job, distill_bench: Any, tmp_path: Path
) -> None:
    """Losses bit for bit, and weights."""
    alone = {key: value for key, value in job.items() if key not in ("teachers", "objectives")}
    cache = {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}
    short = alone | cache | {"feature": "embedding", "aligner_hidden_size": 8, "alpha": 0.3}
    library.distill(**short | {"output": tmp_path / "short", "control": "noise=0.5"})
    objective = {"name": "armada", "alpha": 0.3, "aligner_hidden_size": 8}
    teachers = {"any": cache | {"feature": "embedding", "control": "noise=0.5"}}
    library.distill(
        **alone | {"output": tmp_path / "long", "teachers": teachers, "objectives": [objective]}
    )
    assert losses(tmp_path / "short") == losses(tmp_path / "long")
    one, other = (load_file(tmp_path / n / "student/model.safetensors") for n in ("short", "long"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_reads_columns_of_the_same_row(
    armada: CommandLine, job: Job, hints: Path, write_parquet: Any, tmp_path: Path
) -> None:
    """Rows in another order, one hint that the teacher never saw: counted, never a zero vector."""
    order = np.random.default_rng(5).permutation(len(TEXTS))
    texts = [TEXTS[place] for place in order]
    told = [f"{text} indeed" for text in texts]
    labels = class_labels(len(TEXTS))[order]
    whole = write_parquet("whole", {"text": texts, "c": told, "label": labels})
    lacking = write_parquet(
        "lacking", {"text": texts, "c": [*told[:-2], "x", "y"], "label": labels}
    )
    short: Job = {key: value for key, value in job.items() if key != "validation"}
    short["teachers"] = {"hint": job["teachers"]["hint"] | {"control": "none"}}
    short["objectives"] = [{"name": "feature"}]
    armada.done("distill", write(short | {"train": str(whole)}, tmp_path), "--quiet")
    # By a second route: the loss of the first step's features, from the cache itself.
    cache = library.open_cache(hints)
    wanted = cache["embedding"].gather(cache.lookup(list(zip(texts, told, strict=True))))
    assert np.isfinite(wanted).all()
    assert losses(tmp_path / "run")
    told_wrong = {"train": str(lacking), "output": str(tmp_path / "no")}
    result = armada("distill", write(short | told_wrong, tmp_path), "--quiet")
    assert result.code == 2
    assert result.error.startswith("2 of 53 rows are not in the cache of teacher")
    assert not (tmp_path / "no").exists()
    left = write(short | told_wrong | {"skip_bad_rows": True}, tmp_path)
    metrics = json.loads(armada.done("distill", left, "--quiet", "--json"))
    assert metrics["train_examples"] == 51
    assert len(metrics["skipped_rows"]) == 2


def test_what_each_teacher_lacks_is_counted(
    armada: CommandLine, job: Job, write_parquet: Any, tmp_path: Path
) -> None:
    texts = [*TEXTS, "a text of nobody"]
    told = [f"{text} indeed" for text in texts[:-3]] + ["x", "y", "z"]
    file = write_parquet("more", {"text": texts, "c": told, "label": class_labels(len(texts))})
    result = armada("distill", write(job | {"train": str(file)}, tmp_path), "--quiet")
    assert result.code == 2
    assert "of 54 rows, not in the cache: 1 in that of made.embedding (" in result.error
    assert ", 3 in that of hint (" in result.error
    assert "each teacher's text columns" in result.error


def test_features_alone_teach_from_two_teachers(
    armada: CommandLine, job: Job, distill_bench: Any, tmp_path: Path
) -> None:
    """No labels: the validation set is read through both teachers, and the student has the
    projection of the first."""
    cached = {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}
    alone: Job = job | {"validation": job["train"], "label_column": None}
    alone["teachers"] = {
        "made": cached | {"feature": "embedding"},
        "hint": job["teachers"]["hint"] | {"control": "none"},
    }
    alone["objectives"] = [
        {"name": "feature", "teacher": "made", "distance": "cosine"},
        {"name": "feature", "teacher": "hint", "weight": {"from": 0, "to": 1}},
    ]
    armada.done("distill", write(alone, tmp_path), "--quiet")
    run = tmp_path / "run"
    names = {"feature-made.feature", "feature-hint.feature", "feature-hint.weight"}
    assert names <= rows(run)[0].keys()
    (said,) = library.load_student(run).predict([TEXTS[0]])
    assert said["embedding"].shape == (6,)


def test_a_cut_run_goes_on_with_the_same_teachers_only(
    armada: CommandLine, job: Job, tmp_path: Path
) -> None:
    armada.done("distill", write(job, tmp_path), "--quiet")
    run = tmp_path / "run"
    (run / "metrics.json").unlink()
    other: Job = json.loads(json.dumps(job)) | {"resume": True}
    other["teachers"]["hint"]["control"] = "none"
    result = armada("distill", write(other, tmp_path), "--quiet")
    assert result.code == 2
    assert "holds a run of another job: teachers: was" in result.error


def test_a_run_that_an_earlier_release_cut_goes_on(
    armada: CommandLine, job: Job, tmp_path: Path
) -> None:
    """Whose teachers did not have all the keys that there are now."""
    armada.done("distill", write(job, tmp_path), "--quiet")
    run = tmp_path / "run"
    weights = (run / "student" / "model.safetensors").read_bytes()
    (run / "metrics.json").unlink()
    begun = yaml.safe_load((run / "job.yaml").read_text())
    for teacher in begun["teachers"].values():
        assert teacher.pop("query_cache") is teacher.pop("query_teacher") is None
    (run / "job.yaml").write_text(yaml.safe_dump(begun))
    armada.done("distill", write(job | {"resume": True}, tmp_path), "--quiet")
    assert (run / "student" / "model.safetensors").read_bytes() == weights


def test_a_cut_run_goes_on_with_the_same_hints_only(
    armada: CommandLine, job: Job, hints: Path, write_parquet: Any, tmp_path: Path
) -> None:
    """The student's texts and labels are the same, and all hints are cached."""
    labels = class_labels(len(TEXTS))
    told = [f"{text} indeed" for text in TEXTS]
    one = write_parquet("one", {"text": TEXTS, "c": told, "label": labels})
    swapped = write_parquet("two", {"text": TEXTS, "c": [*told[1:], told[0]], "label": labels})
    asked = {"text_column": ["text", "c"], "teacher": "hash:5", "cache": hints}
    run = tmp_path / "run"
    armada.done("distill", write(job | {"train": str(one)}, tmp_path), "--quiet")
    (run / "metrics.json").unlink()
    library.precompute(corpus=str(swapped), **asked)
    again: Job = job | {"train": str(one), "resume": True}
    write_parquet("one", {"text": TEXTS, "c": [*told[1:], told[0]], "label": labels})
    result = armada("distill", write(again, tmp_path), "--quiet")
    assert result.code == 2
    assert "holds an unfinished run on other data: " in result.error
    assert "hint read_digest: was" in result.error


@pytest.fixture
def fused(job: Job, distill_bench: Any) -> Job:
    """The same logits twice, under another name shuffled."""
    made = {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}
    job["teachers"] = {"right": made, "mixed": made | {"control": "shuffled"}}
    job["objectives"] = [{"name": "multi_kd", "fusion": "confidence"}]
    return job


def test_teachers_are_fused_and_compared(
    armada: CommandLine, fused: Job, distill_bench: Any, tmp_path: Path
) -> None:
    armada.done("distill", write(fused, tmp_path), "--quiet")
    run = tmp_path / "run"
    for row in rows(run):
        both = row["weight_of_right"], row["weight_of_mixed"]
        assert sum(both) == pytest.approx(1, rel=1e-5)
    metrics = json.loads((run / "metrics.json").read_bytes())
    conflicts = metrics["teacher_conflicts"]
    cache = library.open_cache(distill_bench.cache, distill_bench.made_up)
    logits = cache["logits"].gather(cache.lookup(TEXTS))
    right = (logits.argmax(1) == class_labels(len(TEXTS))).mean()
    assert conflicts["accuracy"] == {"right": pytest.approx(right), "mixed": pytest.approx(right)}
    (pair,) = conflicts["pairs"]
    assert pair == {
        **{"teachers": ["right", "mixed"], "agreement": 1.0},
        **{"kl": 0.0, "reverse_kl": 0.0, "total_variation": 0.0},
    }
    page = tmp_path / "page.html"
    armada.done("report", run, "--out", page, "--set", "students=false")
    assert '<th scope="row">right / mixed</th><td>100.0%</td>' in page.read_text(encoding="utf-8")
    named = [fused["objectives"][0] | {"teachers": ["right", "mixed"], "weights": [1, 0]}]
    named[0]["fusion"] = "fixed"
    library.distill(**fused | {"objectives": named, "output": tmp_path / "named"})
    alone = {"teachers": {"right": fused["teachers"]["right"]}, "objectives": [{"name": "kd"}]}
    library.distill(**fused | alone | {"output": tmp_path / "alone"})
    assert losses(tmp_path / "named") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def test_a_gate_goes_on_where_it_was_cut(
    fused: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused["objectives"][0] |= {"fusion": "gate", "gate_hidden_size": 4}
    keys = fused | {"save_steps": 1}
    library.distill(**keys)
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(5))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys | {"output": tmp_path / "cut"})
    library.distill(**keys | {"output": tmp_path / "cut", "resume": True})
    assert losses(tmp_path / "cut") == losses(tmp_path / "run")
    heads = load_file(tmp_path / "run" / "student" / "heads.safetensors")
    assert heads["objective.gate.2.weight"].shape == (2, 4)


REFUSED: dict[str, tuple[Job, str]] = {
    "a teacher of nobody": (
        {"objectives": [{"name": "feature", "teacher": "clip"}]},
        "objective feature: teacher 'clip' is not in the job; choose one of made, hint",
    ),
    "which teacher": (
        {"objectives": [{"name": "feature"}]},
        "objective feature: names no teacher; choose one of made, hint",
    ),
    "a teacher that nobody reads": (
        {"objectives": [{"name": "feature", "teacher": "hint"}]},
        "teacher made: no objective reads it; leave it out",
    ),
    "a feature twice": (
        {"objectives": [{"name": "kd", "teacher": "made", "feature": "a", "features": ["b"]}]},
        "name feature or features, not both",
    ),
    "too many features": (
        {"objectives": [{"name": "kd", "teacher": "made", "features": ["a", "b"]}]},
        "objective kd: reads 1 features of a teacher, but 2 are named",
    ),
    "an option of another": (
        {"objectives": [{"name": "kd", "teacher": "made", "beta": 1}]},
        "job key 'beta': is not an option of objective kd; it has alpha, temperature",
    ),
    "no such option": (
        {"objectives": [{"name": "kd", "teacher": "made", "alhpa": 1}]},
        "job key 'alhpa' is unknown; did you mean 'alpha'?",
    ),
    "a weight below zero": (
        {"objectives": [{"name": "kd", "teacher": "made", "weight": -1}]},
        "objectives.0 key 'weight': -1: is not a number of 0 or more",
    ),
    "no name": ({"objectives": [{"teacher": "made"}]}, "objectives.0 key 'name' is missing"),
    "no objective": (
        {"objectives": []},
        "job key 'objectives': (): Tuple should have at least 1 item",
    ),
    "no cache": ({"teachers": {"made": {}}}, "teacher made key 'cache' is missing"),
    "two forms": ({"cache": "elsewhere"}, "set cache inside the teacher it belongs to"),
    "two forms of objectives": (
        {"objective": "kd"},
        "job key 'objective': is for a single objective; with several, set it for each",
    ),
    "an option beside": ({"alpha": 0.5}, "job key 'alpha': is for a single objective"),
    "a control of the whole": (
        {"teachers": {"made": {"cache": "c", "control": "undistilled"}}},
        "is for a whole job; to drop one teacher, leave out the objectives that read it",
    ),
    "no aligner": (
        {"control": "random-aligner"},
        "control random-aligner: objective 'kd' has no aligner; choose another",
    ),
    "language without labels": (
        {"task": "language", "label_column": None},
        "objective kd: needs labels, and job key 'label_column' is missing; without labels",
    ),
    "one of several": (
        {"objectives": [{"name": "multi_kd", "teachers": ["made"]}]},
        "objective multi_kd: reads several teachers, and there is one, made; name more in `teach",
    ),
    "several for one": (
        {"objectives": [{"name": "kd", "teachers": ["made", "hint"]}]},
        "objective kd: reads one teacher, but 2 are named; choose one, or multi_kd",
    ),
    "a teacher twice": (
        {"objectives": [{"name": "multi_kd", "teachers": ["made", "made"]}]},
        "objective multi_kd: one of its teachers is named twice",
    ),
    "teacher and teachers": (
        {"objectives": [{"name": "multi_kd", "teachers": ["made"], "teacher": "hint"}]},
        "objective multi_kd: name teacher or teachers, not both",
    ),
    "none of them": (
        {"objectives": [{"name": "multi_kd", "teachers": ["made", "clip"]}]},
        "objective multi_kd: teacher 'clip' is not in the job; choose one of made, hint",
    ),
    "weights of three": (
        {"objectives": [{"name": "multi_kd", "weights": [1, 1, 1]}]},
        "objective multi_kd: weights: 3 are given for 2 teachers; name one for each",
    ),
    "two features of each": (
        {"objectives": [{"name": "multi_kd", "features": ["a", "b"]}]},
        "objective multi_kd: reads one feature of each teacher, but 2 are named",
    ),
    "no logits": (
        {"objectives": [{"name": "multi_kd"}]},
        "feature 'logits': teacher",
    ),
    "reads no teacher": (
        {"objectives": [{"name": "undistilled", "teacher": "made"}]},
        "objective undistilled: reads no teacher; leave teacher and feature out",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(
    refused: Callable[..., str], job: Job, tmp_path: Path, changes: Job, message: str
) -> None:
    file = write(job | changes, tmp_path)
    assert message in refused("distill", file, "--quiet")


def test_a_key_inside_of_others_from_the_command_line(
    refused: Callable[..., str], job: Job, tmp_path: Path
) -> None:
    file = write(job, tmp_path)

    def said(setting: str) -> str:
        return refused("distill", file, "--quiet", "--set", setting)

    assert "weight': -2: is not a number of 0 or more" in said("objectives.1.weight=-2")
    assert "'3' is not one of the 3 items, counted from 0" in said("objectives.3.weight=1")
    assert "'alpha' does not exist" in said("kd.alpha=1")
    assert "teacher hint key 'controls' is unknown" in said("teachers.hint.controls=none")


def test_options_of_an_objective_are_listed(armada: CommandLine) -> None:
    plain = armada.done("distill", "--keys")
    assert "Options of the objective armada:" in plain
    kd = armada.done("distill", "--keys", "--objective", "kd").split("Options of the objective kd:")
    assert [line.split()[0] for line in kd[1].splitlines() if line] == ["alpha", "temperature"]


def test_an_option_that_was_once_shared_is_left_out_with_a_warning(
    armada: CommandLine, job: Job, distill_bench: Any, tmp_path: Path
) -> None:
    words = distill_bench.words(tmp_path / "run", "--set", "gamma=3", objective="feature")
    result = armada(*words)
    assert result.code == 0
    assert "job key 'gamma': is not an option of objective feature; it has beta" in result.err
    assert "gamma" not in yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())


def test_a_run_of_before_is_read_and_goes_on(
    armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    """Its job has all options that were shared once."""
    words = distill_bench.words(tmp_path / "run", objective="feature")
    armada.done(*words)
    file = tmp_path / "run" / "job.yaml"
    before = yaml.safe_load(file.read_text())
    for key in ("teachers", "objectives"):
        del before[key]
    before |= {"alpha": 0.5, "gamma": 1.0, "temperature": 5.0, "manifold": "cosine"}
    file.write_text(yaml.safe_dump(before | {"aligner_hidden_size": 768}))
    assert read_run(tmp_path / "run").job.options["beta"] == 1
    (tmp_path / "run" / "metrics.json").unlink()
    armada.done(*words, "--resume")
