"""`openai` teachers that score pairs, and whose pictures are embedded here."""

import json
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny_diffusion
import torch
from armada.cache_schemas.keys import example_key, keys_to_array
from armada.stages.store.reading.reader import Cache, open_cache
from command_line import CommandLine
from openai_runs import words, write_corpus
from openai_server import OpenAIServer, picture, score, serving
from PIL import Image

PAIRS = [(f"query {number // 5}", f"document {number}") for number in range(60)]
TEXTS = [f"a drawing of {number} cats" for number in range(12)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"query": query, "passage": passage}) for query, passage in PAIRS]
    path.write_text("\n".join(rows))
    return path


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "vit"
    tiny_diffusion.make_vit(folder)
    return folder


def cached(corpus: Path, texts: list[str] | list[tuple[str, str]]) -> tuple[Cache, np.ndarray]:
    cache = open_cache(corpus.parent / "cache")
    return cache, cache.find(keys_to_array([example_key(text) for text in texts]))


@pytest.mark.parametrize(
    "options", [{"api": "rerank"}, {"api": "rerank", "documents_name": "texts"}, {"api": "score"}]
)
def test_scores_of_pairs(armada: CommandLine, pairs: Path, options: dict[str, str]) -> None:
    with serving() as server:
        armada.done(*words(server, pairs, ("query", "passage"), probes=1, **options))
        # The documents of a query share a request: twelve of five, and the probe.
        assert server.requests == 13
        assert {server.paid[f"{query} | {passage}"] for query, passage in PAIRS} == {1}
    cache, rows = cached(pairs, PAIRS)
    expected = np.array([[score(*pair)] for pair in PAIRS], dtype=np.float32)
    np.testing.assert_array_equal(cache["score"].gather(rows), expected)


def test_scores_are_of_two_columns(armada: CommandLine, pairs: Path) -> None:
    with serving() as server:
        refused = armada(*words(server, pairs, ("query",), api="rerank"))
        assert server.requests == 0
    assert refused.code == 2
    assert "text_column: 1 given; api=rerank scores pairs" in refused.err


def test_pictures_are_embedded_by_a_model_here(
    armada: CommandLine, tmp_path: Path, vit: Path
) -> None:
    corpus = write_corpus(tmp_path, TEXTS)
    options = {"api": "images", "image_encoder": f"transformers:{vit}", "size": "48x40"}
    with serving() as server:
        armada.done(*words(server, corpus, **options, keep_images="true", request_price=0.04))
        assert {server.paid[text] for text in TEXTS} == {1}
        assert server.requests == len(TEXTS) + 1
    (run,) = corpus.parent.glob("cache/teachers/*/runs/*.json")
    assert json.loads(run.read_text())["requests"]["cost"] == pytest.approx(0.04 * 13)
    cache, rows = cached(corpus, TEXTS)
    np.testing.assert_allclose(
        cache["image_embedding"].gather(rows), embedded(vit, TEXTS), atol=1e-6
    )
    assert set(cache.teacher.spec.weights) == {"image_encoder"}
    assert cache.teacher.spec.settings["size"] == "48x40"


def embedded(vit: Path, texts: list[str]) -> np.ndarray:
    """By hand."""
    from transformers import ViTImageProcessor, ViTModel

    pixels = ViTImageProcessor.from_pretrained(vit)(
        [picture(text, 48, 40) for text in texts], return_tensors="pt"
    )
    with torch.inference_mode():
        found: np.ndarray = ViTModel.from_pretrained(vit).eval()(**pixels).pooler_output.numpy()
    return found


def test_a_kill_pays_no_picture_twice(armada: CommandLine, tmp_path: Path, vit: Path) -> None:
    """The budget ends a run; its pictures wait on the disk for the next one."""
    corpus = write_corpus(tmp_path, TEXTS)
    options = {"api": "images", "image_encoder": f"transformers:{vit}"}
    with serving() as server:
        stopped = armada(*words(server, corpus, **options, max_requests=7))
        assert stopped.code == 1
        assert "max_requests=7" in stopped.err
        armada.done(*words(server, corpus, **options))
        assert Counter(server.paid[text] for text in TEXTS) == {1: len(TEXTS)}


def test_a_picture_that_is_refused_is_left_out(
    armada: CommandLine, tmp_path: Path, vit: Path
) -> None:
    corpus = write_corpus(tmp_path, TEXTS)
    options = {"api": "images", "image_encoder": f"transformers:{vit}", "keep_images": "true"}
    said = b'{"error": {"code": "content_policy_violation", "message": "not such a picture"}}'
    server = OpenAIServer(
        fault=lambda number, body: (
            (lambda asked, reply: (400, {}, said)) if body["prompt"] == TEXTS[3] else None
        )
    )
    with serving(server):
        done = armada(*words(server, corpus, **options, skip_bad_rows="true"))
    assert done.code == 0
    assert "not such a picture" in done.out + done.err
    left = [text for text in TEXTS if text != TEXTS[3]]
    cache, rows = cached(corpus, left)
    assert (rows >= 0).all()
    assert cached(corpus, [TEXTS[3]])[1].tolist() == [-1]
    kept = cache.table("images", {"png": pa.binary()})["png"].to_pylist()
    pictures = {Image.open(BytesIO(each)).tobytes() for each in kept}
    assert pictures == {picture(text).tobytes() for text in left}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api": "images"}, "image_encoder: is not set"),
        ({"image_encoder": "transformers:x"}, "are for api=images"),
        ({"api": "images", "image_encoder": "elsewhere:x"}, "is neither transformers:PATH_OR_ID"),
        ({"api": "images", "size": "big"}, "size"),
        ({"api": "score", "dimensions": 4}, "dimensions: is for api=embeddings"),
    ],
)
def test_options_that_do_not_fit(
    armada: CommandLine, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    corpus = write_corpus(tmp_path, TEXTS)
    refused = armada(*words(OpenAIServer(url="http://127.0.0.1:1/v1"), corpus, **options))
    assert refused.code == 2
    assert message in refused.err
