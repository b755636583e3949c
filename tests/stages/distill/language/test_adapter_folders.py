"""Folders of adapters: the model they were made for is found again, and is the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from armada.cache_schemas.errors import StudentSourceError
from armada.cache_schemas.keys import example_key
from armada.stages import adapters
from armada.stages.corpus.labels import NO_LABELS
from armada.stages.distill.language.export import (
    LanguageCard,
    load_language_folder,
    save_language_student,
)
from armada.stages.distill.language.source import load_language_student
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import ObjectiveOptions
from armada.stages.distill.objectives.undistilled import UndistilledObjective
from armada.stages.distill.settings import LoraSettings, StudentSettings
from armada.stages.language.recipe import Recipe
from armada.stages.precompute.teachers.base import Example
from armada.stages.precompute.teachers.causal_lm import CausalLMTeacher
from armada.stages.precompute.teachers.causal_options import CausalLMOptions
from peft import AutoPeftModelForCausalLM
from tiny_checkpoints import save_quietly
from tiny_language_models import make_causal_lm
from transformers import AutoTokenizer

IDS = torch.arange(7)[None]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the model `base`."""
    make_causal_lm(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(base: str, revision: str | None) -> dict[str, str | None]:
    return adapters.named_base(base, revision, StudentSourceError)


def save_adapters(folder: Path, base: str) -> torch.Tensor:
    """Adapters on `base`, in a folder; the hidden states that they make."""
    lora = LoraSettings(lora_rank=2)
    student, tokenizer = load_language_student(
        StudentSettings(student="base"), lora, NO_LABELS, [], 0.0
    )
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    card = LanguageCard(
        recipe=Recipe(),
        max_length=9,
        text_columns=("text",),
        space=NO_LABELS,
        metric="loss",
        **named(base, None),
    )
    objective = UndistilledObjective(ObjectiveOptions(), Sizes(student.dim, 1, False, None))
    save_language_student(folder, student, tokenizer, objective, card)
    with torch.no_grad():
        states: torch.Tensor = student.eval()(IDS)
    return states


def states_of(folder: Path) -> torch.Tensor:
    model, _, _ = load_language_folder(folder)
    with torch.no_grad():
        states: torch.Tensor = model.get_base_model().model(IDS).last_hidden_state
    return states


def test_their_model_is_found_from_any_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = save_adapters(root / "run", "base")
    (root / "elsewhere").mkdir()
    monkeypatch.chdir(root / "elsewhere")
    torch.testing.assert_close(states_of(root / "run"), expected)


def test_they_teach_as_the_model_that_they_are_merged_into(root: Path) -> None:
    save_adapters(root / "run", "base")
    with adapters.quiet_peft():
        merged = AutoPeftModelForCausalLM.from_pretrained(root / "run").merge_and_unload()
    save_quietly(merged, root / "merged")
    AutoTokenizer.from_pretrained(root / "run").save_pretrained(root / "merged")
    answers = []
    for folder in ("run", "merged", "base"):
        options = CausalLMOptions(dense=True)
        teacher = CausalLMTeacher(str(root / folder), options, torch.device("cpu"))
        teacher.load()
        with torch.inference_mode():
            found = teacher.encode([Example(example_key(("a bird",)), ("a bird",))])
        answers.append(torch.tensor(np.asarray(found.features["dense"])).float())
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-3)
    assert (answers[0] - answers[2]).abs().max() > 0.1


def test_another_model_in_its_place_is_refused(root: Path) -> None:
    save_adapters(root / "run", "base")
    was = named("base", None)["base_digest"]
    make_causal_lm(root / "base", seed=1)
    now = named("base", None)["base_digest"]
    told = f"made for {root / 'base'} with digest {was}, which is now {now}; restore"
    with pytest.raises(StudentSourceError, match=told):
        states_of(root / "run")


def test_a_hub_id_stays_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "resolve", lambda source, revision, error: root / "base")
    expected = save_adapters(root / "run", "someone/model")
    assert named("someone/model", "main") == {
        **named("base", None),
        "base": "someone/model",
        "base_revision": "main",
    }
    torch.testing.assert_close(states_of(root / "run"), expected)
    make_causal_lm(root / "base", seed=1)
    with pytest.raises(StudentSourceError, match="made for someone/model with digest"):
        states_of(root / "run")
