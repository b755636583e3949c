"""The page about a cache, and its pictures, go along with a push: for people, no content."""

from pathlib import Path

from ..files.lock import locked
from ..files.own_files import write_file
from .place import LocalPlace, Place

PAGE, PICTURES = "README.md", "features-*.png"
_MAX_BYTES = 2**24


def send_page(cache: Path, place: Place, mark: str) -> None:
    """Send the page of a cache, if it has one, unless the place has a page without `mark`, which
    somebody wrote there."""
    files = [path for path in (cache / PAGE, *sorted(cache.glob(PICTURES))) if _is_plain(path)]
    theirs = _read(place)
    if files[:1] == [cache / PAGE] and (theirs is None or mark.encode() in theirs):
        for path in files:
            _write(place, path.name, path.read_bytes())


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
