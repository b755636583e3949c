"""Lists of keys and wrong jobs are answered before anything heavy is imported."""

import subprocess
import sys

import pytest
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.options import BUILT_IN

HEAVY = {"torch", "transformers", "accelerate", "peft", "diffusers", "datasets", "scipy", "pandas"}

PROGRAM = """
import atexit, sys
from armada.cli import main
atexit.register(lambda: print("imported", *sys.modules))
main(sys.argv[1:])
"""

DISTILL = "distill --train a --text-column text --student s --cache c --output o"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("distill --keys", "learning_rate"),
        ("distill --keys --objective tokens", "token_temperature"),
        ("precompute --keys", "rows_per_shard"),
        ("ablate --keys", "grid"),
        ("evaluate --keys", "label_column"),
        ("predict --keys", "max_new_tokens"),
        ("schema distill", "orthogonal_projection"),
        ("schema ablate", "orthogonal_projection"),
        (f"{DISTILL} --set lerning_rate=1", "did you mean 'learning_rate'?"),
        (f"{DISTILL} --set alpha=2", "job key 'alpha': 2:"),
        (f"{DISTILL} --set lora_rank=0", "job key 'lora_rank': 0:"),
        (f"{DISTILL} --control shufled", "shufled"),
        (f"{DISTILL} --set pooling=men", "job key 'pooling': 'men':"),
        ("precompute --corpus a --text-column t --teacher x --cache c", "is not KIND:SOURCE"),
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


def test_options_are_those_of_the_objectives() -> None:
    assert set(OBJECTIVES.built_in) == set(BUILT_IN)
    for name, options in BUILT_IN.items():
        assert OBJECTIVES.load(name).Options is options
