"""`armada export`: ONNX models of students, read by ONNX Runtime as by anybody else."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from armada.cache_schemas.errors import JobError, RunError, StudentSourceError
from armada.pipeline import student_export
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.stages.distill.onnx_model import embed_by_onnx
from armada.stages.distill.saved_student import load_embedder
from armada.stages.precompute.teachers.options import StudentOptions
from armada.stages.precompute.teachers.student import StudentTeacher
from scipy.stats import spearmanr
from tiny_checkpoints import make_bert
from tiny_embeddings import encode
from tiny_runs import sentences
from transformers import AutoModel, AutoTokenizer

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

TEXTS = ["a", *sentences(0, 12), " ".join(sentences(20, 26))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs with scores, and a student of them that embeds in 6 numbers: `run/student`."""
    folder = tmp_path_factory.mktemp("export")
    one, other = sentences(0, 24), sentences(100, 124)
    scores = np.random.default_rng(0).random(24)
    pq.write_table(pa.table({"one": one, "other": other, "score": scores}), folder / "p.parquet")
    make_bert(folder / "bert", [*one, *other, *TEXTS])
    own = {"embedding_dim": 6, "query_prompt": "a question ", "pooling": "cls"}
    distilled(folder, "run", str(folder / "bert"), **own)
    return folder


def distilled(root: Path, name: str, student: str, **keys: Any) -> None:
    job = {
        **{"train": str(root / "p.parquet"), "text_column": ["one", "other"], "student": student},
        **{"task": "embedding", "objective": "contrastive", "epochs": 1, "batch_size": 8},
        **{"output": str(root / name), "device": "cpu", "report_to": "none", **keys},
    }
    run_distill(DistillJob.model_validate(job), quiet=True)


def opened(file: Path) -> Any:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def exported(root: Path) -> dict[str, Any]:
    """What is said of both models, compared on pairs with scores."""
    job = student_export.StudentExportJob(
        student=root / "run",
        quantize="int8",
        corpus=(str(root / "p.parquet"),),
        text_column=("one", "other"),
        label_column="score",
    )
    student_export.run_student_export(job)
    found: dict[str, Any] = json.loads((root / "run/student/onnx/checked.json").read_text())
    return found


def test_the_model_gives_what_the_folder_gives(root: Path, exported: dict[str, Any]) -> None:
    folder = root / "run" / "student"
    session = opened(folder / "onnx" / "model.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert [each.name for each in session.get_inputs()] == names
    assert [each.name for each in session.get_outputs()] == [
        "last_hidden_state",
        "sentence_embedding",
    ]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for texts in (TEXTS, TEXTS[:1], TEXTS[-1:]):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        given = {name: batch[name].numpy() for name in names}
        states, embeddings = session.run(None, given)
        np.testing.assert_allclose(embeddings, encode(folder, texts), atol=1e-5)
        with torch.inference_mode():
            wanted = model(**{name: batch[name] for name in names}).last_hidden_state
        kept = batch["attention_mask"].bool().numpy()
        np.testing.assert_allclose(states[kept], wanted.numpy()[kept], atol=1e-5)


def test_it_is_told_how_near_they_are(root: Path, exported: dict[str, Any]) -> None:
    whole, int8 = exported["models"]["model.onnx"], exported["models"]["model_int8.onnx"]
    assert exported["texts"] == 48
    assert exported["versions"].keys() >= {"onnx", "torch"}
    assert whole["largest_difference"] < 1e-5 < int8["largest_difference"]
    assert whole["spearman"] == pytest.approx(exported["spearman"])
    assert 0.9 < int8["cosine_least"] <= int8["cosine_mean"] < 1
    assert int8["bytes"] < whole["bytes"]
    folder = root / "run" / "student"
    one, other = (
        pq.read_table(root / "p.parquet")["one"],
        pq.read_table(root / "p.parquet")["other"],
    )
    sides = [encode(folder, [f"a question {text}" for text in one.to_pylist()])]
    sides.append(encode(folder, other.to_pylist()))

    cosines = (sides[0] * sides[1]).sum(axis=1)
    scores = pq.read_table(root / "p.parquet")["score"].to_numpy()
    assert exported["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic)


def test_the_folder_is_the_same_teacher_beside_it(root: Path, exported: dict[str, Any]) -> None:
    folder = root / "run" / "student"

    def fingerprint() -> str:
        options = StudentOptions(prompt_name="document")
        return StudentTeacher(str(folder), options, torch.device("cpu")).spec.fingerprint

    before = fingerprint()
    (folder / "onnx").rename(root / "onnx")
    try:
        without = fingerprint()
    finally:
        (root / "onnx").rename(folder / "onnx")
    assert before == without


def test_a_static_student(root: Path, armada: Any, refused: Any) -> None:
    distilled(root, "static", f"static:{root / 'bert'}", static_dim=5)
    lines = armada.done("export", root / "static").splitlines()
    assert lines[0] == "compared on 24 texts: words of the vocabulary"
    assert lines[1].startswith("model.onnx")
    folder = root / "static" / "student"
    session = opened(folder / "onnx" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(root / "run" / "student")
    batch = tokenizer(TEXTS, padding=True, add_special_tokens=False, return_tensors="np")
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    _, embeddings = session.run(None, given)
    np.testing.assert_allclose(embeddings, encode(folder, TEXTS), atol=1e-5)
    assert "onnx: is not empty; choose another folder" in refused("export", root / "static")


def test_a_model_that_differs_is_not_kept(
    root: Path, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(root / "static" / "student", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "onnx")
    monkeypatch.setattr(student_export, "_MOST_DIFFERENCE", 0.0)
    with pytest.raises(RunError, match="its ONNX model gives other embeddings"):
        student_export.run_student_export(
            student_export.StudentExportJob(student=tmp_path / "copy")
        )
    assert not [*(tmp_path / "copy").glob("*onnx*")]


def test_a_model_that_runs_on_one_batch_alone_is_refused(
    root: Path, exported: dict[str, Any], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    folder = root / "run" / "student"
    model = onnx.load(folder / "onnx" / "model.onnx")
    for each in model.graph.input:
        each.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "fixed.onnx")
    reader = load_embedder(folder)
    assert reader is not None
    with pytest.raises(StudentSourceError, match=r"fixed.onnx: .* batches of other sizes \("):
        embed_by_onnx(tmp_path / "fixed.onnx", reader, TEXTS, 4)


def test_what_cannot_be_exported_is_refused(root: Path, refused: Any, tmp_path: Path) -> None:
    assert "holds no armada_student.json" in refused("export", root)
    words = ("export", root / "run", "--corpus", root / "p.parquet")
    assert "job key 'text_column' is missing" in refused(*words)
    told = ("--text-column", "one", "--label-column", "score")
    assert "name two text columns" in refused(*words, *told)
    assert "quantize" in refused("export", root / "run", "--quantize", "int4")


def test_adapters_are_refused_before_they_are_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled(root, "adapted", str(root / "bert"), lora_rank=2)
    monkeypatch.setattr(student_export, "load_embedder", None)  # a call would end in a TypeError
    job = student_export.StudentExportJob(student=root / "adapted")
    with pytest.raises(JobError, match="has adapters beside its base model"):
        student_export.run_student_export(job)
    assert not (root / "adapted" / "student" / "onnx").exists()
