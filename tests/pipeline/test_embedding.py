"""Students that embed: single texts, pairs, queries with candidates; what leaves and what is
refused."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import armada as library
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError
from armada.cache_schemas.features import FeatureSpec
from armada.pipeline import seed_run
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.embedding.keys import EmbeddingKeys
from armada.pipeline.jobs import make
from armada.pipeline.reports.job import ReportJob
from armada.pipeline.reports.report import run_report
from armada.pipeline.run_data import figure_names, read_data
from armada.pipeline.terms import terms_of
from armada.stages.store.writing.writer import CacheWriter
from cuts import cut_at
from language_processes import losses, run, run_in_two_processes, weights
from safetensors import safe_open
from scipy.stats import spearmanr
from small_caches import keys_of, make_manifest
from tiny_checkpoints import make_bert
from tiny_embeddings import encode
from tiny_runs import freeze_dropout, sentences

pytestmark = pytest.mark.long

Keys = dict[str, Any]
ROWS, HELD_OUT, WIDTH = 27, 9, 16


def texts(table: dict[str, list[Any]]) -> list[str]:
    return [text for column in table.values() for text in column if isinstance(text, str)]


def triples(rows: int, start: int) -> dict[str, list[Any]]:
    """Queries with a positive and up to two negatives; two rows have one query, and one positive is
    another row's negative."""
    asked, said = sentences(start, start + rows), sentences(start + 200, start + 200 + rows)
    other, more = (sentences(start + at, start + at + rows) for at in (400, 600))
    asked[3], other[5] = asked[0], said[6]
    return {
        "query": asked,
        "positive": said,
        "negative_1": other,
        "negative_2": [None if n % 3 == 1 else text for n, text in enumerate(more)],
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triples to train on and to validate by, whose texts a fake teacher has embedded, and whose
    pairs it has scored; a student without dropout."""
    folder = tmp_path_factory.mktemp("embedding")
    every: list[str] = []
    for name, rows, start in (("train", ROWS, 0), ("validation", HELD_OUT, 60)):
        table = triples(rows, start)
        every += texts(table)
        draw = np.random.default_rng(rows)
        scored = table | {"score": (5 * draw.random(rows)).tolist()}
        scored |= {"nothing": [math.nan] * rows}
        pq.write_table(pa.table(scored), folder / f"{name}.parquet")
        pq.write_table(pa.table({"text": table["query"]}), folder / f"{name}-texts.parquet")
        for column in ("positive", "negative_1", "negative_2"):
            precompute(folder, "scores", f"{name}.parquet", ["query", column], "hash:1")
    pq.write_table(pa.table({"text": every}), folder / "texts.parquet")
    precompute(folder, "texts", "texts.parquet", ["text"], f"hash:{WIDTH}")
    precompute(folder, "wide", "texts.parquet", ["text"], "hash:24")
    freeze_dropout(make_bert(folder / "student", every))
    return folder


def precompute(root: Path, cache: str, file: str, columns: list[str], teacher: str) -> None:
    library.precompute(
        corpus=root / file,
        text_column=columns,
        teacher=teacher,
        cache=root / cache,
        skip_bad_rows=True,
        quiet=True,
    )


def job(root: Path, output: Path, columns: Sequence[str] = ("query",), **keys: Any) -> Keys:
    return {
        **{"train": str(root / "train.parquet"), "text_column": list(columns)},
        **{"student": str(root / "student"), "cache": str(root / "texts"), "task": "embedding"},
        **{"output": str(output), "device": "cpu", "epochs": 2, "batch_size": 8},
        **{"learning_rate": 2e-3, "logging_steps": 1, "report_to": "none", "seed": 3},
        **keys,
    }


PAIRS = ("query", "positive")
TRIPLES = ("query", "positive", "negative_1", "negative_2?")
ALONE = {"cache": None, "objective": "contrastive"}


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.json").read_text())["validation"]
    return found


def test_single_texts_become_an_embedding_model(root: Path, tmp_path: Path) -> None:
    """Of the teacher's width; sentence-transformers gives what armada does, and so do prompts."""
    validation = str(root / "validation.parquet")
    told = {"validation": validation, "passage_prompt": "the cook ", "distance": "cosine"}
    library.distill(**job(root, tmp_path / "run", **told) | {"epochs": 8})
    found = losses(tmp_path / "run", "feature")
    assert found[-1] < 0.8 * found[0]
    told = metrics(tmp_path / "run")
    assert told.keys() == {"loss", "teacher_cka", "teacher_cosine", "teacher_mse"}
    student = tmp_path / "run" / "student"
    held_out = pq.read_table(validation)["query"].to_pylist()
    ours = np.stack([each["embedding"] for each in library.load_student(student).predict(held_out)])
    theirs = encode(student, held_out)
    assert ours.shape == (HELD_OUT, WIDTH)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-6)
    with_prompt = encode(student, held_out, prompt_name="document")
    said = library.load_student(student).predict([f"the cook {text}" for text in held_out])
    np.testing.assert_allclose(with_prompt, np.stack([e["embedding"] for e in said]), atol=1e-6)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_lengths_are_those_that_can_meet_the_teacher(
    root: Path, tmp_path: Path, distance: str
) -> None:
    """The fake teacher's vectors are no units, which numbers are to meet, and directions need
    not."""
    library.distill(**job(root, tmp_path / "run", distance=distance) | {"epochs": 1})
    (found,) = encode(tmp_path / "run" / "student", ["a sailor mended it"])
    assert (abs(np.linalg.norm(found) - 1) < 1e-6) == (distance == "cosine")


