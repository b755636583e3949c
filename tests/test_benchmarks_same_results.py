"""The proof that two versions give the same results: it runs on other checkouts, and finds what
changed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hangs import HANG_S

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "same_results.py"
RUN, STORE = "undistilled", "hash, pairs, float16"
CODE = ("__init__.py", "cli.py", "cache_schemas", "pipeline", "stages")
OTHER_SEED = "\nimport torch\ntorch.manual_seed = lambda s, seed=torch.manual_seed: seed(s + 1)\n"

Recorded = dict[str, Any]


def record(out: Path, *options: object) -> Path:
    command = [sys.executable, str(SCRIPT), "record", str(out), *map(str, options)]
    run = subprocess.run(
        [*command, "--only", RUN, STORE], capture_output=True, text=True, timeout=HANG_S
    )
    assert run.returncode == 0, run.stderr
    return out


def compare(*files: Path) -> tuple[int, list[list[str]]]:
    """The exit status, and the cells of both tables without their heads."""
    command = [sys.executable, str(SCRIPT), "compare", *map(str, files), "--markdown"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert not run.stderr, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return run.returncode, [row for row in rows if row[0] in (RUN, STORE)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded") / "one.json")


def test_the_smallest_kinds_are_equal_when_they_are_made_again(
    recorded: Path, tmp_path: Path
) -> None:
    again = record(tmp_path / "again.json")
    assert compare(recorded, again) == (
        0,
        [[RUN, "equal", "equal"], [STORE, "equal", "equal", "equal"]],
    )
    contents = json.loads(recorded.read_text())
    losses = [line["loss"] for line in contents["runs"][RUN]["logged"] if "loss" in line]
    assert len(set(losses)) == 21
    [teacher] = contents["stores"][STORE]["teachers"].values()
    assert (teacher["rows"], list(teacher["features"])) == (152, ["embedding"])


def test_other_weights_and_other_answers_of_a_checkout_are_found(
    recorded: Path, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in CODE:
        source, copy = ROOT / name, checkout / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, _made(copy))
    with (checkout / "__init__.py").open("a") as file:
        file.write(OTHER_SEED)
    teacher = checkout / "stages" / "precompute" / "teachers" / "hash.py"
    changed = teacher.read_text().replace(".standard_normal(", ".random(")
    assert changed != teacher.read_text()
    teacher.write_text(changed)

    status, (run, store) = compare(
        recorded, record(tmp_path / "other.json", "--checkout", checkout)
    )
    assert status == 1
    assert run[1].startswith("step 1: loss ")
    assert run[2].startswith("student/model.safetensors: ")
    assert store[1:3] == ["differ", "equal"]
    assert "/commits/000000.json and 5 more" in store[3]  # three shards and their commit records


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def comparing(recorded: Path, tmp_path: Path) -> Callable[..., tuple[int, list[list[str]]]]:
    """Compares what was recorded with the same after a change to either."""

    def changed(
        earlier: Callable[[Recorded], Any] = dict, later: Callable[[Recorded], Any] = dict
    ) -> tuple[int, list[list[str]]]:
        contents = json.loads(recorded.read_text())
        files = []
        for name, change in (("earlier", earlier), ("later", later)):
            document = deepcopy(contents)
            change(document)
            files.append(tmp_path / f"{name}.json")
            files[-1].write_text(json.dumps(document))
        return compare(*files)

    return changed


def test_a_kind_that_is_gone_differs_and_one_that_is_new_does_not(comparing: Any) -> None:
    def refuse(document: Recorded) -> None:
        document["runs"][RUN] = {"refused": "InputError: no such key"}

    status, [run, _] = comparing(later=refuse)
    assert (status, run[1]) == (1, "InputError: no such key")
    assert comparing(later=lambda document: document["stores"].clear())[0] == 1
    status, [run, _] = comparing(earlier=refuse)
    assert (status, run[1:]) == (0, ["new", "new"])
    assert comparing(earlier=refuse, later=refuse)[0] == 1


def test_stores_in_two_formats_are_compared_by_what_is_read(comparing: Any) -> None:
    def earlier_format(document: Recorded) -> None:
        document["format_version"] -= 1
        document["stores"][STORE]["files"].clear()
        _rename(document, "draws")

    status, [_, store] = comparing(earlier_format, lambda document: _rename(document, "samples"))
    assert (status, store[1:]) == (0, ["equal", "equal", "-"])
    status, [_, store] = comparing(earlier_format)
    assert (status, store[1]) == (1, "differ")


def test_a_fingerprint_that_differs_by_a_renamed_feature_alone_is_told(comparing: Any) -> None:
    def today(document: Recorded, earlier: str | None = None) -> None:
        teachers = document["stores"][STORE]["teachers"]
        [fingerprint] = teachers
        assert teachers[fingerprint]["by_earlier_names"] == fingerprint
        teachers["f" * 32] = teachers.pop(fingerprint) | {
            "by_earlier_names": earlier or fingerprint
        }

    status, [_, store] = comparing(later=today)
    assert (status, store[2]) == (0, "equal by earlier names")
    status, [_, store] = comparing(later=lambda document: today(document, "e" * 32))
    assert (status, store[2]) == (1, "differ")


def _rename(document: Recorded, feature: str) -> None:
    [teacher] = document["stores"][STORE]["teachers"].values()
    teacher["features"] = {feature: teacher["features"].pop("embedding")}


def test_other_checkpoints_are_refused(recorded: Path, tmp_path: Path) -> None:
    document = json.loads(recorded.read_text())
    document["material"]["train.parquet"] = "0"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    command = [sys.executable, str(SCRIPT), "compare", str(recorded), str(other)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == 2
    assert run.stderr.startswith("train.parquet: made with other bytes")
