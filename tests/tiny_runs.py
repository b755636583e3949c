"""Stage 2 in small: texts with labels, a cache that answers them, a student, and a run of these."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from armada.cache_schemas.features import FeatureSpec
from armada.stages.corpus.labels import LabelSpace
from armada.stages.distill.batches import DistillDataset
from armada.stages.distill.controls import Gather, controlled, parse_control
from armada.stages.distill.model import DistillModel, layer_dims
from armada.stages.distill.objectives import OBJECTIVES
from armada.stages.distill.objectives.base import Sizes
from armada.stages.distill.objectives.options import SOURCE
from armada.stages.distill.objectives.sum import SummedObjective, Weight
from armada.stages.distill.settings import LoraSettings, StudentSettings, TrainingSettings
from armada.stages.distill.student import Student
from armada.stages.distill.student_models import load_tokenizer
from armada.stages.distill.student_source import load_student
from armada.stages.distill.token_features import TokenGather
from armada.stages.distill.tokens import encode
from armada.stages.distill.training import Run, Training, train
from armada.stages.ragged import Ragged
from armada.stages.store.reading.reader import Cache, open_cache
from armada.stages.store.writing.writer import CacheWriter
from small_caches import keys_of, make_manifest, write_cache

WIDTH = 6
TOKEN_STATES = "token_states_1"
CLASSES = 3
FEATURES = (
    FeatureSpec(name="embedding", shape=(WIDTH,), dtype="float32"),
    FeatureSpec(name="logits", shape=(CLASSES,), dtype="float32"),
)
TWO_CLASSES = LabelSpace(task="classification", num_labels=2)
THREE_CLASSES = LabelSpace(task="classification", num_labels=CLASSES)
NUMBERS = LabelSpace(task="regression", num_labels=1)
MAX_LENGTH = 16

_WHO = ("the cook", "a sailor", "my aunt", "one old clerk", "nobody")
_DID = ("praised", "forgot", "mended", "dropped", "painted over")
_WHAT = ("the kettle", "a map of the harbour", "both lanterns", "it")


def sentences(start: int, stop: int) -> list[str]:
    """Different texts of 4 to 9 words, the same each time."""
    return [
        f"{_WHO[n % 5]} {_DID[n // 5 % 5]} {_WHAT[n // 25 % 4]} {'again ' * (n // 100)}"
        f"{'early' if n % 3 else 'much too late'}"
        for n in range(start, stop)
    ]


TEXTS = sentences(0, 53)
"""53: seven batches of 8, the last one not full."""
VALIDATION_TEXTS = sentences(60, 83)


def class_labels(count: int, classes: int = CLASSES) -> npt.NDArray[np.int64]:
    """Labels in no simple order."""
    return np.random.default_rng(count).integers(classes, size=count)


def freeze_dropout(folder: Path) -> Path:
    """Set a saved BERT's own dropout to zero."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps(config))
    return folder


def make_cache(path: Path, texts: Sequence[str] = TEXTS) -> Cache:
    """A cache that holds `FEATURES` of the texts in another order, in two shards."""
    turned = list(reversed(texts))
    write_cache(path, make_manifest(FEATURES), [turned[:20], turned[20:]])
    return open_cache(path)


def make_token_cache(path: Path, student: Path) -> Cache:
    """A cache that holds states of the tokens of the texts, as the student's tokenizer has them, in
    another order."""
    along: dict[str, Any] = {"axis": "tokens", "max_length": MAX_LENGTH}
    states = FeatureSpec(name=TOKEN_STATES, shape=(WIDTH,), dtype="float16", **along)
    turned = list(reversed(TEXTS))
    tokens = encode(load_tokenizer(student), [(text,) for text in turned], MAX_LENGTH)
    lengths, draw = np.diff(tokens.offsets), np.random.default_rng(0)
    values = draw.standard_normal((int(lengths.sum()), WIDTH)).astype(np.float16)
    with CacheWriter(path, make_manifest([states])) as writer:
        truncated = np.zeros(len(turned), dtype=bool)
        writer.commit(keys_of(turned), {TOKEN_STATES: Ragged(values, lengths)}, truncated)
    return open_cache(path)


