"""Teachers and objectives of other people's packages, where their names or parts could mislead."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from armada.pipeline.precompute_job import PrecomputeJob
from armada.stages.precompute.teachers import TEACHERS
from command_line import CommandLine
from safetensors.torch import load_file

HINTS = Path(__file__).parents[1] / "hint_objective"

TEACHER = """
from armada.stages.precompute.teachers.base import TeacherOptions
from armada.stages.precompute.teachers.hash import HashTeacher
from pydantic import Field

class Options(TeacherOptions):
    limit: int = Field(default=512, description="most characters")
    seed: int = Field(default=0, description="seed")

class Teacher(HashTeacher):
    kind = "limited"
    Options = Options
"""

OBJECTIVE = """
from armada.stages.distill.losses import task_loss
from armada.stages.distill.objectives.base import Objective, named_terms
from torch import nn

class WithAligner(Objective):
    has_aligner = True

    def __init__(self, settings, sizes):
        super().__init__(settings, sizes)
        self.aligner = nn.Sequential(
            nn.Linear(sizes.feature_dim, sizes.pooled_dim), nn.BatchNorm1d(sizes.pooled_dim)
        )

    def forward(self, pooled_BD, output_BK, feature_BH, labels_B):
        aligned = self.aligner(self._feature(feature_BH).float())
        loss = task_loss(output_BK, labels_B, self.sizes.regression)
        return named_terms(loss + (pooled_BD - aligned).square().mean())

class Hidden(WithAligner):
    def __init__(self, settings, sizes):
        super().__init__(settings, sizes)
        self.other = self.aligner
        self.aligner = None

    def forward(self, pooled_BD, *more):
        raise AssertionError("trains")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a package with entry points of a group where Python looks."""

    def put(name: str, source: str, group: str, **entries: str) -> None:
        folder = tmp_path / "site"
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[{group}]", *(f"{key} = {name}:{value}" for key, value in entries.items())]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(folder)

    return put


def test_an_option_with_the_name_of_a_job_key_is_refused(
    install: Any, armada: CommandLine, write_parquet: Any, tmp_path: Path
) -> None:
    install("limited_teacher", TEACHER, "armada.teachers", limited="Teacher")
    corpus = write_parquet("texts", {"text": ["a", "b"]})
    words = ("precompute", "--corpus", corpus, "--text-column", "text", "--teacher", "limited:4")
    expected = (
        "teacher limited: its options limit clash with job keys; rename them in limited_teacher"
    )
    for more in ((), ("--set", "limit=1"), ("--dry-run",)):
        result = armada(*words, "--cache", tmp_path / "cache", *more)
        assert (result.code, result.error) == (2, expected)
    assert armada("precompute", "--keys", "--teacher", "limited").error == expected
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("kind", TEACHERS.built_in)
def test_no_teacher_of_ours_has_such_an_option(kind: str) -> None:
    assert not TEACHERS.load(kind).Options.model_fields.keys() & PrecomputeJob.model_fields.keys()


def test_a_random_aligner_of_any_class_stays_as_it_was_drawn(
    install: Any, armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    objectives = {"aligned": "WithAligner", "hidden": "Hidden"}
    install("aligned_objective", OBJECTIVE, "armada.objectives", **objectives)

    def aligner(name: str, control: str, epochs: int) -> dict[str, torch.Tensor]:
        more = ("--set", f"control={control}", "--set", f"epochs={epochs}")
        armada.done(*distill_bench.words(tmp_path / name, *more, objective="aligned"))
        return load_file(tmp_path / name / "aligner" / "aligner.safetensors")

    drawn, later = aligner("one", "random-aligner", 1), aligner("two", "random-aligner", 2)
    learned = aligner("learned", "none", 1)
    assert all(torch.equal(drawn[name], later[name]) for name in drawn)
    assert drawn["1.num_batches_tracked"] == 0
    assert not torch.equal(drawn["0.weight"], learned["0.weight"])
    words = distill_bench.words(tmp_path / "no", objective="hidden", control="random-aligner")
    result = armada(*words)
    assert result.code == 2
    assert "declares an aligner, but has no module named `aligner`" in result.error
    assert not (tmp_path / "no").exists()


OF_TWO = """
import torch
from armada.stages.distill.losses import task_loss
from armada.stages.distill.objectives.base import Objective, ObjectiveOptions, Reads, named_terms
from pydantic import Field
from torch import nn

class Options(ObjectiveOptions):
    share: float = Field(default=0.5, ge=0, le=1, description="weight of the first feature")

