"""The contract of objectives, as tests.

A subclass names an objective and values of its options. The tests compute the loss of batches that
`batch` makes, alone and in a sum of objectives, in float64 where numbers are compared. Shapes: B
rows, T tokens, D pooled student text, K classes (1 for regression), H numbers of a feature.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from ...cache_schemas.errors import InputError
from ...cache_schemas.features import TOKENS
from ..distill.losses import MISSING_LABEL, accumulated
from ..distill.negatives import Negatives, negatives_name
from ..distill.objectives import OBJECTIVES
from ..distill.objectives.base import Objective, ResponsePairs, Shape, Sizes, StudentSide
from ..distill.objectives.sum import SummedObjective
from ..distill.token_loss.answers import DenseAnswers, TokenAnswers
from ..distill.token_loss.loss import Tokens

Terms = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of an objective: pooled [B, D], output [B, K], features [B, *shape], labels [B];
    hidden states [B, T, width] of the embeddings and each layer, and their mask [B, T].
    `along_tokens`: features are [B, T, *shape], with the same mask. `attention`: queries, keys and
    values [B, T, 3, width] of each attention layer from the first."""

    pooled: Tensor
    output: Tensor
    features: tuple[Tensor, ...]
    labels: Tensor
    layers: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    along_tokens: bool = False
    attention: tuple[Tensor, ...] = ()

    @property
    def student(self) -> tuple[Tensor, ...]:
        """All tensors of the student."""
        return (self.pooled, self.output, *self.layers, *self.attention)

    def of_student(self, pooled: Tensor, output: Tensor, *inside: Tensor) -> "Batch":
        """The same with other tensors of the student, as `student` has them."""
        layers, attention = inside[: len(self.layers)], inside[len(self.layers) :]
        return replace(self, pooled=pooled, output=output, layers=layers, attention=attention)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same with all tensors changed, except labels."""
        return replace(
            self,
            pooled=change(self.pooled),
            output=change(self.output),
            features=tuple(change(each) for each in self.features),
            layers=tuple(change(each) for each in self.layers),
            attention=tuple(change(each) for each in self.attention),
        )

    def take(self, rows: Tensor) -> "Batch":
        """Some rows."""
        return replace(
            self,
            pooled=self.pooled[rows],
            output=self.output[rows],
            features=tuple(each[rows] for each in self.features),
            labels=self.labels[rows],
            layers=tuple(each[rows] for each in self.layers),
            attention=tuple(each[rows] for each in self.attention),
            mask=None if self.mask is None else self.mask[rows],
        )

    def padded(self) -> "Batch":
        """The same texts with more padding on both sides, and other numbers in all of it."""
        if self.mask is None:
            return self
        mask = F.pad(self.mask, (1, 2))
        features = _padded(self.features, mask) if self.along_tokens else self.features
        return replace(
            self,
            mask=mask,
            layers=_padded(self.layers, mask),
            attention=_padded(self.attention, mask),
            features=features,
        )


def _padded(tensors: tuple[Tensor, ...], mask: Tensor) -> tuple[Tensor, ...]:
    """Tensors [B, T, ...] with the padding of a mask, and numbers in it."""
    found = []
    for each in tensors:
        more = each.ndim - 2
        wide = F.pad(each, (*(0, 0) * more, 1, 2))
        found.append(wide.masked_fill(mask.view(*mask.shape, *(1,) * more) == 0, 1e3))
    return tuple(found)


class ObjectiveTests:
    """Subclass it under a name that begins with Test; needs `objective`, and a value in `changing`
    or a name in `untried` for each option."""

    objective: ClassVar[str]
    """Its name, as in a job."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Under which it is tested."""
    changing: ClassVar[Mapping[str, Any]] = {}
    """Option -> a value under which the loss is another."""
    untried: ClassVar[Collection[str]] = ()
    """Options that are not tested; give the reason in a comment."""
    tasks: ClassVar[Collection[str]] = ("classification", "regression", "multilabel")
    """Tasks that it supports under these options, as far as it declares them."""
    refused: ClassVar[Mapping[str, Any]] = {}
    """Option -> a value that it must not take."""
    pooled_dim: ClassVar[int] = 6
    num_labels: ClassVar[int] = 3
    feature_shapes: ClassVar[tuple[Shape, ...]] = ((4,),)
    """Shapes of the features it reads; (num_labels,) for an objective that reads classes; those of
    one token, for features along tokens."""
    layer_dims: ClassVar[tuple[int, ...]] = (6, 6, 6, 6, 6)
    """Widths of a student's embeddings and of its layers, for an objective that reads layers."""
    attention_dims: ClassVar[tuple[int, ...]] = (6, 6)
    """Widths of a query in each layer, for an objective that reads attention."""
    tokens: ClassVar[int] = 4
    """Tokens of the longest text, if layers or attention are read."""
    least_tokens: ClassVar[int] = 1
    """Tokens of the shortest text: 2 for an objective that compares pairs of them."""
    rows: ClassVar[int] = 6

    @pytest.fixture(params=["classification", "regression", "multilabel"])
    def sizes(self, request: pytest.FixtureRequest) -> Sizes:
        """Sizes for the objective, without dropout; for each task that it supports."""
        reads = self._class().reads
        if request.param not in self.tasks:
            pytest.skip("has no meaning under these options")
        if request.param == "regression" and not reads.regression:
            pytest.skip("has no meaning where labels are numbers")
        if request.param == "multilabel" and not (
            reads.multilabel if reads.classes else reads.task
        ):
            pytest.skip("compares the classes of which one holds, or leaves labels to others")
        sizes = self._sizes(regression=request.param == "regression")
        return replace(sizes, multilabel=request.param == "multilabel")

    def batch(self, sizes: Sizes, rows: int, draw: torch.Generator) -> Batch:
        """A batch of float32; override it for an objective that needs inputs of another kind."""
        shape = (rows, sizes.num_labels) if sizes.multilabel else (rows,)
        most = 2 if sizes.multilabel else sizes.num_labels
        labels = torch.randint(most, shape, generator=draw)
        output = torch.randn(rows, sizes.num_labels, generator=draw)
        batch = Batch(
            pooled=torch.randn(rows, sizes.pooled_dim, generator=draw),
            output=output.abs() if sizes.regression else output,  # a regression ends with a ReLU
            features=tuple(torch.randn(rows, *shape, generator=draw) for shape in _shapes(sizes)),
            labels=5 * torch.rand(rows, generator=draw) if sizes.regression else labels,
        )
        if not sizes.layer_dims and not sizes.attention_dims:
            return batch
        shapes = [(rows, self.tokens, width) for width in sizes.layer_dims]
        layers = tuple(torch.randn(shape, generator=draw) for shape in shapes)
        wide = [(rows, self.tokens, 3, width) for width in sizes.attention_dims[1:]]
        attention = tuple(torch.randn(shape, generator=draw) for shape in wide)
        lengths = torch.randint(self.least_tokens, self.tokens + 1, (rows, 1), generator=draw)
        mask = (torch.arange(self.tokens) < lengths).long()
        batch = replace(batch, layers=layers, mask=mask, attention=attention)
        if self._class().reads.axis != TOKENS:
            return batch
        along = [(rows, self.tokens, *shape) for shape in _shapes(sizes)]
        features = tuple(torch.randn(shape, generator=draw) for shape in along)
        return replace(batch, features=features, along_tokens=True)

    # --- options

    def test_every_option_is_named_here(self) -> None:
        known = self._class().Options.model_fields
        named = {*self.changing, *self.untried}
        lacking, strange = sorted(known.keys() - named), sorted(named - known.keys())
        assert not lacking, f"options {lacking}: name them in changing or untried"
        assert not strange, f"{strange}: the objective has no such options"

    def test_options_are_checked(self) -> None:
        options = self._class().Options
        for name, field in options.model_fields.items():
            assert not field.is_required(), f"option {name} has no default"
            assert field.description, f"option {name} has no description"
            wrong = [self.refused[name]] if name in self.refused else []
            if float in (field.annotation, *get_args(field.annotation)):
                wrong += [math.nan, math.inf]
            for value in wrong:
                with pytest.raises(ValidationError) as caught:
                    options(**{name: value})
                assert {error["loc"][0] for error in caught.value.errors()} == {name}
        with pytest.raises(ValidationError, match="no_such_option"):
            options.model_validate({"no_such_option": 1})

    def test_options_change_the_loss(self) -> None:
        sizes = self._sizes(regression=False)
        before = self._total(sizes)
        for name, value in self.changing.items():
            after = self._total(sizes, **{name: value})
            assert not torch.equal(before, after), f"{name}={value!r} changes no loss: is it read?"

    # --- the loss

    def test_total_has_a_graph_and_the_other_terms_are_reported(self, sizes: Sizes) -> None:
        objective, batch = self._made(sizes), self._batch(sizes)
        student = batch.student
        for part in student:
            part.requires_grad_()
        terms = self._terms(objective, batch)
        assert terms["total"].requires_grad
        for name, term in terms.items():
            assert term.shape == (), f"{name}: is no scalar"
            assert term.isfinite(), f"{name}: is not finite"
            assert name == "total" or not term.requires_grad, f"{name}: detach it (named_terms)"
        assert self._terms(objective, self._batch(sizes, seed=1)).keys() == terms.keys()
        torch.autograd.backward(terms["total"])
        reached = [part.grad for part in student if part.grad is not None]
        assert any(each.any() for each in reached), "no gradient reaches the student"
        for name, parameter in objective.named_parameters():
            # An aligner learns by itself; of all else, processes wait for each other's gradients.
            own = objective.has_aligner and name.startswith("aligner.")
            assert own or parameter.grad is not None, f"{name} takes no part in the loss"

    def test_gradients_are_those_of_the_loss(self, sizes: Sizes) -> None:
        """Checked by finite differences, in float64."""
        objective = self._made(sizes).double()
        batch = self._batch(sizes).map(torch.Tensor.double)

        def total(*student: Tensor) -> Tensor:
            return self._terms(objective, batch.of_student(*student))["total"]

        inputs = tuple(part.requires_grad_() for part in batch.student)
        assert total(*inputs).dtype == torch.float64, "float64 is rounded: cast by `accumulated`"
        assert torch.autograd.gradcheck(total, inputs)

    def test_the_order_of_rows_is_of_no_matter(self, sizes: Sizes) -> None:
        objective = self._made(sizes).double()
        batch = self._batch(sizes).map(torch.Tensor.double)
        order = torch.arange(self.rows).roll(1)
        one, other = self._terms(objective, batch), self._terms(objective, batch.take(order))
        for name, term in one.items():
            torch.testing.assert_close(other[name], term, msg=f"{name} depends on the order")

    def test_padding_changes_nothing(self, sizes: Sizes) -> None:
        objective, batch = self._made(sizes), self._batch(sizes)
        one, other = self._terms(objective, batch), self._terms(objective, batch.padded())
        for name, term in one.items():
            torch.testing.assert_close(other[name], term, msg=f"{name} depends on padding")

    def test_rows_without_a_label(self, sizes: Sizes) -> None:
        missing = math.nan if sizes.regression else MISSING_LABEL
        for lacking in (1, self.rows):
            objective, batch = self._made(sizes), self._batch(sizes)
            batch.labels[:lacking] = missing
            self._require_finite(objective, batch)

    def test_extremes_are_finite(self, sizes: Sizes) -> None:
        """Numbers as large as half precision has them, none, all equal, and the least of rows."""
        ordinary = self._batch(sizes)
        least = torch.arange(self._class().reads.least_rows)
        for batch in (
            ordinary.map(lambda each: 6e4 * each.sign()),
            ordinary.map(torch.zeros_like),
            ordinary.map(torch.ones_like),
            ordinary.map(lambda each: 1e-6 * each),
            ordinary.take(least),
        ):
            self._require_finite(self._made(sizes), batch)

    def test_half_precision_is_summed_in_float32(self, sizes: Sizes) -> None:
        batch = self._batch(sizes)
        terms = self._terms(self._made(sizes), batch.map(torch.Tensor.bfloat16))
        for name, term in terms.items():
            assert term.dtype == torch.float32, f"{name}: is {term.dtype}"
        whole = self._terms(self._made(sizes), batch.map(lambda each: each.bfloat16().float()))
        torch.testing.assert_close(terms["total"], whole["total"], rtol=0.05, atol=0.05)

    def test_autocast_rounds_no_sum(self, sizes: Sizes) -> None:
        """Under autocast, as in a run of bf16, maps that are owned are rounded, and nothing else
        is: products of two inputs need `distances.products`."""
        objective, batch = self._made(sizes), self._batch(sizes)
        plain = self._terms(objective, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = self._terms(objective, batch)
        maps = bool(list(objective.parameters())) or "tokens" in self._class().reads.student
        for name, term in terms.items():
            assert term.dtype == torch.float32, f"{name}: is {term.dtype}"
            assert maps or torch.equal(term, plain[name]), f"{name} is rounded"

    def test_a_weight_of_0_leaves_nothing_of_it(self, sizes: Sizes) -> None:
        objective, batch = self._made(sizes), self._batch(sizes)
        for part in (batch.pooled, batch.output):
            part.requires_grad_()
        plain = self._summed(objective, 1.0).of_sources(*self._of_sources(objective, batch))
        alone = self._terms(objective, batch)
        for name in alone.keys() - {"total", "task"}:
            torch.testing.assert_close(plain[f"{objective.label}.{name}"], alone[name])
        terms = self._summed(objective, 0.0).of_sources(*self._of_sources(objective, batch))
        expected = terms.get("task", torch.zeros(()))
        torch.testing.assert_close(terms["total"].detach(), expected)
        torch.autograd.backward(terms["total"])
        for name, parameter in objective.named_parameters():
            assert parameter.grad is None or not parameter.grad.any(), f"{name} would be moved"

    # --- declared reading

    def test_it_reads_what_it_declares(self, sizes: Sizes) -> None:
        reads, objective, batch = self._class().reads, self._made(sizes), self._batch(sizes)
        total = self._terms(objective, batch)["total"]
        assert not reads.nonnegative or total > -1e-6, "reads.nonnegative: the loss is below 0"
        for at, feature in enumerate(batch.features):
            others = (*batch.features[:at], feature.flip(0) + 1, *batch.features[at + 1 :])
            changed = self._terms(objective, replace(batch, features=others))["total"]
            assert not torch.equal(changed, total), f"feature {at + 1} is not read"
        if "layers" in reads.student:
            assert objective.layers, "reads.student has layers: layers_of names none"
        for layer in objective.layers:
            states = list(batch.layers)
            states[layer] = states[layer].flip(0) + 1
            changed = self._terms(objective, replace(batch, layers=tuple(states)))["total"]
            assert not torch.equal(changed, total), f"layer {layer} is not read"
        if "attention" in reads.student:
            assert objective.attention, "reads.student has attention: attention_of names none"
        for layer in objective.attention:
            inside = list(batch.attention)
            inside[_index(layer)] = inside[_index(layer)].flip(0) + 1
            changed = self._terms(objective, replace(batch, attention=tuple(inside)))["total"]
            assert not torch.equal(changed, total), f"attention layer {layer} is not read"
        relabelled = replace(batch, labels=batch.labels.flip(0))
        if reads.task and reads.labels:
            changed = self._terms(objective, relabelled)["total"]
            assert not torch.equal(changed, total), "reads.task: the labels are not scored"
        if not reads.task:  # as one of several that leaves the labels to the others
            side, sources, _ = self._of_sources(objective, batch)
            terms = objective.of_sources(replace(side, output_BK=None), sources, None)
            assert terms["total"].isfinite(), "reads.task is False: it is given no labels"

    def test_features_are_needed_as_declared(self, sizes: Sizes) -> None:
        reads, batch = self._class().reads, self._batch(sizes)
        if reads.features == 0:
            return
        objective = self._made(sizes)
        side, _, labels = self._of_sources(objective, batch)
        with pytest.raises(InputError):
            objective.of_sources(side, {}, labels)
        with pytest.raises(InputError):
            self._made(replace(sizes, feature_shape=None, more_shapes=()))

    def test_students_that_do_not_fit_are_refused(self) -> None:
        reads = self._class().reads
        if reads.classes:
            with pytest.raises(InputError, match="classes"):
                self._made(replace(self._sizes(False), num_labels=self.num_labels + 1))
        if not reads.regression:
            with pytest.raises(InputError, match="regression"):
                self._made(self._sizes(regression=True))
        if reads.classes and not reads.multilabel:
            with pytest.raises(InputError, match="multilabel"):
                self._made(replace(self._sizes(regression=False), multilabel=True))
        if "layers" in reads.student:
            with pytest.raises(InputError, match="layer"):
                self._made(replace(self._sizes(regression=False), layer_dims=()))
        if "attention" in reads.student:
            with pytest.raises(InputError, match="attention"):
                self._made(replace(self._sizes(regression=False), attention_dims=()))

    def test_its_weights_are_kept_and_read_again(self, sizes: Sizes) -> None:
        one, other = self._made(sizes), self._made(sizes, seed=1)
        other.load_state_dict(one.state_dict())
        batch = self._batch(sizes)
        assert torch.equal(self._terms(one, batch)["total"], self._terms(other, batch)["total"]), (
            "some of its state is no parameter and no buffer"
        )

    # --- construction and calls

    def _class(self) -> type[Objective]:
        found: type[Objective] = OBJECTIVES.load(self.objective)
        return found

    def _sizes(self, regression: bool) -> Sizes:
        shapes = self.feature_shapes if self._class().reads.features != 0 else ()
        labels = 1 if regression else self.num_labels
        if regression and self._class().reads.classes:
            shapes = ((labels,),) * len(shapes)
        return Sizes(
            pooled_dim=self.pooled_dim,
            num_labels=labels,
            regression=regression,
            feature_shape=shapes[0] if shapes else None,
            more_shapes=shapes[1:],
            dropout=0.0,
            layer_dims=self.layer_dims if "layers" in self._class().reads.student else (),
            attention_dims=(
                (0, *self.attention_dims) if "attention" in self._class().reads.student else ()
            ),
        )

    def _made(self, sizes: Sizes, seed: int = 0, **options: Any) -> Objective:
        torch.manual_seed(seed)
        kind = self._class()
        made = kind(kind.Options(**{**self.options, **options}), sizes)
        made.label = self.objective
        made.sources = tuple(f"source {at}" for at in range(len(_shapes(sizes))))
        return made.eval()

    def _batch(self, sizes: Sizes, seed: int = 3) -> Batch:
        return self.batch(sizes, self.rows, torch.Generator().manual_seed(seed))

    def _terms(self, objective: Objective, batch: Batch) -> Terms:
        return objective.of_sources(*self._of_sources(objective, batch))

    def _total(self, sizes: Sizes, **options: Any) -> Tensor:
        return self._terms(self._made(sizes, **options), self._batch(sizes))["total"].detach()

    def _summed(self, objective: Objective, weight: float) -> SummedObjective:
        return SummedObjective([objective], [weight], objective.sizes).eval()

    def _of_sources(self, objective: Objective, batch: Batch) -> tuple[Any, ...]:
        sources: dict[str, Any] = dict(zip(objective.sources, batch.features, strict=True))
        if objective.negatives:
            sources[negatives_name(objective.sources[0])] = self._negatives(objective, batch)
        layers = {layer: batch.layers[layer] for layer in objective.layers}
        attention = {layer: batch.attention[_index(layer)] for layer in objective.attention}
        side = StudentSide(
            batch.pooled, batch.output, layers=layers, mask_BT=batch.mask, attention=attention
        )
        return side, sources, batch.labels

    def _negatives(self, objective: Objective, batch: Batch) -> Negatives:
        """Rows of the first source, the same for each batch."""
        count, draw = objective.negatives, torch.Generator().manual_seed(5)
        features = torch.randn(count, *self.feature_shapes[0], generator=draw)
        labels = torch.arange(count) % self.num_labels
        return Negatives(features.to(batch.features[0].dtype), labels)

    def _require_finite(self, objective: Objective, batch: Batch) -> None:
        changed = batch.map(lambda each: each.detach().clone())
        student = changed.student
        for part in student:
            part.requires_grad_()
        terms = self._terms(objective, changed)
        for name, term in terms.items():
            assert term.isfinite(), f"{name} is not finite"
        torch.autograd.backward(terms["total"])
        layers = (f"layer {number}" for number in range(len(changed.layers)))
        attention = (f"attention {number + 1}" for number in range(len(changed.attention)))
        names = ("pooled", "output", *layers, *attention)
        inputs = dict(zip(names, student, strict=True)) | dict(objective.named_parameters())
        for name, each in inputs.items():
            assert each.grad is None or each.grad.isfinite().all(), f"gradient of {name}"


@dataclass(frozen=True, slots=True)
class TokenBatch(Batch):
    """P predicted tokens: pooled is the student's hidden states [P, H], output its head [V, H],
    features the teacher's logits [P, V], labels the next tokens [P]."""

    def take(self, rows: Tensor) -> "TokenBatch":
        """Some tokens."""
        features = tuple(each[rows] for each in self.features)
        return TokenBatch(self.pooled[rows], self.output, features, self.labels[rows])


class TokenObjectiveTests(ObjectiveTests):
    """Tests for objectives of language models: they read tokens, and for each of them the
    probabilities of a teacher. `num_labels` is the size of the vocabulary."""

    num_labels = 7
    feature_shapes = ((7,),)

    @pytest.fixture
    def sizes(self) -> Sizes:
        """Sizes for the objective; tokens have one task."""
        return self._sizes(regression=False)

    def batch(self, sizes: Sizes, rows: int, draw: torch.Generator) -> Batch:
        """A batch of float32."""
        vocab = sizes.num_labels
        return TokenBatch(
            pooled=torch.randn(rows, sizes.pooled_dim, generator=draw),
            output=torch.randn(vocab, sizes.pooled_dim, generator=draw),
            features=(torch.randn(rows, vocab, generator=draw),),
            labels=torch.randint(vocab, (rows,), generator=draw),
        )

    def test_features_are_needed_as_declared(self, sizes: Sizes) -> None:
        """Without teacher predictions, only the corpus is learned."""
        objective, batch = self._made(sizes), self._batch(sizes)
        side, _, labels = self._of_sources(objective, batch)
        terms = objective.of_sources(side, {}, labels)
        logits = batch.pooled @ batch.output.T
        torch.testing.assert_close(terms["total"], F.cross_entropy(logits, batch.labels))

    def test_padding_changes_nothing(self, sizes: Sizes) -> None:
        """Tokens without label and teacher prediction, with arbitrary values."""
        objective, batch = self._made(sizes), self._batch(sizes)
        padded = batch.take(torch.tensor([*range(self.rows), 0, 0]))
        padded.labels[self.rows :] = MISSING_LABEL
        padded.features[0][self.rows :] = math.nan
        side, sources, _ = self._of_sources(objective, padded)
        answered = torch.arange(self.rows + 2) < self.rows
        changed = {name: replace(each, answered_P=answered) for name, each in sources.items()}
        for name, term in objective.of_sources(side, changed, None).items():
            torch.testing.assert_close(term, self._terms(objective, batch)[name])

    def _of_sources(self, objective: Objective, batch: Batch) -> tuple[Any, ...]:
        (logits,), (name,) = batch.features, objective.sources
        answers = DenseAnswers(F.log_softmax(accumulated(logits), dim=-1))
        tokens = Tokens(batch.pooled, batch.output, batch.labels)
        return StudentSide(tokens=tokens), {name: TokenAnswers(answers)}, None


class PairObjectiveTests(ObjectiveTests):
    """Tests for objectives of language models that compare two responses to each prompt: `pooled`
    of a batch is the student's log-probabilities [B, 2], `labels` how many tokens the responses
    have, features those log-probabilities of a reference, if there is one."""

    feature_shapes = ((2,),)

    @pytest.fixture
    def sizes(self) -> Sizes:
        """Sizes for the objective; pairs have one task."""
        return self._sizes(regression=False)

    def batch(self, sizes: Sizes, rows: int, draw: torch.Generator) -> Batch:
        """A batch of float32."""
        shape = (rows, 2)
        return Batch(
            pooled=-9 * torch.rand(shape, generator=draw),
            output=torch.zeros(rows, 1),
            features=tuple(-9 * torch.rand(shape, generator=draw) for _ in _shapes(sizes)),
            labels=torch.randint(2, 9, (rows,), generator=draw),
        )

    def test_features_are_needed_as_declared(self, sizes: Sizes) -> None:
        """Nor is anything learned without pairs."""
        objective = self._made(sizes)
        side, sources, labels = self._of_sources(objective, self._batch(sizes))
        if self._class().reads.features:
            with pytest.raises(InputError):
                objective.of_sources(side, {}, labels)
        with pytest.raises(InputError):
            objective.of_sources(replace(side, pairs=None), sources, labels)

    def test_rows_without_a_label(self, sizes: Sizes) -> None:
        """Weights of 0 leave a pair out, and weights that are equal change nothing."""
        objective, batch = self._made(sizes), self._batch(sizes)
        side, sources, labels = self._of_sources(objective, batch)
        plain = self._terms(objective, batch)["total"]
        weights = torch.full((self.rows,), 3.0)
        equal = replace(side, pairs=replace(side.pairs, weights_B=weights))
        torch.testing.assert_close(objective.of_sources(equal, sources, labels)["total"], plain)
        weights[0] = 0
        torch.testing.assert_close(
            objective.of_sources(equal, sources, labels)["total"],
            self._terms(objective, batch.take(torch.arange(1, self.rows)))["total"],
        )

    def _of_sources(self, objective: Objective, batch: Batch) -> tuple[Any, ...]:
        sources = dict(zip(objective.sources, batch.features, strict=True))
        counts = torch.stack([batch.labels, 11 - batch.labels], dim=1)
        return StudentSide(pairs=ResponsePairs(batch.pooled, counts)), sources, None


def _index(layer: int) -> int:
    """Index of an attention layer, of which there is none for the embeddings."""
    return layer - 1 if layer > 0 else layer


def _shapes(sizes: Sizes) -> tuple[Shape, ...]:
    return () if sizes.feature_shape is None else (sizes.feature_shape, *sizes.more_shapes)
