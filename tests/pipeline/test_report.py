"""`armada report`: what the page says, by a real browser; which folders and files are refused."""

import json
import re
import shutil
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from armada.pipeline.ablation.job import make_ablation
from armada.pipeline.distill import run_distill
from armada.pipeline.findings.findings import find
from armada.pipeline.findings.runs import find_runs
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.pipeline.reports.job import ReportJob
from armada.pipeline.reports.report import run_report
from armada.stages.distill.aligner import TSAligner
from armada.stages.distill.export import load_saved_student
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from PIL import Image
from safetensors.torch import load_file
from tiny_diffusion import make_stable_diffusion
from tiny_runs import TEXTS

pytestmark = pytest.mark.long

PICTURES = {
    "comparison",
    "epochs",
    "epochs-ece",
    "alpha",
    "beta",
    "losses",
    "manifold-teacher",
    "manifold-student",
    "manifold-undistilled",
    "calibration",
    "quality-size-speed",
}
NASTY = "<script>alert(1)</script> & $x_1$ \x1b[31m"


@pytest.fixture(scope="module")
def runs(distill_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an ablation: two kinds of control, four weights, two seeds."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    keys = {
        "train": str(distill_bench.train),
        "validation": str(distill_bench.validation),
        "text_column": "text",
        "label_column": "name",
        "cache": str(distill_bench.cache),
        "teacher": distill_bench.hash,
        "student": str(distill_bench.student),
        "output": str(folder),
        "epochs": 2,
        "batch_size": 16,
        "aligner_hidden_size": 8,
        "learning_rate": 1e-3,
        "seed": [0, 1],
        "grid": [
            {"control": ["undistilled", "none"]},
            {"name": NASTY, "control": "shuffled"},
            {"alpha": [0.0, 0.9], "beta": [0.0, 2.0]},
        ],
    }
    for run in make_ablation(keys).runs:
        run_distill(run.job, quiet=True)
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Path:
    """The report about them."""
    out = runs.parent / "page" / "report.html"
    files = run_report(ReportJob(runs=(runs,), out=out), quiet=True)
    assert files[0] == out
    assert all(file.is_file() for file in files)
    return out


# --- in a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360], ids=["desk", "telephone"])
def test_the_page_in_a_browser(browser: Any, page: Path, width: int, scheme: str):
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(page.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
    pictures = view.evaluate("[...document.images].map(i => [i.naturalWidth, i.alt, i.width])")
    assert len(pictures) == len(PICTURES)
    assert all(natural > 500 and alt for natural, alt, _ in pictures)
    assert all(shown <= width for _, _, shown in pictures)
    # Wide tables scroll in themselves; the page does not.
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert "alert(1)" in view.inner_text("table >> nth=0")
    assert view.evaluate("document.scripts.length") == 0
    ink, paper = (
        view.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)[0]")
        for name in ("color", "backgroundColor")
    )
    assert (ink < 64 and paper > 192) if scheme == "light" else (ink > 192 and paper < 64)
    view.close()


def test_the_table_says_what_the_runs_found(browser: Any, page: Path, runs: Path):
    view = browser.new_page()
    view.goto(page.as_uri())
    rows = view.evaluate("[...document.querySelectorAll('table')[0].rows].map(r => r.innerText)")
    (study,) = find(find_runs([runs]).runs).document()["studies"]
    assert len(rows) == 1 + len(study["conditions"])
    for text, condition in zip(rows[1:], study["conditions"], strict=True):
        value = condition["value"]
        cells = [cell.strip() for cell in text.split("\t")]
        assert cells[1] == f"{value['mean']:.3f} ± {value['std']:.3f}"
        gain = condition["improvement"]
        assert cells[2] == (f"{gain['mean']:+.3f}" if gain else "-")
        assert cells[4] == "2"
        assert re.fullmatch(r"[\d.]+%", cells[5]), "agreement"
    beside = view.evaluate("[...document.querySelectorAll('table')[1].rows].map(r => r.innerText)")
    assert beside[0].split() == ["student", "ece"]
    assert all(re.search(r"0\.\d{3} ± 0\.\d{3}", text) for text in beside[1:])
    view.close()


