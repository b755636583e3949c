"""Pages of Markdown as programs: their code blocks in order, and a folder to run them in.

    ```sh           run by bash, which stops at the first error
    ```python       run by itself, as a file
    either, yaml, toml with a first line `# NAME` (below `#!` if there is one): written as file NAME
    ```text         not run

A page's files are written before anything runs: as a reader has them when a command names them.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hangs import HANG_S

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
README = ROOT / "README.md"

INSTALLED = "installed"
"""Folder of a workplace that Python looks into."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME = re.compile(r"(?:#!.*\n)?# ([\w/-]+\.\w+)\n")
_NOT_RUN = {"text", ""}


@dataclass(frozen=True, slots=True)
class Block:
    """Fenced code of a page; `line` is where it starts."""

    language: str
    code: str
    line: int

    @property
    def file(self) -> str | None:
        """Name of the file that the block is, if it says one."""
        named = _FILE_NAME.match(self.code)
        return named[1] if named and self.language not in _NOT_RUN else None


def blocks(page: str) -> list[Block]:
    """The fenced code of a page, in order."""
    return [
        Block(match[1], match[2], page.count("\n", 0, match.start()) + 1)
        for match in _FENCED.finditer(page)
    ]


def section(page: str, title: str) -> str:
    """From a heading to the next one of the same level or a higher one."""
    # A comment in code looks like a heading: what headings are looked for in has none.
    outline = _FENCED.sub(lambda code: "\n" * code[0].count("\n"), page)
    lines, headings = page.splitlines(keepends=True), outline.splitlines()
    first, level = next(
        (number, len(line) - len(line.lstrip("#")))
        for number, line in enumerate(headings)
        if line.lstrip("#") == f" {title}"
    )
    rest = enumerate(headings[first + 1 :], first + 1)
    end = (number for number, line in rest if re.match(rf"#{{1,{level}}} ", line))
    return "".join(lines[first + 1 : next(end, len(lines))])


@dataclass(frozen=True, slots=True)
class Instead:
    """What is run in place of what is printed, and why."""

    printed: str
    run: str
    why: str


@dataclass
class Workplace:
    """A folder, and the commands there. Commands that a block leaves behind (`&`) end with it."""

    folder: Path
    commands: Path
    _shells: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def write_files(self, page: Iterable[Block], instead: Sequence[Instead] = ()) -> None:
        for block in page:
            if block.file:
                file = self.folder / block.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(replaced(block.code, instead), encoding="utf-8")

    def run(self, page: Iterable[Block], instead: Sequence[Instead] = ()) -> str:
        """Run the commands and snippets; returns all that they printed."""
        return "".join(self._run(block, instead) for block in page if block.file is None)

    def _run(self, block: Block, instead: Sequence[Instead]) -> str:
        code = replaced(block.code, instead)
        if block.language == "sh":
            return self.shell(code, f"line {block.line}")
        if block.language == "python":
            (self.folder / "snippet.py").write_text(code, encoding="utf-8")
            return self.shell("python snippet.py", f"line {block.line}:\n{code}")
        assert block.language in _NOT_RUN, f"line {block.line}: what is to be done with it?"
        return ""

    def shell(self, code: str, what: str = "") -> str:
        """Run commands; returns what they printed, errors too."""
        # Not one for all: what a block left running goes on writing where it began.
        log = self.folder / f"printed-{len(self._shells)}.log"
        with log.open("wb") as file:
            bash = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=self.folder,
                env={**os.environ, **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._shells.append(bash)
        ended = _ended(bash)
        printed = log.read_text(encoding="utf-8", errors="replace")
        assert ended, f"{what}:\n{code}\n{printed[-4000:]}"
        return printed

    def _environment(self) -> dict[str, str]:
        first = {"PATH": self.commands, "PYTHONPATH": self.folder / INSTALLED}
        paths = {name: [str(path), os.environ.get(name, "")] for name, path in first.items()}
        return {name: os.pathsep.join(filter(None, both)) for name, both in paths.items()}

    def close(self) -> None:
        for bash in self._shells:
            # While nobody has waited for it, its number is that of no other group of processes.
            os.killpg(bash.pid, signal.SIGTERM)
            bash.wait()


def _ended(bash: subprocess.Popen[bytes]) -> bool:
    """Whether a shell ends well, in time; it is left to be waited for."""
    deadline = time.monotonic() + HANG_S
    how = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while (result := os.waitid(os.P_PID, bash.pid, how)) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return result.si_code == os.CLD_EXITED and result.si_status == 0


def replaced(code: str, instead: Sequence[Instead]) -> str:
    """The code that is run."""
    for each in instead:
        code = code.replace(each.printed, each.run)
    return code
