"""The card of a cache: the head is what the hub reads, the code in it runs, names stay text, and
nobody's own README is replaced."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from armada.cache_schemas.features import FeatureSpec
from armada.cache_schemas.manifest import BatchFigures, CorpusRecord, RunRecord, TeacherManifest
from armada.cache_schemas.teachers import TeacherSpec
from armada.pipeline.caches.card import CardJob, choose_rows, run_card
from armada.pipeline.reports.drawing import main_components
from armada.stages.store.reading.reader import read_digest
from armada.stages.store.writing.writer import CacheWriter
from command_line import CommandLine
from PIL import Image
from small_caches import commit, make_manifest, numbered_texts

FEATURES = (
    FeatureSpec(name="pooled", shape=(5,), dtype="float16", description="mean | *of* <states>"),
    FeatureSpec(name="logits", shape=(3,), dtype="float32", labels=("a|b", "c", "d")),
)
MANIFEST = make_manifest(FEATURES, channel_order="bgr", steps=30)
OTHER = make_manifest([FeatureSpec(name="score", shape=(), dtype="float32")])
TEXTS = numbered_texts(0, 198)
GPU = {"device": "cuda", "gpu": "Some GPU"}
CPU = {"device": "cpu", "processor": "Some CPU"}
BATCHES = BatchFigures(
    batches=10,
    rows=625,
    tokens=8000,
    padded_tokens=10_000,
    refused=1,
    seconds=2000.0,
    busy_seconds=1900.0,
)


def run(hardware: dict[str, str], seconds: float, *corpora: CorpusRecord) -> RunRecord:
    return RunRecord(
        started="2026-01-01T00:00:00+00:00",
        versions={},
        hardware=hardware,
        corpora=corpora,
        teacher_seconds={0: seconds},
        batches=BATCHES if hardware is GPU else None,
    )


TRAIN = CorpusRecord(name="train_[1].csv", rows=150, unique_examples=140, licence="CC BY 4.0")
TEST = CorpusRecord(name="test.csv", rows=58, unique_examples=58)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "answers"
    with CacheWriter(path, MANIFEST) as writer:
        commit(writer, TEXTS[:128])
        commit(writer, TEXTS[128:])
        writer.record_run("a", run(GPU, 3600, TRAIN))
        writer.record_run("b", run(GPU, 1800, TRAIN, TEST))
    with CacheWriter(path, OTHER) as writer:
        commit(writer, TEXTS[:1])
        writer.record_run("a", run(CPU, 0.5, TEST))
    return path


@pytest.fixture
def cache(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "answers"))


@pytest.fixture(scope="module")
def carded(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with its card."""
    cache = Path(shutil.copytree(written, tmp_path_factory.mktemp("carded") / "answers"))
    files = run_card(CardJob(cache=cache, title="Some *answers*", licence="cc0-1.0"))
    pictures = [f"features-{m.fingerprint[:12]}.png" for m in (MANIFEST, OTHER)]
    assert {file.name for file in files} == {"README.md", *pictures}
    assert all(file.parent == cache and file.stat().st_size for file in files)
    return cache


