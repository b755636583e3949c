"""`armada report` on folders of runs that came from anybody: one line, or the page without them."""

import http.server
import json
import shutil
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from armada.cache_schemas.errors import InputError
from armada.pipeline.findings.documents import MOST_ROWS, read_log, read_yaml
from armada.pipeline.reports.gallery import _thumbnail
from command_line import CommandLine, Result


@pytest.fixture(scope="module")
def finished(distill_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it should be."""
    from armada.pipeline.distill import run_distill
    from armada.pipeline.distill_job import DistillJob
    from armada.pipeline.jobs import make

    folder = tmp_path_factory.mktemp("hostile") / "run"
    keys = {
        "train": str(distill_bench.train),
        "validation": str(distill_bench.validation),
        "text_column": "text",
        "label_column": "label",
        "cache": str(distill_bench.cache),
        "teacher": distill_bench.hash,
        "student": str(distill_bench.student),
        "output": str(folder),
        "epochs": 1,
        "aligner_hidden_size": 8,
    }
    run_distill(make(DistillJob, keys), quiet=True)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def report(armada: CommandLine, run: Path, tmp_path: Path) -> Callable[..., Result]:
    def make(*more: object) -> Result:
        return armada("report", run, "--out", tmp_path / "page.html", "--quiet", *more)

    return make


def change(file: Path, **values: Any) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | values))


METRICS: dict[str, Any] = {
    "text for figures": {"validation": "good"},
    "a list of figures": {"validation": [1, 2]},
    "text for a figure": {"validation": {"accuracy": "high"}},
    "no seed": {"seed": None},
    "a seed in words": {"seed": "first"},
    "a long seed": {"seed": 1e400},
    "no epochs": {"epochs": None},
    "text for epochs": {"epochs": "many"},
    "text for seconds": {"train_seconds": "long"},
    "seconds without end": {"train_seconds": float("inf")},
    "text for examples": {"train_examples": "some"},
    "a formula": {"metric": r"$\frac$"},
    "markup": {"metric": "<b>accuracy</b>"},
    "a command for terminals": {"metric": "accuracy\x1b[2J"},
}


@pytest.mark.parametrize("values", METRICS.values(), ids=METRICS)
def test_metrics_of_another_shape_are_refused_in_one_line(report, run: Path, values) -> None:
    change(run / "metrics.json", **values)
    result = report()
    assert result.code == 2
    assert result.error.startswith(f"run {run}: metrics.json cannot be read: ")
    (field,) = values
    assert field in result.error


@pytest.mark.parametrize("text", ["", "[]", "{}", '["ab", "cd"]', "[" * 100_000, "\xff", "{"])
@pytest.mark.parametrize("name", ["metrics.json", "run.json", "job.yaml"])
def test_documents_that_are_none(report, run: Path, name: str, text: str) -> None:
    (run / name).write_text(text, encoding="latin-1")
    result = report()
    if name == "run.json" and text == "{}":
        assert result.code == 0  # nothing is known of what it was made with
    else:
        assert result.code == 2
        assert result.error.startswith(f"run {run}: ")


@pytest.mark.parametrize("values", [{"hardware": ["fast"]}, {"teacher_fingerprint": {"a": 1}}])
def test_provenance_of_another_shape(report, run: Path, values: dict[str, Any]) -> None:
    change(run / "run.json", **values)
    assert report().error.startswith(f"run {run}: run.json cannot be read: ")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000])
def test_a_plan_that_is_none(report, run: Path, text: str) -> None:
    (run / "plan.json").write_text(text)
    result = report()
    assert result.code == 2
    assert result.error.startswith(f"run {run}: plan.json ")


def test_figures_that_are_no_numbers_are_missing(report, run: Path, tmp_path: Path) -> None:
    change(run / "metrics.json", validation={"accuracy": float("nan"), "ece": float("inf")})
    assert report().code == 0
    assert "nan" not in (tmp_path / "page.html").read_text().partition("<figure>")[0]


def test_a_few_bytes_do_not_become_gigabytes(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "job.yaml").write_text("\n".join(lines))
    with pytest.raises(InputError, match="has an alias"):
        read_yaml(tmp_path / "job.yaml")


def test_a_log_of_any_length_and_kind(report, run: Path) -> None:
    log = run / "log.jsonl"
    rows = log.read_text()
    junk = ["[1]", "{", '{"epoch": 1}', '{"step": "x"}', '{"step": 1, "task": null}', "\x00"]
    terms = {"step": 3} | {rf"$\frac{n}$" if n else "<script>": 1.0 for n in range(400)}
    log.write_text(rows + "\n".join([*junk, json.dumps(terms), '{"step": 9, "ta']))
    assert report().code == 0
    with log.open("w") as file:
        file.writelines(f'{{"step": {n}, "loss": 1.0}}\n' for n in range(50_000))
    thinned = [row["step"] for row in read_log(run)]
    assert MOST_ROWS / 2 <= len(thinned) <= MOST_ROWS
    assert thinned[0] == 0
    assert len({b - a for a, b in pairwise(thinned)}) == 1


def test_weights_that_give_no_numbers(report, run: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = run / "student" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"] = torch.full_like(tensors["classifier.weight"], torch.nan)
    save_file(tensors, file, metadata={"format": "pt"})
    assert report().code == 0
    assert "outputs for" in (tmp_path / "page.html").read_text()


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """An address and what it was asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cache", paths
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("students", ["true", "false"])
def test_nothing_is_fetched_and_nothing_written_elsewhere(
    report, run: Path, tmp_path: Path, distill_bench: Any, asked: tuple[str, list[str]], students
) -> None:
    address, paths = asked
    keys = yaml.safe_load((run / "job.yaml").read_text())
    keys |= {"cache": address, "mirror": str(tmp_path / "home" / ".config")}
    (run / "job.yaml").write_text(yaml.safe_dump(keys))
    result = report("--set", f"students={students}")
    assert result.code == 0
    assert paths == []
    assert not (tmp_path / "home").exists()
    assert "is at a URL, which reports do not open" in (tmp_path / "page.html").read_text()
    # The user may say where it is.
    assert report("--set", f"cache={distill_bench.cache}").code == 0
    text = (tmp_path / "page.html").read_text()
    assert "is at a URL" not in text
    assert "What the teachers cost" in text


def test_names_command_no_terminal_and_no_page(armada: CommandLine, run: Path, tmp_path: Path):
    nasty = run.parent / "\x1b[2J<script>"
    shutil.copytree(run, nasty / "seed-0")
    shutil.copytree(run, nasty / "seed-1")
    (nasty / "seed-1" / "metrics.json").unlink()
    result = armada("report", nasty, "--out", tmp_path / "page.html")
    assert result.code == 0
    assert "\x1b" not in result.err
    text = (tmp_path / "page.html").read_text()
    assert "\x1b" not in text
    assert "<script" not in text


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (head, *chunks)
    )
    return b"\x89PNG\r\n\x1a\n" + body


IMAGES = {
    "nothing": b"",
    "no image": b"GIF89a" + bytes(30),
    "cut in its head": png(8, 8)[:20],
    "no pixels": png(8, 8, (b"IEND", b"")),
    "too many pixels": png(30_000, 30_000, (b"IDAT", zlib.compress(bytes(10)))),
    "a long text": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(70 * 2**20)))),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_images_that_are_none_are_left_out(image: bytes) -> None:
    assert _thumbnail(image) is None
