"""Students of captions that are aligned to cached embeddings of pictures, in a world of coloured
shapes, by a CLIP with random weights."""

import json
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError
from armada.pipeline import seed_run
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.embedding.data import EmbeddingData
from armada.pipeline.jobs import make
from armada.pipeline.reports.job import ReportJob
from armada.pipeline.reports.report import run_report
from armada.pipeline.run_data import figure_names, read_data
from armada.pipeline.terms import terms_of
from armada.stages.corpus.corpus import read_corpus
from armada.stages.distill.embedding.dataset import joined_numbers
from armada.stages.store.reading.reader import open_cache
from coloured_shapes import CAPTIONS, CLASSES, SIZE, write_shapes
from cuts import cut_at
from language_processes import losses, weights
from tiny_checkpoints import make_bert
from tiny_runs import freeze_dropout
from tiny_text_towers import PROJECTED, make_clip_of_pictures

pytestmark = pytest.mark.long

Keys = dict[str, Any]
PHOTO = "picture:photo"
ALIGNED = [
    {"name": "infonce", "teacher": "image", "similarity_temperature": 0.01, "symmetric": True},
    {"name": "feature", "teacher": "image", "distance": "cosine"},
]
EPOCHS = 15


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions, to train on and held out (two captions each); a CLIP, its embeddings
    of all pictures and of all captions; a student without dropout."""
    root = tmp_path_factory.mktemp("shapes")
    captions = [caption.format(name) for caption in CAPTIONS for name in CLASSES]
    clip = make_clip_of_pictures(root / "clip", captions, SIZE)
    write_shapes(root / "train.parquet", range(8))
    write_shapes(root / "held-out.parquet", [100], captions=2)
    for name in ("train", "held-out"):
        own = {"corpus": root / f"{name}.parquet", "quiet": True}
        given = {"text_column": [PHOTO], "options": {"picture": "given"}}
        library.precompute(**own, **given, teacher=f"clip_image:{clip}", cache=root / "images")
        library.precompute(
            **own, text_column="caption", teacher=f"encoder:{clip}", cache=root / "captions"
        )
    freeze_dropout(make_bert(root / "student", captions))
    return root


def job(world: Path, output: Path, **keys: Any) -> Keys:
    return {
        **{"train": str(world / "train.parquet"), "validation": str(world / "held-out.parquet")},
        **{"text_column": ["caption"], "student": str(world / "student"), "task": "embedding"},
        "teachers": {"image": {"cache": str(world / "images"), "text_column": [PHOTO]}},
        **{"objectives": ALIGNED, "output": str(output), "device": "cpu", "epochs": EPOCHS},
        **{
            "batch_size": 32,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "report_to": "none",
            "seed": 3,
        },
        **keys,
    }


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """A finished run."""
    library.distill(**job(world, world / "run"))
    return world / "run"


def pictures_of(world: Path, name: str) -> Any:
    """Cached embeddings of the pictures of each row."""
    corpus = read_corpus([str(world / f"{name}.parquet")], [PHOTO])
    cache = open_cache(world / "images")
    return cache["image_embedding"].gather(cache.find(corpus.keys(), "image_embedding"))


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(texts: Any, pictures: Any, captions: list[str]) -> dict[str, float]:
    """Each different caption among all different pictures; a caption has each picture of its
    rows."""
    different, which = np.unique(pictures, axis=0, return_inverse=True)
    found: dict[str, list[float]] = {"ndcg@10": [], "mrr@10": [], "recall@1": [], "recall@10": []}
    for caption in dict.fromkeys(captions):
        rows = [row for row, own in enumerate(captions) if own == caption]
        right = set(which.reshape(-1)[rows].tolist())
        order = np.argsort(-(unit(different) @ unit(texts[rows[:1]])[0]))
        hits = [number in right for number in order.tolist()]
        gains = 1 / np.log2(np.arange(2, 12))
        found["ndcg@10"].append((gains * hits[:10]).sum() / gains[: len(right)].sum())
        rank = 1 + hits.index(True)
        found["mrr@10"].append(1 / rank if rank <= 10 else 0.0)
        for k in (1, 10):
            found[f"recall@{k}"].append(sum(hits[:k]) / len(right))
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_captions_find_the_pictures_that_they_were_aligned_to(world: Path, run: Path) -> None:
    """Pictures that were held out, of 20 classes: far above chance, which is 1 in 20 for the first;
    and by epoch as by hand. Six runs had 0.55 to 0.70."""
    found = json.loads((run / "metrics.json").read_text())["validation"]
    captions = pq.read_table(world / "held-out.parquet")["caption"].to_pylist()
    student = library.load_student(run / "student")
    texts = np.stack([each["embedding"] for each in student.predict(captions)])
    assert texts.shape == (2 * len(CLASSES), PROJECTED)
    for name, value in by_hand(texts, pictures_of(world, "held-out"), captions).items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["recall@1"] > 0.4
    assert found["ndcg@10"] > 0.6
    beside = (unit(texts) * unit(pictures_of(world, "held-out"))).sum(axis=1).mean()
    assert found["teacher_cosine"] == pytest.approx(beside, abs=1e-5)
    assert found.keys() >= {"loss", "teacher_cka", "teacher_mse"}


def test_a_cut_run_that_goes_on_is_an_uncut_one(
    world: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = job(world, tmp_path / "run", save_steps=7)
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(10))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys)
    library.distill(**keys, resume=True)
    assert losses(tmp_path / "run") == losses(run)
    one, other = weights(tmp_path / "run"), weights(run)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_teacher_of_the_captions_themselves_beside(world: Path, tmp_path: Path) -> None:
    """Each is measured by its own name; pictures by theirs alone, if they are the only ones."""
    teachers = job(world, tmp_path)["teachers"] | {"text": {"cache": str(world / "captions")}}
    both = [*ALIGNED, {"name": "rkd", "teacher": "text"}]
    library.distill(**job(world, tmp_path / "run", teachers=teachers, objectives=both, epochs=2))
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"]
    assert {"ndcg@10", "image.teacher_cosine", "image.teacher_cka", "text.teacher_cka"} <= set(
        found
    )
    assert len(losses(tmp_path / "run", "rkd.angle")) == 10


def test_negatives_of_the_cache_where_a_batch_has_all_others(world: Path, tmp_path: Path) -> None:
    """As a batch of validation texts does: there are none left to draw."""
    drawn = [ALIGNED[0] | {"negatives": 20}]
    library.distill(**job(world, tmp_path / "run", objectives=drawn, epochs=1))
    assert "ndcg@10" in json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"]


def test_a_report_of_it_and_the_figures_that_are_announced(
    world: Path, run: Path, tmp_path: Path
) -> None:
    """It plots the captions; the vectors of pictures are of none of these alone."""
    keys = make(DistillJob, job(world, tmp_path))
    announced = figure_names(keys, read_data(keys, terms_of(keys)))
    assert set(announced) == set(json.loads((run / "metrics.json").read_text())["validation"])
    page = tmp_path / "report.html"
    run_report(make(ReportJob, {"runs": [str(run)], "out": str(page)}), quiet=True)
    assert "ndcg@10" in page.read_text()


def read(keys: Keys) -> EmbeddingData:
    made = make(DistillJob, keys)
    data = read_data(made, terms_of(made))
    assert isinstance(data, EmbeddingData)
    return data


def test_captions_of_a_picture_have_one_target(world: Path, tmp_path: Path) -> None:
    """Which is gathered once, and is none of their negatives; the pictures are not kept."""
    data = read(job(world, tmp_path, train=str(world / "held-out.parquet"), validation=[]))
    joined = data.joined
    assert len(joined.rows["image"]) == len(CLASSES)
    assert joined.places["image"].shape == (2 * len(CLASSES), 1)
    numbers = joined.places["image"][:, 0].reshape(-1, 2)
    assert (numbers[:, 0] == numbers[:, 1]).all()
    found = data.gathers(seed=0)["image"](joined.places["image"][:, 0])
    np.testing.assert_array_equal(found, pictures_of(world, "held-out"))
    assert len(data.train.corpus.segments) == 1
    assert data.read_digests.keys() == {"image"}


@pytest.mark.parametrize(
    ("pictures", "words", "expected"),
    [
        ([5, 5, 6, 7], [0, 1, 2, 3], [0, 0, 2, 3]),
        ([5, 6, 7, 8], [0, 1, 0, 3], [0, 1, 0, 3]),
        ([5, 5, 6, 6, 7], [0, 1, 1, 2, 3], [0, 0, 0, 0, 4]),
        ([5, 6, 7], [2, 1, 0], [0, 1, 2]),
    ],
)
def test_what_shares_a_picture_or_words_is_no_negative(
    pictures: list[int], words: list[int], expected: list[int]
) -> None:
    found = joined_numbers(np.array(pictures), np.array(words))
    assert found.tolist() == expected


def test_rows_of_several_texts_share_the_target_of_their_row(world: Path, tmp_path: Path) -> None:
    """Of a text that a row lacks there is none."""
    table = pq.read_table(world / "train.parquet").slice(0, 40)
    more = [
        None if row % 3 else f"a {label}" for row, label in enumerate(table["label"].to_pylist())
    ]
    rows = table.append_column("more", pa.array(more)).append_column("title", table["label"])
    pq.write_table(rows, tmp_path / "rows.parquet")
    keys = job(world, tmp_path / "run", train=str(tmp_path / "rows.parquet"), validation=[])
    keys |= {"text_column": ["caption", "title", "more?"], "epochs": 1}
    joined = read(keys).joined
    there = np.array([[True, True, text is not None] for text in more])
    np.testing.assert_array_equal(joined.places["image"] >= 0, there)
    assert (joined.places["image"][:, 0] == joined.places["image"][:, 1]).all()
    library.distill(**keys)
    assert len(found := losses(tmp_path / "run", "infonce.infonce")) == 2
    assert np.isfinite(found).all()


def with_rows(world: Path, file: Path, rows: list[Keys]) -> str:
    table = pq.read_table(world / "train.parquet").slice(0, 40)
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(rows, table.schema)]), file)
    return str(file)


def test_a_row_without_its_picture_is_named_or_left_out(world: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "more.parquet", [55])
    unknown = pq.read_table(tmp_path / "more.parquet").slice(0, 1).to_pylist()
    broken = [{"photo": b"GIF89a", "caption": "a red square", "label": "x"}]
    for rows, message in (
        (unknown, r"1 of 41 rows are not in the cache .*rows.parquet row 41"),
        (broken, r"rows.parquet row 41: the picture of column 'photo' is no PNG"),
    ):
        keys = job(world, tmp_path / "run", train=with_rows(world, tmp_path / "rows.parquet", rows))
        with pytest.raises(ArmadaError, match=message):
            read(keys)
        data = read(keys | {"skip_bad_rows": True})
        assert len(data.train.corpus) == len(data.joined.groups) == 40
        assert "rows.parquet row 41" in data.train.corpus.skipped[0]


def test_validation_texts_may_have_no_pictures(world: Path, tmp_path: Path) -> None:
    """Pairs with scores are measured as ever; single captions alone leave nothing to measure."""
    table = pa.table(
        {"a": ["a red circle", "a lime bar"], "b": ["a blue bar", "a white bar"], "score": [0.0, 1]}
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    keys = job(world, tmp_path, validation=str(tmp_path / "pairs.parquet"))
    pairs = {"validation_text_column": ["a", "b"], "validation_label_column": "score"}
    data = read(keys | pairs)
    assert data.metric_names == ("spearman", "pearson")
    assert "photo" in data.measured.reasons["image"]
    with pytest.raises(ArmadaError, match="nothing can be measured"):
        read(keys | {"validation_text_column": ["a"]})


def evaluated(world: Path, run: Path, **keys: Any) -> Keys:
    own = {"corpus": world / "held-out.parquet", "cache": world / "images", "device": "cpu"}
    told = library.evaluate(**{"student": run, "picture_column": PHOTO, **own, **keys})
    return dict(told.document)


def test_captions_and_pictures_are_searched_both_ways(world: Path, run: Path) -> None:
    """As by epoch, and as by hand; the CLIP's own tower, whose weights are random, beside it."""
    found = evaluated(world, run, text_column=["caption"], caption_cache=world / "captions")
    assert (found["captions"], found["pictures"]) == (2 * len(CLASSES), len(CLASSES))
    metrics, by_epoch = found["metrics"], json.loads((run / "metrics.json").read_text())
    for name in ("ndcg@10", "mrr@10", "recall@1", "recall@10"):
        assert metrics[f"text_to_image_{name}"] == pytest.approx(by_epoch["validation"][name])
    assert metrics["text_to_image_success@5"] == metrics["text_to_image_recall@5"]
    captions = pq.read_table(world / "held-out.parquet")["caption"].to_pylist()
    student = library.load_student(run / "student")
    texts = unit(np.stack([each["embedding"] for each in student.predict(captions)]))
    pictures = unit(pictures_of(world, "held-out")[::2])
    order = np.argsort(-(pictures @ texts.T), axis=1)
    own = order // 2 == np.arange(len(CLASSES))[:, None]
    for k in (1, 5, 10):
        assert metrics[f"image_to_text_success@{k}"] == pytest.approx(own[:, :k].any(1).mean())
        assert metrics[f"image_to_text_recall@{k}"] == pytest.approx(own[:, :k].sum(1).mean() / 2)
    assert metrics["image_to_text_success@1"] > 0.2
    assert metrics["teacher_text_to_image_recall@1"] < 0.2 < metrics["text_to_image_recall@1"]
    chosen = evaluated(world, run, text_column=["caption"], retrieval_metrics=["success@2"])
    assert chosen["metrics"].keys() == {"text_to_image_success@2", "image_to_text_success@2"}


