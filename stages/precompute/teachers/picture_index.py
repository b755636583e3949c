"""A folder of pictures as an index: each picture once, by its content, and its embedding.

Pictures are in the order of their digests, so names and places do not matter. Embeddings are
computed once for a folder's pictures and an encoder, and kept in the user's folder for caches: N
pictures take N * (4 E + 16) bytes there, and as much memory.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ....cache_schemas.errors import TeacherSourceError
from ....cache_schemas.keys import digest
from ....cache_schemas.locations import expand_home
from ...known_digests import in_user_cache, keep, read_kept, sha256_of
from ...pictures import PictureError, open_picture
from .image_encoders import ImageEncoder

ID_BYTES = 16
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_AT_ONCE = 32

_LOGGER = logging.getLogger("armada")


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """The distinct pictures of a folder: the first 16 bytes of the SHA-256 of each, ascending, and
    one file that has it."""

    path: Path
    ids: tuple[str, ...]
    files: tuple[Path, ...]

    def digest(self) -> str:
        """128-bit digest of what the pictures are."""
        return digest(list(self.ids))

    def id_bytes(self) -> npt.NDArray[np.uint8]:
        """The ids, [N, 16]."""
        return np.frombuffer(bytes.fromhex("".join(self.ids)), np.uint8).reshape(-1, ID_BYTES)


def read_picture_folder(source: str) -> PictureFolder:
    """The pictures below a folder. Raises TeacherSourceError if there are none."""
    folder = Path(expand_home(source))
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = sorted(path for path in found if not path.is_dir())
    if not files:
        raise TeacherSourceError(
            f"pictures {source}: holds no pictures ({', '.join(SUFFIXES)}); name a folder of them"
        )
    by_id = {_id_of(file, folder): file for file in reversed(files)}
    ids = tuple(sorted(by_id))
    return PictureFolder(folder, ids, tuple(by_id[each] for each in ids))


def _id_of(file: Path, folder: Path) -> str:
    try:
        return sha256_of(file)[: 2 * ID_BYTES]
    except OSError as error:
        raise TeacherSourceError(
            f"pictures {folder}: {file.relative_to(folder)}: {error.strerror}; remove it"
        ) from error


def embeddings_of(
    folder: PictureFolder, encoder: ImageEncoder, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The embedding of each picture, [N, E] in float32 on the CPU, not scaled; `encoder` is loaded
    only if they are not kept. Raises TeacherSourceError for a picture that cannot be read."""
    about = {"pictures": folder.digest(), "encoder": encoder.digest(), "form": encoder.form}
    file = in_user_cache("pictures", digest(about | {"dtype": str(dtype)}))
    known = read_kept(file) if file else None
    if known is not None and len(known) == 4 * len(folder.ids) * encoder.dim:
        return torch.from_numpy(np.frombuffer(known, "<f4").reshape(-1, encoder.dim).copy())
    _LOGGER.info(f"pictures {folder.path}: {len(folder.ids):,} are embedded, once")
    encoder.load(dtype, device)
    rows_NE = torch.cat(list(_embedded(folder, encoder)))
    if file:
        keep(file, rows_NE.numpy().astype("<f4").tobytes())
    return rows_NE


def _embedded(folder: PictureFolder, encoder: ImageEncoder) -> Iterator[torch.Tensor]:
    for start in range(0, len(folder.files), _AT_ONCE):
        files = folder.files[start : start + _AT_ONCE]
        pictures = []
        for file in files:
            try:
                pictures.append(open_picture(file.read_bytes()))
            except (PictureError, OSError) as error:
                raise TeacherSourceError(
                    f"pictures {folder.path}: {file.relative_to(folder.path)}: {error}; remove it"
                ) from error
        with torch.inference_mode():
            rows = encoder(pictures).float().cpu()
        if not (sound := rows.isfinite().all(dim=1)).all():
            bad = files[int(sound.int().argmin())].relative_to(folder.path)
            raise TeacherSourceError(
                f"pictures {folder.path}: the embedding of {bad} is not finite; set dtype=float32"
            )
        yield rows.clone()
