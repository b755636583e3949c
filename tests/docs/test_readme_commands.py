"""Every command and snippet of the README does what it is printed to do, in small.

The two terminals of "Share a cache" are run by `test_readme_sharing.py`, the demo by its own test.
"""

import json
import re

import pyarrow.parquet as pq
import pytest
from armada.stages.store.reading.reader import list_teachers, open_cache
from docs_material import table, write_features, write_instructions, write_table
from docs_pages import README, Block, Instead, Workplace, blocks, replaced, section

pytestmark = pytest.mark.long

TEXT = README.read_text(encoding="utf-8")
ELSEWHERE = ("armada demo", "http.server", "http://localhost")
"""What marks blocks that other tests run."""

MANY = "Many processes, many machines"
LANGUAGE = "Distil a language model"
SECTIONS = (
    *("Stage 1: precompute", "Stage 2: distill", "Compare students", "Share a cache"),
    LANGUAGE,
)
JOB = """corpus: rte.parquet
text_column: [text_a, text_b]
teacher: hash:16
cache: cache
rows_per_shard: 64
"""
"""The job of "Many processes": a teacher that starts at once, for worker processes start cold."""

START_DASK = """dask scheduler --port 0 --scheduler-file here.json --no-dashboard &
dask worker --scheduler-file here.json --nthreads 1 --no-nanny --no-dashboard &
until [ -s here.json ]; do sleep 0.1; done
"""
ONE_TEACHER = Instead("3fa9", "$(basename cache/teachers/*/)", "whatever its fingerprint is")
STAGE_1 = (
    ONE_TEACHER,
    Instead(
        "--set batch_size=32 --dry-run",
        "--set steps=2 --set height=32 --set width=32 --set resize=16 --dry-run",
        "the tiny model draws small pictures, on a processor",
    ),
)
MANY_PROCESSES = (
    Instead("--workers 4", "--workers 2 --corpus more.parquet", "two cores, and texts to ask"),
    Instead(
        "armada precompute job.yaml --dask tcp://scheduler:8786",
        f"{START_DASK}armada precompute job.yaml --corpus most.parquet --dask here.json",
        "a scheduler of this machine, and texts to ask",
    ),
)
STAGE_2 = (
    Instead("--set epochs=10", "--set epochs=1", "shorter"),
    Instead("--nproc-per-node 8", "--nproc-per-node 2", "two cores"),
    Instead(
        "accelerate launch --multi_gpu --num_processes 8 -m armada.cli distill job.yaml",
        "accelerate launch --multi_gpu --num_processes 2 -m armada.cli distill job.yaml"
        " --output runs/again",
        "two cores, and another launcher's run in another folder",
    ),
    Instead("beta: 0.5", "beta: 0.5\nepochs: 1", "shorter"),
    Instead(
        "cache = open_cache(",
        'import numpy as np\nbuffer = np.empty((2, 24), "float32")\ncache = open_cache(',
        "memory of the reader's",
    ),
)


COMPARED = (
    Instead("seed: [0, 1, 2]", "seed: 0\nepochs: 1", "shorter"),
    Instead("alpha: [0, 0.5, 1]", "alpha: [0, 1]", "shorter"),
)


def code(text: str) -> list[Block]:
    """The blocks of a text that are run here."""
    return [b for b in blocks(text) if not any(mark in b.code for mark in ELSEWHERE)]


def test_no_command_is_left_out() -> None:
    here = {block.code for title in SECTIONS for block in code(section(TEXT, title))}
    commands = [b for b in code(TEXT) if b.language in ("sh", "python")]
    assert len(commands) >= 7
    assert [b.code for b in commands if b.code not in here] == []
    # An indented block would be none.
    assert re.findall(r"^    (?:armada|torchrun|accelerate|python) .*", TEXT, re.MULTILINE) == []