def test_static_students_embed_queries_and_passages(root: Path, tmp_path: Path) -> None:
    """The dense layer becomes part of the table; prompts are kept."""
    told = {"student": f"static:{root / 'student'}", "embedding_dim": 5, "query_prompt": "ask "}
    library.distill(**job(root, tmp_path / "run", PAIRS, **ALONE | told) | {"epochs": 4})
    found = losses(tmp_path / "run", "contrastive")
    assert found[-1] < found[0]
    student = tmp_path / "run" / "student"
    words = ["the cook mended it", "a sailor"]
    ours = np.stack([each["embedding"] for each in library.load_student(student).predict(words)])
    theirs = encode(student, words)
    assert theirs.shape == (2, 5)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    prompted = encode(student, words, prompt_name="query")
    np.testing.assert_allclose(prompted, encode(student, [f"ask {w}" for w in words]), atol=1e-6)


def test_what_validation_measures_is_what_the_folder_gives(root: Path, tmp_path: Path) -> None:
    """Correlations of pairs with scores, after a run that learned from queries alone; and the ranks
    of positives among all passages."""
    scored = {"validation_text_column": list(PAIRS), "validation_label_column": "score"}
    validation = str(root / "validation.parquet")
    library.distill(**job(root, tmp_path / "scored", validation=validation, **scored))
    table = pq.read_table(validation).to_pydict()

    def embedded(folder: str, column: str) -> Any:
        chosen = [text for text in table[column] if text]
        return encode(tmp_path / folder / "student", chosen, normalize_embeddings=True)

    cosines = (embedded("scored", "query") * embedded("scored", "positive")).sum(1)
    told = metrics(tmp_path / "scored")
    assert told["spearman"] == pytest.approx(spearmanr(cosines, table["score"]).statistic, abs=1e-6)
    assert "loss" not in told
    retrieving = {"validation": validation, "metric": "mrr@10", **ALONE}
    library.distill(**job(root, tmp_path / "ranked", TRIPLES, **retrieving))
    passages = [embedded("ranked", column) for column in TRIPLES[1:3]]
    cosine = (
        embedded("ranked", "query")
        @ np.concatenate([*passages, embedded("ranked", "negative_2")]).T
    )
    # Rows 0 and 3 have one query, which is answered by both their positives.
    relevant = [[row] if row not in (0, 3) else [0, 3] for row in range(HELD_OUT)]
    ranks = [
        [int((cosine[row] > cosine[row, answer]).sum()) for answer in answers]
        for row, answers in enumerate(relevant)
        if row != 3
    ]
    told = metrics(tmp_path / "ranked")
    expected = np.mean([max(1 / (rank + 1) if rank < 10 else 0 for rank in own) for own in ranks])
    assert told["mrr@10"] == pytest.approx(expected, abs=1e-9)
    recall = np.mean([np.mean([rank < 10 for rank in own]) for own in ranks])
    assert told["recall@10"] == pytest.approx(recall, abs=1e-9)
    assert told.keys() == {"ndcg@10", "mrr@10", "recall@1", "recall@10", "loss"}
    found = losses(tmp_path / "ranked", "contrastive")
    assert found[-1] < found[0]


