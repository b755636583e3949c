"""Whether two versions of armada come to the same results, bit for bit.

    git worktree add ../earlier COMMIT
    python benchmarks/same_results.py record earlier.json --checkout ../earlier
    python benchmarks/same_results.py record today.json
    python benchmarks/same_results.py compare earlier.json today.json [--markdown]

`record` trains each kind of run and makes each kind of store (with `--only WORD ...`, those whose
names hold one of the words) and writes down losses, metrics and SHA-256 of weights, of values that
are read from stores, and of files. `--checkout` is a folder with another version of this
repository, whose code is then what runs, from the same texts and checkpoints.

`compare` prints what is equal of the earlier one and the later, and ends with 1 if anything differs
or was not to be had from the later. Names that changed stand in `same_kinds/names.py`. Of stores in
two versions of the format, rows, values and fingerprints are compared and files are not. Bits
depend on the machine and on libraries: record both with the same.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from figures import ABSENT, table
from same_kinds.names import FEATURES, RUNS

LIBRARIES = ("torch", "transformers", "tokenizers", "diffusers", "open_clip_torch", "peft")
LIBRARIES += ("numpy", "pyarrow", "zarr")
EQUAL = "equal"
RENAMED = "equal by earlier names"
"""Of a fingerprint: names are part of it, and a renamed feature is all that makes it another."""
NEW = "new"
Recorded = dict[str, Any]


def record(out: Path, checkout: Path, only: list[str]) -> None:
    """Write the results of one version down."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _import_from(checkout.resolve(), folder / "code")
        import torch
        from armada.cache_schemas.manifest import FORMAT_VERSION
        from same_kinds import runs, stores
        from same_kinds.material import Material, file_digests

        torch.set_num_threads(1)
        material = Material(folder / "material")
        recorded: Recorded = _circumstances(checkout) | {"format_version": FORMAT_VERSION}
        for group, module in (("runs", runs), ("stores", stores)):
            recorded[group] = {}
            for kind in module.KINDS:
                if not only or any(word in kind for word in only):
                    start = time.perf_counter()
                    recorded[group][kind] = _result(module.record, kind, material, folder / group)
                    print(f"{time.perf_counter() - start:6.1f} s  {kind}", file=sys.stderr)
        recorded["material"] = file_digests(folder / "material")
    out.write_text(json.dumps(recorded, indent=1), encoding="utf-8")


def _import_from(checkout: Path, links: Path) -> None:
    # The root of the repository is the package: under its name in a folder that is searched first.
    links.mkdir()
    (links / "armada").symlink_to(checkout, target_is_directory=True)
    sys.path.insert(0, str(links))
    searched = [str(links), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, searched))


def _circumstances(checkout: Path) -> dict[str, str]:
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    return {
        "commit": described.stdout.strip() or "not in git",
        "libraries": f"Python {platform.python_version()}, {versions}",
        "machine": f"{platform.platform()}, {os.cpu_count()} processors",
    }


def _result(make: Callable[..., Recorded], *given: Any) -> Recorded:
    try:
        return make(*given)
    except (Exception, SystemExit) as error:
        # A version may not have this kind yet: that is a result as well.
        return {"refused": f"{type(error).__name__}: {error}"}


def compare(earlier: Recorded, later: Recorded) -> tuple[list[list[str]], list[list[str]], int]:
    """The table of runs, that of stores, and how many kinds differ.

    Raises ValueError if the two did not start from the same texts and checkpoints."""
    for file in earlier["material"].keys() & later["material"].keys():
        if earlier["material"][file] != later["material"][file]:
            raise ValueError(
                f"{file}: made with other bytes for the one than for the other; record both with "
                "the same copy of this script and the same libraries"
            )
    one_format = earlier["format_version"] == later["format_version"]
    parts_of_runs = {"log": _logs, "weights": _weights}
    parts_of_stores = {"values": _contents, "fingerprints": _fingerprints, "files": _files}
    if not one_format:
        parts_of_stores["files"] = lambda *_: ABSENT
    runs, of_runs = _compared("run", earlier["runs"], later["runs"], parts_of_runs)
    stores, of_stores = _compared("store", earlier["stores"], later["stores"], parts_of_stores)
    return runs, stores, of_runs + of_stores


Part = Callable[[str, Recorded, Recorded], str]