def test_pictures_are_classified_by_the_names_of_classes(world: Path, run: Path) -> None:
    """Far above chance, which is 1 in 20 (six runs had 0.50 to 0.60); of several templates, by the
    mean of embeddings."""
    found = evaluated(world, run, label_column="label", templates=["a {}", "there is a {} here"])
    student = library.load_student(run / "student")
    names = sorted(CLASSES)
    sides = [
        unit(
            np.stack([each["embedding"] for each in student.predict([t.format(n) for n in names])])
        )
        for t in ("a {}", "there is a {} here")
    ]
    scores = unit(pictures_of(world, "held-out")) @ unit(sum(sides)).T
    labels = pq.read_table(world / "held-out.parquet")["label"].to_pylist()
    right = np.array([names[row] for row in scores.argmax(axis=1)]) == labels
    metrics = found["metrics"]
    assert metrics["accuracy"] == metrics["mean_per_class_recall"] == pytest.approx(right.mean())
    assert metrics["accuracy"] > 0.35
    assert metrics["top_5_accuracy"] > 0.8
    assert (found["classes"], found["examples"]) == (len(CLASSES), 2 * len(CLASSES))


def test_classes_of_numbers_have_names_and_some_rows_no_label(
    world: Path, run: Path, tmp_path: Path
) -> None:
    """The same as by names, in the order of the numbers; a teacher of the classes' texts beside."""
    table = pq.read_table(world / "held-out.parquet")
    numbers = [CLASSES.index(label) for label in table["label"].to_pylist()]
    table = table.append_column("number", pa.array([None, *numbers[1:]], pa.int64()))
    pq.write_table(table, tmp_path / "numbers.parquet")
    own = {"corpus": tmp_path / "numbers.parquet", "templates": "a {}"}
    library.precompute(
        corpus=world / "train.parquet",
        text_column="caption",
        teacher=f"encoder:{world / 'clip'}",
        cache=tmp_path / "classes",
        quiet=True,
    )
    beside = {"class_names": list(CLASSES), "caption_cache": tmp_path / "classes"}
    found = evaluated(world, run, **own, label_column="number", **beside)
    assert found["unlabelled_examples"] == 1
    named = evaluated(world, run, **own | {"limit": None}, label_column="label")
    assert found["metrics"]["top_5_accuracy"] == pytest.approx(
        named["metrics"]["top_5_accuracy"], abs=0.03
    )
    assert {"teacher_accuracy", "teacher_top_5_accuracy"} < found["metrics"].keys()
    few = evaluated(world, run, **own, label_column="number", class_names=[*CLASSES, "nothing"])
    assert few["classes"] == len(CLASSES) + 1


