"""Lists of keys and wrong jobs are answered before anything heavy is imported."""

import subprocess
import sys

import pytest
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.plugins import Registry
from armada.stages.precompute.teachers import TEACHERS

HEAVY = {"torch", "transformers", "accelerate", "peft", "diffusers", "datasets", "scipy", "pandas"}

PROGRAM = """
import atexit, sys
from armada.cli import main
atexit.register(lambda: print("imported", *sys.modules))
main(sys.argv[1:])
"""

DISTILL = "distill --train a --text-column text --student s --cache c --output o"
PRECOMPUTE = "precompute --corpus a --text-column t --cache c --teacher"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("distill --keys", "learning_rate"),
        ("distill --keys --objective tokens", "token_temperature"),
        ("precompute --keys", "rows_per_shard"),
        ("precompute --keys --teacher encoder", "include_prompt"),
        ("precompute --keys --teacher causal_lm", "top_k_bits"),
        ("ablate --keys", "grid"),
        ("evaluate --keys", "label_column"),
        ("predict --keys", "max_new_tokens"),
        ("schema precompute", "keep_images"),
        ("schema distill", "orthogonal_projection"),
        ("schema ablate", "orthogonal_projection"),
        (f"{DISTILL} --set lerning_rate=1", "did you mean 'learning_rate'?"),
        (f"{DISTILL} --set alpha=2", "job key 'alpha': 2:"),
        (f"{DISTILL} --set lora_rank=0", "job key 'lora_rank': 0:"),
        (f"{DISTILL} --control shufled", "shufled"),
        (f"{DISTILL} --set pooling=men", "job key 'pooling': 'men':"),
        (f"{PRECOMPUTE} x", "is not KIND:SOURCE"),
        (f"{PRECOMPUTE} encodr:x", "did you mean 'encoder'?"),
        (f"{PRECOMPUTE} encoder:x --set nosuch=1", "teacher encoder key 'nosuch' is unknown"),
        (f"{PRECOMPUTE} encoder:x --set pooling=men", "teacher encoder key 'pooling': 'men':"),
        (f"{PRECOMPUTE} causal_lm:x --workers 2 --set top_k=0", "causal_lm key 'top_k': 0:"),
        (f"{PRECOMPUTE} diffusers:x --dry-run --set steps=0", "diffusers key 'steps': 0:"),
        ("evaluate --set batch=1", "student"),
        ("report nowhere", "run nowhere: does not exist"),
        ("report a --set tets=3", "'tets' is unknown"),
        ("predict s --corpus c --output o.parquet --set btch=1", "'btch' is unknown"),
    ],
)
def test_nothing_heavy_is_imported_to_list_or_refuse_keys(command: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.split()], capture_output=True, text=True
    )
    out, _, imported = done.stdout.rpartition("imported ")
    assert says in out + done.stderr
    assert done.returncode == (0 if "--keys" in command or "schema" in command else 2)
    assert HEAVY.intersection(imported.split()) == set()


@pytest.mark.parametrize("registry", [TEACHERS, OBJECTIVES], ids=["teachers", "objectives"])
def test_options_are_those_of_the_plug_in(registry: Registry) -> None:
    assert set(registry.built_in_options) == set(registry.built_in)
    for name in registry.built_in:
        assert registry.options(name) is registry.load(name).Options