class OfTwo(Objective):
    Options = Options
    reads = Reads(features=2, least_rows=2)

    def __init__(self, options, sizes):
        super().__init__(options, sizes)
        shapes = (sizes.feature_shape, *sizes.more_shapes)
        self.maps = nn.ModuleList([nn.Linear(sizes.pooled_dim, shape[0]) for shape in shapes])

    def forward(self, pooled_BD, output_BK, feature_BH, labels_B):
        one, two = feature_BH
        first = (self.maps[0](pooled_BD) - one).square().mean()
        second = (self.maps[1](pooled_BD) - two).square().mean()
        told = self.options.share * first + (1 - self.options.share) * second
        task = task_loss(output_BK, labels_B, self.sizes.regression)
        return named_terms(task + told, task=task, first=first, second=second)
"""


def test_an_objective_of_two_features_with_an_option_of_its_own(
    install: Any, armada: CommandLine, distill_bench: Any, tmp_path: Path
) -> None:
    install("objective_of_two", OF_TWO, "armada.objectives", of_two="OfTwo")
    listed = armada.done("distill", "--keys", "--objective", "of_two")
    assert "share                    0.5              weight of the first feature" in listed
    keys: dict[str, Any] = {
        **{"train": str(distill_bench.train), "text_column": "text", "label_column": "label"},
        **{"student": str(distill_bench.student), "epochs": 1, "batch_size": 16},
        "teachers": {"made": {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}},
    }

    def run(name: str, **changes: Any) -> str:
        one = {"name": "of_two", "features": ["embedding", "logits"]} | changes
        file = tmp_path / f"{name}.yaml"
        job = keys | {"output": str(tmp_path / name), "objectives": [one]}
        file.write_text(yaml.safe_dump(job))
        result = armada("distill", file, "--quiet", "--set", "logging_steps=1")
        return result.error if result.code else ""

    assert run("good", share=0.25) == ""
    log = (tmp_path / "good" / "log.jsonl").read_text().splitlines()
    first = json.loads(log[0])
    whole = first["task"] + 0.25 * first["first"] + 0.75 * first["second"]
    assert first["loss"] == pytest.approx(whole, rel=1e-5)
    assert "reads 2 features of a teacher, but 1 are named" in run("one", features=["logits"])
    assert "key 'share': 2: Input should be less than or equal to 1" in run("bad", share=2)
    keys["batch_size"] = 1
    assert "objective of_two needs at least 2 examples per batch" in run("few")


def test_an_objective_of_layers_beside_another(
    armada: CommandLine, distill_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters and checkpointing. Layers that the student lacks are refused before it
    trains."""
    monkeypatch.syspath_prepend(HINTS)
    hint: dict[str, Any] = {"name": "hint", "features": ["embedding"], "weight": 0.5}
    keys: dict[str, Any] = {
        **{"train": str(distill_bench.train), "validation": str(distill_bench.validation)},
        **{"text_column": "text", "label_column": "label", "student": str(distill_bench.student)},
        **{"epochs": 1, "batch_size": 16, "lora_rank": 2, "gradient_checkpointing": True},
        "teachers": {"made": {"cache": str(distill_bench.cache), "teacher": distill_bench.made_up}},
    }

    def run(name: str, *layers: int) -> str:
        file = tmp_path / f"{name}.yaml"
        asked = [{"name": "undistilled"}, hint | {"layers": list(layers)}]
        job = keys | {"objectives": asked, "output": str(tmp_path / name)}
        file.write_text(yaml.safe_dump(job))
        result = armada("distill", file, "--quiet", "--set", "logging_steps=1")
        return result.error if result.code else ""

    assert run("good", 1, -1) == ""
    log = (tmp_path / "good" / "log.jsonl").read_text().splitlines()
    first = json.loads(log[0])
    assert first["loss"] == pytest.approx(
        first["undistilled.task"] + 0.5 * first["hint.hint"], rel=1e-5
    )
    beyond = (
        "objective hint: layer 3 is beyond the student's; choose from 0 (its embeddings) to 2 (its "
        "last), or from -1 (its last) to -3"
    )
    assert run("beyond", 1, 3) == beyond
    assert not (tmp_path / "beyond").exists()
    keys |= {"optimizer": "dot", "learning_rate": 0.01}
    assert run("dot", 1) == ""
    keys |= {"objectives": [hint | {"weight": 1}], "output": str(tmp_path / "alone")}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(keys))
    assert armada("distill", tmp_path / "alone.yaml", "--quiet").error.startswith(
        "optimizer=dot: objective hint does not tell the weight of the task in its loss"
    )
