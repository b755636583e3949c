"""The page about a cache, and its pictures, go along with a push: for people, no content."""

from pathlib import Path

from ..files.lock import locked
from ..files.own_files import write_file
from .place import LocalPlace, Place

PAGE, PICTURES = "README.md", "features-*.png"
_MAX_BYTES = 2**24


def send_page(cache: Path, place: Place, mark: str) -> None:
    """Send the files of `page_files`."""
    for path in page_files(cache, place, mark):
        _write(place, path.name, path.read_bytes())


def page_files(cache: Path, place: Place, mark: str) -> list[Path]:
    """The page of a cache and its pictures, if it has one; none if the place has a page without
    `mark`, which somebody wrote there."""
    files = [path for path in (cache / PAGE, *sorted(cache.glob(PICTURES))) if _is_plain(path)]
    if files[:1] != [cache / PAGE]:
        return []
    theirs = _read(place)
    return files if theirs is None or mark.encode() in theirs else []


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _read(place: Place) -> bytes | None:
    if not isinstance(place, LocalPlace):
        return place.read(PAGE, _MAX_BYTES)
    path = place.path / PAGE
    return path.read_bytes() if path.exists() else None


def _write(place: Place, name: str, data: bytes) -> None:
    if isinstance(place, LocalPlace):
        with locked(place.path):
            write_file(place.path / name, [data], place.path)
    else:
        place.write(name, data)
