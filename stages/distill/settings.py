"""Training settings: keys of a job that `training.py` reads, and those of language models' rows."""

import logging
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ...cache_schemas.locations import Source
from ..matrix_products import MatmulPrecision
from ..pooling import StatePooling

SCRATCH = "scratch:"
"""Begins the name of a student that starts from random weights."""

STATIC = "static:"
"""Begins the name of a student that is a table of token embeddings."""

DEFAULT_NEW_TOKENS = 128
"""The most tokens that a trained language model generates, unless a job says otherwise."""

Keep = Literal["best", "last"]
"""Which checkpoint of a run is its student."""

Placement = Literal["auto", "resident", "mapped", "streamed"]
"""Where features are kept; see `placement.py`."""

Reporter = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Trackers of experiments, by the names of their packages."""


Packing = Literal["none", "document_mask", "concat"]

_LOGGER = logging.getLogger("armada")
_RENAMED = {"apart": "document_mask", "joined": "concat"}
"""Values of an earlier release, and what they are called now."""

SCRATCH_LEARNING_RATE = 3e-4
"""Measured: the highest rate at which students of both sizes learned. Accuracy on 2,000 rows of
Rotten Tomatoes, by rate, of a BERT of 2 layers and width 128 after four epochs: 2e-5 0.480 (one
class for all), 1e-4 0.624, 3e-4 0.670, 5e-4 0.666, 1e-3 0.662, 2e-3 0.482; of 6 layers and width
256 after three: 1e-4 0.630, 3e-4 0.630, 5e-4 0.480 (one class for all). Loss of a Llama of 2 layers
and width 128 on 400 texts of WikiText-2 after three epochs: 2e-5 6.80, 3e-4 5.90, 1e-3 5.25."""


STATIC_LEARNING_RATE = 1e-3
"""The rate that tokenlearn has."""

Optimizer = Literal["sgd", "dot"]
DEFAULT_MOMENTUM = 0.9
DEFAULT_MOMENTUM_DELTA = 0.075
"""For the first, the paper's on CIFAR-100 (arXiv 2303.13364)."""

Pooling = Literal["pooler", "context", "none"] | StatePooling
"""How a text becomes one vector [B, D]: `pooler` is the model's own (BERT), `context` a dense layer
over the first token with the model's activation (as DeBERTa's and DistilBERT's classifiers have;
trained with the student); the others pool token states, as embedding models do
(`../pooling.py`). `none`: it does not, but has a vector for each token [B, T, D], zeros where there
is none: late interaction."""

AnyPooling = Literal["own"] | Pooling
"""Or `own`, the input of the last layer of the family's own sequence classifier."""