@pytest.mark.parametrize("prompts", [{}, {"query_prompt": "a sailor "}])
def test_the_same_words_are_no_negative(root: Path, tmp_path: Path, prompts: Keys) -> None:
    """Pairs in both directions: a query's own text is among the passages."""
    one, other = sentences(0, 6), sentences(200, 206)
    pairs = {"query": one + other, "positive": other + one}
    pq.write_table(pa.table(pairs), tmp_path / "pairs.parquet")
    file = str(tmp_path / "pairs.parquet")
    keys = job(root, tmp_path / "run", PAIRS, train=file, validation=file, **ALONE, **prompts)
    library.distill(**keys | {"epochs": 30, "batch_size": 12, "learning_rate": 1e-3})
    assert losses(tmp_path / "run", "contrastive")[-1] < 0.05
    assert metrics(tmp_path / "run")["recall@1"] > 0.9


def test_a_report_of_runs_that_are_measured_by_retrieval(root: Path, tmp_path: Path) -> None:
    keys = job(root, tmp_path / "run", PAIRS, validation=str(root / "validation.parquet"), **ALONE)
    library.distill(**keys)
    page = tmp_path / "report.html"
    run_report(make(ReportJob, {"runs": [str(tmp_path / "run")], "out": str(page)}), quiet=True)
    assert "ndcg@10" in page.read_text()


def test_earlier_jobs_lack_no_key() -> None:
    """A run of a release without these keys goes on: they are not there unless they are set."""
    assert {field.default for field in EmbeddingKeys.model_fields.values()} == {None}


def test_it_has_the_figures_that_are_announced(root: Path, tmp_path: Path) -> None:
    keys = job(root, tmp_path / "run", PAIRS, validation=str(root / "validation.parquet"))
    made = make(DistillJob, keys)
    announced = figure_names(made, read_data(made, terms_of(made)))
    library.distill(**keys)
    assert metrics(tmp_path / "run").keys() == {*announced}


OBJECTIVES: dict[str, tuple[Sequence[str], Keys]] = {
    "regression": (PAIRS, {}),
    "contrast with the cache": (TRIPLES, {"objective": "infonce", "negatives": 20}),
    "a bank": (("query",), {"objective": "similarity_bank", "negatives": 6}),
    "relations of any width": (PAIRS, {"objective": "rkd", "embedding_dim": 5}),
    "contrast": (TRIPLES, ALONE | {"symmetric": True}),
    "guided": (TRIPLES, {"objective": "guided_contrastive", "margin": 0.1}),
    "order": (PAIRS, {"cache": None, "objective": "cosent", "label_column": "score"}),
    "margins": (TRIPLES, {"objective": "margin_mse"}),
    "scores": (TRIPLES, {"objective": "listwise_kl", "cache": "scores"}),
    "a sum": (
        TRIPLES,
        {
            "cache": None,
            "teachers": {"texts": {"cache": "texts"}, "scores": {"cache": "scores"}},
            "objectives": [
                {"name": "contrastive"},
                {"name": "feature", "teacher": "texts", "distance": "cosine", "weight": 2.0},
                {"name": "margin_mse", "teacher": "scores", "score_scale": 0.1},
            ],
        },
    ),
    "stages": (
        TRIPLES,
        {
            "cache": None,
            "teachers": {"texts": {"cache": "texts"}},
            "objectives": [{"name": "feature", "teacher": "texts"}, {"name": "contrastive"}],
            "stages": [
                {"until": 0.5, "objectives": ["feature"]},
                {"objectives": ["contrastive"]},
            ],
        },
    ),
    "prefixes": (
        TRIPLES,
        {
            "cache": None,
            "teachers": {"texts": {"cache": "texts"}},
            "objectives": [{"name": "contrastive"}, {"name": "feature", "teacher": "texts"}],
            "matryoshka_dims": [8, 4],
        },
    ),
}