def _compared(
    title: str, earlier: Recorded, later: Recorded, parts: Mapping[str, Part]
) -> tuple[list[list[str]], int]:
    rows, differ = [[title, *parts]], 0
    for kind in earlier | later:
        absent = {"refused": "not recorded"}
        one, other = earlier.get(kind, absent), later.get(kind, absent)
        if "refused" in other:
            cells = [other["refused"].splitlines()[0]] * len(parts)
        elif "refused" in one:
            cells = [NEW] * len(parts)
        else:
            cells = [part(kind, one, other) for part in parts.values()]
        differ += any(cell not in (EQUAL, RENAMED, NEW, ABSENT) for cell in cells)
        rows.append([kind, *cells])
    return rows, differ


def _logs(kind: str, one: Recorded, other: Recorded) -> str:
    for line, second in zip(one["logged"], other["logged"], strict=False):
        first = _renamed(line, second, RUNS.get(kind, {}))
        for name in first | second:
            # As text: a NaN equals itself, and the text of a float tells all of its bits.
            if json.dumps(first.get(name)) != json.dumps(second.get(name)):
                return f"step {line['step']}: {name} {first.get(name)} and {second.get(name)}"
    counts = len(one["logged"]), len(other["logged"])
    return EQUAL if counts[0] == counts[1] else f"{counts[0]} lines and {counts[1]}"


def _weights(kind: str, one: Recorded, other: Recorded) -> str:
    weights = other["weights"]
    return _digests(_renamed(one["weights"], weights, RUNS.get(kind, {})), weights)


def _files(_: str, one: Recorded, other: Recorded) -> str:
    return _digests(one["files"], other["files"])


def _digests(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    differing = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return f"{differing[0]} and {len(differing) - 1} more" if differing else EQUAL


def _contents(_: str, one: Recorded, other: Recorded) -> str:
    if "columns" in other:
        columns = other["columns"]
        return _digests(_renamed(one["columns"], columns, FEATURES), columns)
    # Whatever their fingerprints are, which are compared by themselves.
    theirs = [_read(teacher, {}) for teacher in other["teachers"].values()]
    known = {name: None for teacher in theirs for name in teacher["features"]}
    ours = [_read(teacher, known) for teacher in one["teachers"].values()]
    all_there = len(ours) == len(theirs) and all(teacher in theirs for teacher in ours)
    return EQUAL if all_there else "differ"


def _read(teacher: Recorded, today: Mapping[str, Any]) -> Recorded:
    features = _renamed(teacher["features"], today, FEATURES) if today else teacher["features"]
    return {"rows": teacher["rows"], "keys": teacher["keys"], "features": features}


def _fingerprints(_: str, one: Recorded, other: Recorded) -> str:
    if "teachers" not in other:
        return ABSENT
    if one["teachers"].keys() == other["teachers"].keys():
        return EQUAL
    by_earlier_names = {teacher["by_earlier_names"] for teacher in other["teachers"].values()}
    return RENAMED if one["teachers"].keys() == by_earlier_names else "differ"


def _renamed(
    named: Mapping[str, Any], today: Mapping[str, Any], beginnings: Mapping[str, str]
) -> dict[str, Any]:
    """With today's names for those that are not among them."""
    return {name if name in today else _replaced(name, beginnings): named[name] for name in named}


def _replaced(name: str, beginnings: Mapping[str, str]) -> str:
    for earlier, later in beginnings.items():
        if name.startswith(earlier):
            return later + name.removeprefix(earlier)
    return name


def main() -> int:
    """Record or compare; the exit status."""
    options = _parse()
    if options.command == "record":
        record(options.out, options.checkout, options.only)
        return 0
    recorded = [json.loads(file.read_text(encoding="utf-8")) for file in (options.a, options.b)]
    try:
        runs, stores, differ = compare(*recorded)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for file, each in zip((options.a, options.b), recorded, strict=True):
        print(f"{file}: {each['commit']}; {each['libraries']}; {each['machine']}")
    for rows in (runs, stores):
        print(f"\n{table(rows, options.markdown)}")
    print(f"\n{len(runs) + len(stores) - 2} kinds, {differ} differ")
    return 1 if differ else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out", type=Path)
    recording.add_argument("--checkout", type=Path, default=Path(__file__).parents[1])
    recording.add_argument("--only", nargs="+", default=[], metavar="WORD")
    comparing = commands.add_parser("compare")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    comparing.add_argument("--markdown", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
