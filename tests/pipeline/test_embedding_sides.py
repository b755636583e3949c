"""The two sides of retrieval: queries that a teacher read with a prompt of theirs, and students
with a tower for each side."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import armada as library
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from armada.cache_schemas.errors import ArmadaError
from armada.pipeline import seed_run
from armada.pipeline.answers import open_answers
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.embedding.data import EmbeddingData
from armada.pipeline.findings.runs import find_runs
from armada.pipeline.jobs import make
from armada.pipeline.objective_keys import CacheKeys
from armada.pipeline.run_data import read_data
from armada.pipeline.terms import terms_of
from armada.stages.retrieval.quantization import Quantizer, ranges_of
from armada.stages.store.reading.feature_array import FeatureArray, StackedArray
from armada.stages.store.reading.reader import open_cache
from beir_folders import write_beir
from cuts import cut_at
from language_processes import losses, run, run_in_two_processes
from safetensors.torch import load_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from small_caches import make_manifest, numbered_texts, write_cache
from tiny_checkpoints import make_bert
from tiny_runs import freeze_dropout, sentences

pytestmark = pytest.mark.long

ROWS, WIDTH = 18, 16


def fingerprint(root: Path, column: str, seed: int) -> str:
    """A teacher of its own for the texts of a column."""
    report = library.precompute(
        corpus=root / "train.parquet",
        text_column=[column],
        teacher=f"hash:{WIDTH}",
        seed=seed,
        cache=root / "cache",
        add_teacher=True,
        quiet=True,
    )
    return report.fingerprint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, of which one passage has the words of a query, and a student without dropout."""
    folder = tmp_path_factory.mktemp("sides")
    asked, said = sentences(0, ROWS), sentences(200, 200 + ROWS)
    said[5] = asked[2]
    pq.write_table(pa.table({"query": asked, "positive": said}), folder / "train.parquet")
    freeze_dropout(make_bert(folder / "student", [*asked, *said]))
    return folder


@pytest.fixture(scope="module")
def teachers(root: Path) -> tuple[str, str]:
    """Fingerprints of the teachers of passages and of queries."""
    return fingerprint(root, "positive", 0), fingerprint(root, "query", 1)


def job(root: Path, output: Path, **keys: object) -> dict[str, object]:
    return {
        **{"train": str(root / "train.parquet"), "text_column": ["query", "positive"]},
        **{"student": str(root / "student"), "cache": str(root / "cache"), "task": "embedding"},
        **{"output": str(output), "device": "cpu", "epochs": 1, "batch_size": 6},
        **{"learning_rate": 2e-3, "logging_steps": 1, "report_to": "none"},
        **keys,
    }


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of all towers, by the file and their name."""
    files = sorted((folder / "student").rglob("model.safetensors"))
    found = {
        f"{file.relative_to(folder)} {name}": tensor
        for file in files
        for name, tensor in load_file(file).items()
    }
    assert found
    return found


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())["validation"]
    return found


def reciprocal_rank(scores_NN: npt.NDArray[np.floating]) -> float:
    """Mean over queries; the passage with a query's own words is not among the others."""
    scores_NN = scores_NN.copy()
    scores_NN[2, 5] = -np.inf
    ranks = (scores_NN > np.diag(scores_NN)[:, None]).sum(1) + 1
    return float(np.where(ranks > 10, 0, 1 / ranks).mean())


def test_rows_of_two_arrays(tmp_path: Path) -> None:
    """As of one array that has the rows of both."""
    texts = numbered_texts(0, 150)
    for name, own in (("a", texts[:70]), ("b", texts[70:])):
        write_cache(tmp_path / name, make_manifest(), [own[:64], own[64:]])
    parts = [open_cache(tmp_path / name)["pooled"] for name in "ab"]
    stacked: FeatureArray = StackedArray(*parts)
    whole = np.concatenate([part[:] for part in parts])
    rows = np.random.default_rng(0).permutation(len(texts))[:90]
    np.testing.assert_array_equal(stacked.gather(rows), whole[rows], strict=True)
    np.testing.assert_array_equal(stacked[-1], whole[-1])
    assert stacked.shape == (len(texts), 5)
    out = np.empty((90, 5), np.float32)
    assert stacked.gather(rows, out) is out
    np.testing.assert_array_equal(out, whole[rows])
    np.testing.assert_array_equal(np.argsort(stacked.in_file_order(rows)), np.argsort(rows))
    stacked.will_need(rows)
    stacked.require_whole(rows)
    with pytest.raises(IndexError):
        stacked.gather(np.array([len(texts)]))


