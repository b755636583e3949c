"""The commands of the recipes do what they say, in small: tiny tables, tiny models of a hub.

The folder that the environment variable ARMADA_CORPORA names, if it does, has real tables."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_generators
import tiny_vlms
import yaml
from armada.pipeline.ablation.job import make_ablation
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.settings import StudentSettings
from armada.stages.distill.student_source import load_student
from armada.stages.store.reading.reader import open_cache
from command_line import CommandLine
from docs_pages import Block, Workplace, blocks
from openai_server import serving
from recipes_material import (
    ABLATE,
    DISTILL,
    METRICS,
    OTHER_TEACHERS,
    OTHERS,
    PRECOMPUTE,
    RECIPES,
    ROWS,
    STUDENTS,
    TASKS,
    WRITERS,
    keys_of,
    write_language_tables,
    write_reviews,
    write_tables,
)
from recipes_models import LORA, small_commands

pytestmark = pytest.mark.long

SMALL_PICTURES = "--set height=32 --set width=32 --set steps=2"
SMALL_LATENTS = f"{SMALL_PICTURES} --set resize=16 --set second_steps=2"
ONE_EPOCH = "--set epochs=1 --set seed=0"
SHORT = f"{ONE_EPOCH} --set aligner_hidden_size=8"


def small(file: Path) -> str:
    """Options that make a teacher quick."""
    keys = keys_of(file)
    if not keys["teacher"].startswith("diffusers:"):
        return ""
    return SMALL_PICTURES if "image_encoder" in keys else SMALL_LATENTS


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OWNER/NAME for each hub id, when `commands` has made them."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def commands(models: Path) -> Iterator[Path]:
    with small_commands(models) as folder:
        yield folder


@pytest.fixture(scope="module")
def place(commands: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """With data, and all caches, made by the recipes."""
    made = workplace(tmp_path_factory.mktemp("place"), commands)
    write_tables(made.folder / "data")
    write_language_tables(made.folder / "data")
    write_reviews(made.folder / "data")
    ask_all(made, "--quiet")
    yield made
    made.close()


def workplace(folder: Path, commands: Path) -> Workplace:
    """A folder with the recipes and the LoRA, and as yet no data."""
    shutil.copytree(RECIPES, folder / "recipes")
    (folder / "models").mkdir()
    shutil.copy(commands / LORA, folder / "models" / LORA)
    return Workplace(folder, commands)


ALL = """
import shlex
from armada.cli import main
for command in {commands!r}:
    try:
        main(shlex.split(command))
    except SystemExit as ended:
        assert not ended.code, command
