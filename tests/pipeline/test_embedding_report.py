"""Reports and ablations of students that embed: what they are compared with, and what a student
costs."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada.cache_schemas.errors import JobError
from armada.pipeline.ablation.ablate import plan
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.distill import run_distill
from armada.pipeline.findings.conditions import Condition
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import find_runs
from armada.pipeline.findings.significance import holm, welch
from armada.pipeline.reports.job import ReportJob
from armada.pipeline.reports.report import run_report
from armada.pipeline.reports.tradeoff import Cost, Costs
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from tiny_checkpoints import make_bert
from tiny_embeddings import encode
from tiny_runs import freeze_dropout, sentences

Keys = dict[str, Any]
WIDTH = 12
TASK = {"task": "embedding", "device": "cpu", "report_to": "none", "batch_size": 8, "epochs": 2}
CELLS = ("deep", "shallow", "static", "contrastive")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs to train on and scored pairs to validate by, all embedded by a fake teacher."""
    folder = tmp_path_factory.mktemp("embedding-report")
    every: list[str] = []
    for name, rows, start in (("train", 24, 0), ("validation", 12, 60)):
        one, other = sentences(start, start + rows), sentences(start + 200, start + 200 + rows)
        score = np.random.default_rng(rows).random(rows)
        kind = ["odd" if row % 2 else None for row in range(rows)]
        columns = {"one": one, "other": other, "score": score, "kind": kind}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        every += [*one, *other]
    pq.write_table(pa.table({"text": every}), folder / "texts.parquet")
    library.precompute(
        corpus=folder / "texts.parquet",
        text_column="text",
        teacher=f"hash:{WIDTH}",
        cache=folder / "cache",
        quiet=True,
    )
    freeze_dropout(make_bert(folder / "student", every))
    return folder


def ablation(root: Path, **more: Any) -> Keys:
    student = str(root / "student")
    return {
        **{"train": str(root / "train.parquet"), "validation": str(root / "validation.parquet")},
        **{"text_column": ["one", "other"], "validation_label_column": "score", **TASK},
        **{"output": str(root / "runs"), "seed": [0, 1], "learning_rate": 2e-3},
        "grid": [
            {"name": "deep", "student": student, "cache": str(root / "cache")},
            {"name": "shallow", "student": student, "cache": str(root / "cache")}
            | {"student_layers": 1},
            {"name": "static", "student": f"static:{student}", "cache": str(root / "cache")}
            | {"static_dim": 8},
            {"name": "contrastive", "student": student, "objective": "contrastive"}
            | {"embedding_dim": WIDTH, "normalize_embeddings": False},
        ],
        **more,
    }


@pytest.fixture(scope="module")
def runs(root: Path) -> Path:
    """All runs of the ablation."""
    for run in make_ablation(ablation(root)).runs:
        run_distill(run.job, quiet=True)
    return root / "runs"


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    out = runs.parent / "page" / "report.html"
    run_report(ReportJob(runs=(runs,), out=out), quiet=True)
    return out


def test_pictures_of_students_that_embed(page: Path) -> None:
    files = {file.stem: file for file in (page.parent / "report-pictures").glob("*.png")}
    assert files.keys() == {
        *("comparison", "quality-size-speed", "epochs", "losses", "manifold-teacher"),
        *("manifold-student", "manifold-student-2", "manifold-student-3"),
    }
    assert len({file.read_bytes() for file in files.values()}) == len(files)


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light")])
def test_the_page_in_a_browser(browser: Any, page: Path, width: int, scheme: str) -> None:
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    view.goto(page.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert "Quality, size and speed" in view.inner_text("section >> nth=0")
    assert all(shown <= width for shown in view.evaluate("[...document.images].map(i => i.width)"))
    view.close()


def cells(page: Path, heading: str) -> dict[str, list[str]]:
    """The rows of the table behind some words of a page, by the student's name."""
    text = page.read_text(encoding="utf-8").partition(heading)[2]
    table = text[: text.index("</table>")]
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in table.split("<tr>")[2:]]
    return {row[0]: row[1:] for row in rows}


def test_what_students_are_compared_with(page: Path, runs: Path) -> None:
    """Improvements and p are over the most usual student, by a second route."""

    def values(name: str) -> list[float]:
        files = [runs / name / f"seed-{seed}" / "metrics.json" for seed in (0, 1)]
        return [json.loads(file.read_text())["validation"]["spearman"] for file in files]

    ps = holm([None, *(welch(values(name), values("deep")) for name in CELLS[1:])])
    shown = cells(page, "<h2>")
    assert shown.keys() == {*CELLS}
    for name, p in zip(CELLS, ps, strict=True):
        gain = np.mean(values(name)) - np.mean(values("deep"))
        expected = ["-", "-"] if name == "deep" else [f"{gain:+.3f}", f"{p:.3f}"]
        assert shown[name][:3] == [figure(values(name)), *expected]
    assert "Improvement: over “deep”" in page.read_text(encoding="utf-8")


