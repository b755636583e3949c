"""The README of a student folder: description, metrics, usage.

Its header has the metadata of model hubs, by `huggingface_hub`'s own classes: the model it came
from, the task, the metrics as a model index. Licence and language of the base model's card apply to
the student too, if that card is available; local paths are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from yaml import YAMLError

from ..stages.corpus.corpus import corpus_name
from ..stages.corpus.label_kinds import Task
from ..stages.distill.averaging import AVERAGED_STEPS, UNAVERAGED
from ..stages.distill.embedding.student import EmbeddingStudent
from ..stages.distill.language.student import LanguageStudent, MaskedStudent
from ..stages.distill.student import ClassifierStudent, Student
from .distill_job import DistillJob
from .student_data import StudentData

_BODY = """# {title}

A student trained with [armada](https://arxiv.org/abs/2603.10877): objective `{objective}`,
control `{control}`, seed {seed}. {teacher}

{measured}

Trained on {examples}, {columns} -> {learned}.

{opening}"""

_PIPELINE = """It is a {model}, and opens as one:

```python
from transformers import pipeline

pipeline("text-classification", folder, truncation=True{several})({text})
```
"""

_ADAPTED = """It is a {model} with adapters, which `peft` puts on the model they were made for:

```python
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

config = AutoConfig.from_pretrained(folder, subfolder="task")
model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
pipeline("text-classification", model, tokenizer=folder, truncation=True{several})({text})
```

Without that configuration, transformers and `peft` give it the labels of that model.
"""

_RELU = """
A score below 0 stands for 0: the student was trained so, and `armada evaluate` reads it so.
"""

_CLASSES = """
Each class has a probability of its own, the sigmoid of its logit; those above 1/2 hold.
"""

_LANGUAGE = """It is a language model{adapters}:

```python
from transformers import pipeline

pipeline("text-generation", folder)("a text")
```
"""

_MASKED = """It is a masked language model:

```python
from transformers import pipeline

fill = pipeline("fill-mask", folder)
fill(f"a text with a {fill.tokenizer.mask_token}")
```
"""

_PROMPTS = """
`armada.load_student(folder).predict(["a question"])` writes prompts as in training.
"""

_ADAPTERS = ", as adapters, which `peft` puts on the model they were made for"

_WITH_ADAPTERS = " with its adapters, by `peft`"

_SENTENCES = """It opens in sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

SentenceTransformer(folder).encode(["a text"])
```
"""

_PROMPTED = """It opens in sentence-transformers, and reads queries and passages {reads}:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder)
model.encode_query(["a question"])
model.encode_document(["a passage"])
```
"""

_OF_TOKENS = """It has a vector for each token (late interaction), and opens in releases of
sentence-transformers that have `MultiVectorEncoder`:

```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder(folder)
queries, passages = model.encode_query(["a question"]), model.encode_document(["a passage"])
model.similarity(queries, passages)
```
"""

_BESIDE = """
`sentence_transformers.SentenceTransformer(folder)` gives embeddings, with the projection that was
trained to meet the teacher's feature.
"""

_ARMADA = """`AutoModel` opens the transformer alone{adapters}. With its head, and with
texts as in training:

```python
import armada

armada.load_student(folder).predict([{text}])
```
"""

_HUB_METRICS = {
    "macro_f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
"""Metrics that the hub knows by another name."""

_OF_OTHER_WEIGHTS = (UNAVERAGED, AVERAGED_STEPS)
"""Beginnings of the names of figures that are none of the student's."""


def model_card(
    job: DistillJob,
    metrics: dict[str, Any],
    data: StudentData,
    student: Student | LanguageStudent | EmbeddingStudent,
    folder: Path,
) -> str:
    """Markdown with a YAML head as model hubs expect, of a student that is written in `folder`."""
    return _Card(job, metrics, data, student, folder).text()


@dataclass(frozen=True, slots=True)
class _Card:
    """One run, and the student that it left."""

    job: DistillJob
    metrics: dict[str, Any]
    data: StudentData
    student: Student | LanguageStudent | EmbeddingStudent
    folder: Path

    @property
    def _task(self) -> Task | Literal["none", "language", "masked_language"]:
        if isinstance(self.student, MaskedStudent):
            return "masked_language"
        return "language" if isinstance(self.student, LanguageStudent) else self.student.space.task

    @property
    def _opens_in(self) -> Literal["transformers", "peft", "sentence-transformers", "armada"]:
        """Description of how to open the folder."""
        library: Literal["peft", "transformers"] = "peft" if self.job.lora_rank else "transformers"
        if isinstance(self.student, LanguageStudent):
            return library
        if self._task == "none" and self._has_embeddings:
            return "sentence-transformers"
        own = self.student.pooling == "own" and len(self.job.text_column) <= 2
        return library if own else "armada"

    def text(self) -> str:
        return f"---\n{self._head().to_yaml()}\n---\n\n" + _BODY.format(
            title=self.job.output.name,
            objective=self.metrics["objective"],
            control=self.metrics["control"],
            seed=self.metrics["seed"],
            teacher=" ".join(self._teachers()) or "No teacher.",
            measured="\n\n".join([_table(self.metrics["validation"] or {}), *self._compared()]),
            examples=self._examples(),
            columns=", ".join(f"`{name}`" for name in self.job.text_column),
            learned=self._learned(),
            opening=self._opening(),
        )

    def _head(self) -> ModelCardData:
        job, opens_in = self.job, self._opens_in
        base, from_hub = _base_card(job)
        parent = (job.static_source or job.student) if from_hub else base.base_model
        more = ["sentence-transformers", "feature-extraction"] if self._sentences else []
        return ModelCardData(
            base_model=parent,
            base_model_relation=("adapter" if job.lora_rank else "finetune") if parent else None,
            language=base.language,
            license=base.license,
            license_name=base.license_name,
            license_link=base.license_link,
            library_name=opens_in,
            pipeline_tag=self._pipeline_tag,
            tags=["armada", "knowledge-distillation", *more, *(["lora"] if job.lora_rank else [])],
            datasets=[name for name in map(_hub_dataset, job.train) if name] or None,
            model_name=job.output.name,
            eval_results=self._results() or None,
        )

    @property
    def _sentences(self) -> bool:
        return self._opens_in == "sentence-transformers"

    @property
    def _pipeline_tag(self) -> str:
        if self._task == "language":
            return "text-generation"
        if self._task == "masked_language":
            return "fill-mask"
        if self._task != "none":
            return "text-classification"
        return "sentence-similarity" if self._sentences else "feature-extraction"

    def _results(self) -> list[EvalResult]:
        names = list(map(corpus_name, self.job.validation))
        return [
            EvalResult(
                task_type=self._pipeline_tag,
                dataset_type=_hub_dataset(self.job.validation[0]) or names[0],
                dataset_name=", ".join(names),
                metric_type=_HUB_METRICS.get(name, name),
                metric_name=name,
                metric_value=value,
            )
            for name, value in (self.metrics["validation"] or {}).items()
            if not name.startswith(_OF_OTHER_WEIGHTS)
        ]

    def _compared(self) -> list[str]:
        """A sentence about each teacher that the student was compared with."""
        sources = self.data.measured.sources
        return [
            f"It was compared with the teacher{f' {name}' if len(sources) > 1 else ''} on "
            f"{each.answered} of {len(each.rows)} validation texts, whose cached answers its "
            "measures are about."
            for name, each in sources.items()
        ]

    def _examples(self) -> str:
        unlabelled = self.metrics["unlabelled_examples"]
        labelled = self._task != "none" and not self.job.of_tokens and unlabelled
        without = f" ({unlabelled} without a label)" if labelled else ""
        return f"{self.metrics['train_examples']} examples{without}"

    def _learned(self) -> str:
        if self._task == "language":
            return "the next token"
        if self._task == "masked_language":
            return "masked tokens"
        if self.job.task == "embedding":
            return "embeddings of these texts"
        if self._task == "none":
            return "the teacher's feature"
        return ", ".join(f"`{name}`" for name in self.job.label_columns)

    @property
    def _has_embeddings(self) -> bool:
        """Whether sentence-transformers opens the folder with what learned of a feature."""
        return (self.folder / "modules.json").is_file()

    def _opening(self) -> str:
        if self._has_embeddings and self._task != "none":
            return self._opening_of_task() + _BESIDE
        return self._opening_of_task()

    def _opening_of_task(self) -> str:
        segments = len(self.job.text_column)
        if self._task == "language":
            opened = _LANGUAGE.format(adapters=_ADAPTERS if self.job.lora_rank else "")
            return opened + _PROMPTS if segments > 1 else opened
        if self._task == "masked_language":
            return _MASKED
        if self._sentences:
            return self._opening_of_sentences()
        if isinstance(self.student, ClassifierStudent) and self._opens_in != "armada":
            text = '"a text"' if segments == 1 else '{"text": "a text", "text_pair": "its pair"}'
            way = _ADAPTED if self.job.lora_rank else _PIPELINE
            space = self.student.space
            several = space.multilabel or (space.regression and space.num_labels > 1)
            opened = way.format(
                model=type(self.student.classifier).__name__,
                text=text,
                several=", top_k=None" if several else "",
            )
            if space.multilabel:
                return opened + _CLASSES
            return opened + _RELU if space.rectified else opened
        texts = ", ".join(f'"segment {number + 1}"' for number in range(segments))
        return _ARMADA.format(
            text='"a text"' if segments == 1 else f"({texts})",
            adapters=_WITH_ADAPTERS if self.job.lora_rank else "",
        )

    def _opening_of_sentences(self) -> str:
        if self.job.pooling == "none":
            return _OF_TOKENS
        prompts = {"query": self.job.query_prompt, "document": self.job.passage_prompt}
        named = [f"`{prompt}`" for prompt in prompts.values() if prompt]
        if self.job.tower == "own":
            return _PROMPTED.format(reads="by a tower each")
        return _PROMPTED.format(reads=f"behind {' and '.join(named)}") if named else _SENTENCES

    def _teachers(self) -> list[str]:
        """A sentence about each teacher, if there are any."""
        provenance = self.data.provenance()
        several = [(found, "") for found in provenance.get("teachers", {}).values()]
        return [
            f"Teacher `{teacher['kind']}:{teacher['name']}`, feature `{found[f'{of}feature']}`, "
            f"fingerprint `{found[f'{of}teacher_fingerprint']}`{_of_queries(found)}."
            for found, of in [*several, (provenance, ""), (provenance, "token_")]
            if (teacher := found.get(f"{of}teacher"))
        ]


def _of_queries(provenance: Mapping[str, Any]) -> str:
    fingerprint = provenance.get("query_teacher_fingerprint")
    return f", of queries `{fingerprint}`" if fingerprint else ""


def _base_card(job: DistillJob) -> tuple[ModelCardData, bool]:
    """Metadata of the base model's card, empty if it has none or cannot be reached; and whether the
    base is a hub id."""
    source = job.static_source or job.student
    folder, nothing = Path(source).expanduser(), ModelCardData()
    if job.student.startswith("scratch:") or job.student_from_scratch:
        return nothing, False
    from_hub = not folder.is_dir()
    try:
        file = folder / "README.md"
        if from_hub:
            file = hf_hub_download(source, "README.md", revision=job.student_revision)
        return ModelCard.load(file, ignore_metadata_errors=True).data, from_hub
    except (OSError, ValueError, YAMLError):
        return nothing, from_hub


def _hub_dataset(source: str) -> str | None:
    """The id of a corpus on the hub."""
    name = source.removeprefix("hf-dataset:")
    return name.partition("?")[0] if name != source else None


def _table(values: dict[str, float]) -> str:
    if not values:
        return "It was trained without a validation set: nothing has been measured."
    rows = (f"| {name} | {value:.4f} |" for name, value in values.items())
    return "\n".join(["| metric (validation) | value |", "| --- | --- |", *rows])
