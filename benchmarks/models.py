"""Which families of models can be teachers and students: every one is made tiny and tried.

One command, one page:

    python benchmarks/models.py --results models.jsonl --page docs/models.md

Each family that transformers has is built from its configuration, saved, and tried as teacher
(encoder, classifier, causal_lm) and as student of each task (classification, feature, language),
as users do: from a folder. Results are kept line by line, so that a run that was cut goes on.
Without names of families, all of them: about half an hour on one core. `--page` writes the page
from all results there are.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

import torch
from model_families.page import make_page
from model_families.roles import ROLES, TRACEBACK, Outcomes, quiet, try_family
from model_families.tiny import families

MOST_SECONDS = 240
"""For one family; what takes longer is told so."""


def main() -> None:
    """Try what has not been tried, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--results", type=Path, required=True, help="file of results, one a line")
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=list(ROLES))
    parser.add_argument("--page", type=Path, help="page to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_slow)
    wanted = arguments.families or families()
    known = read_results(arguments.results)
    for family in wanted:
        if family in known and not arguments.families:
            continue
        known[family] = known.get(family, {}) | _tried(family, arguments.roles)
        with arguments.results.open("a") as file:
            file.write(json.dumps({"family": family, **known[family]}) + "\n")
        print(f"{family}: {_shown(known[family])}", file=sys.stderr)
    if arguments.page:
        arguments.page.write_text(make_page(known), encoding="utf-8")


def _tried(family: str, roles: list[str]) -> Outcomes:
    signal.alarm(MOST_SECONDS)
    try:
        with quiet():
            return try_family(family, {role: ROLES[role] for role in roles})
    except TimeoutError:
        return dict.fromkeys(roles, f"not built: takes more than {MOST_SECONDS} s")
    finally:
        signal.alarm(0)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TimeoutError


def _shown(outcomes: Outcomes) -> str:
    return "; ".join(o if o.startswith(TRACEBACK) else o[:60] for o in outcomes.values())


def read_results(file: Path) -> dict[str, Outcomes]:
    """Family -> outcomes, the last ones where a family was tried again."""
    if not file.exists():
        return {}
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line.pop("family"): line for line in lines}


if __name__ == "__main__":
    main()
