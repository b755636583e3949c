"""Students with a vector for each token: late interaction, from training to the finished folder."""

import json
import math
from collections.abc import Callable, Sequence
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
from armada.pipeline.jobs import make
from armada.pipeline.reports.job import ReportJob
from armada.pipeline.reports.report import run_report
from armada.stages.embeddings.folders import dense_layer, write_token_files
from armada.stages.embeddings.layers import Normalize
from cuts import cut_at
from language_processes import losses, run, run_in_two_processes, weights
from scipy.stats import spearmanr
from small_caches import keys_of
from tiny_checkpoints import make_bert, make_deberta, make_llama
from tiny_embeddings import quiet_sentence_transformers
from tiny_runs import freeze_dropout, sentences

pytestmark = pytest.mark.long

Keys = dict[str, Any]
ROWS, HELD_OUT = 22, 8
COLUMNS = ("query", "positive", "negative?")


def table(rows: int, start: int) -> dict[str, list[Any]]:
    """Queries of a few words, passages of more; every fourth row has no negative."""
    asked = [" ".join(text.split()[:3]) for text in sentences(start, start + rows)]
    said, other = sentences(start, start + rows), sentences(start + 300, start + 300 + rows)
    return {
        "query": asked,
        "positive": [f"{text} again" if n % 2 else text for n, text in enumerate(said)],
        "negative": [None if n % 4 == 3 else text for n, text in enumerate(other)],
        "score": np.random.default_rng(start).random(rows).tolist(),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries with candidates, the scores of their pairs by a fake teacher, and a student."""
    folder = tmp_path_factory.mktemp("tokens")
    every: list[str] = []
    for name, rows, start in (("train", ROWS, 0), ("validation", HELD_OUT, 60)):
        found = table(rows, start)
        pq.write_table(pa.table(found), folder / f"{name}.parquet")
        every += [text for own in list(found.values())[:3] for text in own if text]
    for column in ("positive", "negative"):
        for name in ("train", "validation"):
            library.precompute(
                corpus=folder / f"{name}.parquet",
                text_column=["query", column],
                teacher="hash:1",
                cache=folder / "scores",
                skip_bad_rows=True,
                quiet=True,
            )
    freeze_dropout(make_bert(folder / "student", every))
    return folder


def job(root: Path, output: Path, **keys: Any) -> Keys:
    return {
        **{"train": str(root / "train.parquet"), "text_column": list(COLUMNS)},
        **{"student": str(root / "student"), "cache": str(root / "scores"), "task": "embedding"},
        **{"objective": "listwise_kl", "pooling": "none", "embedding_dim": 12},
        **{"output": str(output), "device": "cpu", "epochs": 2, "batch_size": 6},
        **{"learning_rate": 2e-3, "logging_steps": 1, "report_to": "none", "seed": 3},
        **keys,
    }


ALONE = {"cache": None, "objective": "contrastive"}


def by_library(folder: Path, queries: Sequence[str], passages: Sequence[str]) -> tuple[Any, ...]:
    """The vectors of both, and their similarities, by sentence-transformers."""
    library = pytest.importorskip("sentence_transformers")
    if not hasattr(library, "MultiVectorEncoder"):
        pytest.skip("this sentence-transformers has no MultiVectorEncoder")
    with quiet_sentence_transformers():
        model = library.MultiVectorEncoder(str(folder), device="cpu")
        found = model.encode_query(list(queries)), model.encode_document(list(passages))
        return *found, model.similarity(*found).numpy()


def test_it_is_a_multi_vector_encoder(root: Path, tmp_path: Path) -> None:
    """Trained by cached scores; the folder opens in sentence-transformers as what was trained, and
    what was measured by epoch is what it gives."""
    validation = str(root / "validation.parquet")
    keys = job(root, tmp_path / "run", validation=validation, passage_prompt="the cook ")
    library.distill(**keys | {"epochs": 6})
    found = losses(tmp_path / "run", "listwise_kl")
    assert found[-1] < found[0]
    folder = tmp_path / "run" / "student"
    rows = pq.read_table(validation).to_pydict()
    asked, said = rows["query"], rows["positive"] + [text for text in rows["negative"] if text]
    queries, passages, alike = by_library(folder, asked, said)
    student = library.load_student(folder)
    assert student.card.embedding is not None
    for texts, theirs in ((asked, queries), ([f"the cook {text}" for text in said], passages)):
        for one, other in zip(student.predict(texts), theirs, strict=True):
            np.testing.assert_allclose(one["embedding"], other, atol=1e-6)
            assert one["embedding"].shape[1] == 12
            np.testing.assert_allclose(np.linalg.norm(one["embedding"], axis=1), 1, atol=1e-6)
    ranks = (alike > alike.diagonal()[:, None]).sum(axis=1)
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"]
    assert told["mrr@10"] == pytest.approx(float((1 / (ranks + 1)).mean()), abs=1e-9)
    assert told["recall@1"] == pytest.approx(float((ranks == 0).mean()), abs=1e-9)
    card = (folder / "README.md").read_text()
    assert "MultiVectorEncoder(folder)" in card
    assert "SentenceTransformer(folder)" not in card


@pytest.mark.parametrize("make", [make_llama, make_deberta])
def test_of_any_family(root: Path, tmp_path: Path, make: Callable[..., Path]) -> None:
    """Also a decoder, whose tokens know only those before them."""
    rows = pq.read_table(root / "validation.parquet").to_pydict()
    make(tmp_path / "start", [*rows["query"], *rows["positive"]])
    library.distill(**job(root, tmp_path / "run", student=str(tmp_path / "start"), epochs=1))
    folder = tmp_path / "run" / "student"
    queries, passages, _ = by_library(folder, rows["query"], rows["positive"])
    student = library.load_student(folder)
    for texts, theirs in ((rows["query"], queries), (rows["positive"], passages)):
        for one, other in zip(student.predict(texts), theirs, strict=True):
            np.testing.assert_allclose(one["embedding"], other, atol=1e-5)


def test_pairs_are_measured_by_late_interaction(root: Path, tmp_path: Path) -> None:
    scored = {"validation_text_column": ["query", "positive"], "validation_label_column": "score"}
    library.distill(
        **job(root, tmp_path / "run", validation=str(root / "validation.parquet"), **scored)
    )
    rows = pq.read_table(root / "validation.parquet").to_pydict()
    _, _, alike = by_library(tmp_path / "run" / "student", rows["query"], rows["positive"])
    expected = spearmanr(alike.diagonal(), rows["score"]).statistic
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"]
    assert told["spearman"] == pytest.approx(expected, abs=1e-6)
    pairs = {"text_column": ["query", "positive"], "label_column": "score"}
    found = library.evaluate(
        student=tmp_path / "run", corpus=root / "validation.parquet", batch_size=3, **pairs
    )
    assert found.metrics["spearman"] == pytest.approx(expected, abs=1e-6)


def test_a_beir_folder_is_searched(root: Path, tmp_path: Path) -> None:
    library.distill(**job(root, tmp_path / "run"))
    rows = pq.read_table(root / "validation.parquet").to_pydict()
    said = rows["positive"] + [text for text in rows["negative"] if text]
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    for name, texts in (("queries", rows["query"]), ("corpus", said)):
        lines = (json.dumps({"_id": f"{name}-{n}", "text": text}) for n, text in enumerate(texts))
        (beir / f"{name}.jsonl").write_text("\n".join(lines))
    judged = "".join(f"queries-{n}\tcorpus-{n}\t1\n" for n in range(HELD_OUT))
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    found = library.evaluate(student=tmp_path / "run", beir=beir)
    _, _, alike = by_library(tmp_path / "run" / "student", rows["query"], said)
    ranks = (alike > alike.diagonal()[:, None]).sum(axis=1)
    assert found.metrics["mrr@10"] == pytest.approx(
        float(np.where(ranks < 10, 1 / (ranks + 1), 0).mean()), abs=1e-9
    )
    for key, value in {"precision": ["int8"], "truncate_dim": [4], "similarity": "dot"}.items():
        with pytest.raises(ArmadaError, match="one vector of each text, and this student has"):
            library.evaluate(student=tmp_path / "run", beir=beir, **{key: value})


WAYS: dict[str, Keys] = {
    "scores": {},
    "contrast": {**ALONE, "symmetric": True},
    "margins of prefixes": {"objective": "margin_mse", "matryoshka_dims": [6]},
    "a sum": {
        "objective": None,
        "objectives": [{"name": "contrastive"}, {"name": "listwise_kl", "weight": 0.5}],
    },
    "order": {
        "cache": None,
        "objective": "cosent",
        "label_column": "score",
        "text_column": ["query", "positive"],
    },
}


@pytest.mark.parametrize("name", WAYS)
def test_a_batch_read_in_parts_is_a_whole_one(root: Path, tmp_path: Path, name: str) -> None:
    run(job(root, tmp_path / "whole", **WAYS[name]))
    run(job(root, tmp_path / "parts", **WAYS[name], mini_batch_size=4))
    first = losses(tmp_path / "whole")
    assert all(map(math.isfinite, first))
    np.testing.assert_allclose(losses(tmp_path / "parts"), first, rtol=1e-9)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(one[each], other[each], rtol=0, atol=1e-9) for each in one)


def test_two_processes_are_one(root: Path, tmp_path: Path, torchrun: Sequence[str]) -> None:
    """Whose shares of a batch are of other lengths; both validate."""
    more = {"validation": str(root / "validation.parquet")}
    names = ("contrast", "margins of prefixes")
    plans = [job(root, tmp_path / f"two {name}", **WAYS[name], **more) for name in names]
    run_in_two_processes(torchrun, tmp_path / "plan.json", plans)
    for name in names:
        run(job(root, tmp_path / name, **WAYS[name], **more))
        np.testing.assert_allclose(
            losses(tmp_path / f"two {name}"), losses(tmp_path / name), rtol=1e-9
        )
        one, other = weights(tmp_path / name), weights(tmp_path / f"two {name}")
        assert all(torch.allclose(one[each], other[each], rtol=0, atol=1e-8) for each in one)
        told, alone = (
            json.loads((tmp_path / each / "metrics.json").read_text())["validation"]
            for each in (f"two {name}", name)
        )
        assert told == pytest.approx(alone, rel=1e-6)


def test_a_cut_and_resumed_run_is_a_whole_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = job(root, tmp_path / "whole", **WAYS["a sum"], save_steps=1)
    library.distill(**keys)
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(2))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys | {"output": str(tmp_path / "cut")})
    library.distill(**keys | {"output": str(tmp_path / "cut"), "resume": True})
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("keys", [{}, {"embedding_dim": None}])
def test_a_finished_student_starts_another(root: Path, tmp_path: Path, keys: Keys) -> None:
    """With its dense layer: at a rate of nearly nothing it is the same student."""
    library.distill(**job(root, tmp_path / "first"))
    student = tmp_path / "first" / "student"
    more = {"student": str(student), "learning_rate": 1e-12, "epochs": 1, **keys}
    library.distill(**job(root, tmp_path / "second", **more))
    texts = ["the cook mended it"]
    (one,), (other,) = (
        library.load_student(tmp_path / each).predict(texts) for each in ("first", "second")
    )
    np.testing.assert_allclose(one["embedding"], other["embedding"], atol=1e-5)


def test_a_bias_is_no_token(root: Path, tmp_path: Path) -> None:
    """A layer to start with may have one; a text has as many vectors beside a longer one."""
    every = pq.read_table(root / "train.parquet")["positive"].to_pylist()
    freeze_dropout(make_bert(tmp_path / "start", every))
    weight = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    layer = dense_layer(weight, torch.ones(12), "torch.nn.modules.linear.Identity")
    write_token_files(tmp_path / "start", [layer, Normalize()], 48)
    start = {"student": str(tmp_path / "start"), "embedding_dim": None}
    run(job(root, tmp_path / "run", **start))
    student = library.load_student(tmp_path / "run")
    short, long = "a cook", " ".join(every[:4])
    (alone,), (beside, _) = student.predict([short]), student.predict([short, long])
    np.testing.assert_allclose(beside["embedding"], alone["embedding"], atol=1e-5)
    run(job(root, tmp_path / "parts", **start, mini_batch_size=4))
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "run"), rtol=1e-9)


@pytest.mark.parametrize("key", ["student", "passage_student"])
def test_that_tokens_stay_apart_is_said(root: Path, tmp_path: Path, key: str) -> None:
    """A folder that declares it is not enough."""
    library.distill(**job(root, tmp_path / "first", epochs=1))
    keys = {"pooling": "auto", key: str(tmp_path / "first" / "student"), **ALONE}
    if key == "passage_student":
        keys["passage_tower"] = "own"
    with pytest.raises(ArmadaError, match=r"has a vector for each token; set pooling=none"):
        library.distill(**job(root, tmp_path / "second", **keys))


def test_vectors_have_128_numbers_unless_others_are_named(root: Path, tmp_path: Path) -> None:
    library.distill(**job(root, tmp_path / "run", embedding_dim=None, epochs=1))
    (found,) = library.load_student(tmp_path / "run").predict(["a sailor mended it"])
    assert found["embedding"].shape[1] == 128


def test_predictions_are_lists_of_vectors(root: Path, tmp_path: Path) -> None:
    library.distill(**job(root, tmp_path / "run", epochs=1))
    corpus, output = root / "validation.parquet", tmp_path / "vectors.parquet"
    library.predict(
        student=tmp_path / "run", corpus=corpus, text_column=["positive"], output=output
    )
    found = pq.read_table(output)["embedding"].to_pylist()
    texts = pq.read_table(corpus)["positive"].to_pylist()
    for row, each in zip(found, library.load_student(tmp_path / "run").predict(texts), strict=True):
        np.testing.assert_allclose(row, each["embedding"], atol=1e-6)
    assert len({len(row) for row in found}) > 1


def test_a_report_shows_it(root: Path, tmp_path: Path) -> None:
    library.distill(
        **job(root, tmp_path / "run", validation=str(root / "validation.parquet"), **ALONE)
    )
    page = tmp_path / "report.html"
    run_report(make(ReportJob, {"runs": [str(tmp_path / "run")], "out": str(page)}), quiet=True)
    assert "ndcg@10" in page.read_text()


REFUSED: dict[str, tuple[Keys, str]] = {
    "an objective of vectors": ({"objective": "feature"}, "feature: compares one vector of a text"),
    "labels": (
        {"task": None, "objective": "undistilled", "label_column": "score", "cache": None},
        "pooling='none': a vector for each token is for students that embed",
    ),
    "two towers": ({"passage_tower": "own"}, "passage_tower=own: a student with a vector for each"),
    "lengths": ({"normalize_embeddings": False}, "normalize_embeddings=false: vectors of tokens"),
    "a table": (
        {"student": "static:{root}/student"},
        "pooling 'none': a static student takes the mean",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(root: Path, tmp_path: Path, what: str) -> None:
    keys, message = REFUSED[what]
    given = job(root, tmp_path / "run", **{"embedding_dim": None, **keys})
    given["student"] = given["student"].format(root=root)
    with pytest.raises(ArmadaError, match=message) as refused:
        library.distill(**given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["encoder", "student"])
def test_its_vectors_go_into_a_cache(root: Path, tmp_path: Path, kind: str) -> None:
    """Of each text those of its tokens, as the student predicts them, in half precision."""
    library.distill(**job(root, tmp_path / "run", passage_prompt="the cook ", epochs=1))
    student = tmp_path / "run" / "student"
    corpus = {"corpus": root / "validation.parquet", "text_column": ["positive"]}
    library.precompute(
        **corpus,
        teacher=f"{kind}:{student}",
        prompt_name="document",
        cache=tmp_path / "cache",
        quiet=True,
    )
    cache = library.open_cache(tmp_path / "cache")
    texts = pq.read_table(root / "validation.parquet")["positive"].to_pylist()
    own = library.load_student(student).predict([f"the cook {text}" for text in texts])
    rows = cache.find(keys_of(texts))
    found = cache.ragged("token_vectors")
    for row, each in zip(rows, own, strict=True):
        np.testing.assert_allclose(found[int(row)], each["embedding"], atol=5e-4)
    with pytest.raises(ArmadaError, match=r"pooling: source .* has a vector for each token"):
        library.precompute(
            **corpus, teacher=f"encoder:{student}", pooling="mean", cache=tmp_path / "other"
        )


@pytest.mark.parametrize("what", ["cache", "a classifier's start"])
def test_who_takes_one_vector_refuses_it(root: Path, tmp_path: Path, what: str) -> None:
    library.distill(**job(root, tmp_path / "run", epochs=1))
    student = tmp_path / "run" / "student"
    corpus = {"corpus": root / "train.parquet", "text_column": ["query"]}
    library.precompute(**corpus, teacher="hash:12", cache=tmp_path / "texts", quiet=True)
    start = job(root, tmp_path / "other", student=str(student), pooling="auto") | {
        **{"task": None, "objective": "feature", "cache": str(tmp_path / "texts")},
        **{"text_column": ["query"], "embedding_dim": None},
    }
    ask = {
        "cache": lambda: library.evaluate(student=student, **corpus, cache=tmp_path / "texts"),
        "a classifier's start": lambda: library.distill(**start),
    }[what]
    with pytest.raises(ArmadaError, match=r"vector for each token|one of each token"):
        ask()
