"""Measures beside the metric in tables, documents and pages; where teacher hacking begins; and
conflicts of teachers."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import armada as library
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import JobError
from armada.cache_schemas.features import FeatureSpec
from armada.pipeline.ablation.ablate import plan
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.findings.findings import Study, find
from armada.pipeline.findings.runs import find_runs
from armada.pipeline.findings.significance import holm, welch
from armada.pipeline.findings.table import show_findings
from armada.pipeline.reports.job import ReportJob
from armada.pipeline.reports.report import run_report
from rich.console import Console
from small_caches import make_manifest, write_cache
from tiny_runs import TEXTS, VALIDATION_TEXTS, class_labels

pytestmark = pytest.mark.long

FEATURES = (FeatureSpec(name="logits", shape=(3,), dtype="float32"),)
Keys = dict[str, Any]
Figures = Mapping[str, float]


@pytest.fixture(scope="module")
def keys(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A job whose teacher's cache holds the validation texts."""
    folder = tmp_path_factory.mktemp("measured")
    for name, texts in (("train", TEXTS), ("validation", VALIDATION_TEXTS)):
        columns = {"text": texts, "label": class_labels(len(texts))}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    write_cache(folder / "cache", make_manifest(FEATURES), [[*TEXTS, *VALIDATION_TEXTS]])
    return {
        "train": str(folder / "train.parquet"),
        "validation": str(folder / "validation.parquet"),
        "text_column": "text",
        "label_column": "label",
        "cache": str(folder / "cache"),
        "objective": "kd",
        "student": str(checkpoint("bert")),
        "output": str(folder / "run"),
        "epochs": 2,
        "device": "cpu",
        "report_to": "none",
    }


@pytest.fixture(scope="module")
def made(keys: Keys) -> Path:
    """A real run."""
    library.distill(**keys, quiet=True)
    return Path(keys["output"])


def with_figures(
    made: Path, folder: Path, seed: int, rows: Sequence[Figures], **changes: Any
) -> Path:
    """The folder of the real run, as one of another seed with other figures by epoch, of which the
    last are those that are kept."""
    copy = folder / f"{changes.get('control', 'none')}-{seed}"
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns("student"))
    job = (copy / "job.yaml").read_text()
    for key, value in changes.items():
        job = re.sub(rf"(?m)^{key}:.*$", f"{key}: {value}", job)
    (copy / "job.yaml").write_text(job)
    metrics = json.loads((copy / "metrics.json").read_text())
    epochs = [{"epoch": number, "step": number, **row} for number, row in enumerate(rows, 1)]
    metrics |= {"seed": seed, "epochs": epochs, "validation": dict(rows[-1])}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    return copy


def row(accuracy: float, loss: float, kl: float) -> Figures:
    return {
        "accuracy": accuracy,
        "loss": loss,
        "teacher_kl": kl,
        "agreement": 1 - kl,
        "ece": kl / 4,
    }


PLAIN = ([row(0.5, 0.9, 0.6), row(0.5, 0.8, 0.5)], [row(0.4, 0.9, 0.6), row(0.4, 0.8, 0.4)])
TAUGHT = (
    [row(0.6, 0.7, 0.4), row(0.7, 0.6, 0.3), row(0.6, 0.8, 0.2)],
    [row(0.6, 0.7, 0.4), row(0.7, 0.6, 0.3), row(0.6, 0.7, 0.1)],
)