class StudentSettings(BaseModel):
    """Student and pooling."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    student: Source = Field(
        description="folder, hub id, scratch:TYPE (scratch:bert, scratch:opt, ...) for random "
        "weights, or static:SOURCE for a table of token embeddings made of a folder or hub id"
    )
    student_revision: str | None = Field(default=None, description="revision of a hub id")
    student_from_scratch: bool = Field(
        default=False,
        description="start from random weights, with the source's configuration and tokenizer",
    )
    student_layers: int | None = Field(default=None, ge=1, description="number of layers to keep")
    student_layer_choice: Literal["first", "every"] = Field(
        default="first",
        description="layers of a checkpoint to keep: the first, or evenly spaced ones",
    )
    student_hidden_size: int = Field(default=128, ge=1, description="hidden size (scratch:TYPE)")
    student_heads: int = Field(default=2, ge=1, description="attention heads (scratch:TYPE)")
    student_vocab_size: int = Field(
        default=8192, ge=16, description="size of the vocabulary trained on the corpus (scratch)"
    )
    student_tokenizer: Source | None = Field(
        default=None, description="folder or hub id of a tokenizer for scratch:TYPE"
    )
    static_init: Literal["forward", "embeddings", "random"] | None = Field(
        default=None,
        description="first vectors of static:SOURCE: forward (each token through the source; the "
        "default), its input embeddings, or random",
    )
    static_dim: int | None = Field(
        default=None,
        ge=1,
        description="numbers of a token of static:SOURCE; default 256, or the source's if fewer",
    )
    pooling: Literal["auto"] | AnyPooling = Field(
        default="auto",
        description="how a text becomes one vector: own (input of the last layer of the family's "
        "sequence classifier), pooler, context, cls, mean, last, max, mean_sqrt_len_tokens or "
        "weightedmean; auto: own if the task has labels and such a classifier exists, else as a "
        "sentence-transformers folder declares; none: a vector for each token (late interaction, "
        "task=embedding)",
    )
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="maximum tokens per text; default 128, or the model's maximum if that is less",
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="dropout of the student's head and of the aligner"
    )

    @property
    def static_source(self) -> str | None:
        """What a static student is made of; None for another student."""
        return self.student.removeprefix(STATIC) if self.student.startswith(STATIC) else None

    @model_validator(mode="after")
    def _describes_a_table(self) -> "StudentSettings":
        if self.static_source is None:
            for key in ("static_init", "static_dim"):
                if (value := getattr(self, key)) is not None:
                    raise ValueError(f"{key} {value!r}: is for student=static:SOURCE; leave it out")
            return self
        if not self.static_source or self.static_source.startswith(SCRATCH):
            raise ValueError(
                f"student {self.student!r}: names no model; write static:FOLDER, or a hub id, with "
                "static_init=random for random vectors"
            )
        for key in _NOT_OF_TABLES:
            if getattr(self, key) != StudentSettings.model_fields[key].default:
                raise ValueError(
                    f"{key}: a static student is a table of token embeddings, with no layers; "
                    "leave it out"
                )
        if self.pooling not in ("auto", "mean"):
            raise ValueError(
                f"pooling {self.pooling!r}: a static student takes the mean of its tokens' "
                "vectors; leave it out"
            )
        return self


_NOT_OF_TABLES = (
    *("student_from_scratch", "student_layers", "student_layer_choice"),
    *("student_hidden_size", "student_heads", "student_vocab_size", "student_tokenizer"),
)
"""Keys of other students."""


class LoraSettings(BaseModel):
    """Low-rank adapters instead of all weights (LoRA, arXiv 2106.09685)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora_rank: int | None = Field(
        default=None,
        ge=1,
        description="train LoRA adapters of this rank and freeze all other weights",
    )
    lora_alpha: float | None = Field(
        default=None, gt=0, description="adapters are scaled by lora_alpha / lora_rank; default 1"
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before adapters")
    lora_targets: tuple[str, ...] = Field(
        default=(),
        description="names of layers with adapters; default: all linear layers except the head",
    )

    @model_validator(mode="after")
    def _describes_adapters(self) -> "LoraSettings":
        if self.lora_rank is None and (self.lora_targets or self.lora_alpha or self.lora_dropout):
            raise ValueError("lora_targets, lora_alpha, lora_dropout: need lora_rank; set it too")
        return self


class TrainingSettings(BaseModel):
    """Training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Literal["alternate", "joint"] = Field(
        default="alternate",
        description="alternate: each epoch the aligner, then the student; joint: both at once",
    )
    epochs: int = Field(default=10, ge=1, description="passes over the training set")
    keep: Keep = Field(
        default="best",
        description="checkpoint to keep: of the best epoch by `metric`, or of the last (best on "
        "the test set overestimates: use a separate validation set); averaged weights: `average`",
    )
    average: Literal["mean", "ema"] | None = Field(
        default=None,
        description="student to evaluate and keep: the mean of the weights after each step, or "
        "their exponential moving average (ema); default: the weights of the last step",
    )
    average_decay: float | None = Field(
        default=None, gt=0, lt=1, description="decay of average=ema; default 0.999"
    )
    average_from: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of the steps after which averaging begins; default 0.75 for mean, 0 "
        "for ema",
    )
    average_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between averaged weights, counted from the last step; default 1",
    )
    placement: Placement = Field(
        default="auto",
        description="where features are kept: resident (on the training device), mapped "
        "(memory-mapped files), or streamed (files, read in contiguous blocks; for more than fits "
        "into memory); auto: resident on a GPU with room, else mapped",
    )
    group_by_length: bool = Field(
        default=False, description="batch texts of similar length, to reduce padding"
    )
    batch_size: int = Field(default=32, ge=1, description="global batch size, over all processes")
    gradient_accumulation: int = Field(
        default=1, ge=1, description="batches per optimizer step (gradient accumulation)"
    )
    learning_rate: float = Field(
        default=2e-5,
        gt=0,
        description=f"learning rate of the student and its heads; default "
        f"{SCRATCH_LEARNING_RATE:g} for a student from scratch, {STATIC_LEARNING_RATE:g} for a "
        "static one; sgd and dot need one of their own",
    )
    optimizer: Optimizer | None = Field(
        default=None,
        description="sgd, with momentum; or dot: SGD with a larger momentum for the gradient of "
        "distillation than for that of the task, which takes two backward passes; default: AdamW",
    )
    momentum: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description=f"momentum of sgd and dot; default {DEFAULT_MOMENTUM:g}",
    )
    momentum_delta: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="optimizer=dot: the task's gradient has momentum - momentum_delta, that of "
        f"distillation momentum + momentum_delta; default {DEFAULT_MOMENTUM_DELTA:g}",
    )
    aligner_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="batch size of the aligner's pass (schedule=alternate); default: batch_size; "
        "larger is faster, with fewer steps",
    )
    aligner_learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of the aligner (AdamW), and of learned weights of objectives",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="weight decay of both")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="schedule of the student's learning rate after warm-up"
    )
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1, description="share of steps for warm-up")
    max_grad_norm: float = Field(default=1.0, gt=0, description="maximum gradient norm")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="autocast dtype of the student"
    )
    matmul_precision: MatmulPrecision = Field(
        default="highest",
        description="of float32 matrix products: highest is float32; high and medium are faster on "
        "some GPUs, with fewer bits (TF32, bfloat16)",
    )
    compile_student: bool = Field(
        default=False, description="compile the student with torch.compile"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations of the student's layers in the backward pass: less "
        "memory, more time",
    )
    auto_batch_size: bool = Field(
        default=False,
        description="where memory runs out, let the student read a batch in parts, halved as often "
        "as it takes: the same losses, in more time; for one process",
    )
    deterministic: bool = Field(
        default=False,
        description="on a GPU, only kernels that add in a fixed order, and plain attention: a "
        "resumed run has exactly the losses of an uninterrupted one, as on a CPU; slower, with "
        "more memory for long texts",
    )
    shard_student: bool = Field(
        default=False,
        description="shard the student's weights and optimizer state over the processes (FSDP)",
    )
    save_steps: int | None = Field(
        default=None, ge=1, description="steps between checkpoints; default once an epoch"
    )
    logging_steps: int = Field(default=10, ge=1, description="steps between logged losses")
    report_to: tuple[Reporter, ...] = Field(
        default=("tensorboard",),
        description="log losses to: tensorboard (in the run's folder), wandb, "
        "mlflow, trackio, several of them, or none",
    )
    run_name: str | None = Field(
        default=None,
        min_length=1,
        description="name of the run for wandb, mlflow and trackio; default: `name`, or the folder",
    )

    @field_validator(
        "report_to",
        mode="before",
        json_schema_input_type=Reporter | Literal["none"] | tuple[Reporter, ...],
    )
    @classmethod
    def _one_is_a_list_of_reporters(cls, value: Any) -> Any:
        return () if value == "none" else (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _averages_something(self) -> "TrainingSettings":
        if self.average is None:
            for key in ("average_decay", "average_from", "average_every"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: needs average; set average=mean or average=ema too")
        elif self.average == "mean" and self.average_decay is not None:
            raise ValueError(
                f"average_decay {self.average_decay:g}: is of average=ema, and a mean has none; "
                "leave it out"
            )
        elif self.shard_student:
            raise ValueError(
                f"average={self.average}: the weights of a sharded student are not averaged; leave "
                "out average or shard_student"
            )
        return self

    @model_validator(mode="after")
    def _steps_by_its_optimizer(self) -> "TrainingSettings":
        if self.optimizer is None and self.momentum is not None:
            raise ValueError(
                f"momentum {self.momentum:g}: AdamW has none; set optimizer=sgd or optimizer=dot"
            )
        if self.optimizer != "dot":
            if self.momentum_delta is not None:
                raise ValueError(
                    f"momentum_delta {self.momentum_delta:g}: is of optimizer=dot; set it too"
                )
            return self
        momentum = DEFAULT_MOMENTUM if self.momentum is None else self.momentum
        delta = DEFAULT_MOMENTUM_DELTA if self.momentum_delta is None else self.momentum_delta
        if not delta <= momentum < 1 - delta:
            raise ValueError(
                f"momentum_delta {delta:g}: momentum {momentum:g} less and more of it has to be "
                f"from 0 to less than 1; choose at most {min(momentum, 1 - momentum):.3g}"
            )
        for key in ("shard_student", "auto_batch_size", "compile_student"):
            if getattr(self, key):
                raise ValueError(
                    f"optimizer=dot: reads the gradients of a batch twice, which does not go with "
                    f"{key}; leave out one of the two"
                )
        if self.precision == "fp16":
            raise ValueError(
                "optimizer=dot: does not go with precision=fp16, whose gradients are scaled; use "
                "float32 or bf16"
            )
        return self


class LanguageSettings(BaseModel):
    """Language students."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    packing: Packing = Field(
        default="none",
        description="whole texts in rows of max_length tokens: none (one text per row), "
        "document_mask (texts are masked from each other) or concat (a text attends to those "
        "before it)",
    )
    responses: Literal["corpus", "generated"] = Field(
        default="corpus",
        description="responses to predict: those of the corpus, or those generated by the teacher "
        "(cached with max_new_tokens)",
    )

    @field_validator("packing", mode="before")
    @classmethod
    def _of_an_earlier_release(cls, given: Any) -> Any:
        new = _RENAMED.get(given) if isinstance(given, str) else None
        if new is None:
            return given
        _LOGGER.warning(f"packing={given}: deprecated, removed in the next release; use {new}")
        return new
