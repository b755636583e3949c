"""Folders of sentence-transformers with a tower for queries and another for passages: a Router.

modules.json               one module, the Router, at the top
router_config.json         the modules of each route: `query`, `document`
query/, document/          a folder of one tower each, which opens by itself, too

Format: https://sbert.net, "Asymmetric models". A Router names its modules by their folders, so that
the towers' own modules are its modules.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from .folders import MODULES, write_json, write_model_config

ROUTER_CONFIG = "router_config.json"
TOWERS = ("query", "document")
"""Routes, and folders of towers."""

_ROUTER = "sentence_transformers.models.Router"


def is_router(folder: Path) -> bool:
    """Whether a folder has a tower for queries and another for passages."""
    return (folder / ROUTER_CONFIG).is_file()


def write_router(folder: Path, towers: Sequence[str], prompts: Mapping[str, str]) -> None:
    """Declare towers that are written in folders of their names; `prompts`: prefixes by name."""
    types, structure = dict[str, str](), dict[str, list[str]]()
    for name in towers:
        modules = json.loads((folder / name / MODULES).read_text(encoding="utf-8"))
        paths = [(PurePosixPath(name) / each["path"]).as_posix() for each in modules]
        types |= {path: each["type"] for path, each in zip(paths, modules, strict=True)}
        structure[name] = paths
    parameters = {"default_route": towers[-1], "allow_empty_key": True, "route_mappings": {}}
    write_json(
        folder / ROUTER_CONFIG,
        {"types": types, "structure": structure, "parameters": parameters},
    )
    write_model_config(folder, prompts)
    write_json(folder / MODULES, [{"idx": 0, "name": "0", "path": "", "type": _ROUTER}])