def made(root: Path, output: Path, name: str, **more: Any) -> Keys:
    columns, keys = OBJECTIVES[name]
    keys = json.loads(json.dumps(keys))
    for given in [keys, *keys.get("teachers", {}).values()]:
        if given.get("cache"):
            given["cache"] = str(root / given["cache"])
    return job(root, output, columns, **keys, **more)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_read_in_parts_is_a_whole_one(root: Path, tmp_path: Path, name: str) -> None:
    """Gradient caching: weights after five steps, to rounding in float64."""
    run(made(root, tmp_path / "whole", name))
    run(made(root, tmp_path / "parts", name, mini_batch_size=3))
    first = losses(tmp_path / "whole")
    assert all(map(math.isfinite, first))
    np.testing.assert_allclose(losses(tmp_path / "parts"), first, rtol=1e-9)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.allclose(one[each], other[each], rtol=0, atol=1e-9) for each in one)


def test_two_processes_are_one(root: Path, tmp_path: Path, torchrun: Sequence[str]) -> None:
    """The last batch, of 3 rows, is shared as 2 and 1, one of them twice."""
    names = ("a sum", "prefixes", "contrast with the cache")
    run_in_two_processes(
        torchrun, tmp_path / "plan.json", [made(root, tmp_path / f"two {n}", n) for n in names]
    )
    for name in names:
        run(made(root, tmp_path / name, name))
        np.testing.assert_allclose(
            losses(tmp_path / f"two {name}"), losses(tmp_path / name), rtol=1e-9
        )
        one, other = weights(tmp_path / name), weights(tmp_path / f"two {name}")
        assert all(torch.allclose(one[each], other[each], rtol=0, atol=1e-8) for each in one)


