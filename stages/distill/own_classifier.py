"""A student that is its family's own sequence classifier, made ready to train.

    source -> the family's class, with the task's labels in its configuration -> ClassifierStudent

Missing weights of the head are initialised at random; its last layer always is. Padding is chosen
so that transformers gives the trained outputs from the saved folder: a token that ends no text, on
the side that the family supports.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...cache_schemas.errors import StudentSourceError
from ..adapters import TASK, as_plain, not_brought, read_adapters
from ..corpus.labels import LabelSpace
from ..language.classifiers import ClassifierHead, find_head
from ..language.probes import probing
from .adapters import with_adapters
from .settings import AnyPooling, LoraSettings, Pooling
from .student import ClassifierStudent, Pooler
from .student_models import Source, load_classifier, load_config, refuse_random
from .student_probe import PROBE, TOLERANCE, Side, padding_effect, probe_inputs

ADDED_PADDING = "<|padding|>"

_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""Names of tasks in transformers."""

_DROPOUTS = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "cls_dropout",
    "pooler_dropout",
    "seq_classif_dropout",
    "summary_last_dropout",
)
"""Names of the dropout of heads, by family."""


def make_classifier(
    source: Source,
    requested: Literal["auto"] | AnyPooling,
    space: LabelSpace,
    dropout: float,
    lora: LoraSettings,
) -> ClassifierStudent | None:
    """The student as its family's own classifier; None if there is no such class, or if it does not
    use the requested pooling."""
    if not _has_classifier(source.config):
        return None
    drawn_before = torch.get_rng_state()
    model, drawn = source.classifier(with_labels(source.config, space, dropout))
    inputs = probe_inputs(source.tokenizer)
    head = _find_head(model, space.num_labels, inputs)
    if head is None or not _reads(model, head, requested, inputs):
        torch.set_rng_state(drawn_before)
        return None
    student = ClassifierStudent(model, head, space, dropout)
    _settle_padding(student, source.tokenizer, may_grow=lora.lora_rank is None)
    base = f"{model.base_model_prefix}."
    if {name.rpartition(".")[0] for name in drawn if not name.startswith(base)} <= {head.linear}:
        # Later random numbers do not depend on libraries that initialise this layer needlessly.
        torch.set_rng_state(drawn_before)
        if source.folder is None:
            source.model()
    student.draw_last_layer()
    if lora.lora_rank is not None:
        student.model = with_adapters(model, lora, "SEQ_CLS", _trained_whole(model, drawn))
        assert source.folder is not None
        refuse_random(source.folder, not_brought(student.model, drawn))
    return student


def _trained_whole(model: Any, drawn: Iterable[str]) -> list[str]:
    """Parts of a classifier with adapters that are trained whole: all after its transformer, and a
    new pooler."""
    head = [
        name
        for name, module in model.named_children()
        if module is not model.base_model and next(module.parameters(), None) is not None
    ]
    pooler = f"{model.base_model_prefix}.pooler."
    return [*head, *(["pooler"] if any(name.startswith(pooler) for name in drawn) else [])]


def read_classifier(
    folder: Path, tokenizer: Any, space: LabelSpace, dropout: float, base: Path | None = None
) -> ClassifierStudent:
    """The student of a folder that holds one, or adapters for a `base`. Raises
    StudentSourceError."""
    config = load_config(folder if base is None else folder / TASK)
    if config.num_labels != space.num_labels:
        raise StudentSourceError(
            f"student {folder}: config.json has {config.num_labels} labels, and its card "
            f"{space.num_labels}"
        )
    model, drawn = load_classifier(base or folder, config)
    head = _find_head(model, space.num_labels, probe_inputs(tokenizer))
    if head is None:
        raise StudentSourceError(
            f"student {folder}: is not a {type(model).__name__} of this transformers version"
        )
    student = ClassifierStudent(model, head, space, dropout)
    if base is not None:
        student.model = read_adapters(model, folder, StudentSourceError)
        refuse_random(folder, not_brought(student.model, drawn))
    else:
        refuse_random(folder, drawn)
    return student


def with_labels(config: Any, space: LabelSpace, dropout: float) -> Any:
    """A configuration for a task: the names of its classes, its kind, the dropout of its head."""
    config = copy.deepcopy(config)
    names = space.names or tuple(f"LABEL_{label}" for label in range(space.num_labels))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: label for label, name in enumerate(names)}
    config.problem_type = _PROBLEM_TYPES[space.task]
    if hasattr(config, "use_mems_eval"):
        config.use_mems_eval = False  # XLNet's memory is for longer texts; pipelines trip over it
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    return config