def figure(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def test_neighbours_and_the_teacher_by_a_second_route(page: Path, runs: Path, root: Path) -> None:
    """Embeddings of sentence-transformers, vectors of the cache."""
    texts = pq.read_table(root / "train.parquet")["one"].to_pylist()
    cache = open_cache(root / "cache")

    def vectors(wanted: list[str]) -> Any:
        return cache["embedding"][cache.lookup(wanted)]

    def nearest(points: Any) -> list[set[int]]:
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        cosines = unit @ unit.T - 3 * np.eye(len(unit))
        return [{*row} for row in np.argsort(-cosines, axis=1)[:, :10].tolist()]

    shown = cells(page, "<h2>")
    for name in ("deep", "static"):
        student = encode(runs / name / "seed-0" / "student", texts)
        pairs = zip(nearest(student), nearest(vectors(texts)), strict=True)
        overlap = np.mean([len(ours & theirs) / 10 for ours, theirs in pairs])
        assert shown[name][-1] == f"{overlap:.1%}"
    held_out = pq.read_table(root / "validation.parquet").to_pydict()
    one, other = (vectors(held_out[name]) for name in ("one", "other"))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    expected = spearmanr(cosines, held_out["score"]).statistic
    assert cells(page, "Quality, size and speed")["the teacher's own"][0] == f"{expected:.3f}"


def test_sizes_are_those_of_the_weights(page: Path, runs: Path) -> None:
    shown = cells(page, "Quality, size and speed")
    for name in CELLS:
        model = SentenceTransformer(str(runs / name / "seed-0" / "student"), device="cpu")
        weights = [*model.parameters(), *model.buffers()]
        theirs = sum(each.numel() * each.element_size() for each in weights)
        number, unit = shown[name][1].split()
        assert float(number) * {"B": 1, "KiB": 1024}[unit] == pytest.approx(theirs, rel=0.05)
        assert float(shown[name][2].replace(",", "")) > 0
    assert shown["deep"][2] == shown["contrastive"][2], "students of one form are measured once"


def test_no_student_of_a_front_is_beaten(runs: Path) -> None:
    """Four made-up students of real conditions, of which one is as large as another and worse, and
    one larger, slower and worse."""
    (study,) = find(find_runs([runs]).runs).studies
    first = study.conditions[0].first

    def student(name: str, value: float, weights_bytes: int, rate: float) -> Cost:
        told = {first.metric: value}
        run = replace(first, metrics=first.metrics.model_copy(update={"validation": told}))
        return Cost(Condition(name, (run,)), weights_bytes, rate)

    big, twin = student("big", 0.9, 100, 10.0), student("twin", 0.8, 100, 30.0)
    small, slow = student("small", 0.5, 10, 20.0), student("slow", 0.4, 20, 5.0)
    costs = Costs((slow, twin, small, big), 3, "here", None)
    assert [each.condition.name for each in costs.smallest] == ["small", "big"]
    assert [each.condition.name for each in costs.fastest] == ["twin", "big"]
    assert [costs.fronts(each) for each in costs.students] == ["", "speed", "size", "size, speed"]


def test_texts_are_coloured_by_a_column(armada: CommandLine, runs: Path, tmp_path: Path) -> None:
    """Blank cells too. Without a teacher of texts there is no map of one, and no agreement."""
    out = tmp_path / "page.html"
    words = ["report", runs / "contrastive", "--out", out, "--quiet"]
    armada.done(*words, "--colour-by", "kind")
    text = out.read_text(encoding="utf-8")
    assert "coloured by kind" in text
    assert "manifold-teacher" not in text
    assert "manifold-student" in text
    assert cells(out, "<h2>")["contrastive"][-1] == "-"
    wrong = armada(*words, "--colour-by", "shade")
    assert (wrong.code, wrong.error.startswith("colour_by 'shade': ")) == (2, True)
    # A single student is no picture of what costs what, and is in its table.
    assert "quality-size-speed" not in text
    assert cells(out, "Quality, size and speed").keys() == {"contrastive"}


def test_two_towers_are_one_student(root: Path, tmp_path: Path) -> None:
    """Both have weights; that of queries is drawn."""
    keys = ablation(root, output=str(tmp_path / "run"), seed=0, epochs=1)
    keys |= {
        "student": str(root / "student"),
        "objective": "contrastive",
        "passage_student_layers": 1,
    }
    del keys["grid"]
    library.distill(**keys, passage_tower="own", quiet=True)
    out = tmp_path / "page.html"
    run_report(ReportJob(runs=(tmp_path / "run",), out=out), quiet=True)
    (row,) = cells(out, "Quality, size and speed").values()
    towers = [tmp_path / "run" / "student" / name for name in ("query", "document")]
    theirs = sum((tower / "model.safetensors").stat().st_size for tower in towers)
    assert 1024 * float(row[1].removesuffix(" KiB")) == pytest.approx(theirs, rel=0.1)
    assert "manifold-student" in out.read_text(encoding="utf-8")


def test_a_cache_that_is_gone_costs_pictures_only(
    armada: CommandLine, runs: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs / "deep" / "seed-0", copy)
    job = yaml.safe_load((copy / "job.yaml").read_text())
    (copy / "job.yaml").write_text(yaml.safe_dump(job | {"cache": str(tmp_path / "gone")}))
    told = armada("report", copy, "--out", tmp_path / "page.html")
    assert told.code == 0
    assert "warning: Students were not plotted: " in told.err
    assert "Quality, size and speed" not in (tmp_path / "page.html").read_text(encoding="utf-8")


# --- ablations


def test_an_ablation_of_widths_layers_and_objectives(
    armada: CommandLine, root: Path, forked_workers: None, tmp_path: Path
) -> None:
    """Its table has the reference, and measures beside the metric."""
    student, cache = str(root / "student"), str(root / "cache")
    both = [{"name": "feature", "distance": "cosine"}, {"name": "contrastive"}]
    keys = ablation(root, output=str(tmp_path / "out"), seed=0, epochs=1, workers=2)
    keys |= {"cache": cache, "student": student, "measures": ["teacher_cka", "pearson"]}
    keys["grid"] = [
        {"student_layers": [2, 1]},
        {"matryoshka_dims": [[8, 4]]},
        {"name": "sum", "objectives": [both]},
        {"control": "shuffled"},
    ]
    file = tmp_path / "ablation.yaml"
    file.write_text(yaml.safe_dump(keys))
    planned = json.loads(armada.done("ablate", file, "--dry-run", "--json"))
    names = ["student_layers=2", "student_layers=1", "matryoshka_dims=[8, 4]", "sum"]
    names.append("shuffled")
    assert [(cell["name"], cell["steps"]) for cell in planned] == [(name, 3) for name in names]
    printed = armada.done("ablate", file, "--quiet")
    (study,) = json.loads((tmp_path / "out" / "ablation.json").read_text())["studies"]
    assert study["metric"] == "spearman"
    assert f"improvement: over {study['reference']}, on the seeds that both have" in printed
    for row in study["conditions"]:
        folder = re.sub(r"[^\w.=+-]+", "-", row["name"]).strip("-")
        made = json.loads((tmp_path / "out" / folder / "seed-0" / "metrics.json").read_text())
        assert row["value"]["runs"] == [made["validation"]["spearman"]]
        assert row["undistilled"] is None
        assert (row["improvement"] is None) == (row["name"] == study["reference"])
        for measure in ("teacher_cka", "pearson"):
            found = row["measures"][measure]["value"]
            assert found["runs"] == [made["validation"][measure]]


def test_cells_are_refused_before_a_run_starts(root: Path) -> None:
    """Each cell's own widths and options are checked, not only those of the first."""
    keys = ablation(root) | {"student": str(root / "student"), "cache": str(root / "cache")}
    for grid, message in (
        ({"matryoshka_dims": [[8], [64]]}, "grid, matryoshka_dims=[64]: matryoshka_dims 64: "),
        ({"control": ["none", "undistilled"]}, "grid, undistilled: undistilled: a student that"),
        ({"control": ["none", "random-aligner"]}, "grid, random-aligner: "),
        ({"objective": "infonce", "negatives": [4, 400]}, "grid, objective=infonce, negatives=400"),
        ({"student_layers": [1, 9]}, "student_layers 9: the checkpoint has 2 layers"),
        ({"embedding_dim": [12, 5]}, "grid, embedding_dim=5: objective feature: embeddings of 5"),
        (
            {"validation_label_column": ["score", "one"]},
            "is set beside the grid",
        ),
    ):
        with pytest.raises(JobError, match=re.escape(message)):
            plan(make_ablation(keys | {"grid": grid}))