"""


def ask_all(place: Workplace, *more: str, files: Iterable[Path] = PRECOMPUTE) -> str:
    """Run the commands of teachers, in one process: to start one takes longer than to ask."""
    words = [f"precompute {file} {small(file)} {' '.join(more)}" for file in files]
    return place.run([Block("python", ALL.format(commands=words), 1)])


@pytest.fixture
def armada(
    capsys: pytest.CaptureFixture[str],
    place: Workplace,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> CommandLine:
    """The command line in this process, which has no hub: its models lie beside the data."""
    link_all([place.folder, models], tmp_path)
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)


def link_all(folders: list[Path], here: Path) -> None:
    for there in (each for folder in folders for each in folder.iterdir()):
        if there.is_dir() and not (here / there.name).exists():
            (here / there.name).symlink_to(there)


@pytest.mark.slow
def test_teachers_say_what_they_would_do(place: Workplace) -> None:
    printed = ask_all(place, "--dry-run", "--cache elsewhere")
    assert printed.count("4 rows, 4 unique; 0 already cached, 4 to compute") == len(PRECOMPUTE)
    assert not (place.folder / "elsewhere").exists()


SMALL = {
    "vlm": "",
    "video": "--set num_frames=2 --set height=32 --set width=32 --set steps=2",
    "audio": "--set audio_seconds=0.1 --set steps=2",
    "served": "--set size=32x32",
}


def ask_others(place: Workplace, more: str, files: Iterable[Path]) -> str:
    """The same for teachers beside Stable Diffusion; a server on loopback draws."""
    with serving() as server:
        address = {"served": f"--set base_url={server.url}"}
        words = [
            f"precompute {file} {SMALL[file.stem]} {address.get(file.stem, '')} {more}"
            for file in files
        ]
        return place.run([Block("python", ALL.format(commands=words), 1)])


@pytest.mark.slow
def test_other_teachers_say_what_they_would_do(place: Workplace) -> None:
    printed = ask_others(place, "--dry-run --cache elsewhere", OTHERS)
    assert printed.count("4 rows, 4 unique; 0 already cached, 4 to compute") == len(OTHERS) == 52
    assert not (place.folder / "elsewhere").exists()


def test_other_teachers_compute_what_students_learn_from(
    place: Workplace, tmp_path: Path, armada: CommandLine
) -> None:
    widths = {
        "vlm": ("pooled", tiny_vlms.WIDTH),
        "video": ("video_embedding", 12),
        "audio": ("audio_embedding", tiny_generators.SOUND_WIDTH),
        "served": ("image_embedding", 12),
    }
    ask_others(place, "--quiet", [file for file in OTHERS if file.parent.name == "rte"])
    for name, (feature, width) in widths.items():
        found = f"caches/rte-{name}"
        cache = open_cache(place.folder / found)
        assert cache.features == (feature,)
        assert cache[feature][:].shape == (ROWS, width)
        words = ("--set", f"cache={found}", "--output", f"runs/rte-{name}", "--dry-run")
        assert "42 runs" in armada.done("ablate", "recipes/nlu/rte/students.yaml", *words)


FEATURES = {
    "rotten-tomatoes": ("logits", 2),
    "clip": ("embedding", 24),
    "sd-image": ("image_embedding", 12),
}


@pytest.mark.parametrize("file", [f for f in PRECOMPUTE if f.parent.name != "words"], ids=str)
def test_a_cache_holds_what_the_recipe_says(place: Workplace, file: Path) -> None:
    cache = open_cache(place.folder / keys_of(file)["cache"])
    name, width = FEATURES.get(file.stem, ("latent", 4 * 2 * 2))
    assert cache.features == (name,)
    assert cache[name][:].shape == (ROWS, width)
    settings = cache.teacher.spec.settings
    assert settings["dtype"] == "float32"
    assert ("lora" in cache.teacher.spec.weights) == (file.stem == "sd-lora")


@pytest.mark.parametrize("name", ["obqa", "dolly"])
def test_a_cache_holds_words(place: Workplace, name: str) -> None:
    keys = keys_of(Path("recipes/words", f"{name}.yaml"))
    cache = open_cache(place.folder / keys["cache"])
    assert cache.features == ("token_ids", "prompt_tokens", "top_k")
    coding = cache.feature_spec("top_k").coding
    assert (coding.k, coding.temperatures) == (keys["top_k"], (1.0, 2.0))
    assert len(cache) == ROWS
    assert cache.ragged("top_k").lengths(np.arange(ROWS)).min() > 0


def test_the_best_responses_teach_a_student(place: Workplace, armada: CommandLine) -> None:
    folder = "recipes/responses"
    small = ["--quiet", "--set", "dtype=float32"]
    armada.done("precompute", f"{folder}/samples.yaml", *small, "--set", "max_new_tokens=4")
    assert open_cache("caches/responses")["finish"].shape == (ROWS, 4)
    any_end = ["--set", "rules.0.among=[stop, length]"]
    said = armada.done("corpus", f"{folder}/best.yaml", "--quiet", *any_end)
    assert f"kept {ROWS} responses to {ROWS} prompts" in said
    armada.done("precompute", f"{folder}/tokens.yaml", *small)
    armada.done("distill", f"{folder}/student.yaml", "--quiet", "--set", "epochs=1")
    words = ("--corpus", "data/instructions/dolly/test.parquet", "--set", "max_new_tokens=4")
    assert "rouge_l" in armada.done("evaluate", "runs/responses", *words)


def test_preferences_find_both_responses(place: Workplace, armada: CommandLine) -> None:
    folder = "recipes/preferences"
    for name in ("chosen", "rejected"):
        armada.done("precompute", f"{folder}/{name}.yaml", "--quiet")
    assert len(open_cache("caches/preferences")) == 2 * 2 * ROWS
    cells = json.loads(armada.done("ablate", f"{folder}/students.yaml", "--dry-run", "--json"))
    assert {cell["train_examples"] for cell in cells} == {ROWS}
    armada.done("distill", run_of(f"{folder}/students.yaml", "ipo", Path("run")), "--quiet")
    found = json.loads(Path("run/metrics.json").read_text())
    assert (found["metric"], found["train_examples"]) == ("preference_accuracy", ROWS)


CELLS = {"nlu": 14, "reasoning": 8, "instructions": 8, "words": 4, "controls": 25, "choices": 3}
OTHER_CELLS = {
    Path("recipes/controls/rotten-tomatoes.yaml"): 6,
    Path("recipes/figures/weights.yaml"): 14,
    Path("recipes/figures/manifolds.yaml"): 6,
    Path("recipes/figures/llama.yaml"): 16,
}
BY_TEACHER = [file for file in ABLATE if file.stem == "teachers"]


@pytest.mark.parametrize("file", [file for file in ABLATE if file not in BY_TEACHER], ids=str)
def test_students_find_their_data(armada: CommandLine, file: Path) -> None:
    cells = json.loads(armada.done("ablate", file, "--dry-run", "--json"))
    assert len(cells) == (OTHER_CELLS.get(file) or CELLS[file.parts[1]])
    assert {cell["train_examples"] for cell in cells} == {ROWS}


@pytest.mark.parametrize("file", BY_TEACHER, ids=str)
def test_a_student_finds_every_teacher(armada: CommandLine, place: Workplace, file: Path) -> None:
    """The cache of one stands for those of the others: they have the same keys."""
    task = file.parent.name
    Path("caches").unlink()
    for name in ("sd", *OTHER_TEACHERS):
        link = Path("caches", f"{task}-{name}")
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(place.folder / "caches" / f"{task}-sd")
    cells = json.loads(armada.done("ablate", file, "--dry-run", "--json"))
    assert len(cells) == 6
    assert {cell["train_examples"] for cell in cells} == {ROWS}


@pytest.mark.parametrize("cache", ["caches/rte-clip", "caches/rte-sd-lora", "caches/rte-sd-image"])
def test_the_same_students_learn_from_another_teacher(armada: CommandLine, cache: str) -> None:
    words = ("--set", f"cache={cache}", "--output", "runs/other", "--dry-run")
    assert "42 runs" in armada.done("ablate", "recipes/nlu/rte/students.yaml", *words)


@pytest.mark.parametrize(
    ("task", "metric"), [("rte", "pearson"), ("stsb", "matthews"), ("mnli", "f1"), ("cb", "f1")]
)
def test_a_metric_of_other_labels_is_refused(armada: CommandLine, task: str, metric: str) -> None:
    file = f"recipes/nlu/{task}/students.yaml"
    result = armada("ablate", file, "--dry-run", "--set", f"metric={metric}")
    assert result.code == 2
    assert f"job key 'metric': '{metric}' is not one of " in result.error


def test_other_text_columns_than_the_teachers_are_refused(armada: CommandLine) -> None:
    words = ("--dry-run", "--set", "text_column=[text_b, text_a]")
    result = armada("ablate", "recipes/nlu/rte/students.yaml", *words)
    assert result.code == 2
    assert "4 of 4 rows are not in the cache" in result.error


# --- in full, or nearly so


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """What each run below a folder has come to, by the name of its own folder."""
    found = folder.glob("**/metrics.json")
    return {str(f.parent.relative_to(folder)): json.loads(f.read_bytes()) for f in found}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_all_students_are_trained(place: Workplace, task: str) -> None:
    place.shell(f"armada ablate recipes/nlu/{task}/students.yaml {SHORT} --workers 1 --quiet")
    runs = figures(place.folder / "runs" / task)
    ways = ("distilled", "undistilled")
    assert set(runs) == {f"{name}-{way}/seed-0" for name in STUDENTS for way in ways}
    assert {run["metric"] for run in runs.values()} == {METRICS.get(task, "accuracy")}
    assert not (place.folder / "runs" / task / "logs").exists()  # nothing to warn of
    place.shell(f"armada report runs/{task} --out {task}.html")
    assert all(name in (place.folder / f"{task}.html").read_text() for name in STUDENTS)


@pytest.mark.slow
def test_controls_are_run(place: Workplace) -> None:
    place.shell(f"armada ablate recipes/controls/cola.yaml {SHORT} --workers 1 --quiet")
    assert len(figures(place.folder / "runs" / "cola-controls")) == 25
    study = json.loads((place.folder / "runs" / "cola-controls" / "ablation.json").read_bytes())
    assert study["studies"][0]["metric"] == "matthews"


def run_of(file: str, name: str, output: Path) -> Path:
    """A cell of a grid, by the name of its folder, as a job of its own, short."""
    (found,) = [
        each.job
        for each in make_ablation(keys_of(Path(file))).runs
        if each.job.output.parent.name == name and not each.seed
    ]
    keys = found.model_dump(mode="json") | {"output": str(output), "epochs": 1}
    for learned in keys["objectives"] or [keys]:
        if "aligner_hidden_size" in learned:
            learned["aligner_hidden_size"] = 8
    job = output.with_suffix(".yaml")
    job.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return job


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("recipes/reasoning/obqa/students.yaml", "OPT-1.3B-distilled"),
        ("recipes/reasoning/arc-c/students.yaml", "LLaMA-3B-undistilled"),
        ("recipes/instructions/students.yaml", "LLaMA-8B-distilled"),
        ("recipes/words/obqa-students.yaml", "words-distilled"),
        ("recipes/words/dolly-students.yaml", "words-undistilled"),
        ("recipes/words/dolly-students.yaml", "pictures-and-words"),
    ],
)
def test_a_student_that_writes_is_trained_and_evaluated(
    armada: CommandLine, tmp_path: Path, file: str, name: str
) -> None:
    output = tmp_path / "run"
    armada.done("distill", run_of(file, name, output), "--quiet")
    metrics = json.loads((output / "metrics.json").read_bytes())
    assert (metrics["train_examples"], metrics["skipped_rows"]) == (ROWS, [])
    assert (output / "student" / "adapter_model.safetensors").is_file()
    corpus = keys_of(Path(file))["validation"]
    words = ("--corpus", corpus, "--set", "max_new_tokens=3", "--json")
    result = json.loads(armada.done("evaluate", output, *words))
    assert result["metrics"].keys() >= {"exact_match", "rouge_l", "perplexity"}


@pytest.mark.slow
def test_all_students_that_write_are_trained(place: Workplace) -> None:
    for file in ("reasoning/obqa/students", "words/dolly-students"):
        place.shell(f"armada ablate recipes/{file}.yaml {ONE_EPOCH} --workers 1 --quiet")
    ways = ("distilled", "undistilled")
    runs = figures(place.folder / "runs" / "reasoning-obqa")
    assert set(runs) == {f"{name}-{way}/seed-0" for name in WRITERS for way in ways}
    assert len(figures(place.folder / "runs" / "dolly-words")) == 4
    place.shell("armada report runs/dolly-words --out dolly.html")
    study = json.loads((place.folder / "runs" / "dolly-words" / "ablation.json").read_bytes())
    rows = study["studies"][0]["conditions"]
    assert sum(row["improvement"] is not None for row in rows) == 3, "all beside the undistilled"


def test_one_student_is_trained_by_two_processes(place: Workplace) -> None:
    start = "torchrun --nproc-per-node 2 -m armada.cli distill"
    place.shell(f"{start} {DISTILL[0]} {SHORT} --quiet")
    run = figures(place.folder / "runs" / "rte-large")["distilled"]
    assert run["processes"] == 2


def test_pickled_weights_are_converted_once(commands: Path, tmp_path: Path) -> None:
    """The script of the README; what it leaves is taken in place of the hub's."""
    there = Workplace(tmp_path, commands)
    (script,) = [b for b in blocks((RECIPES / "README.md").read_text()) if b.file == "convert.py"]
    there.write_files([script])
    try:
        there.shell("python convert.py")
    finally:
        there.close()
    settings = StudentSettings(student=str(tmp_path / "facebook" / "opt-1.3b"))
    space = LabelSpace(task="classification", num_labels=2)
    student, tokenizer = load_student(settings, space, [], 0.1)
    assert (student.backbone.config.model_type, tokenizer.bos_token) == ("opt", "</s>")


