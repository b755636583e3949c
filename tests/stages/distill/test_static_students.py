"""Static students: tables made of other models, means, steps of the rows of a batch alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from armada import load_student as load_saved
from armada.cache_schemas.errors import StudentSourceError
from armada.cache_schemas.keys import example_key
from armada.stages.corpus.labels import NO_LABELS, LabelSpace
from armada.stages.distill.export import StudentCard, save_student
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.features import FeatureObjective
from armada.stages.distill.objectives.options import FeatureOptions
from armada.stages.distill.optimizers import RowAdamW, parameter_groups, updates_rows
from armada.stages.distill.saved_student import is_embedder, load_embedder
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.static_start import principal_components, zipf_weights
from armada.stages.distill.static_student import static_tokenizer
from armada.stages.distill.student_source import (
    check_student,
    default_max_length,
    load_student,
)
from armada.stages.distill.tokens import encode
from armada.stages.embeddings.static import StaticTokenizer, TokenTable, unknown_id
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.encoder import EncoderOptions, EncoderTeacher
from tiny_embeddings import (
    dense,
    make_embedding_model,
    modules,
    quiet_sentence_transformers,
)
from tiny_embeddings import encode as by_sentence_transformers
from tiny_runs import TEXTS, THREE_CLASSES
from tiny_tokenizers import make_kind
from torch import nn

WIDTH = 10
KINDS = ("bert", "roberta", "llama")
SHORT = [*range(9), 10, 11]
LONG = (*TEXTS[:9], "a map of the harbour " * 20, "the cook ☃ it", "")


def settings(source: object, **more: Any) -> StudentSettings:
    return StudentSettings(student=f"static:{source}", **more)


def load(source: object, space: LabelSpace = NO_LABELS, **more: Any) -> tuple[Any, Any]:
    torch.manual_seed(3)
    return load_student(settings(source, **more), space, [], 0.0)


def pooled(student: Any, tokenizer: Any, texts: Any) -> torch.Tensor:
    tokens = encode(tokenizer, [(text,) for text in texts], 512)
    with torch.no_grad():
        found: torch.Tensor = student.eval()(**tokens.pad(np.arange(len(tokens))))[0]
    return found


# --- The mean


def test_a_text_is_the_mean_of_its_tokens_whatever_is_beside_it(
    checkpoint: Callable[[str], Path],
) -> None:
    student, tokenizer = load(checkpoint("bert"), static_dim=8)
    assert tokenizer("the cook")["input_ids"] == tokenizer.convert_tokens_to_ids(["the", "cook"])
    table = student.backbone.weight.detach().double()
    together = pooled(student, tokenizer, LONG)
    for text, found in zip(LONG, together, strict=True):
        ids = tokenizer(text)["input_ids"]
        ids = [at for at in ids if at != tokenizer.unk_token_id]
        expected = table[ids].mean(0) if ids else torch.zeros(8).double()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert torch.equal(pooled(student, tokenizer, [text])[0], found)
    assert not together[-1].any()
    assert len(pooled(student, tokenizer, ["", ""])) == 2


def test_a_device_that_does_not_pick_tokens_out_has_the_same_means() -> None:
    table, ids = TokenTable(torch.randn(9, 4), unknown=1), torch.tensor([[3, 1, 4], [5, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    same = table.of_padded(ids, mask.bool() & (ids != 1))
    np.testing.assert_allclose(table(ids, mask).detach(), same.detach(), atol=1e-6)
    assert not table.of_padded(ids, torch.zeros(2, 3, dtype=torch.bool)).any()


@pytest.mark.parametrize("kind", ["unigram", "whole", "words", "clip"])
def test_texts_are_read_as_the_tokenizer_reads_them_without_special_tokens(kind: str) -> None:
    backend = make_kind(kind).backend_tokenizer
    tokenizer, unknown = static_tokenizer(backend), unknown_id(backend)
    texts = ["the red bird", "ж красная", "", "stars shine over 42 rivers " * 9]
    rows = [each.ids for each in backend.encode_batch(texts, add_special_tokens=False)]
    assert [tokenizer(text)["input_ids"] for text in texts] == rows
    assert backend.id_to_token(unknown) == tokenizer.unk_token == "<unk>"
    ids, starts, cut = StaticTokenizer(backend, 5, unknown).read(texts)
    kept = [[at for at in row[:5] if at != unknown] for row in rows]
    assert ids.tolist() == [at for row in kept for at in row]
    assert np.diff(starts, append=len(ids)).tolist() == list(map(len, kept))
    assert cut.tolist() == [len(row) > 5 for row in rows]


# --- What it starts with


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_start_as_the_source_reads_them_alone(
    checkpoint: Callable[[str], Path], kind: str
) -> None:
    """Checked by a second route: each token as a text, through transformers, in float64."""
    from transformers import AutoModel, AutoTokenizer

    student, _ = load(checkpoint(kind), static_dim=6)
    own = AutoTokenizer.from_pretrained(checkpoint(kind))
    model = AutoModel.from_pretrained(checkpoint(kind), dtype=torch.float32).eval()
    special = set(own.all_special_ids)
    ids = [at for at in sorted(own.get_vocab().values()) if at not in special]
    around = own("a")["input_ids"]
    at = around.index(own("a", add_special_tokens=False)["input_ids"][0])
    states = []
    for token in ids:
        row = torch.tensor([[*around[:at], token, *around[at + 1 :]]])
        with torch.no_grad():
            hidden = model(row).last_hidden_state[0].double().numpy()
        states.append(hidden[-1] if kind == "llama" else hidden.mean(0))
    centred = np.array(states) - np.mean(states, axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    shares = 1 / np.arange(2, len(ids) + 2)
    weights = 1e-4 / (1e-4 + shares / shares.sum())
    expected = centred @ axes[:6].T * weights[:, None]
    expected /= np.sqrt((expected**2).sum(1).mean())
    table = student.backbone.weight.detach()
    np.testing.assert_allclose(table[ids], expected, atol=2e-4)
    assert not table[sorted(special)].any()
    assert torch.equal(table, load(checkpoint(kind), static_dim=6)[0].backbone.weight)


def test_it_starts_with_input_embeddings_or_random_vectors(
    checkpoint: Callable[[str], Path],
) -> None:
    student, tokenizer = load(checkpoint("bert"), static_init="embeddings")
    assert student.dim == 32  # the source's, less than 256
    assert not student.backbone.weight[tokenizer.unk_token_id].any()
    student, tokenizer = load(checkpoint("bert"), static_init="random", static_dim=300)
    assert student.backbone.weight.shape == (len(tokenizer.get_vocab()), 300)
    again, _ = load(checkpoint("bert"), static_init="random", static_dim=300)
    assert torch.equal(student.backbone.weight, again.backbone.weight)
    lengths = student.backbone.weight.detach().norm(dim=1)
    assert lengths.mean() == pytest.approx(1, abs=0.05)


def test_tokens_are_pooled_as_a_folder_declares(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    layers = [modules().Normalize()]
    model = make_embedding_model(tmp_path / "model", checkpoint("bert"), "cls", layers)
    student, _ = load(model)
    plain, _ = load(checkpoint("bert"))
    assert not torch.allclose(student.backbone.weight, plain.backbone.weight, atol=0.01)
    assert default_max_length(settings(model), NO_LABELS) == 512


def test_principal_components_keep_what_varies_most() -> None:
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 6)
    found = principal_components(rows, 2)
    assert found.mean(0).abs().max() < 1e-5
    variances = np.linalg.eigvalsh(np.cov(rows.numpy().T))[::-1]
    np.testing.assert_allclose(found.double().var(0), variances[:2], rtol=1e-5)


def test_frequent_tokens_weigh_less() -> None:
    # Ranks 1 and 2 of two tokens: 1/2 and 1/3, of 5/6 in all.
    np.testing.assert_allclose(zipf_weights(2), [1e-4 / (1e-4 + 0.6), 1e-4 / (1e-4 + 0.4)])


# --- Steps


def test_a_step_is_adamw_for_each_row_that_has_a_gradient() -> None:
    torch.manual_seed(0)
    start, data = torch.randn(5, 3), torch.randn(4, 3)
    batches = [[0, 1], [1, 3], [1, 1], [0, 3]]
    sparse, thick = (nn.Parameter(start.clone()) for _ in range(2))
    rows = [nn.Parameter(row.clone()) for row in start]
    for table in (sparse, thick):
        updates_rows(table)
    made = [RowAdamW(parameter_groups([table], 0.1, 0.2), 1e9) for table in (sparse, thick)]
    each = [torch.optim.AdamW([row], lr=0.1, weight_decay=0.2, fused=True) for row in rows]
    for ids, target in zip(batches, data, strict=True):
        for table, optimizer in zip((sparse, thick), made, strict=True):
            found = F.embedding_bag(torch.tensor([ids]), table, mode="mean", sparse=table is sparse)
            (found - target).square().sum().backward()
            optimizer.step()
            assert table.grad is None
        mean = torch.stack([rows[at] for at in ids]).mean(0)
        (mean - target).square().sum().backward()
        for at in set(ids):
            each[at].step()
            each[at].zero_grad()
    torch.testing.assert_close(sparse.data, torch.stack([row.data for row in rows]))
    torch.testing.assert_close(thick.data, sparse.data)
    assert torch.equal(sparse.data[[2, 4]], start[[2, 4]])


def test_a_device_that_does_not_tell_its_rows_has_the_same_steps() -> None:
    torch.manual_seed(0)
    tables = [nn.Parameter(torch.ones(5, 3)) for _ in range(2)]
    made = [RowAdamW(parameter_groups([table], 0.1, 0.2), 1e9) for table in tables]
    made[1]._update_rows = made[1]._update_marked  # type: ignore[method-assign, assignment]
    for rows in ([0, 1], [1, 3]):
        numbers = torch.randn(2, 3)
        for table, optimizer in zip(tables, made, strict=True):
            updates_rows(table)
            table.grad = torch.zeros(5, 3)
            table.grad[rows] = numbers
            optimizer.step()
    torch.testing.assert_close(tables[1].data, tables[0].data)
    torch.testing.assert_close(made[1].state[tables[1]], made[0].state[tables[0]])


def test_gradients_of_tables_and_others_are_clipped_together() -> None:
    table, other = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(torch.zeros(2))
    updates_rows(table)
    optimizer = RowAdamW(parameter_groups([table, other], 0.1, 0.0), 1.0)
    seen = []
    optimizer._update_rows = lambda p, group: seen.append(p.grad.to_dense())  # type: ignore
    numbers = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    table.grad = torch.sparse_coo_tensor([[1, 1]], numbers, (4, 2), check_invariants=True)
    other.grad = torch.tensor([12.0, 0.0])
    optimizer.step()
    np.testing.assert_allclose(seen[0][1], [3 / 13, 4 / 13], rtol=1e-5)


# --- What is left of it


@pytest.fixture
def save(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A trained student in a folder, with weights of its own."""

    def make(
        kind: str = "bert",
        space: LabelSpace = NO_LABELS,
        length_1: bool = True,
        most: int = 20,
        **options: Any,
    ) -> Path:
        student, tokenizer = load(checkpoint(kind), space, static_dim=8)
        wide = student.dim if options.get("projector") == "none" else WIDTH
        sizes = Sizes(student.dim, space.num_labels, space.regression, (wide,))
        objective = FeatureObjective(FeatureOptions(**options), sizes)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        card = StudentCard(
            space=space,
            pooling=student.pooling,
            dropout=0.1,
            max_length=most,
            text_columns=("text",),
            label_column=None if space.task == "none" else "label",
            metric="loss",
        )
        save_student(tmp_path / kind, student, tokenizer, objective, card, length_1)
        tokens = encode(tokenizer, [(text,) for text in LONG], most)
        with torch.no_grad():
            vectors, outputs = student.eval()(**tokens.pad(np.arange(len(tokens))))
            projected = objective.projection(vectors)
        np.save(tmp_path / "trained.npy", F.normalize(projected, dim=-1) if length_1 else projected)
        np.save(tmp_path / "outputs.npy", outputs)
        return tmp_path / kind

    return make


