"""The README of a student folder: what it is, how good, how to open it."""

from typing import Any

import yaml

from .distill_job import DistillJob
from .student_data import StudentData

_BODY = """{head}
# {title}

A student trained with [armada](https://arxiv.org/abs/2603.10877): objective `{objective}`,
control `{control}`, seed {seed}. {teacher}

| metric (validation) | value |
| --- | --- |
{rows}

Trained on {examples} examples ({unlabelled} without a label), {columns} -> {label}.

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder)  # the transformer; the task head is in heads.safetensors
```

With its head: `armada evaluate FOLDER --corpus FILE`.
"""


def model_card(job: DistillJob, metrics: dict[str, Any], data: StudentData) -> str:
    """Markdown with a YAML head as model hubs expect."""
    head = {"library_name": "transformers", "tags": ["armada", "knowledge-distillation"]}
    values = metrics["validation"] or {}
    return _BODY.format(
        head=f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        title=job.output.name,
        objective=metrics["objective"],
        control=metrics["control"],
        seed=metrics["seed"],
        teacher=_teacher(data),
        rows="\n".join(f"| {name} | {value:.4f} |" for name, value in values.items()),
        examples=metrics["train_examples"],
        unlabelled=metrics["unlabelled_examples"],
        columns=", ".join(f"`{name}`" for name in job.text_column),
        label=f"`{job.label_column}`" if job.label_column else "the teacher's feature",
    )


def _teacher(data: StudentData) -> str:
    if data.cache is None or data.feature is None:
        return "No teacher."
    spec = data.cache.teacher.spec
    return (
        f"Teacher `{spec.kind}:{spec.name}`, feature `{data.feature.spec.name}`, "
        f"fingerprint `{data.cache.teacher.fingerprint}`."
    )