def _has_classifier(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    return type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _find_head(model: Any, num_labels: int, inputs: dict[str, Tensor]) -> ClassifierHead | None:
    if model.base_model is model:
        return None
    try:
        return find_head(model, num_labels, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # it needs more than tokens, and raises its own error
        return None


# --- pooling


def _reads(
    model: Any,
    head: ClassifierHead,
    requested: Literal["auto"] | AnyPooling,
    inputs: dict[str, Tensor],
) -> bool:
    """Whether the head reads the requested pooling, which is checked on a text."""
    if requested == "auto" or requested == "own":
        return True
    with probing(model):
        own = head.read(model, inputs)[0]
        outputs = model.base_model(**inputs)
        pooled = _pooled(model, head, requested, outputs, inputs["attention_mask"])
    return pooled is not None and _close(pooled, own)


def _pooled(
    model: Any, head: ClassifierHead, requested: Pooling, outputs: Any, mask_BT: Tensor
) -> Tensor | None:
    pooled: Tensor | None
    if requested == "pooler":
        pooled = getattr(outputs, "pooler_output", None)
        return pooled
    width = outputs.last_hidden_state.shape[-1]
    pooler = Pooler(requested, model.config, width, dropout=0.0)
    if requested == "context":
        dense = _dense_layer(model, head)
        if dense is None or dense.weight.shape != pooler.dense.weight.shape:
            return None
        pooler.dense = dense
    pooled = pooler.eval()(outputs, mask_BT)
    return pooled


def layer_between(model: Any, head: ClassifierHead) -> nn.Linear | None:
    """The one linear layer between a transformer's states and the last layer: the head's, or the
    transformer's pooler."""
    pooler = getattr(model.base_model, "pooler", None)
    pooler = as_plain(pooler)
    own = as_plain(pooler if isinstance(pooler, nn.Linear) else getattr(pooler, "dense", None))
    return _dense_layer(model, head) or (own if isinstance(own, nn.Linear) else None)


def _dense_layer(model: Any, head: ClassifierHead) -> nn.Linear | None:
    """The one linear layer between a transformer and the last layer."""
    below = {*model.base_model.modules(), *model.get_submodule(head.linear).modules()}
    found = [
        module
        for name, module in model.named_modules()
        # Beside what has trained, peft keeps what was there.
        if isinstance(module, nn.Linear) and module not in below and "original_module" not in name
    ]
    return found[0] if len(found) == 1 else None


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-6))


# --- padding


def _settle_padding(student: ClassifierStudent, tokenizer: Any, may_grow: bool) -> None:
    """Have tokenizer and configuration agree on padding, and pad on a side that changes nothing."""
    model = student.model
    if student.own_head.tokens == "last":
        _choose_padding(model, tokenizer, may_grow)
    for config in (model.config, model.config.get_text_config()):
        # Where positions are counted from the id of padding (RoBERTa), it stays what it was.
        padding = getattr(config, "pad_token_id", None)  # which one of several parts may not have
        if student.own_head.tokens == "last" or padding is None:
            config.pad_token_id = tokenizer.pad_token_id
    if not _heeds(student, tokenizer, "right") and _heeds(student, tokenizer, "left"):
        tokenizer.padding_side = "left"  # XLNet reads the last position of a row


def _choose_padding(model: Any, tokenizer: Any, may_grow: bool) -> None:
    """A padding token that ends no text: transformers takes the last other one for a text's end.
    Raises StudentSourceError where the model would have to grow by it, and may not."""
    ends = {tokenizer(PROBE)["input_ids"][-1], tokenizer(PROBE, PROBE)["input_ids"][-1]}
    for token in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token):
        if token is not None and tokenizer.convert_tokens_to_ids(token) not in ends:
            tokenizer.pad_token = token
            return
    rows, last = model.get_input_embeddings().weight.shape[0], tokenizer.pad_token
    tokenizer.add_special_tokens({"pad_token": ADDED_PADDING})
    if tokenizer.pad_token_id < rows:
        return
    if not may_grow:
        raise StudentSourceError(
            f"lora_rank: every text ends with {last}, which is also its padding token, and the "
            "vocabulary has no free id for another token; give it one more row of embeddings, and "
            "save it"
        )
    model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)


def _heeds(student: ClassifierStudent, tokenizer: Any, side: Side) -> bool:
    """Whether a text's pooled vector stays the same when it is padded on a side."""
    if tokenizer.pad_token_id is None:
        return side == "right"
    return padding_effect(student, tokenizer, side) <= TOLERANCE
