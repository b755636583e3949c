"""Cross-encoders as teachers, against sentence-transformers' own scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import ArmadaError, JobError, TeacherSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.precompute.teachers.base import Answers, Example
from armada.stages.precompute.teachers.cross_encoder import CrossEncoderTeacher
from armada.stages.precompute.teachers.options import CrossEncoderOptions
from tiny_checkpoints import make_bert, make_bert_classifier, make_roberta
from tiny_embeddings import make_cross_encoder, make_embedding_model, predict

TEXTS = ("a red bird sings", "two dogs", "it rains on the sea and on the river", "birds")
PAIRS = [(query, passage) for query in TEXTS for passage in TEXTS[1:]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert_classifier(tmp_path_factory.mktemp("bert"), TEXTS, ["score"])


def made(folder: Path, **options: Any) -> CrossEncoderTeacher:
    device = torch.device("cpu")
    return CrossEncoderTeacher(str(folder), CrossEncoderOptions(**options), device)


def ask(
    folder: Path, pairs: Sequence[tuple[str, ...]] = PAIRS, **options: Any
) -> tuple[CrossEncoderTeacher, Answers]:
    teacher = made(folder, **options)
    teacher.load()
    with torch.inference_mode():
        return teacher, teacher.encode([Example(example_key(pair), pair) for pair in pairs])


def test_scores_of_a_folder_that_declares_nothing(bert: Path) -> None:
    teacher, answers = ask(bert)
    np.testing.assert_allclose(answers.features["score"][:, 0], predict(bert, PAIRS), atol=1e-6)
    assert teacher.spec.settings["activation"] == "Sigmoid"
    assert teacher.spec.settings["max_length"] == 64  # positions of the model
    assert teacher.spec.features[0].shape == (1,)


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Tanh()])
def test_the_declared_activation_is_used(bert: Path, tmp_path: Path, activation: Any) -> None:
    folder = make_cross_encoder(tmp_path / "model", bert, activation)
    teacher, answers = ask(folder)
    expected = predict(folder, PAIRS)
    np.testing.assert_allclose(answers.features["score"][:, 0], expected, atol=1e-6)
    assert teacher.spec.settings["activation"] == type(activation).__name__
    _, plain = ask(folder, activation="Identity")
    expected = activation(torch.from_numpy(plain.features["score"][:, 0])).numpy()
    np.testing.assert_allclose(answers.features["score"][:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "key",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_the_words_of_older_releases(bert: Path, tmp_path: Path, key: dict[str, Any]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | key))
    teacher, answers = ask(folder)
    assert teacher.spec.settings["activation"] == "Identity"
    np.testing.assert_allclose(answers.features["score"][:, 0], predict(folder, PAIRS), atol=1e-5)


def test_several_classes_have_logits(tmp_path: Path) -> None:
    names = ["contradiction", "entailment", "neutral"]
    folder = make_bert_classifier(tmp_path / "bert", TEXTS, names)
    teacher, answers = ask(make_cross_encoder(tmp_path / "model", folder), pooled=True)
    assert teacher.spec.feature("logits").labels == tuple(names)
    np.testing.assert_allclose(answers.features["logits"], predict(folder, PAIRS), atol=1e-5)
    assert answers.features["pooled"].shape == (len(PAIRS), 32)
    with pytest.raises(JobError, match="activation: Sigmoid of 3 classes has no feature"):
        made(folder, activation="Sigmoid")


@pytest.mark.parametrize("activation", ["GLU", "Softmax2d", "MultiheadAttention", "Linear", "x"])
def test_an_activation_that_makes_no_score_is_refused(bert: Path, activation: str) -> None:
    with pytest.raises(JobError, match=f"^activation: .*{activation}.* such as Sigmoid") as caught:
        made(bert, activation=activation)
    made_of_one = activation in ("GLU", "Softmax2d")
    assert ("makes no number of one score" in str(caught.value)) == made_of_one


def test_an_activation_that_makes_all_scores_the_same_is_refused(bert: Path) -> None:
    with pytest.raises(JobError, match="activation: Softmax makes no number"):
        made(bert, activation="Softmax")


def test_long_pairs_are_cut_as_there(bert: Path) -> None:
    pairs = [(TEXTS[2] * 3, TEXTS[0] * 2), PAIRS[0]]
    _, answers = ask(bert, pairs, max_length=24)
    assert answers.truncated.tolist() == [True, False]
    expected = predict(bert, pairs, max_length=24)
    np.testing.assert_allclose(answers.features["score"][:, 0], expected, atol=1e-6)


def test_pairs_of_another_family(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    body = make_roberta(tmp_path / "body", TEXTS)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(body, num_labels=1)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(body).save_pretrained(tmp_path / "model")
    _, answers = ask(tmp_path / "model", activation="Identity")
    with torch.no_grad():
        expected = torch.special.logit(torch.from_numpy(predict(tmp_path / "model", PAIRS)))
    np.testing.assert_allclose(answers.features["score"][:, 0], expected, atol=1e-4)


def test_what_is_no_pair_is_refused(bert: Path) -> None:
    for segments in ((TEXTS[0],), TEXTS[:3]):
        with pytest.raises(JobError, match="name two columns, query and passage"):
            ask(bert, [segments])
    ask(bert, [(TEXTS[0],)], template="query: {text}")


def test_what_is_no_cross_encoder_is_refused(bert: Path, tmp_path: Path) -> None:
    body = make_bert(tmp_path / "body", TEXTS)
    embedder = make_embedding_model(tmp_path / "embedder", body)
    with pytest.raises(TeacherSourceError, match="not a cross-encoder; use encoder:embedder"):
        made(embedder)
    folder = make_cross_encoder(tmp_path / "model", bert)
    document = json.loads((folder / "config_sentence_transformers.json").read_bytes())

    def refused(name: str, change: Any, said: str) -> None:
        before = (folder / name).read_bytes()
        (folder / name).write_text(json.dumps(change))
        with pytest.raises(ArmadaError, match=said):
            made(folder)
        (folder / name).write_bytes(before)

    card = "config_sentence_transformers.json"
    refused(card, document | {"activation_fn": "os.system"}, "'os.system' is not an activation")
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    refused(card, document | prompts, "declares a prompt for its pairs")
    modules = json.loads((folder / "modules.json").read_bytes())
    scored = {**modules[0], "type": "sentence_transformers.cross_encoder.modules.LogitScore"}
    refused("modules.json", [modules[0], scored], "module LogitScore is not known")
    with pytest.raises(JobError, match=r"activation: 'torch\.nn\.Nothing' is not an activation"):
        made(folder, activation="Nothing")