@pytest.fixture(scope="module")
def runs(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled student, which hacks its teacher after the second epoch, and one without any."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        with_figures(made, folder, seed, PLAIN[seed], control="undistilled")
        with_figures(made, folder, seed, TAUGHT[seed])
    return folder


def study_of(folder: Path, **choice: Any) -> Study:
    (study,) = find(find_runs([folder]).runs, **choice).studies
    return study


def test_a_real_run_has_its_measures(made: Path) -> None:
    study = study_of(made)
    assert study.measures == ("ece", "agreement", "teacher_kl")
    figures = json.loads((made / "metrics.json").read_text())["validation"]
    (line,) = find(find_runs([made]).runs).document()["studies"][0]["conditions"]
    assert line["measures"]["teacher_kl"] == {
        "value": {"mean": figures["teacher_kl"], "std": 0.0, "runs": [figures["teacher_kl"]]},
        "improvement": None,
        "p": None,
    }
    assert line["hacking"]["teacher_kl"]["truth"] == "loss"


def test_measures_have_the_statistics_of_the_metric(runs: Path) -> None:
    study = study_of(runs)
    assert set(study.measures) == {"ece", "agreement", "teacher_kl"}
    plain, taught = study.rows
    found = taught.measures["teacher_kl"]
    assert found.value is not None
    assert (found.value["mean"], found.value["runs"]) == (pytest.approx(0.15), [0.2, 0.1])
    # An error: the smaller, the better.
    assert found.improvement == pytest.approx({0: 0.3, 1: 0.3})
    assert taught.measures["agreement"].improvement == pytest.approx({0: 0.3, 1: 0.3})
    assert (found.p,) == tuple(holm([welch([0.2, 0.1], [0.5, 0.4])]))
    assert (plain.measures["teacher_kl"].improvement, plain.measures["teacher_kl"].p) == ({}, None)


def test_measures_are_chosen_or_those_that_all_have(made: Path, runs: Path, tmp_path: Path) -> None:
    assert study_of(runs, measures=["loss", "ece", "accuracy"]).measures == ("loss", "ece")
    copy = shutil.copytree(runs, tmp_path / "runs")
    with_figures(made, copy, 2, [{"accuracy": 0.5, "loss": 1.0, "teacher_kl": 1.0}])
    study = study_of(copy)
    assert study.measures == ("teacher_kl",)
    assert study_of(copy, measures=["agreement"]).measures == ("agreement",)
    taught = study_of(copy, measures=["agreement"]).rows[1].measures["agreement"]
    assert taught.value is not None
    assert len(taught.value["runs"]) == 2, "one run has none"


def test_only_measures_by_the_same_teacher_are_compared(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs, tmp_path / "runs")
    for folder in copy.glob("undistilled-*"):
        made = json.loads((folder / "run.json").read_text())
        made["measured"]["teacher"]["teacher_fingerprint"] = "b" * 32
        (folder / "run.json").write_text(json.dumps(made))
    taught = study_of(copy).rows[1]
    assert taught.measures["teacher_kl"].improvement == {}
    assert taught.measures["ece"].improvement == pytest.approx({0: 0.075, 1: 0.075})
    for folder in copy.glob("*"):
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"metric": "teacher_kl"}))
    assert len(find(find_runs([copy]).runs).studies) == 2, "by another teacher, another metric"


def test_teacher_hacking_by_seed_and_by_the_mean(runs: Path) -> None:
    plain, taught = find(find_runs([runs]).runs).document()["studies"][0]["conditions"]
    assert taught["hacking"] == {
        "teacher_kl": {"truth": "loss", "begins": 2.0, "seeds": {"0": 2.0, "1": 2.0}}
    }
    # Without a teacher, nothing of one is learned.
    assert plain["hacking"]["teacher_kl"] == {
        "truth": "loss",
        "begins": None,
        "seeds": {"0": None, "1": None},
    }


@pytest.mark.parametrize("width", [160, 50], ids=["tables", "lines"])
def test_on_a_terminal(runs: Path, width: int) -> None:
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        show_findings(find(find_runs([runs]).runs), console)
    printed = " ".join(captured.get().split())
    p = study_of(runs).rows[1].measures["teacher_kl"].p
    assert f"0.150 ± 0.071 (+0.300, p {p:.3f})" in printed
    assert "distilled after epoch 2 (2 of 2 runs)." in printed


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    out = runs.parent / f"{runs.name}-page" / "report.html"
    run_report(ReportJob(runs=(runs,), out=out, students=False), quiet=True)
    return out