def by_armada(folder: Path) -> Any:
    return np.stack([said["embedding"] for said in load_saved(folder).predict(LONG, 4)])


def as_teacher(folder: Path, **options: Any) -> Any:
    teacher = EncoderTeacher(str(folder), EncoderOptions(**options), torch.device("cpu"))
    teacher.load()
    with torch.inference_mode():
        examples = [Example(example_key((text,)), (text,)) for text in LONG]
        return np.concatenate([teacher.encode([one]).features["pooled"] for one in examples])


def by_model2vec(folder: Path, most: int | None = None) -> Any:
    model2vec = pytest.importorskip("model2vec")
    return model2vec.StaticModel.from_pretrained(folder).encode(list(LONG), max_length=most)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_student_is_the_same_to_all_that_open_it(save: Callable[..., Path], kind: str) -> None:
    folder = save(kind)
    said = by_armada(folder)
    trained = np.load(folder.parent / "trained.npy")
    np.testing.assert_allclose(said[:-1], trained[:-1], atol=1e-6)
    assert np.abs(said[0] - said[1]).max() > 0.01
    assert not said[-1].any()
    np.testing.assert_allclose(by_sentence_transformers(folder, LONG), said, atol=1e-6)
    np.testing.assert_allclose(as_teacher(folder), said, atol=1e-6)
    np.testing.assert_allclose(as_teacher(folder, dim=4), said[:, :4], atol=1e-6)
    # Given a length, model2vec cuts a long text at a number of characters, before it is tokens.
    np.testing.assert_allclose(by_model2vec(folder)[SHORT], said[SHORT], atol=1e-6)
    student = load_saved(folder)
    np.testing.assert_allclose(student(**student.encode(LONG)).detach(), said, atol=1e-6)
    # Of several segments, which is the way of padded batches.
    np.testing.assert_allclose(
        student.predict([(LONG[0], LONG[1])])[0]["embedding"],
        student.predict([f"{LONG[0]} {LONG[1]}"])[0]["embedding"],
        atol=1e-6 if kind == "bert" else 1,
    )