@dataclass(frozen=True)
class Bench:
    """A student's folder and a cache: all that a run is made of; `tokens` is a cache of token
    states, for objectives that read them."""

    student: Path | str
    cache: Cache
    pooling: str = "auto"
    tokens: Cache | None = None

    def run(
        self,
        folder: Path,
        *,
        objective: str = "armada",
        control: str = "none",
        seed: int = 0,
        space: LabelSpace = THREE_CLASSES,
        labels: npt.NDArray[Any] | None = None,
        dropout: float = 0.1,
        weights: dict[str, Any] | None = None,
        validate: bool = True,
        lora_rank: int | None = None,
        features: Sequence[str] | None = None,
        **settings: Any,
    ) -> Run:
        """A run in `folder` as the pipeline would make it; `weights` are settings of the objective,
        `settings` those of training; `features` of one that reads several."""
        torch.manual_seed(seed)
        chosen = StudentSettings(student=str(self.student), pooling=self.pooling)
        student, tokenizer = load_student(
            chosen, space, [], dropout, LoraSettings(lora_rank=lora_rank)
        )
        parsed = parse_control(control)
        name = "undistilled" if parsed.name == "undistilled" else objective
        train = class_labels(len(TEXTS), space.num_labels) if labels is None else labels
        chosen_objective = OBJECTIVES.load(name)
        reads = chosen_objective.reads
        read = () if reads.features == 0 else features or (reads.default_feature or "embedding",)
        along = reads.axis == "tokens"
        read = (TOKEN_STATES,) if along else read
        names = [SOURCE] if len(read) == 1 else [f"{SOURCE}.{feature}" for feature in read]
        cache = self.tokens if along else self.cache
        assert cache is not None
        shapes = [cache.feature_spec(feature).shape for feature in read]
        rows = cache.lookup(TEXTS)
        gathers: dict[str, Any] = {
            source: TokenGather(cache.ragged(feature), rows)
            if along
            else controlled(self.cache[feature], rows, parsed, seed, "", train)
            for source, feature in zip(names, read, strict=True)
        }
        sizes = Sizes(
            *(student.dim, space.num_labels, space.regression, shapes[0] if shapes else None),
            more_shapes=tuple(shapes[1:]),
            dropout=dropout,
            layer_dims=layer_dims(student) if "layers" in reads.student else (),
        )
        small = {"aligner_hidden_size": 10} if name == "armada" else {}
        options = chosen_objective.Options(**(small | (weights or {})))
        model = DistillModel(student, chosen_objective(options, sizes))
        model.objective.sources = tuple(names)
        folder.mkdir(parents=True, exist_ok=True)
        validation = dataset(tokenizer, VALIDATION_TEXTS, held_out_labels(space), {})
        return Run(
            model=model,
            train=dataset(tokenizer, TEXTS, train, gathers),
            validation=validation if validate else None,
            settings=make_settings(**settings),
            metric="mse" if space.regression else "accuracy",
            seed=seed,
            device=torch.device("cpu"),
            folder=folder,
            as_drawn=[SOURCE] if parsed.name == "random-aligner" else [],
        )

    def summed(
        self, folder: Path, *, weight: Weight = 2.0, dropout: float = 0.0, **more: Any
    ) -> Run:
        """The same with three objectives, each with a source of its own: ARMADA from `one`, the
        embeddings, and from `two`, the logits; and the feature `three`, the embeddings shuffled,
        which counts by `weight`."""
        run = self.run(folder, dropout=dropout, **more)
        rows = self.cache.lookup(TEXTS)
        sizes = Sizes(run.model.student.dim, CLASSES, False, None, dropout=dropout)
        torch.manual_seed(3)
        parts, gathers = [], {}
        for name, source, feature in (
            ("armada", "one", "embedding"),
            ("armada", "two", "logits"),
            ("feature", "three", "embedding"),
        ):
            chosen = OBJECTIVES.load(name)
            small = {"aligner_hidden_size": 7} if name == "armada" else {}
            shape = self.cache.feature_spec(feature).shape
            part = chosen(chosen.Options(**small), replace(sizes, feature_shape=shape))
            part.label, part.sources = f"{name}-{source}", (source,)
            parts.append(part)
            control = parse_control("shuffled" if source == "three" else "none")
            gathers[source] = controlled(self.cache[feature], rows, control, 0, source)
        run.train.features = gathers
        objective = SummedObjective(parts, [1.0, 0.5, weight], sizes)
        return replace(run, model=DistillModel(run.model.student, objective))


@dataclass(frozen=True)
class Changed:
    """A gather whose features are changed on their way: `change(places, features)`."""

    gather: Gather
    change: Callable[[npt.NDArray[np.int64], npt.NDArray[Any]], npt.NDArray[Any]]

    def __call__(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self.change(places, self.gather(places))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.gather, name)


def train_logged(run: Run) -> tuple[Training, list[float]]:
    """Train; returns the figures and the loss of every step."""
    rows: list[dict[str, float]] = []
    training = train(replace(run, on_log=rows.append))
    return training, [row["loss"] for row in rows if "loss" in row]


def weights(run: Run) -> dict[str, torch.Tensor]:
    """A copy of all weights of a run."""
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def changed(run: Run, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that are not what they were."""
    after = run.model.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def held_out_labels(space: LabelSpace) -> npt.NDArray[Any]:
    """Labels of the validation texts."""
    labels = class_labels(len(VALIDATION_TEXTS), max(space.num_labels, 2))
    return labels.astype(np.float64) if space.regression else labels


def dataset(
    tokenizer: Any, texts: Sequence[str], labels: npt.NDArray[Any], gathers: dict[str, Any]
) -> DistillDataset:
    """Texts of one segment as a data set."""
    return DistillDataset(encode(tokenizer, [(t,) for t in texts], MAX_LENGTH), labels, gathers)


def make_settings(**settings: Any) -> TrainingSettings:
    """Three epochs of seven steps, each one logged."""
    small = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
    return TrainingSettings(**small | settings)


def load(source: object, **settings: Any) -> tuple[Student, Any]:
    """A student for three classes and its tokenizer, heads drawn from a fixed seed."""
    torch.manual_seed(0)
    chosen = StudentSettings(student=str(source), **settings)
    return load_student(chosen, THREE_CLASSES, TEXTS, 0.1)


def outputs(student: Student, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled and output of the first five texts."""
    batch = encode(tokenizer, [(text,) for text in TEXTS[:5]], 32).pad(np.arange(5))
    with torch.no_grad():
        return student.eval()(**batch)
