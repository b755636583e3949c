"""The text of a cache's card: Markdown with the YAML head that the Hugging Face hub expects.

The code in it runs as printed, from the folder above the cache.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ...cache_schemas.features import FeatureSpec
from ...cache_schemas.layout import ROWS_TABLE
from .card_tables import (
    CardFacts,
    TeacherFacts,
    corpora_table,
    on_one_line,
    overview,
    plain,
    teacher_section,
)

MARK = "<!-- made by `armada cache card`; the next run replaces this file -->"

_BODY = """{head}{mark}

# {title}

{summary}

{overview}

{teachers}
## Corpora

{corpora}

## Open it

With [armada](https://arxiv.org/abs/2603.10877), where `{name}` is this
folder:

```python
{with_armada}
```

With Zarr alone; rows that hold no answer are NaN, or 0 among whole numbers:

```python
{with_zarr}
```

The keys of the rows, with pyarrow; a key is a hash of a text, the texts are not in here:

```python
{with_pyarrow}
```

Is it whole, and this very cache?

```
armada cache verify {name} --expect-digest {digest}
```
"""


def card(facts: CardFacts) -> str:
    """The text of README.md."""
    first = facts.teachers[0]
    return _BODY.format(
        head=_head(facts),
        mark=MARK,
        title=plain(facts.title),
        summary=_summary(facts),
        overview=overview(facts),
        teachers="\n".join(teacher_section(teacher) for teacher in facts.teachers),
        corpora=corpora_table(facts.teachers),
        name=folder_name(facts.name),
        with_armada=_with_armada(facts, first),
        with_zarr=_with_zarr(facts, first),
        with_pyarrow=_with_pyarrow(facts, first),
        digest=facts.digest,
    )


def folder_name(name: str) -> str:
    """The folder's name in commands and code; a stand-in for one that would have to be quoted."""
    return name if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) else "cache"


def _head(facts: CardFacts) -> str:
    configs = [
        {
            "config_name": teacher.manifest.fingerprint[:12],
            "data_files": f"{_folder(teacher)}/tables/{ROWS_TABLE}/*.parquet",
        }
        for teacher in facts.teachers
        if teacher.rows
    ]
    head: dict[str, Any] = {
        "pretty_name": on_one_line(facts.title),
        "license": on_one_line(facts.licence or "unknown"),
        "tags": ["armada", "knowledge-distillation", "teacher-features"],
        "size_categories": [_size_category(max(teacher.rows for teacher in facts.teachers))],
        "configs": configs,
    }
    # Readers of heads look for the next line of dashes: no value may have lines of its own.
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{text}---\n"


def _size_category(rows: int) -> str:
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    place = next((n for n in range(len(steps)) if rows < 1000 * 10**n), None)
    if place is None:
        return "n>1T"
    return f"{steps[place - 1]}<n<{steps[place]}" if place else "n<1K"


def _folder(teacher: TeacherFacts) -> str:
    return f"teachers/{teacher.manifest.fingerprint}"


def _summary(facts: CardFacts) -> str:
    count = len(facts.teachers)
    rows = max(teacher.rows for teacher in facts.teachers)
    who = "a frozen teacher" if count == 1 else f"{count} frozen teachers"
    return (
        f"Answers of {who} to {rows:,} texts, kept so that students can be trained without "
        f"{'it' if count == 1 else 'them'}. Each was asked once about each text."
    )


def _with_armada(facts: CardFacts, teacher: TeacherFacts) -> str:
    feature = teacher.manifest.spec.features[0]
    return "\n".join(
        [
            "from armada import open_cache",
            "",
            f'cache = open_cache("{folder_name(facts.name)}", '
            f'teacher="{teacher.manifest.fingerprint[:12]}")',
            *(_read_rows if feature.axis is None else _read_places)(feature, teacher.rows),
        ]
    )


def _read_rows(feature: FeatureSpec, rows: int) -> Iterator[str]:
    yield f'feature = cache["{feature.name}"]'
    yield f"print(feature.shape, feature[:2])  # {rows} rows of {list(feature.shape)}"
    yield '# By text: feature[cache.lookup(["a red bird", "two dogs"])]'


def _read_places(feature: FeatureSpec, rows: int) -> Iterator[str]:
    yield f'feature = cache.ragged("{feature.name}")'
    yield (
        f"print(len(feature), feature[0].shape)  # {rows} texts, {list(feature.shape)} for each of "
        f"their {feature.axis}"
    )
    yield '# By text: feature.gather(cache.lookup(["a red bird", "two dogs"]))'


def _with_zarr(facts: CardFacts, teacher: TeacherFacts) -> str:
    feature = teacher.manifest.spec.features[0].name
    return "\n".join(
        [
            "import zarr",
            "",
            f'path = "{folder_name(facts.name)}/{_folder(teacher)}/{feature}"',
            'array = zarr.open_array(path, mode="r")',
            "print(array.shape, array[:2])",
        ]
    )


def _with_pyarrow(facts: CardFacts, teacher: TeacherFacts) -> str:
    return "\n".join(
        [
            "import pyarrow.dataset as ds",
            "",
            f'path = "{folder_name(facts.name)}/{_folder(teacher)}/tables/{ROWS_TABLE}"',
            'rows = ds.dataset(path, format="parquet").to_table()',
            "print(rows.num_rows, rows.column_names)",
        ]
    )