def test_rows_whose_picture_is_not_cached_are_named_or_left_out(
    world: Path, run: Path, tmp_path: Path
) -> None:
    write_shapes(tmp_path / "more.parquet", [55])
    unknown = pq.read_table(tmp_path / "more.parquet").slice(0, 1)
    known = pq.read_table(world / "held-out.parquet")
    pq.write_table(pa.concat_tables([unknown, known]), tmp_path / "rows.parquet")
    own = {"corpus": tmp_path / "rows.parquet", "text_column": ["caption"]}
    with pytest.raises(
        ArmadaError, match=r"1 of 41 rows are not in the cache .*rows.parquet row 1"
    ):
        evaluated(world, run, **own)
    found = evaluated(world, run, **own, skip_bad_rows=True)
    assert "rows.parquet row 1: its picture is not in the cache" in found["skipped_rows"][0]
    whole = evaluated(world, run, text_column=["caption"])
    assert found["metrics"] == whole["metrics"]


UNEVALUATED: dict[str, tuple[Keys, str]] = {
    "neither captions nor labels": ({}, "name the one column of the captions"),
    "pictures as captions": ({"text_column": [PHOTO]}, "name the one column of the captions"),
    "two captions": ({"text_column": ["caption", "label"]}, "name the one column of the captions"),
    "no cache": (
        {"cache": None, "text_column": ["caption"]},
        "needs the cache of their embeddings",
    ),
    "captions and labels": (
        {"text_column": ["caption"], "label_column": "label"},
        "text_column: of captions, and label_column",
    ),
    "metrics of classes": (
        {"label_column": "label", "retrieval_metrics": "ndcg@3"},
        "retrieval_metrics: of captions",
    ),
    "classes of captions": (
        {"text_column": ["caption"], "class_names": ["a", "b"]},
        "class_names: of a zero-shot classification; name label_column",
    ),
    "no place for a name": (
        {"label_column": "label", "templates": ["a photo"]},
        "'a photo': needs one {}",
    ),
    "one class": (
        {"label_column": "label", "class_names": ["red bar"], "limit": 1},
        "there is one class",
    ),
    "a class twice": ({"label_column": "label", "class_names": ["a", "a"]}, "twice, or blank"),
    "labels of no class": (
        {"label_column": "label", "class_names": ["red circle", "a sea"]},
        "'red square'",
    ),
    "numbers without names": ({"label_column": "number"}, "name the classes in class_names"),
    "several labels": ({"label_column": ["label", "number"]}, "a picture has one class"),
    "a cache of texts": (
        {"cache": "captions", "text_column": ["caption"]},
        "40 of 40 rows are not in the cache",
    ),
    "another width": (
        {"picture_column": "caption", "cache": "wide", "text_column": ["caption"]},
        "has 8 numbers, and the embeddings to compare it with 20",
    ),
    "no such feature": (
        {
            "picture_column": "caption",
            "cache": "wide",
            "text_column": ["caption"],
            "feature": "none",
        },
        "feature 'none': teacher",
    ),
    "captions that are not cached": (
        {"text_column": ["caption"], "caption_cache": "images"},
        "caption_cache: lacks 40 of 40 texts, such as 'a red circle'",
    ),
    "of nothing": ({"text_column": ["caption"], "caption_teacher": "ab"}, "needs caption_cache"),
    "templates of nothing": ({"picture_column": None, "templates": ["{}"]}, "name picture_column"),
    "codes": ({"text_column": ["caption"], "precision": "int8"}, "of searches and of pairs"),
    "a separator": ({"label_column": "label", "label_separator": ";"}, "a picture has one class"),
}