def _of_labels(file: Path) -> bool:
    """Whether a recipe's data are tables of tasks with labels: such corpora are at hand."""
    return not {"instructions", "reasoning", "words", "choices"} & set(file.parts)


REAL = {task: f"{task}_slice" for task in ("qqp", "mnli", "qnli")}


@pytest.mark.skipif("ARMADA_CORPORA" not in os.environ, reason="ARMADA_CORPORA names no folder")
def test_real_tables(
    commands: Path,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
) -> None:
    """The first rows of real corpora in place of made-up ones."""
    for task in TASKS:
        (tmp_path / "data" / task).mkdir(parents=True)
        for split in ("train.parquet", "validation.parquet"):
            file = Path(os.environ["ARMADA_CORPORA"], REAL.get(task, task), split)
            pq.write_table(pq.read_table(file).slice(0, ROWS), tmp_path / "data" / task / split)
    there = workplace(tmp_path, commands)
    ask_all(there, "--quiet", files=filter(_of_labels, PRECOMPUTE))
    there.close()
    link_all([models], tmp_path)
    monkeypatch.chdir(tmp_path)
    of_reviews = Path("recipes/controls/rotten-tomatoes.yaml")  # whose teacher writes
    for file in filter(_of_labels, {*ABLATE} - {*BY_TEACHER, of_reviews}):
        cells = json.loads(CommandLine(capsys).done("ablate", file, "--dry-run", "--json"))
        assert {cell["train_examples"] for cell in cells} == {ROWS}