def test_the_page_shows_measures_and_where_hacking_begins(page: Path, runs: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = {file.stem for file in page.with_name("report-pictures").glob("*.png")}
    assert {"distances-teacher_kl", "epochs-agreement", "epochs-ece"} <= files
    assert "epochs-teacher_kl" not in files
    (alternative,) = re.findall(r'alt="distances-teacher_kl: ([^"]*)"', text)
    assert "Above: distance to the teacher (teacher_kl: KL to the teacher in nats)" in alternative
    told = "Teacher hacking by teacher_kl: from some epoch to the last, students come nearer to the"
    assert told in alternative
    assert f"<strong>{told}" in text
    assert '<th scope="col">teacher_kl</th>' in text
    cells = re.findall(r"<td>(\d\.\d{3} ± \d\.\d{3})<br><span[^>]*>([^<]*)</span>", text)
    p = study_of(runs).rows[1].measures["teacher_kl"].p
    assert ("0.150 ± 0.071", f"+0.300, p {p:.3f}") in cells
    by_epoch = re.findall(r"<h4>teacher_kl</h4>.*?</table>", text, re.DOTALL)[0]
    rows = re.findall(r"<th scope=\"row\">(\d)</th><td>(.*?)</td><td>(.*?)</td>", by_epoch)
    assert rows == [("1", "0.600", "0.400"), ("2", "0.450", "0.300"), ("3", "-", "0.150")]
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360], ids=["desk", "telephone"])
def test_the_page_in_a_browser(browser: Any, page: Path, width: int, scheme: str) -> None:
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.goto(page.as_uri())
    assert said == []
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    picture = view.locator("img[alt^='distances-teacher_kl: ']")
    size, paper = picture.evaluate(
        "i => [[i.naturalWidth, i.width], getComputedStyle(i).backgroundColor]"
    )
    assert size[0] > 500
    assert 200 < size[1] <= width
    # Text of figures is dark: on a dark page they have paper of their own.
    assert paper == {"light": "rgba(0, 0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    beside = view.locator("table", has_text="teacher_kl").first
    assert beside.locator("thead th").all_inner_texts()[0] == "student"
    assert beside.locator("tbody th").all_inner_texts() == ["undistilled", "distilled"]
    view.get_by_text("These figures by epoch, as numbers").click()
    assert view.get_by_role("heading", name="teacher_kl", exact=True).is_visible()
    view.close()


def test_without_labels_there_is_no_truth(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs, tmp_path / "runs")
    for job in copy.glob("*/job.yaml"):
        job.write_text(re.sub(r"(?m)^label_column:.*$", "label_column: null", job.read_text()))
    lines = find(find_runs([copy]).runs).document()["studies"][0]["conditions"]
    assert [line["hacking"] for line in lines] == [{}, {}]


def test_conflicts_of_strangers(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs, tmp_path / "runs")
    names = ["<script>alert(1)</script>", "llm"]
    pair = {"agreement": 0.25, "kl": float("inf"), "reverse_kl": 1.5, "total_variation": 0.5}
    conflicts = {"rows": 7, "accuracy": {"llm": None}, "pairs": [{"teachers": names, **pair}]}
    for folder in copy.glob("none-*"):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["validation"]["../../x.agreement"] = 1.0
        (folder / "metrics.json").write_text(json.dumps(metrics | {"teacher_conflicts": conflicts}))
    (study,) = find(find_runs([copy]).runs).document()["studies"]
    (found,) = study["teacher_conflicts"]
    assert (found["conditions"], found["rows"]) == (["distilled"], 7)
    assert "../../x.agreement" not in study["conditions"][1]["measures"]
    out = tmp_path / "page" / "report.html"
    run_report(ReportJob(runs=(copy,), out=out, students=False), quiet=True)
    text = out.read_text(encoding="utf-8")
    assert "<script" not in text
    cells = re.findall(r'<th scope="row">[^<]*script[^<]* / llm</th>(.*?)</tr>', text)[0]
    assert re.findall("<td>(.*?)</td>", cells) == ["25.0%", "inf", "1.500", "0.500", "- / -"]
    assert "Of distilled: conflicts between teachers on 7 training texts." in text
    broken = next(copy.glob("none-*")) / "metrics.json"
    wrong = json.loads(broken.read_text()) | {"teacher_conflicts": {"rows": -1}}
    broken.write_text(json.dumps(wrong))
    (line,) = find_runs([copy]).unreadable
    assert "teacher_conflicts" in line


@pytest.mark.parametrize("named", ["agreemnt", "made.agreement", "teacher_rmse"])
def test_measures_that_no_run_has_are_refused(
    keys: Keys, runs: Path, tmp_path: Path, named: str
) -> None:
    line = f"job key 'measures': '{named}' is no figure of these runs; they have accuracy, "
    with pytest.raises(JobError, match=line) as before:
        plan(make_ablation(keys | {"grid": {"alpha": [0, 1]}, "measures": named}))
    assert "agreement, teacher_kl, teacher_accuracy, teacher_ece" in str(before.value)
    out = tmp_path / "page.html"
    with pytest.raises(JobError, match=line):
        run_report(ReportJob(runs=(runs,), out=out, measures=(named,)), quiet=True)
    assert not out.exists()
    known = make_ablation(keys | {"grid": {"alpha": [0, 1]}, "measures": ["loss", "teacher_kl"]})
    assert len(plan(known)) == 2