def test_both_stages(place: Workplace) -> None:
    for name in ("train", "validation", "test", "more"):
        write_table(place.folder / f"{name}.parquet")
    write_table(place.folder / "rte.parquet", 10)
    write_table(place.folder / "most.parquet", 8)
    (place.folder / "job.yaml").write_text(JOB, encoding="utf-8")
    many = section(TEXT, MANY)
    printed = place.run(code(section(TEXT, SECTIONS[0]).replace(many, "")), STAGE_1)
    assert "10 rows, 10 unique; 0 already cached, 10 to compute" in printed
    printed = place.run(code(many), MANY_PROCESSES)
    assert re.findall(r"(\d+) already cached, (\d+) computed", printed) == [
        ("0", "1"),
        ("0", "10"),
        ("3", "7"),
    ]
    _students(place)


def _students(place: Workplace) -> None:
    prints = {t.spec.kind: t.fingerprint for t in list_teachers(place.folder / "cache")}
    named = [
        Instead("teacher: 3fa9", f"teacher: {prints['hash']}", "the teacher of the pairs"),
        Instead("3fa9", prints["open_clip"], "the teacher of the texts"),
    ]
    stage_2 = code(section(TEXT, SECTIONS[1]))
    (job,) = [block.code for block in stage_2 if block.language == "yaml"]
    (place.folder / "job.yaml").write_text(replaced(job, [*named, *STAGE_2]), encoding="utf-8")
    place.run([b for b in stage_2 if b.language != "yaml"], [*named, *STAGE_2])
    _compared(place, named[1:])
    for name, processes in (("sst2/seed-2", 1), ("rte", 2), ("again", 2)):
        metrics = json.loads((place.folder / "runs" / name / "metrics.json").read_bytes())
        assert metrics["processes"] == processes
        assert metrics["validation"]["accuracy"] >= 0


def _compared(place: Workplace, named: list[Instead]) -> None:
    blocks_here = code(section(TEXT, SECTIONS[2]))
    place.write_files(blocks_here, [*named, *COMPARED])
    printed = place.run(blocks_here, [*named, *COMPARED])
    assert printed.startswith("9 runs, 0 finished, ")
    document = json.loads((place.folder / "runs/ablation/ablation.json").read_bytes())
    assert len(document["studies"][0]["conditions"]) == 9
    assert (place.folder / "report.html").is_file()


def test_caches_are_joined_and_exchanged(place: Workplace) -> None:
    for number, name in enumerate(["train", "team-a", "team-b"]):
        write_table(place.folder / f"{name}.parquet", number)
    write_features(place.folder / "features", table(0, 10))
    ask = "armada precompute --text-column text --teacher hash:4"
    for cache, corpus in (("cache", "train"), ("team-a", "team-a"), ("team-b", "team-b")):
        place.shell(f"{ask} --corpus {corpus}.parquet --cache {cache}")
    place.run(code(section(TEXT, SECTIONS[3])))
    assert len(open_cache(place.folder / "all")) == 11
    kinds = {t.spec.kind: t.fingerprint for t in list_teachers(place.folder / "cache")}
    assert set(kinds) == {"hash", "imported"}
    assert len(open_cache(place.folder / "cache", kinds["imported"])) == 10
    assert pq.read_table(next(place.folder.glob("exported/data/*.parquet"))).num_rows == 10


def test_a_language_model_learns_instructions(place: Workplace) -> None:
    """Every command as it is printed."""
    write_instructions(place.folder / "dolly")
    printed = place.run(code(section(TEXT, LANGUAGE)))
    assert "10 rows, 10 unique; 0 already cached, 10 computed" in printed
    assert open_cache(place.folder / "words").features[2:] == ("top_k",)
    run = place.folder / "runs" / "dolly"
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert metrics["train_examples"] + len(metrics["skipped_rows"]) == 10
    assert (len(metrics["skipped_rows"]), len(metrics["epochs"])) == (3, 3)
    losses = [epoch["loss"] for epoch in metrics["epochs"]]
    assert losses == sorted(losses, reverse=True), "adapters learn"
    assert (run / "student" / "adapter_model.safetensors").is_file()
    assert re.search(r"rouge_l\W+0\.\d", printed)
    assert "perplexity" in printed


@pytest.mark.parametrize(
    "instead", [*STAGE_1, *MANY_PROCESSES, *STAGE_2, *COMPARED], ids=lambda i: i.why
)
def test_what_is_replaced_is_there(instead: Instead) -> None:
    assert instead.printed in TEXT
