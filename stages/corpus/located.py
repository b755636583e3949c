"""Files of a source: one file, those of a glob, those of a folder.

Where files of several splits lie side by side (`train-*`, `validation-*`, `test-*`; `train.csv`,
`dev.csv`; folders `train/`, `test/`), `?split=NAME` after the folder or glob selects one,
`?split=train+validation` several. Files are never read just because they are there.
"""

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from fsspec.core import split_protocol, url_to_fs

from ...cache_schemas.errors import CorpusError, shown_url
from ...cache_schemas.locations import expand_home

SAVED_SPLITS, SAVED = "dataset_dict.json", "state.json"
"""Files that `datasets.save_to_disk` leaves in the folder of several splits, and of one."""

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_CHOICE = re.compile(r"(.+)\?split=([\w.+-]+)")
_PARAMETER = re.compile(r"(.+)\?(?:\w+=.*|[sS]pli?t?)")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_KEYWORD = re.compile(
    r"(?<![a-z])(train(?:ing)?|valid(?:ation)?|val|dev(?:elopment)?|test(?:ing)?|eval(?:uation)?)"
    r"(?![a-z])",
    re.IGNORECASE,
)


def located(source: str, kinds: Sequence[str]) -> list[str]:
    """The files, and folders of saved datasets, that `source` means, in the order of their names;
    `kinds` are the endings of files of a folder that can be read. Raises CorpusError."""
    source = expand_home(source)
    chosen = None if Path(source).exists() else _CHOICE.fullmatch(source)
    path, split = (chosen[1], chosen[2]) if chosen else (source, None)
    remote = split_protocol(path)[0] is not None
    if not remote and Path(path).is_dir():
        if (Path(path) / SAVED).is_file():
            return [path] if split is None else _saved_split(source, Path(path), split)
        return _of_split(source, _in_folder(Path(path), kinds), split)
    if remote and "?" in path:  # the parameters of a URL are no glob
        return [path]
    if glob.has_magic(path) and not Path(path).exists():
        found = _matching_urls(path) if remote else sorted(glob.glob(path, recursive=True))
        if not found:
            raise CorpusError(f"corpus {source}: {_no_match(path)}")
        above = os.path.commonpath([os.path.dirname(name) for name in found])
        return _of_split(source, {name: name[len(above) :] for name in found}, split)
    named = kind_of(path) in ("", *kinds)  # of another kind, which is the error
    if not remote and named and not Path(path).exists():
        near = _near(Path(path))
        raise CorpusError(f"corpus {source}: cannot be read: there is no such file or folder{near}")
    if split is not None:
        raise CorpusError(f"corpus {source}: is one file; splits need a folder or a glob")
    return [path]


def kind_of(name: str) -> str:
    """The suffix of a file that decides its format, in lower case: `.csv` of `a.csv.gz`; of a URL,
    without its parameters."""
    name = name.partition("?")[0] if "://" in name else name
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    return next((each for each in reversed(suffixes) if each not in _COMPRESSED), "")


def _in_folder(folder: Path, kinds: Sequence[str]) -> dict[str, str]:
    """Path -> name below the folder, which has the split: files of one kind, Parquet before all
    others; of the folder itself, or if it has none of those one level below."""
    if (folder / SAVED_SPLITS).is_file():
        splits = json.loads((folder / SAVED_SPLITS).read_bytes())["splits"]
        return {str(folder / name): f"{name}-00000-of-00001" for name in splits}
    files: list[Path] = []
    for pattern in ("*", "*/*"):
        found = [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]
        files = [path for path in found if path.is_file() and kind_of(path.name) in kinds]
        files += [path.parent for path in found if pattern == "*/*" and path.name == SAVED]
        if files:
            break
    if parquet := [path for path in files if kind_of(path.name) == ".parquet"]:
        files = parquet
    held = sorted({kind_of(path.name) for path in files})
    if not files:
        raise CorpusError(
            f"corpus {folder}: is neither a saved dataset nor a folder of *.parquet or other text "
            f"files ({', '.join(kinds[1:])})"
        )
    if len(held) > 1:
        raise CorpusError(
            f"corpus {folder}: holds files of several kinds ({', '.join(held)}); name those to "
            f"read, for example {folder}/*{held[0]}"
        )
    return {str(path): str(path.relative_to(folder)) for path in files}


def _no_match(pattern: str) -> str:
    """Why there is nothing of a name with `*`, `?` or `[` in it."""
    if misread := _PARAMETER.fullmatch(pattern):
        return (
            "folders and globs take only ?split=NAME; write"
            f", for example, '{misread[1]}?split=train'"
        )
    return "no file matches; check the pattern"


def _saved_split(source: str, folder: Path, split: str) -> list[str]:
    """The folder of a saved data set of that very split."""
    held = json.loads((folder / SAVED).read_bytes()).get("_split")
    if held != split:
        known = held or "rows without a split"
        raise CorpusError(f"corpus {source}: has no split {split!r}; it has {known}")
    return [str(folder)]


def _of_split(source: str, names: Mapping[str, str], split: str | None) -> list[str]:
    """The files of the chosen splits; all of them if they are of one split, or of none."""
    groups: dict[str, list[str]] = {}
    for path, name in names.items():
        groups.setdefault(_split_of(name), []).append(path)
    known = [name for name in groups if name]
    if split is None:
        if len(known) > 1:
            first = "train" if "train" in known else known[0]
            raise CorpusError(
                f"corpus {shown_url(source)}: holds several splits; name one: {', '.join(known)} "
                f"('{shown_url(source)}?split={first}', or ?split={'+'.join(known)} for all)"
            )
        return list(names)
    chosen = split.split("+")
    if unknown := [name for name in chosen if name not in known]:
        raise CorpusError(
            f"corpus {shown_url(source)}: has no split {unknown[0]!r}; it has "
            f"{', '.join(known) or 'files of no split'}"
        )
    return [path for name in chosen for path in groups[name]]


def _split_of(name: str) -> str:
    """The split in the name of a file, as spelled there; empty if there is none."""
    parts = [re.split(r"\.(?!\d)", part)[0] for part in PurePosixPath(name).parts]
    if shard := _SHARD.fullmatch(parts[-1]):
        return shard[1]
    keywords = [found[1].lower() for part in reversed(parts) if (found := _KEYWORD.search(part))]
    return keywords[0] if keywords else ""


def _matching_urls(pattern: str) -> list[str]:
    files, path = url_to_fs(pattern)
    return sorted(files.unstrip_protocol(name) for name in files.glob(path))


def _near(path: Path) -> str:
    """Hint about the folder of a missing file."""
    return "" if path.parent.is_dir() else f"; nor is there a folder {path.parent}"