@pytest.fixture
def armada(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Labels of three kinds for most of the texts, and a text that was never asked."""
    texts = [*TEXTS[10:], "never asked"]
    columns = {
        "text": texts,
        "number": [row % 3 for row in range(len(texts))],
        "name": [
            ("$x$", "a class with a very long name indeed", "kurz")[len(t) % 3] for t in texts
        ],
        "score": np.linspace(0, 5, len(texts)),
    }
    pq.write_table(pa.table(columns), tmp_path / "labelled.parquet")
    return tmp_path / "labelled.parquet"


def head_of(card: str) -> Any:
    parts = card.split("---\n", 2)
    assert parts[0] == ""
    return yaml.safe_load(parts[1])


def rows_of(card: str) -> list[list[str]]:
    """The cells of all lines of tables."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_the_card_says_what_the_cache_holds(carded: Path) -> None:
    card = (carded / "README.md").read_text()
    head = head_of(card)
    assert head["license"] == "cc0-1.0"
    assert head["pretty_name"] == "Some *answers*"
    assert head["size_categories"] == ["n<1K"]
    assert "armada" in head["tags"]
    facts = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows_of(card)}
    assert facts["digest"] == [f"`{read_digest(carded)}`"]
    assert facts["pooled"] == ["5", "float16", r"mean \| \*of\* \<states\>"]
    assert facts["logits"] == ["3", "float32", r"(a\|b, c, d)"]
    assert facts["score"][:2] == ["one number", "float32"]
    assert facts[r"train\_\[1\].csv"][:3] == ["150", "140", "CC BY 4.0"]
    assert facts["test.csv"][:3] == ["58", "58", "not declared"]
    both = ", ".join(sorted(f"`{m.fingerprint[:12]}`" for m in (MANIFEST, OTHER)))
    assert ", ".join(sorted(facts["test.csv"][3].split(", "))) == both
    assert r"| settings | channel\_order = bgr; steps = 30 |" in card
    assert "| cost | 1.50 hours on one GPU (Some GPU) |" in card
    assert "| cost | 0.5 s on cpu (Some CPU) |" in card
    batches = "20 of 62.5 rows, 1.25 padded tokens a token, 2 more did not fit into memory"
    assert f"| batches | {batches}, 66.7 min of the device, 95% busy |" in card
    assert card.count("| batches |") == 1
    assert "# Some \\*answers\\*\n" in card


def test_tables_have_as_many_cells_as_columns(carded: Path) -> None:
    widths: list[int] = []
    for row in rows_of((carded / "README.md").read_text()):
        widths.append(len(row))
        if set("".join(row)) <= set(" -"):
            assert widths[-2] == len(row)  # a head and its rule
    assert set(widths) == {2, 4, 5}


