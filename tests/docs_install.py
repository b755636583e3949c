"""`python docs_install.py FOLDER`: puts the project of pyproject.toml here into FOLDER.

What `pip install .` leaves for a project of single modules: the modules, and what Python knows of
the project, its entry points among it. Nothing is built and nothing is looked up.
"""

import shutil
import sys
import tomllib
from pathlib import Path


def install(source: Path, target: Path) -> None:
    """Raises KeyError for a project that says less than an installation takes."""
    content = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    name, version = project["name"].replace("-", "_"), project["version"]
    known = target / f"{name}-{version}.dist-info"
    known.mkdir(parents=True)
    (known / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {version}\n", encoding="utf-8"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{entry} = {place}" for entry, place in entries.items())]
    (known / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for module in content["tool"]["setuptools"]["py-modules"]:
        shutil.copy(source / f"{module}.py", target)


if __name__ == "__main__":
    install(Path(), Path(sys.argv[1]))
