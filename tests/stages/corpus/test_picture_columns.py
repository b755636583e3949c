"""Columns of pictures: their bytes are segments, and so part of the keys."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from armada.cache_schemas.errors import CorpusError
from armada.stages.corpus.corpus import read_corpus
from armada.stages.corpus.hub_datasets import in_memory
from armada.stages.pictures import PictureError, picture_segment, read_picture
from PIL import Image


def picture(seed: int, form: str = "PNG", **more: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form, **more)
    return file.getvalue()


FILES = [picture(seed) for seed in range(3)]
TEXTS = ["a bird", "a dog", "a kite"]
COLUMNS = ("picture:photo", "text")


def keys_of(table: pa.Table) -> Any:
    return read_corpus([in_memory(table)], COLUMNS).keys()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_segment_is_the_file(form: str) -> None:
    file = picture(0, form)
    segment = picture_segment(file)
    assert segment.startswith(f"data:image/{form.lower()};base64,")
    np.testing.assert_array_equal(
        read_picture(segment), Image.open(io.BytesIO(file)).convert("RGB")
    )


def test_a_picture_is_upright_and_rgb() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read_picture(picture_segment(picture(0, "JPEG", exif=exif))).size == (4, 6)
    grey = io.BytesIO()
    Image.new("LA", (3, 2)).save(grey, format="PNG")
    assert read_picture(picture_segment(grey.getvalue())).mode == "RGB"


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(PictureError, match="is no PNG, JPEG, WEBP file"):
        picture_segment(b"GIF89a")
    with pytest.raises(PictureError, match="is no whole PNG"):
        read_picture(picture_segment(FILES[0][:-30]))


def test_bytes_files_and_pictures_of_data_sets_have_the_same_keys(tmp_path: Path) -> None:
    for number, file in enumerate(FILES):
        (tmp_path / f"{number}.png").write_bytes(file)
    names = pa.table({"photo": [f"{number}.png" for number in range(3)], "text": TEXTS})
    pq.write_table(names, tmp_path / "corpus.parquet")
    named = read_corpus([str(tmp_path / "corpus.parquet")], COLUMNS)
    of_bytes = keys_of(pa.table({"photo": FILES, "text": TEXTS}))
    structs = [{"bytes": file, "path": "x.png"} for file in FILES]
    np.testing.assert_array_equal(named.keys(), of_bytes)
    np.testing.assert_array_equal(keys_of(pa.table({"photo": structs, "text": TEXTS})), of_bytes)
    (tmp_path / "1.png").write_bytes(picture(9))
    changed = read_corpus([str(tmp_path / "corpus.parquet")], COLUMNS).keys()
    assert (changed != of_bytes).any(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("../secret.png", r"\(../secret.png\) is outside of the corpus's folder"),
        ("absent.png", r"\(absent.png\) is no file in the corpus's folder"),
        ("notes.png", "is no PNG, JPEG, WEBP file"),
        (None, "column 'photo' is null"),
    ],
)
def test_a_bad_picture_stops_the_run_or_is_listed(tmp_path: Path, bad: Any, problem: str) -> None:
    (tmp_path / "secret.png").write_bytes(FILES[0])
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "0.png").write_bytes(FILES[0])
    (folder / "notes.png").write_text("a list")
    pq.write_table(pa.table({"photo": ["0.png", bad], "text": TEXTS[:2]}), folder / "rows.parquet")
    source = [str(folder / "rows.parquet")]
    with pytest.raises(CorpusError, match=rf"rows.parquet row 2: .*{problem}"):
        read_corpus(source, COLUMNS)
    corpus = read_corpus(source, COLUMNS, skip_bad_rows=True)
    assert len(corpus) == 1
    assert len(corpus.skipped) == 1


def test_other_types_are_refused() -> None:
    with pytest.raises(CorpusError, match="column 'photo' holds int64; pictures are files"):
        keys_of(pa.table({"photo": [1, 2, 3], "text": TEXTS}))