def test_a_projector_of_two_layers_stays_behind_the_table(save: Callable[..., Path]) -> None:
    folder = save(length_1=False, projector="mlp")
    said, trained = by_armada(folder), np.load(folder.parent / "trained.npy")
    np.testing.assert_allclose(said, trained, atol=1e-6)
    known = [number for number, text in enumerate(LONG) if "☃" not in text]
    np.testing.assert_allclose(
        by_sentence_transformers(folder, LONG)[known], said[known], atol=1e-6
    )
    np.testing.assert_allclose(as_teacher(folder), said, atol=1e-6)


def test_a_classifier_keeps_its_head(save: Callable[..., Path]) -> None:
    folder = save(space=THREE_CLASSES, length_1=False)
    said = load_saved(folder).predict(LONG, 4)
    logits = torch.from_numpy(np.load(folder.parent / "outputs.npy"))
    found = [each["probabilities"] for each in said]
    np.testing.assert_allclose(found, logits.softmax(1), atol=1e-6)
    trained = np.load(folder.parent / "trained.npy")
    np.testing.assert_allclose(as_teacher(folder), trained, atol=1e-6)


# --- Other static models


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A StaticEmbedding with layers, as the library saves it."""
    from tiny_checkpoints import make_tokenizer

    tokenizer = make_tokenizer(TEXTS)
    with quiet_sentence_transformers():
        from sentence_transformers import SentenceTransformer

        torch.manual_seed(5)
        static = modules().StaticEmbedding(tokenizer, embedding_dim=8)
        layers = [dense(8, 6, torch.nn.Tanh()), modules().Normalize()]
        model = SentenceTransformer(
            modules=[static, *layers],
            device="cpu",
            prompts={"query": "the map of "},
        )
        model.save(str(tmp_path / "plain"), create_model_card=False)
    return tmp_path / "plain"


def test_a_folder_of_sentence_transformers_is_a_teacher(plain: Path) -> None:
    np.testing.assert_allclose(as_teacher(plain), by_sentence_transformers(plain, LONG), atol=1e-6)
    np.testing.assert_allclose(
        as_teacher(plain, prompt_name="query"),
        by_sentence_transformers(plain, LONG, prompt_name="query"),
        atol=1e-6,
    )
    with pytest.raises(StudentSourceError, match=r"has layers behind its table \(Dense 8 to 6"):
        load(plain)
    with pytest.raises(StudentSourceError, match=r"no transformer; name it static:"):
        load_student(StudentSettings(student=str(plain)), NO_LABELS, [], 0.1)


def test_a_folder_of_model2vec_is_a_teacher_and_a_start(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    model2vec = pytest.importorskip("model2vec")
    from tokenizers import Tokenizer

    own = save()
    tokenizer = Tokenizer.from_file(str(own / "tokenizer.json"))
    count, draw = tokenizer.get_vocab_size(), np.random.default_rng(0)
    mapped = {
        "weights": draw.random(count).astype(np.float32),
        "token_mapping": draw.integers(7, size=count),
    }
    for name, more, rows in (("plain", {}, count), ("quantised", mapped, 7)):
        vectors = draw.standard_normal((rows, 5)).astype(np.float32)
        folder = tmp_path / name
        model = model2vec.StaticModel(vectors, tokenizer, normalize=True, **more)
        model.save_pretrained(folder)
        said = by_model2vec(folder)
        np.testing.assert_allclose(as_teacher(folder), said, atol=1e-6)
        student, own_tokenizer = load(folder)
        found = F.normalize(pooled(student, own_tokenizer, LONG), dim=-1)
        np.testing.assert_allclose(found, said, atol=1e-6)
        (folder / "modules.json").unlink()
        np.testing.assert_allclose(as_teacher(folder), said, atol=1e-6)


# --- What is refused


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"static_dim": 33}, "static_dim 33: the source has 32 numbers a token"),
        ({"student_layers": 1}, "student_layers: a static student is a table"),
        ({"student_from_scratch": True}, "student_from_scratch: a static student"),
        ({"pooling": "cls"}, "pooling 'cls': a static student takes the mean"),
    ],
)
def test_what_a_table_has_not_is_refused(
    checkpoint: Callable[[str], Path], given: dict[str, Any], problem: str
) -> None:
    with pytest.raises((StudentSourceError, ValueError), match=problem):
        check_student(settings(checkpoint("bert"), **given))


def test_sources_that_are_none_are_refused(
    checkpoint: Callable[[str], Path], save: Callable[..., Path], tmp_path: Path
) -> None:
    for source in ("", "scratch:bert"):
        with pytest.raises(ValueError, match="names no model"):
            settings(source)
    with pytest.raises(ValueError, match="static_dim 8: is for student=static:SOURCE"):
        StudentSettings(student=str(checkpoint("bert")), static_dim=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudentSourceError, match=r"holds no config\.json"):
        check_student(settings(tmp_path / "empty"))
    folder = save()
    with pytest.raises(StudentSourceError, match="static_dim 4: student static:"):
        check_student(settings(folder, static_dim=4))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(StudentSourceError, match=r"holds no tokenizer\.json"):
        check_student(settings(folder))


def test_with_labels_it_has_embeddings_without_a_projection(save: Callable[..., Path]) -> None:
    folder = save(space=THREE_CLASSES, projector="none")
    assert is_embedder(folder)
    reader = load_embedder(folder)
    assert reader is not None
    found, _ = reader.outputs(list(LONG), 4)
    np.testing.assert_allclose(found, np.load(folder.parent / "trained.npy"), atol=1e-6)


def test_a_start_without_a_length_has_the_usual_one(save: Callable[..., Path]) -> None:
    folder = save()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"truncation": None}))
    declared = json.loads((folder / "config_sentence_transformers.json").read_text())
    del declared["max_length"]
    (folder / "config_sentence_transformers.json").write_text(json.dumps(declared))
    assert default_max_length(settings(folder), NO_LABELS) == 512
