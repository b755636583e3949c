"""What a tiny model of a family can be used as: each role is tried from a folder on the disk.

A role ends as YES, as ABSENT (transformers has no such class), as the line that refuses it, or as
a traceback, which is a bug of ours.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from armada.cache_schemas.errors import ArmadaError
from armada.cache_schemas.keys import example_key
from armada.pipeline.distill import run_distill
from armada.pipeline.distill_job import DistillJob
from armada.pipeline.evaluate import run_evaluate
from armada.pipeline.jobs import make
from armada.pipeline.precompute import run_precompute
from armada.pipeline.precompute_job import make_precompute_job
from armada.pipeline.student_jobs import EvaluateJob
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from armada.stages.precompute.teachers.classifier import ClassifierTeacher
from armada.stages.precompute.teachers.encoder import EncoderTeacher

from .tiny import AUTO_CLASSES, TEXTS, class_of, make_model, make_tokenizer, reads_text, tiny_config

YES, ABSENT, NOT_BUILT, TRACEBACK = "yes", "absent", "not built: ", "TRACEBACK "

Outcomes = dict[str, str]
"""Role -> how it ended."""


def try_family(family: str, roles: Mapping[str, "Role"] | None = None) -> Outcomes:
    """How each role ends for a family."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = {auto: _build(family, auto, folder / auto) for auto in AUTO_CLASSES}
        return {
            role: _outcome(how, built[how.auto_class], folder)
            for role, how in (roles or ROLES).items()
        }


def _build(family: str, auto_class: str, folder: Path) -> str:
    """Save a tiny model; YES, or why there is none."""
    model_class = class_of(family, auto_class)
    if model_class is None:
        return ABSENT
    try:
        if reads_text(model_class):
            make_model(tiny_config(family), auto_class).save_pretrained(folder)
        else:  # it is refused before its weights are read
            from safetensors.torch import save_file
            from transformers import AutoConfig

            AutoConfig.for_model(family).save_pretrained(folder)
            save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors")
        make_tokenizer().save_pretrained(folder)
    except Exception as cause:  # of a family whose sizes we do not know how to choose
        return f"{NOT_BUILT}{type(cause).__name__}: {' '.join(str(cause).split()):.200}"
    return YES


class Role:
    """One use of a model: the auto class that it is saved as, and what is done with its folder."""

    def __init__(self, auto_class: str, use: Callable[[Path, Path], None]) -> None:
        self.auto_class, self.use = auto_class, use


def _outcome(role: Role, built: str, folder: Path) -> str:
    if built != YES:
        return built
    source, work = folder / role.auto_class, folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        role.use(source, work)
    except ArmadaError as error:
        return plain(str(error), source)
    except Exception as error:
        return f"{TRACEBACK}{type(error).__name__}: {' '.join(str(error).split()):.200}"
    return YES


def plain(line: str, source: Path) -> str:
    """A line that refuses a model, without the folder that is named first."""
    for start in (f"source {source}: ", f"student {source}: "):
        line = line.removeprefix(start)
    return line.replace(str(source), "FOLDER")


def _encoder(source: Path, work: Path) -> None:
    _ask(EncoderTeacher(str(source), EncoderTeacher.Options(), torch.device("cpu")))


def _classifier(source: Path, work: Path) -> None:
    _ask(ClassifierTeacher(str(source), ClassifierTeacher.Options(), torch.device("cpu")))


def _causal_lm(source: Path, work: Path) -> None:
    options = CausalLMOptions(top_k=4, text_format="plain", max_new_tokens=3)
    _ask(CausalLMTeacher(str(source), options, torch.device("cpu")), pairs=True)


def _ask(teacher: Any, pairs: bool = False) -> None:
    teacher.load()
    segments = [(text, "indeed") if pairs else (text,) for text in TEXTS]
    with torch.inference_mode():
        teacher.encode([Example(example_key(each), each) for each in segments])


def _student(**keys: Any) -> Callable[[Path, Path], None]:
    def train(source: Path, work: Path) -> None:
        corpus = work / "texts.csv"
        rows = "".join(f"{text},{'ab'[at % 2]}\n" for at, text in enumerate(TEXTS))
        corpus.write_text(f"text,label\n{rows}")
        job = {"train": str(corpus), "text_column": "text", "student": str(source), "epochs": 1}
        job |= {"batch_size": 2, "output": str(work / "run"), "device": "cpu"} | keys
        if keys.get("objective") == "feature":
            job["cache"] = str(work / "cache")
            asked = {"corpus": str(corpus), "text_column": "text", "cache": job["cache"]}
            run_precompute(make_precompute_job(asked | {"teacher": "hash:4"}), quiet=True)
        run_distill(make(DistillJob, job), quiet=True)
        if "objective" not in keys:
            evaluated = {"student": work / "run", "corpus": (str(corpus),)}
            run_evaluate(make(EvaluateJob, evaluated))

    return train


ROLES: dict[str, Role] = {
    "encoder": Role("AutoModel", _encoder),
    "classifier": Role("AutoModelForSequenceClassification", _classifier),
    "causal_lm": Role("AutoModelForCausalLM", _causal_lm),
    "classification": Role("AutoModel", _student(label_column="label", control="undistilled")),
    "feature": Role("AutoModel", _student(objective="feature")),
    "language": Role("AutoModelForCausalLM", _student(task="language", control="undistilled")),
}
"""Teachers, then students of each task."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries say about random weights."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