def test_queries_meet_what_their_own_teacher_said(
    root: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    passages, queries = teachers
    keys = job(root, tmp_path / "run", teacher=passages, query_teacher=queries, distance="cosine")
    made = make(DistillJob, keys)
    data = read_data(made, terms_of(made))
    assert isinstance(data, EmbeddingData)
    (gather,), (places,) = data.gathers(0).values(), data.joined.places.values()
    table = pq.read_table(root / "train.parquet").to_pydict()
    for column, (name, teacher) in enumerate((("query", queries), ("positive", passages))):
        cache = open_cache(root / "cache", teacher)
        (feature,) = cache.features
        expected = cache[feature][cache.lookup(table[name])]
        np.testing.assert_array_equal(gather(places[:, column]), expected, strict=True)
    library.distill(**keys)
    log = (tmp_path / "run" / "run.json").read_text()
    assert f'"query_teacher_fingerprint": "{queries}"' in log


def test_their_features_may_be_kept_anywhere(
    root: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    both = {"teacher": teachers[0], "query_teacher": teachers[1]}
    found = []
    for placement in ("mapped", "resident", "streamed"):
        keys = job(root, tmp_path / placement, placement=placement, objective="infonce", **both)
        library.distill(**keys, negatives=3)
        found.append(losses(tmp_path / placement))
    assert found[0] == found[1]
    assert len(found[2]) == len(found[0])


def test_their_features_may_be_in_a_cache_of_their_own(
    root: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    keys = job(root, tmp_path / "one", teacher=teachers[0], query_teacher=teachers[1])
    library.distill(**keys)
    for column, seed in (("query", 1), ("positive", 0)):
        library.precompute(
            corpus=root / "train.parquet",
            text_column=[column],
            teacher=f"hash:{WIDTH}",
            seed=seed,
            cache=tmp_path / column,
            quiet=True,
        )
    two = {"cache": str(tmp_path / "positive"), "query_cache": str(tmp_path / "query")}
    library.distill(**job(root, tmp_path / "two", **two))
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    card = (tmp_path / "two" / "student" / "README.md").read_text()
    assert f"fingerprint `{teachers[0]}`, of queries `{teachers[1]}`." in card


def test_a_run_goes_on_with_the_answers_to_queries_that_it_began_with(
    root: Path, teachers: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with those of a cache that was made anew at the same place."""

    def cache_of_queries(seed: int) -> None:
        shutil.rmtree(tmp_path / "queries", ignore_errors=True)
        library.precompute(
            corpus=root / "train.parquet",
            text_column=["query"],
            teacher=f"hash:{WIDTH}",
            seed=seed,
            cache=tmp_path / "queries",
            quiet=True,
        )

    cache_of_queries(1)
    keys = job(root, tmp_path / "run", teacher=teachers[0], save_steps=1)
    keys |= {"query_cache": str(tmp_path / "queries")}
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(2))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys)
    begun = json.loads((tmp_path / "run" / "run.json").read_text())
    assert begun["query_cache_digest"] == open_answers(CacheKeys(cache=keys["query_cache"])).digest
    cache_of_queries(2)
    with pytest.raises(ArmadaError, match=r"query_cache_digest: was .*query_teacher_fingerprint"):
        library.distill(**keys | {"resume": True})


def test_reports_do_not_open_answers_to_queries_at_a_url(
    root: Path, teachers: tuple[str, str], tmp_path: Path
) -> None:
    both = {"teacher": teachers[0], "query_teacher": teachers[1]}
    library.distill(**job(root, tmp_path / "run", **both))
    file = tmp_path / "run" / "job.yaml"
    elsewhere = {"query_cache": "http://127.0.0.1:9/cache"}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | elsewhere))
    (run,) = find_runs([tmp_path / "run"]).runs
    for cache in (None, root / "cache"):
        with pytest.raises(ArmadaError, match=r"query_cache http.*: is at a URL, which reports do"):
            run.readable_job(cache)


def test_what_is_refused(root: Path, teachers: tuple[str, str], tmp_path: Path) -> None:
    both = {"teacher": teachers[0], "query_teacher": teachers[1]}
    with pytest.raises(ArmadaError, match="query_cache, query_teacher: are of queries"):
        library.distill(**job(root, tmp_path / "run", **both) | {"text_column": ["positive"]})
    labelled = job(root, tmp_path / "run", **both) | {"task": None, "objective": "feature"}
    with pytest.raises(ArmadaError, match="query_cache, query_teacher: are for students"):
        library.distill(**labelled)
    swapped = {"teacher": teachers[1], "query_teacher": teachers[0]}
    with pytest.raises(ArmadaError, match=r"rows are not in the cache of teacher") as refused:
        library.distill(**job(root, tmp_path / "run", **swapped))
    queries, passages = str(refused.value).split("; and ")
    assert teachers[0][:12] in queries, "the one that is named for queries has read passages"
    assert teachers[1][:12] in passages
    wide = library.precompute(
        corpus=root / "train.parquet",
        text_column=["query"],
        teacher="hash:24",
        cache=root / "cache",
        add_teacher=True,
        quiet=True,
    ).fingerprint
    with pytest.raises(ArmadaError, match="name one model with two prompts"):
        library.distill(
            **job(root, tmp_path / "run", teacher=teachers[0], query_teacher=wide),
        )


# --- Towers

TOWERS = {
    "two": {"passage_tower": "own", "cache": None, "objective": "contrastive"},
    "two of another kind": {
        "passage_tower": "own",
        "passage_student_layers": 1,
        "objectives": [{"name": "contrastive"}, {"name": "feature", "distance": "cosine"}],
        "query_prompt": "the cook ",
    },
    "cached": {
        "passage_tower": "cached",
        "objectives": [{"name": "guided_contrastive"}, {"name": "feature", "distance": "cosine"}],
    },
}


@pytest.fixture(scope="module")
def vectors(root: Path) -> Path:
    """A cache of both columns' embeddings."""
    for column in ("query", "positive"):
        library.precompute(
            corpus=root / "train.parquet",
            text_column=[column],
            teacher=f"hash:{WIDTH}",
            cache=root / "vectors",
            quiet=True,
        )
    return root / "vectors"


def towers(root: Path, output: Path, name: str, **more: object) -> dict[str, object]:
    return job(root, output, **{"cache": str(root / "vectors"), **TOWERS[name], **more})


def test_a_tower_for_queries_and_one_for_passages(
    root: Path, vectors: Path, tmp_path: Path
) -> None:
    """Both train; sentence-transformers opens the folder as a Router, and each by itself."""
    folder = tmp_path / "run"
    keys = towers(root, folder, "two of another kind", validation=str(root / "train.parquet"))
    library.distill(**keys)
    student = SentenceTransformer(str(folder / "student"), device="cpu")
    table = pq.read_table(root / "train.parquet").to_pydict()
    found = {}
    for name, column in (("query", "query"), ("document", "positive")):
        tower = folder / "student" / name
        texts = table[column]
        encode_side = student.encode_query if name == "query" else student.encode_document
        found[name] = encode_side(texts)
        prompted = [f"the cook {text}" if name == "query" else text for text in texts]
        ours = library.load_student(tower).predict(prompted)
        np.testing.assert_allclose(np.stack([e["embedding"] for e in ours]), found[name], atol=1e-6)
        alone = SentenceTransformer(str(tower), device="cpu")
        np.testing.assert_allclose(
            alone.encode(texts, prompt_name=name if name == "query" else None),
            found[name],
            atol=1e-6,
        )
    assert not np.allclose(
        student.encode_document(["a sailor"]), student.encode_query(["a sailor"])
    )
    scores = found["query"] @ found["document"].T
    assert metrics(folder)["mrr@10"] == pytest.approx(reciprocal_rank(scores), abs=1e-6)
    scored = tmp_path / "scored.parquet"
    pq.write_table(pa.table(table | {"score": np.arange(ROWS, dtype=float)}), scored)
    pairs = {"corpus": scored, "text_column": ["query", "positive"], "label_column": "score"}
    said = library.evaluate(student=folder, **pairs).metrics["spearman"]
    expected = spearmanr(np.diag(scores), np.arange(ROWS)).statistic
    assert said == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ArmadaError, match="name its folder query or document"):
        library.load_student(folder)
    with pytest.raises(ArmadaError, match="name the folder of one of them"):
        library.precompute(
            corpus=root / "train.parquet",
            text_column=["query"],
            teacher=f"encoder:{folder / 'student'}",
            cache=tmp_path / "cache",
        )


def test_passages_that_a_teacher_embedded(root: Path, vectors: Path, tmp_path: Path) -> None:
    """Queries alone are read, and are found among the teacher's passages."""
    folder = tmp_path / "run"
    validation = {"validation": str(root / "train.parquet")}
    library.distill(**towers(root, folder, "cached", **validation))
    table = pq.read_table(root / "train.parquet").to_pydict()
    student = SentenceTransformer(str(folder / "student"), device="cpu")
    cache = open_cache(vectors)
    (feature,) = cache.features
    passages = cache[feature][cache.lookup(table["positive"])].astype(np.float64)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    scores = student.encode(table["query"]) @ passages.T
    told = metrics(folder)
    assert told["mrr@10"] == pytest.approx(reciprocal_rank(scores), abs=1e-6)
    queries = cache[feature][cache.lookup(table["query"])].astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    cosines = (student.encode(table["query"]) * queries).sum(1)
    assert told["teacher_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    card = json.loads((folder / "student" / "armada_student.json").read_text())["embedding"]
    assert card["passage_tower"] == "cached"
    assert card["passage_teacher"] == cache.teacher.fingerprint


def test_codes_do_not_depend_on_the_length_of_a_teachers_passages(
    root: Path, vectors: Path, tmp_path: Path
) -> None:
    """Whose embeddings are not of length 1, as those of the student's queries are."""
    library.distill(**towers(root, tmp_path / "run", "cached", normalize_embeddings=True))
    table = pq.read_table(root / "train.parquet").to_pydict()
    texts = {f"d{row}": ("", text) for row, text in enumerate(table["positive"])}
    queries = {f"q{row}": text for row, text in enumerate(table["query"])}
    judged = [(f"q{row}", f"d{row}", 1) for row in range(ROWS)]
    folder = write_beir(tmp_path / "beir", texts, queries, judged)
    precomputed: dict[str, object] = {
        "corpus": folder / "corpus.jsonl",
        "text_column": ["title?", "text?"],
        "cache": tmp_path / "cache",
        "quiet": True,
    }
    library.precompute(**precomputed, teacher=f"hash:{WIDTH}")
    told = {"student": tmp_path / "run", "beir": folder, "cache": tmp_path / "cache"}
    found = library.evaluate(**told, precision="int8", retrieval_metrics=["mrr@10"])
    cache = open_cache(tmp_path / "cache")
    passages = cache[cache.features[0]][cache.lookup(list(texts.values()))]
    assert np.linalg.norm(passages, axis=1).min() > 2
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    student = SentenceTransformer(str(tmp_path / "run" / "student"), device="cpu")
    codes = Quantizer("int8", WIDTH, ranges_of(passages)).codes
    one, other = (codes(each).astype(float) for each in (student.encode(table["query"]), passages))
    cosines = (one / np.linalg.norm(one, axis=1)[:, None]) @ (
        other / np.linalg.norm(other, axis=1)[:, None]
    ).T
    ranks = (cosines > np.diag(cosines)[:, None]).sum(1) + 1
    expected = np.where(ranks > 10, 0, 1 / ranks).mean()
    assert found["by_precision"][f"int8[{WIDTH}]"]["mrr@10"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", TOWERS)
def test_towers_read_in_parts(root: Path, vectors: Path, tmp_path: Path, name: str) -> None:
    run(towers(root, tmp_path / "whole", name))
    run(towers(root, tmp_path / "parts", name, mini_batch_size=4))
    np.testing.assert_allclose(losses(tmp_path / "parts"), losses(tmp_path / "whole"), rtol=1e-9)
    one, other = all_weights(tmp_path / "whole"), all_weights(tmp_path / "parts")
    assert all(torch.allclose(one[each], other[each], rtol=0, atol=1e-9) for each in one)


def test_two_processes_have_towers(
    root: Path, vectors: Path, tmp_path: Path, torchrun: Sequence[str]
) -> None:
    plans = [towers(root, tmp_path / f"two {n}", n, batch_size=5) for n in TOWERS]
    run_in_two_processes(torchrun, tmp_path / "plan.json", plans)
    for name in TOWERS:
        run(towers(root, tmp_path / name, name, batch_size=5))
        np.testing.assert_allclose(
            losses(tmp_path / f"two {name}"), losses(tmp_path / name), rtol=1e-9
        )
        one, other = all_weights(tmp_path / name), all_weights(tmp_path / f"two {name}")
        assert all(torch.allclose(one[each], other[each], rtol=0, atol=1e-8) for each in one)


def test_towers_are_cut_and_resumed(
    root: Path, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = towers(root, tmp_path / "whole", "two of another kind", save_steps=1)
    library.distill(**keys)
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(2))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys | {"output": tmp_path / "cut"})
    library.distill(**keys | {"output": tmp_path / "cut", "resume": True})
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = all_weights(tmp_path / "cut"), all_weights(tmp_path / "whole")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


TOWERS_REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "one column": ({"passage_tower": "own", "text_column": ["query"]}, "text_column names one"),
    "no tower": ({"passage_student": "bert"}, "'passage_student': is for passage_tower=own"),
    "adapters": ({"passage_tower": "own", "lora_rank": 2}, "adapters of two towers"),
    "no cache": (
        {"passage_tower": "cached", "cache": None, "objective": "contrastive"},
        "no cache of the passages' embeddings",
    ),
    "no teacher": (
        {"passage_tower": "cached", "objective": "contrastive", "teacher": None},
        "no objective reads embeddings of texts",
    ),
    "another width": (
        {"passage_tower": "cached", "objective": "rkd", "embedding_dim": 5},
        "set embedding_dim=16",
    ),
}


@pytest.mark.parametrize("what", TOWERS_REFUSED)
def test_towers_refuse_in_a_line(root: Path, vectors: Path, tmp_path: Path, what: str) -> None:
    keys, message = TOWERS_REFUSED[what]
    with pytest.raises(ArmadaError, match=message):
        library.distill(**job(root, tmp_path / "run", **{"cache": str(vectors), **keys}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"passage_student": "/nowhere/tower"}, "passage_tower=own: source /nowhere/tower: no"),
        ({"passage_student_layers": 9}, "passage_tower=own: student_layers 9: the checkpoint has"),
    ],
)
def test_a_second_tower_is_refused_before_the_first_is_loaded(
    root: Path, vectors: Path, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    """Here, one whose weights are no weights."""
    student = shutil.copytree(root / "student", tmp_path / "student")
    (student / "model.safetensors").write_bytes(b"none")
    told = towers(root, tmp_path / "run", "two", student=str(student), **keys)
    with pytest.raises(ArmadaError, match=message):
        library.distill(**told)