@pytest.mark.parametrize("what", UNEVALUATED)
def test_an_evaluation_is_refused_in_a_line(
    world: Path, run: Path, tmp_path: Path, what: str
) -> None:
    keys, message = dict(UNEVALUATED[what][0]), UNEVALUATED[what][1]
    table = pq.read_table(world / "held-out.parquet")
    numbers = pa.array(range(len(table)), pa.int64())
    pq.write_table(table.append_column("number", numbers), tmp_path / "rows.parquet")
    if keys.get("cache") == "wide":
        own = {"text_column": "caption", "teacher": "hash:8", "quiet": True}
        library.precompute(corpus=tmp_path / "rows.parquet", cache=tmp_path / "wide", **own)
        keys["cache"] = tmp_path / "wide"
    for name in ("cache", "caption_cache"):
        if isinstance(keys.get(name), str):
            keys[name] = world / keys[name]
    with pytest.raises(ArmadaError) as caught:
        evaluated(world, run, **{"corpus": tmp_path / "rows.parquet"} | keys)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


REFUSED: dict[str, tuple[Keys, str]] = {
    "pictures to a student": ({"text_column": [PHOTO]}, "a student that embeds reads texts"),
    "candidates by one vector": (
        {
            "text_column": ["caption", "label"],
            "objectives": [{"name": "listwise_kl", "teacher": "image"}],
        },
        "teacher image has one vector for all of them (picture:photo)",
    ),
    "queries of pictures": (
        {"text_column": ["caption", "label"], "query_teacher": "abc"},
        "query_cache, query_teacher: are of queries among",
    ),
    "texts where pictures are": ({"column": "photo"}, "is not UTF-8"),
    "passages of pictures": (
        {"text_column": ["caption", "label"], "passage_tower": "cached"},
        "this teacher has one vector for a row",
    ),
    "names where pictures are": ({"column": "picture:label"}, "is no file in the corpus's folder"),
    "a cache of texts": ({"cache": "captions"}, "160 of 160 rows are not in the cache"),
    "another width": ({"embedding_dim": 8}, "set embedding_dim=20"),
    "no such column": ({"column": "picture:image"}, "image"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_in_a_line(world: Path, tmp_path: Path, what: str) -> None:
    keys, message = dict(REFUSED[what][0]), REFUSED[what][1]
    image = {"cache": str(world / keys.pop("cache", "images"))}
    image |= {"text_column": [keys.pop("column", PHOTO)]}
    if "query_teacher" in keys:
        image["query_teacher"] = keys.pop("query_teacher")
    with pytest.raises(ArmadaError) as caught:
        library.distill(**job(world, tmp_path / "run", teachers={"image": image}, **keys))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "student").exists()