# --- without one


def test_pictures_are_files_too(page: Path):
    files = {file.stem: file for file in (page.parent / "report-pictures").glob("*.png")}
    assert files.keys() == PICTURES
    for file in files.values():
        with Image.open(file) as image:
            assert image.width > 500
            assert len(image.getcolors(maxcolors=2**24) or []) > 10, "nothing is drawn"


def test_the_page_stands_alone(page: Path):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<script" not in text
    assert "\x1b" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text


def test_students_without_validation(armada: CommandLine, distill_bench: Any, tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "report.html"
    armada.done(*distill_bench.words(run, "--set", "epochs=1", validation=None))
    armada.done("report", run, "--out", out, "--quiet")
    page = out.read_text(encoding="utf-8")
    assert "These students were trained without a validation set" in page
    assert ">ece</th>" not in page
    assert ">improvement</th>" not in page  # nothing to measure one by


def test_agreement_by_a_second_route(page: Path, runs: Path):
    """The undistilled student and the aligner of the distilled one, loaded by hand."""
    job = yaml.safe_load((runs / "distilled" / "seed-0" / "job.yaml").read_text())
    cache = open_cache(job["cache"], teacher=job["teacher"])
    features = torch.from_numpy(cache["embedding"][cache.lookup(TEXTS)])
    aligner = TSAligner(features.shape[1], 8, 3, False, 0.1).eval()
    weights = runs / "distilled" / "seed-0" / "aligner" / "aligner.safetensors"
    aligner.load_state_dict(load_file(weights))
    student, tokenizer, _ = load_saved_student(runs / "undistilled" / "seed-0")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        same = student(**dict(batch))[1].argmax(1) == aligner(features)[0].argmax(1)
    rows = re.findall(r"<tr>.*?</tr>", page.read_text(), re.DOTALL)
    (row,) = (row for row in rows if "<td>undistilled</td>" in row and "±" in row)
    assert re.findall(r"<td>([\d.]+)%</td>", row) == [f"{100 * same.float().mean().item():.1f}"]


def test_from_the_command_line(armada: CommandLine, runs: Path, tmp_path: Path):
    out = tmp_path / "new" / "page.html"
    one = runs / "distilled"
    words = ["report", one, "--out", out, "--title", "One & only", "--set", "manifold=tsne"]
    assert armada.done(*words) == f"written to {out}\n"
    text = out.read_text()
    assert "<title>One &amp; only</title>" in text
    assert "2 runs" in text
    # A report may be made again; anything else stays.
    files = json.loads(armada.done(*words, "--json"))
    assert files[0] == str(out)
    out.write_text("mine")
    refused = armada(*words)
    assert refused.error == f"out {out}: was not written by armada; name another file, or --force"
    assert out.read_text() == "mine"
    armada.done(*words, "--force")
    assert "One &amp; only" in out.read_text()


def test_colours_by_another_column(armada: CommandLine, runs: Path, tmp_path: Path):
    out = tmp_path / "page.html"
    armada.done("report", runs / "distilled", "--out", out, "--colour-by", "label")
    assert "coloured by label" in out.read_text()
    result = armada("report", runs / "distilled", "--out", out, "--colour-by", "shade")
    assert result.code == 2
    assert result.error.startswith("colour_by 'shade': ")
    assert "coloured by label" in out.read_text(), "the page that was there stays"


def test_a_corpus_that_moved_costs_pictures_only(armada: CommandLine, runs: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(runs / "distilled" / "seed-0", copy)
    job = yaml.safe_load((copy / "job.yaml").read_text())
    (copy / "job.yaml").write_text(yaml.safe_dump(job | {"train": ["gone.parquet"]}))
    result = armada("report", copy, "--out", tmp_path / "page.html")
    assert result.code == 0
    assert "warning: Students were not plotted: corpus gone.parquet" in result.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Students were not plotted: corpus gone.parquet" in page
    assert ">agrees with teacher</th>" not in page


def test_the_images_that_a_teacher_made(armada: CommandLine, distill_bench: Any, tmp_path: Path):
    cache = open_cache(_imagined(distill_bench, tmp_path))
    settings = ["--set", "epochs=1", "--set", "limit=6"]
    changes = {"cache": cache.path, "teacher": None, "validation": None}
    armada.done(*distill_bench.words(tmp_path / "run", *settings, **changes))
    armada.done("report", tmp_path / "run", "--out", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    (gallery,) = re.findall(r"What the teacher imagined.*?</section>", text, re.DOTALL)
    shown = re.findall(r"base64,([^\"]+)\" alt=\"([^\"]+)\"", gallery)
    assert [caption for _, caption in shown] == TEXTS[:6]
    rows, table = cache.first_rows("images", {"png": pa.binary()}, 6)
    kept = {cache.keys[row].tobytes(): table["png"][i].as_py() for i, row in enumerate(rows)}
    for data, caption in shown:
        png = kept[cache.keys[cache.lookup(caption)[0]].tobytes()]
        ours, theirs = (Image.open(BytesIO(each)) for each in (b64decode(data), png))
        assert ours.tobytes() == theirs.convert("RGB").tobytes()


def _imagined(distill_bench: Any, folder: Path) -> Path:
    """A cache of a tiny pipeline that kept its pictures of the first six texts."""
    keys = {
        "corpus": str(distill_bench.train),
        "text_column": "text",
        "limit": 6,
        "teacher": f"diffusers:{make_stable_diffusion(folder / 'sd')}",
        "cache": str(folder / "cache"),
        "keep_images": True,
        "source": "txt2img",
        "steps": 1,
        "height": 32,
        "width": 32,
    }
    run_precompute(make_precompute_job(keys), quiet=True)
    return folder / "cache"


# --- refusals


def test_folders_that_hold_no_finished_run(armada: CommandLine, runs: Path, tmp_path: Path):
    out = ["--out", tmp_path / "page.html"]
    nothing = armada("report", tmp_path / "nowhere", *out)
    assert nothing.error.startswith(f"run {tmp_path / 'nowhere'}: does not exist; name a folder")
    (tmp_path / "foreign").mkdir()
    foreign = armada("report", tmp_path / "foreign", *out)
    assert "holds no run; name a folder that `distill` or `ablate` wrote" in foreign.error
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs / "distilled" / "seed-0", unfinished)
    (unfinished / "metrics.json").unlink()
    assert "is not finished; continue it with" in armada("report", unfinished, *out).error
    (unfinished / "metrics.json").write_text("{")
    assert "cannot be read: " in armada("report", unfinished, *out).error
    assert not (tmp_path / "page.html").exists()


def test_unfinished_runs_are_counted(armada: CommandLine, runs: Path, tmp_path: Path):
    shutil.copytree(runs / "distilled", tmp_path / "runs")
    (tmp_path / "runs" / "seed-1" / "metrics.json").unlink()
    result = armada("report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert result.code == 0
    assert result.err.startswith("warning: 1 run not finished and left out, first ")
    assert "1 run not finished" in (tmp_path / "page.html").read_text()
    (tmp_path / "runs" / "plan.json").write_text('["seed-0", "seed-1", "seed-2"]')
    planned = armada("report", tmp_path / "runs", "--out", tmp_path / "page.html")
    assert planned.err.startswith("warning: 2 runs not finished and left out, first ")


def test_places_that_cannot_be_written(armada: CommandLine, runs: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    below = armada("report", runs / "distilled", "--out", tmp_path / "file" / "page.html")
    assert below.code == 2
    assert "cannot be written: " in below.error
    folder = armada("report", runs / "distilled", "--out", tmp_path)
    assert folder.error == f"out {tmp_path}: is a folder; name a file, such as report.html"


def test_unknown_ways_to_draw(armada: CommandLine, runs: Path, tmp_path: Path):
    result = armada("report", runs, "--out", tmp_path / "page.html", "--set", "manifold=umap")
    assert result.code == 2
    assert "job key 'manifold': 'umap'" in result.error
