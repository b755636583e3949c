"""Multi-vector models as teachers, as sentence-transformers saves them itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from armada.cache_schemas.errors import JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from armada.stages.retrieval.late_interaction import maxsim
from tiny_checkpoints import make_bert, make_distilbert
from tiny_embeddings import quiet_sentence_transformers

pytestmark = pytest.mark.skipif(
    not hasattr(sentence_transformers, "MultiVectorEncoder"),
    reason="this sentence-transformers has no MultiVectorEncoder",
)
TEXTS = (
    "a ferry leaves at noon",
    "Seven gulls",
    "the old Harbour clock is late again and nobody minds, least of all the gulls on the pier",
    "rain",
)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """A folder that the library has saved, and its model, of a checkpoint that is made so."""

    def make(checkpoint: Callable[..., Path] = make_bert, **settings: Any) -> tuple[Path, Any]:
        folder = checkpoint(tmp_path / "checkpoint", TEXTS)
        with quiet_sentence_transformers():
            torch.manual_seed(0)
            model = sentence_transformers.MultiVectorEncoder(str(folder), device="cpu", **settings)
            model.save(str(tmp_path / "model"), create_model_card=False)
        return tmp_path / "model", model

    return make


def answers(folder: Path, **options: Any) -> list[Any]:
    """The vectors of each text's tokens."""
    teacher = EncoderTeacher(str(folder), EncoderOptions(**options), torch.device("cpu"))
    teacher.load()
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in TEXTS]
        return [teacher.encode([each]).features["token_vectors"][0] for each in examples]


@pytest.mark.parametrize("checkpoint", [make_bert, make_distilbert])
def test_vectors_are_those_of_the_library(
    saved: Callable[..., tuple[Path, Any]], checkpoint: Callable[..., Path]
) -> None:
    folder, model = saved(checkpoint, prompts={"query": "ask ", "document": ""})
    for name, encode in (("query", model.encode_query), ("document", model.encode_document)):
        for ours, theirs in zip(answers(folder, prompt_name=name), encode(TEXTS), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)  # of half precision
            assert ours.shape == theirs.shape
            assert ours.dtype == np.float16


def test_similarities_are_those_of_the_library(saved: Callable[..., tuple[Path, Any]]) -> None:
    _, model = saved(similarity_fn_name="meanmaxsim")
    queries, passages = model.encode_query(list(TEXTS[:3])), model.encode_document(list(TEXTS))
    padded = [torch.nn.utils.rnn.pad_sequence(each, True) for each in (queries, passages)]
    expected = model.similarity(queries, passages)
    np.testing.assert_allclose(maxsim(*padded), expected, atol=1e-6)


def test_vectors_are_cut(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved()
    whole, cut = answers(folder), answers(folder, dim=4, normalize=True)
    for one, other in zip(whole, cut, strict=True):
        first = one[:, :4].astype(np.float32)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        np.testing.assert_allclose(other, first, atol=1e-2)


def _edit(folder: Path, name: str, **values: Any) -> None:
    (file,) = folder.glob(name)
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("*_MultiVectorMask/config.json", {"skiplist_words": [","]}, "skiplist_words: vectors of"),
        (
            "sentence_bert_config.json",
            {"query_length": 32},
            "query_length 32: queries and passages",
        ),
        ("sentence_bert_config.json", {"query_expansion": "mask"}, "query_expansion 'mask'"),
        (
            "*_Dense/config.json",
            {"module_input_name": "sentence_embedding"},
            "only layers of each token are supported",
        ),
    ],
)
def test_what_reads_other_tokens_is_refused(
    saved: Callable[..., tuple[Path, Any]], file: str, values: dict[str, Any], message: str
) -> None:
    folder, _ = saved()
    _edit(folder, file, **values)
    with pytest.raises(TeacherSourceError, match=message) as refused:
        answers(folder)
    assert "\n" not in str(refused.value)


def test_options_of_pooled_texts_are_refused(saved: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = saved()
    for name, value in {"pooling": "mean", "layers": (1,), "token_layers": (1,)}.items():
        with pytest.raises(JobError, match=rf"{name}: source .* has a vector for each token"):
            answers(folder, **{name: value})
    with pytest.raises(JobError, match=r"store_dtype float32: .* in half precision"):
        answers(folder, store_dtype="float32")
    with pytest.raises(JobError, match="dim: 500 is more than the 128 numbers"):
        answers(folder, dim=500)