def test_code_in_the_card_runs(
    carded: Path, armada: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", (carded / "README.md").read_text(), re.DOTALL)
    assert [language for language, _ in blocks] == ["python"] * 3 + [""]
    monkeypatch.chdir(carded.parent)
    for language, code in blocks[:3]:
        assert language == "python"
        assert 4 <= len(code.splitlines()) <= 6
        exec(compile(code, "card", "exec"), {})
    shown = capsys.readouterr().out
    first = min((MANIFEST, OTHER), key=lambda manifest: manifest.fingerprint)
    rows = 198 if first is MANIFEST else 1
    assert f"({rows}, 5)" in shown or f"({rows},)" in shown
    assert f"{rows} ['key', 'truncated']" in shown
    words = blocks[3][1].split()
    assert words[0] == "armada"
    assert armada.done(*words[1:], "--quiet").splitlines()[-1] == "whole"


def test_the_head_opens_in_datasets(
    carded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    opened = datasets.load_dataset(
        str(carded), MANIFEST.fingerprint[:12], split="train", cache_dir=str(tmp_path / "datasets")
    )
    assert opened.column_names == ["key", "truncated"]
    assert len(opened) == 198


def test_a_readme_that_somebody_wrote_stays(cache: Path, armada: CommandLine) -> None:
    (cache / "README.md").write_text("mine")
    before = sorted(cache.rglob("*"))
    result = armada("cache", "card", cache)
    assert result.code == 2
    assert "was not written by armada" in result.error
    assert (cache / "README.md").read_text() == "mine"
    assert sorted(cache.rglob("*")) == before
    armada.done("cache", "card", cache, "--force")
    armada.done("cache", "card", cache)  # our own is replaced
    assert "mine" not in (cache / "README.md").read_text()


def test_the_card_can_lie_elsewhere(cache: Path, armada: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    armada.done("cache", "card", cache, "--output", tmp_path / "cards" / "card.md")
    assert not (cache / "README.md").exists()
    card = (tmp_path / "cards" / "card.md").read_text()
    for picture in re.findall(r"!\[.*\]\((.*)\)", card):
        assert (tmp_path / "cards" / picture).is_file()


def test_names_that_are_no_text_stay_text(tmp_path: Path, armada: CommandLine) -> None:
    evil = "](javascript:x) <script>\n# head\n---\n| a | `b` ![x](y) http://z $m$ &lt;"
    feature = FeatureSpec(name="x", shape=(1,), dtype="float32", description=evil)
    spec = TeacherSpec(kind="k\x1b[2J", name=evil, weights={}, settings={}, features=(feature,))
    manifest = TeacherManifest(fingerprint=spec.fingerprint, rows_per_shard=64, spec=spec)
    with CacheWriter(tmp_path / "c`a*che", manifest) as writer:
        commit(writer, TEXTS[:2])
        writer.record_run("a", run(CPU, 1, CorpusRecord(name=evil, rows=2, unique_examples=2)))
    armada.done("cache", "card", tmp_path / "c`a*che", "--title", evil, "--licence", "a: [b")
    card = (tmp_path / "c`a*che" / "README.md").read_text()
    assert head_of(card)["pretty_name"] == " ".join(evil.split())
    assert head_of(card)["license"] == "a: [b"
    body = card.split("---\n", 2)[2].replace("<!-- made", "")
    assert not re.search(r"(?<!\\)<", body)
    assert not re.search(r"(?<!\\)\]\((?!features-|https://arxiv)", body)
    assert "\x1b" not in card
    assert not [line for line in body.splitlines() if line.startswith("# head")]
    assert 'open_cache("cache"' in card


# Pictures.


def colours_of(picture: Path) -> set[tuple[int, ...]]:
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert image.size[0] < 1700
        return {colour for _, colour in image.convert("RGB").getcolors(2**24)}  # type: ignore[misc]


@pytest.mark.parametrize(("column", "hues"), [("number", 3), ("name", 3), ("score", 20)])
def test_pictures_are_coloured_by_label(
    cache: Path, carded: Path, armada: CommandLine, labelled: Path, column: str, hues: int
) -> None:
    picture = cache / f"features-{MANIFEST.fingerprint[:12]}.png"
    plain = colours_of(carded / picture.name)
    options = ["--corpus", labelled, "--text-column", "text", "--label-column", column]
    armada.done("cache", "card", cache, *options)
    assert len(colours_of(picture) - plain) > hues
    assert f"coloured by {column}" in (cache / "README.md").read_text()


def test_labels_need_their_columns(cache: Path, armada: CommandLine, labelled: Path) -> None:
    result = armada("cache", "card", cache, "--corpus", labelled)
    assert "corpus, text_column and label_column go together" in result.error
    assert not (cache / "README.md").exists()


def test_main_components_are_those_of_the_covariance() -> None:
    rng = np.random.default_rng(0)
    for rows, width in ((50, 7), (7, 50)):
        values = rng.standard_normal((rows, width)) * np.linspace(1, 9, width)
        found = main_components(values)
        centred = values - values.mean(axis=0)
        _, strength, axes = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(np.abs(found.points), np.abs(centred @ axes[:2].T), atol=1e-8)
        np.testing.assert_allclose(found.shares, strength[:2] ** 2 / (strength**2).sum())
        assert (found.points.max(axis=0) == np.abs(found.points).max(axis=0)).all()


@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (2,), (4, 5)])
def test_components_of_what_does_not_vary(shape: tuple[int, ...]) -> None:
    found = main_components(np.ones(shape, np.float16))
    np.testing.assert_allclose(found.points, np.zeros((shape[0], 2)))
    assert found.shares == (0.0, 0.0)


def test_rows_of_a_picture() -> None:
    assert choose_rows(5, 8).tolist() == [0, 1, 2, 3, 4]
    many = choose_rows(10**6, 1024)
    assert len(np.unique(many)) == 2000
    np.testing.assert_array_equal(many, np.sort(many))
    np.testing.assert_array_equal(many, choose_rows(10**6, 1024))
    assert len(choose_rows(10**6, 2**16)) == 256
