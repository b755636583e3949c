"""Lists of keys and wrong jobs are answered before anything heavy is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.plugins import Registry
from armada.stages.precompute.teachers import TEACHERS

pytestmark = pytest.mark.long

HEAVY = {"torch", "transformers", "accelerate", "peft", "diffusers", "datasets", "scipy", "pandas"}

PROGRAM = """
import atexit, sys
from armada.cli import main
atexit.register(lambda: print("imported", *sys.modules))
main(sys.argv[1:])
"""

DISTILL = "distill --train a --text-column text --student s --cache c --output o"
PRECOMPUTE = "precompute --corpus a --text-column t --cache c --teacher"
IMPORT = "cache import c said.jsonl --name n --text-column t"


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
        (f"{PRECOMPUTE} encoder:x --corpus no.csv", "a: cannot be read: there is no such file"),
        ("corpus --keys", "Options of the rule majority"),
        (
            "corpus c --corpus a --text-column t --output o.parquet",
            "cache c: there is no such folder",
        ),
        (f"{IMPORT} --set fied=a", "job key 'fied' is unknown"),
        (f"{IMPORT} --corpus a --set tokenizer=x --set top_k=0", "job key 'top_k': 0:"),
        ("evaluate --set batch=1", "student"),
        ("report nowhere", "run nowhere: does not exist"),
        ("report a --set tets=3", "'tets' is unknown"),
        ("predict s --corpus c --output o.parquet --set btch=1", "'btch' is unknown"),
    ],
)
def test_nothing_heavy_is_imported_to_list_or_refuse_keys(command: str, says: str) -> None:
    code, output = run_lightly(*command.split())
    assert says in output
    assert code == (0 if "--keys" in command or "schema" in command else 2)


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--workers", "2")])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_nor_to_refuse_a_column(kind: str, more: tuple[str, ...], tmp_path: Path) -> None:
    corpus, cache = tmp_path / f"texts.{kind}", tmp_path / "cache"
    corpus.write_text({"csv": "text\na\n", "jsonl": '{"text": "a"}\n'}[kind])
    words = ("precompute", "--corpus", corpus, "--text-column", "txt", "--teacher", "encoder:x")
    code, output = run_lightly(*words, "--cache", cache, *more)
    assert (code, "did you mean 'text'?" in output) == (2, True)
    assert not cache.exists()


def run_lightly(*words: object) -> tuple[int, str]:
    """Exit code and output of a command, which imports nothing heavy."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    out, _, imported = done.stdout.rpartition("imported ")
    assert HEAVY.intersection(imported.split()) == set()
    return done.returncode, out + done.stderr


IMPORTING = """
import gc, sys
from armada.cli import main
searches = []
gc.callbacks.append(lambda phase, info: searches.append(info) if "torch" in sys.modules else None)
try:
    main(sys.argv[1:])
finally:
    print("ended", sum(each["generation"] == 2 for each in searches), gc.isenabled())
    print(gc.get_freeze_count())
"""

ENDING = """
import atexit, gc
from armada.cli import main
atexit.register(lambda: print(len(gc.get_objects()), gc.get_freeze_count()))
main()
"""


def test_no_search_for_garbage_goes_through_what_is_imported(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, *DISTILL.split(), "--set", "label_column=l"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert re.fullmatch("error: .*\n", done.stderr), done.stderr  # bindings that end add nothing
    searches, collecting, kept = done.stdout.split()[-3:]
    assert (int(searches), collecting) == (0, "True")
    assert int(kept) > 100_000


def test_the_last_search_for_garbage_finds_nothing_to_go_through() -> None:
    words = [sys.executable, "-c", ENDING, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    searched, kept = done.stdout.split()[-2:]
    assert int(searched) < 1000 < int(kept)


@pytest.mark.parametrize("registry", [TEACHERS, OBJECTIVES], ids=["teachers", "objectives"])
def test_options_are_those_of_the_plug_in(registry: Registry) -> None:
    assert set(registry.built_in_options) == set(registry.built_in)
    for name in registry.built_in:
        assert registry.options(name) is registry.load(name).Options
