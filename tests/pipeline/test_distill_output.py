"""Where `armada distill` writes: nothing is overwritten, and only the same job goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from small_caches import make_manifest, stored_bytes, write_cache


def test_a_finished_run_is_not_overwritten(armada, distill_bench, tmp_path, refused):
    output = tmp_path / "run"
    armada.done(*distill_bench.words(output))
    before = stored_bytes(output)
    line = refused(*distill_bench.words(output))
    assert line == f"output {output}: holds a finished run; choose another folder"
    line = refused(*distill_bench.words(output, "--resume", "--set", "beta=0.5"))
    assert line.endswith("run of another job: beta: was 1.0, now 0.5")
    # To go on with what is finished is to do nothing: a script may say --resume always.
    again = json.loads(armada.done(*distill_bench.words(output, "--resume", "--json")))
    assert again == json.loads(before["metrics.json"])
    assert stored_bytes(output) == before


def test_folders_with_something_else(distill_bench, tmp_path, refused):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        line = refused(*distill_bench.words(tmp_path / name))
        assert line == f"output {tmp_path / name}: is not empty; choose another folder"


def test_an_empty_folder_will_do(armada, distill_bench, tmp_path):
    (tmp_path / "run").mkdir()
    armada.done(*distill_bench.words(tmp_path / "run"))


def make_unfinished(output: Path, job: dict[str, Any]) -> None:
    output.mkdir()
    (output / "job.yaml").write_text(yaml.safe_dump(job))


def test_an_unfinished_run(armada, distill_bench, tmp_path, refused):
    armada.done(*distill_bench.words(tmp_path / "whole"))
    job = yaml.safe_load((tmp_path / "whole" / "job.yaml").read_text())
    output = tmp_path / "run"
    make_unfinished(output, job)
    line = refused(*distill_bench.words(output))
    assert line == (
        f"output {output}: holds an unfinished run; continue with resume=true, or choose another "
        "folder"
    )
    words = distill_bench.words(output, "--resume", "--set", "beta=0.5", "--set", "seed=[0, 1]")
    line = refused(*words)
    assert line == (
        f"output {output}: holds a run of another job: "
        "beta: was 1.0, now 0.5; seed: was 0, now [0, 1]"
    )
    armada.done(*distill_bench.words(output, "--resume"))
    weights = [
        (folder / "student" / "model.safetensors").read_bytes()
        for folder in (output, tmp_path / "whole")
    ]
    assert weights[0] == weights[1]


def test_an_unfinished_run_on_other_data(armada, distill_bench, tmp_path, refused):
    """The files have the names they had, and something else in them."""
    train, cache = tmp_path / "train.parquet", tmp_path / "cache"
    shutil.copy(distill_bench.train, train)
    shutil.copytree(distill_bench.cache, cache)
    output = tmp_path / "run"
    words = distill_bench.words(output, train=train, cache=cache)
    armada.done(*words)
    began = json.loads((output / "run.json").read_text())
    (output / "metrics.json").unlink()
    rows = pq.read_table(train)
    pq.write_table(rows.set_column(1, "label", [rows["label"].to_pylist()[::-1]]), train)
    line = refused(*words, "--resume")
    assert line.startswith(
        f"output {output}: holds an unfinished run on other data: "
        f"train_digest: was {began['train_digest']}, now "
    )
    assert line.endswith("; restore the data it began with, or choose another folder")
    pq.write_table(rows, train)
    write_cache(cache, make_manifest(another=True), [["a text that was not there"]])
    line = refused(*words, "--resume")
    assert f": cache_digest: was {began['cache_digest']}, now " in line
    assert "train_digest" not in line
    shutil.rmtree(cache)
    shutil.copytree(distill_bench.cache, cache)
    armada.done(*words, "--resume")
    assert json.loads((output / "run.json").read_text())["train_digest"] == began["train_digest"]