def test_stages_follow_each_other(root: Path, tmp_path: Path) -> None:
    """Vectors of single texts first, pairs afterwards; the step where the stage ended is told."""
    run(made(root, tmp_path / "run", "stages"))
    steps = len(losses(tmp_path / "run"))
    assert len(losses(tmp_path / "run", "feature.feature")) == steps // 2
    assert len(losses(tmp_path / "run", "contrastive.contrastive")) == steps - steps // 2
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]
    assert [stage["until_step"] for stage in found] == [steps // 2, steps]


@pytest.mark.parametrize("name", ["a sum", "contrast with the cache", "stages"])
def test_a_cut_and_resumed_run_is_a_whole_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keys = made(root, tmp_path / "whole", name, save_steps=1)
    library.distill(**keys)
    with monkeypatch.context() as patched:
        patched.setattr(seed_run, "append_log", cut_at(5))
        with pytest.raises(KeyboardInterrupt):
            library.distill(**keys | {"output": tmp_path / "cut"})
    library.distill(**keys | {"output": tmp_path / "cut", "resume": True})
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    one, other = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("placement", ["resident", "streamed"])
def test_features_may_be_kept_anywhere(root: Path, tmp_path: Path, placement: str) -> None:
    """Resident ones are copied; streamed ones come in the order of the shards."""
    run(made(root, tmp_path / "mapped", "a sum", placement="mapped", epochs=1))
    run(made(root, tmp_path / "other", "a sum", placement=placement, epochs=1))
    if placement == "resident":
        assert losses(tmp_path / "other") == losses(tmp_path / "mapped")
    else:
        assert len(losses(tmp_path / "other")) == len(losses(tmp_path / "mapped"))


def test_prefixes_meet_those_of_the_teacher(root: Path, tmp_path: Path) -> None:
    """The loss is the mean over dims, each of units."""
    run(made(root, tmp_path / "run", "prefixes"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first = next(row for row in rows if "loss" in row)
    names = [f"{part}.{part}" for part in ("contrastive", "feature")]
    total = np.mean([sum(first[f"{name}.{dim}"] for name in names) for dim in (WIDTH, 8, 4)])
    assert first["loss"] == pytest.approx(total, rel=1e-6)  # terms are logged in float32


def test_prompts_of_queries_and_passages(root: Path, tmp_path: Path) -> None:
    """In training, validation, `evaluate` of pairs and of search, `predict`, and as a teacher."""
    validation = str(root / "validation.parquet")
    prompts = {"query_prompt": "a sailor ", "passage_prompt": "the cook "}
    scored = {"validation_text_column": list(PAIRS), "validation_label_column": "score"}
    run = tmp_path / "run"
    library.distill(**job(root, run, PAIRS, validation=validation, **ALONE, **scored, **prompts))
    card = (run / "student" / "README.md").read_text()
    assert "behind `a sailor ` and `the cook `" in card
    assert 'model.encode_query(["a question"])' in card
    table = pq.read_table(validation).to_pydict()
    queries = encode(run / "student", table["query"], prompt_name="query")
    passages = encode(run / "student", table["positive"], prompt_name="document")
    expected = spearmanr((queries * passages).sum(1), table["score"]).statistic
    assert metrics(run)["spearman"] == pytest.approx(expected, abs=1e-6)
    found = library.evaluate(
        student=run, corpus=validation, text_column=list(PAIRS), label_column="score"
    )
    assert found.metrics["spearman"] == pytest.approx(expected, abs=1e-6)
    for name, told, column in (
        ("query", queries, "query"),
        ("document", passages, "positive"),
    ):
        file, cache = tmp_path / f"{name}.parquet", tmp_path / f"{name} cache"
        more = {"prompt_name": name}
        library.predict(
            student=run, corpus=validation, text_column=column, output=file, quiet=True, **more
        )
        said = np.array(pq.read_table(file)["embedding"].to_pylist())
        np.testing.assert_allclose(said, told, atol=1e-6)
        library.precompute(
            corpus=validation,
            text_column=column,
            teacher=f"student:{run}",
            cache=cache,
            store_dtype="float32",
            quiet=True,
            **more,
        )
        opened = library.open_cache(cache)
        rows = opened.find(keys_of(table[column]), "pooled")
        np.testing.assert_allclose(opened["pooled"].gather(rows), told, atol=1e-5)
    for ask in (library.predict, library.precompute):
        own = {"student": run} if ask is library.predict else {"teacher": f"student:{run}"}
        own |= {"output": tmp_path / "x.parquet"} if ask is library.predict else {"cache": "x"}
        with pytest.raises(ArmadaError, match="prompt_name is missing"):
            ask(corpus=validation, text_column="query", **own, quiet=True)
    _check_search(tmp_path, run, table, queries, passages)


def _check_search(
    folder: Path, run: Path, table: dict[str, list[str]], queries: Any, passages: Any
) -> None:
    """A BEIR folder of the same: the positive of each query is its answer."""
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    for name, column in (("queries", "query"), ("corpus", "positive")):
        lines = [
            json.dumps({"_id": f"{name[0]}{row}", "title": "", "text": text})
            for row, text in enumerate(table[column])
        ]
        (beir / f"{name}.jsonl").write_text("\n".join(lines))
    judged = "\n".join(f"q{row}\tc{row}\t1" for row in range(HELD_OUT))
    (beir / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    found = library.evaluate(student=run, beir=beir, retrieval_metrics=["mrr@10"])
    cosines = queries @ passages.T
    ranks = [int((cosines[row] > cosines[row, row]).sum()) for row in range(HELD_OUT)]
    expected = np.mean([1 / (rank + 1) for rank in ranks])
    assert found.metrics["mrr@10"] == pytest.approx(expected, abs=1e-9)


def test_rows_without_an_answer_are_named_or_skipped(root: Path, tmp_path: Path) -> None:
    table = pq.read_table(root / "train.parquet").to_pydict()
    table["positive"][4] = "never embedded"
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    keys = job(root, tmp_path / "run", TRIPLES, train=str(tmp_path / "train.parquet"))
    with pytest.raises(ArmadaError, match=r"1 of .* rows are not in the cache .*row 5"):
        library.distill(**keys)
    library.distill(**keys, skip_bad_rows=True)
    (skipped,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["skipped_rows"]
    assert "row 5: not in the cache" in skipped


def test_vectors_without_a_direction_are_refused(root: Path, tmp_path: Path) -> None:
    every = pq.read_table(root / "train-texts.parquet")["text"].to_pylist()
    spec = FeatureSpec(name="embedding", shape=(4,), dtype="float32")
    values = np.ones((len(every), 4), np.float32)
    values[6] = 0
    different = list(dict.fromkeys(every))
    with CacheWriter(tmp_path / "cache", make_manifest((spec,))) as writer:
        rows = [every.index(text) for text in different]
        writer.commit(
            keys_of(different), {"embedding": values[rows]}, np.zeros(len(rows), np.bool_)
        )
    keys = job(root, tmp_path / "run", cache=str(tmp_path / "cache"))
    with pytest.raises(ArmadaError, match=r"vectors of 1 texts are zero .*train.parquet row 7"):
        library.distill(**keys)


@pytest.fixture(scope="module")
def narrow(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student has a layer to 6 numbers, and prompts."""
    run = tmp_path_factory.mktemp("narrow") / "run"
    prompts = {"query_prompt": "a sailor ", "passage_prompt": "the cook "}
    library.distill(**job(root, run, PAIRS, **ALONE, embedding_dim=6, **prompts))
    return run


def test_text_embeddings_inference_finds_what_it_reads(narrow: Path) -> None:
    """What its sources of 2026 require of a local folder: router/src/lib.rs, backends/src/lib.rs,
    backends/candle/src/models/dense.rs."""
    folder = narrow / "student"

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text())

    config = read("config.json")
    assert config["architectures"] == ["BertModel"]  # no ...Classification, which is not embedded
    assert config["model_type"] == "bert"
    assert isinstance(config["max_position_embeddings"], int)
    assert {"tokenizer.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    assert read("sentence_bert_config.json")["max_seq_length"] <= config["max_position_embeddings"]
    pooling = read("1_Pooling/config.json")
    modes = [pooling[f"pooling_mode_{each}"] for each in ("cls_token", "mean_tokens", "lasttoken")]
    assert modes == [False, True, False]
    assert read("config_sentence_transformers.json")["prompts"] == {
        "query": "a sailor ",
        "document": "the cook ",
    }
    modules = {each["type"]: each["path"] for each in read("modules.json")}
    kinds = [f"sentence_transformers.models.{each}" for each in ("Transformer", "Pooling", "Dense")]
    assert [*modules] == [*kinds, "sentence_transformers.models.Normalize"]
    dense = read(f"{modules[kinds[2]]}/config.json")
    assert dense == {
        "in_features": 32,
        "out_features": 6,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    with safe_open(folder / modules[kinds[2]] / "model.safetensors", "np") as weights:
        assert sorted(weights.keys()) == ["linear.bias", "linear.weight"]
    with safe_open(folder / "model.safetensors", "np") as weights:
        assert "embeddings.word_embeddings.weight" in weights.keys()  # noqa: SIM118


def test_a_finished_student_starts_another(
    root: Path, narrow: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the layer that makes its embeddings, if it fits."""
    first, still = narrow, {**ALONE, "epochs": 1, "learning_rate": 1e-9}
    start = str(first / "student")
    again = tmp_path / "again"
    library.distill(**job(root, again, PAIRS, **still) | {"student": start})
    said = pq.read_table(root / "train.parquet")["query"].to_pylist()
    found, wanted = (encode(run / "student", said) for run in (again, first))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert "starts without the layers" not in caplog.text
    other = tmp_path / "other"
    library.distill(**job(root, other, PAIRS, **still, embedding_dim=5) | {"student": start})
    assert encode(other / "student", said).shape == (ROWS, 5)
    assert "starts without the layers after its pooling (Dense 32 to 6, Identity)" in caplog.text


def test_two_numbers_of_a_pair_are_no_vector(root: Path, tmp_path: Path) -> None:
    scores = FeatureSpec(name="score", shape=(2,), dtype="float32")
    spec = make_manifest((scores,)).spec.model_copy(update={"kind": "cross_encoder"})
    manifest = make_manifest((scores,)).model_copy(
        update={"spec": spec, "fingerprint": spec.fingerprint}
    )
    every = dict.fromkeys(pq.read_table(root / "train-texts.parquet")["text"].to_pylist())
    with CacheWriter(tmp_path / "cache", manifest) as writer:
        rows = len(every)
        writer.commit(
            keys_of(every), {"score": np.ones((rows, 2), np.float32)}, np.zeros(rows, np.bool_)
        )
    keys = job(root, tmp_path / "run", cache=str(tmp_path / "cache"))
    with pytest.raises(ArmadaError, match="name a cross_encoder of a single score"):
        library.distill(**keys)


REFUSED: dict[str, tuple[Sequence[str], Keys, str]] = {
    "a prompt of others": (
        ("query",),
        {"task": None, "objective": "feature", "matryoshka_dims": [4]},
        "'matryoshka_dims': is for students that embed",
    ),
    "two prompts": (
        ("query",),
        {"query_prompt": "a", "passage_prompt": "b"},
        "and passage_prompt differ",
    ),
    "no pairs": (("query",), ALONE, "name a query and a passage"),
    "no negatives": (PAIRS, {"objective": "margin_mse"}, "a negative or more in text_column"),
    "no scores": (PAIRS, {"objective": "cosent", "cache": None}, "label_column"),
    "no score in any row": (
        PAIRS,
        {"objective": "cosent", "cache": None, "label_column": "nothing"},
        "no row has a score",
    ),
    "scores for a sum of both": (
        TRIPLES,
        {"cache": "scores", "objective": "guided_contrastive"},
        "objective guided_contrastive: feature 'embedding' is one number",
    ),
    "scores that nothing learns": (
        PAIRS,
        ALONE | {"label_column": "score"},
        "name validation_label_column",
    ),
    "a head's dropout": (("query",), {"dropout": 0.5}, "neither a head nor an aligner"),
    "validation columns alone": (
        ("query",),
        {"validation_text_column": ["query", "positive"]},
        "name them in `validation`",
    ),
    "labels alone": (PAIRS, {"objective": "kd"}, "objective kd: reads what a student that embeds"),
    "armada": (PAIRS, {"objective": "armada"}, "objective armada: reads"),
    "layers": (PAIRS, {"objective": "hidden_layers"}, "objective hidden_layers: reads"),
    "undistilled": (PAIRS, {"control": "undistilled"}, "use objective=contrastive"),
    "a blank query": (("query?", "positive"), {}, "leave the question mark out"),
    "scores as vectors": (PAIRS, {"cache": "scores"}, "a score of a pair, which margin_mse"),
    "another width": (("query",), {"embedding_dim": 8}, "set embedding_dim=16"),
    "too many dims": (("query",), {"matryoshka_dims": [16]}, "an embedding has 16 numbers"),
    "weights of one width": (
        ("query",),
        {"matryoshka_dims": [8], "objective": "crd"},
        "objective crd has weights for embeddings of",
    ),
    "prompts elsewhere": (
        ("query",),
        {"task": None, "objective": "feature", "query_prompt": "ask: "},
        "'query_prompt': is for students that embed",
    ),
    "candidates elsewhere": (
        PAIRS,
        {"task": None, "objective": "contrastive", "label_column": "score", "cache": None},
        "objective contrastive: compares queries and passages; set task=embedding",
    ),
    "negatives": (("query",), {"objective": "infonce", "negatives": 25}, "choose at most 18"),
    "a pooling of its own": (("query",), {"pooling": "own"}, "pooling"),
    "nothing to measure": (
        ("query",),
        {"validation": "unknown", "cache": "texts"},
        "nothing can be measured",
    ),
    "without teacher": (("query",), {"missing": "without_teacher"}, "a text without its embedding"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_in_a_line(root: Path, tmp_path: Path, what: str) -> None:
    columns, keys, message = REFUSED[what]
    if (keys.get("cache") or "") in ("scores", "texts"):
        keys = keys | {"cache": str(root / keys["cache"])}
    if "validation" in keys:
        pq.write_table(pa.table({"query": ["never embedded"]}), tmp_path / "unknown.parquet")
        keys = keys | {"validation": str(tmp_path / "unknown.parquet")}
    with pytest.raises(ArmadaError) as caught:
        library.distill(**job(root, tmp_path / "run", columns, **keys))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "student").exists()
