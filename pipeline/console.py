"""Results of commands, on standard output: lines or a table for people, JSON for programs."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from inspect import get_annotations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .messages import (
    counted,
    duration,
    fidelity_in_words,
    requests_in_words,
    size,
    warn,
    warn_skipped,
)

if TYPE_CHECKING:
    from .ablation.ablate import PlannedCell
    from .corpora.provenance import CorpusReport
    from .objectives import Description
    from .precompute import DryRun
    from .precompute_plan import PrecomputeReport
    from .predict import PredictReport
    from .retrieval.mine import MineReport
    from .student_export import StudentExport


def show_json(value: Any) -> None:
    """Print a document or dataclasses as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return dataclasses.asdict(value)


def show_keys(*jobs: type[BaseModel], **options: type[BaseModel]) -> None:
    """Print every key of jobs, and of the `options` of teachers and objectives, with default and
    meaning: required ones first, then the others in groups.
    """
    for heading, keys in _key_groups(jobs, options).items():
        print(f"{heading}:")
        for name, field in keys.items():
            default = "" if field.is_required() else repr(_default(field))
            print(f"  {name:24} {default:16} {field.description or ''}".rstrip())


def _key_groups(
    jobs: Sequence[type[BaseModel]], options: Mapping[str, type[BaseModel]]
) -> dict[str, dict[str, FieldInfo]]:
    """Heading -> keys: a class that declares keys is a group, and its docstring is the heading."""
    groups: dict[str, dict[str, FieldInfo]] = {"Required": {}}
    seen: set[str] = set()
    for job in jobs:
        for owner in job.__mro__:
            title = re.split(r"\.(?:\s|$)|\n", owner.__doc__ or owner.__name__)[0]
            for name in get_annotations(owner):
                field = job.model_fields.get(name)
                if field is None or name in seen:
                    continue
                seen.add(name)
                groups.setdefault("Required" if field.is_required() else title, {})[name] = field
    return groups | {f"Options of {name}": own.model_fields for name, own in options.items()}


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def show_objectives(objectives: "Sequence[Description]", as_json: bool) -> None:
    """Print what objectives are, need and compute."""
    if as_json:
        show_json([each.document() for each in objectives])
        return
    width = max(len(each.name) for each in objectives) + 2
    for each in objectives:
        print(f"{each.name:{width}}{each.summary}")
        print(f"{'':{width}}needs    {each.needs.in_words()}")
        for title, text in (("formula", each.formula), ("source", each.source)):
            if text is not None:
                print(f"{'':{width}}{title:9}{text}")


def show_precompute(report: "PrecomputeReport", as_json: bool) -> None:
    """Print the result of `precompute`."""
    warn_skipped(report.skipped)
    if report.truncated:
        warn(f"{report.truncated} texts are longer than the teacher takes and were truncated")
    if as_json:
        show_json(dataclasses.asdict(report) | {"asked": report.computed})  # its earlier name
        return
    elsewhere = f", {report.done_elsewhere} by other processes" if report.done_elsewhere else ""
    print(
        f"{report.rows} rows, {report.unique} unique; {report.already_cached} already cached, "
        f"{report.computed} computed in {report.teacher_seconds:.1f} s{elsewhere}"
    )
    if report.requests is not None:
        print(requests_in_words(report.requests))
    for name, measured in report.fidelity.items():
        print(f"{name}: {fidelity_in_words(measured)}")
    print(f"teacher {report.fingerprint}")


def show_dry_run(plan: "DryRun", as_json: bool) -> None:
    """Print the plan of `precompute`."""
    warn_skipped(plan.skipped)
    if as_json:
        show_json(plan)
        return
    missing = plan.unique - plan.already_cached
    print(
        f"{plan.rows} rows, {plan.unique} unique; {plan.already_cached} already cached, "
        f"{missing} to compute"
    )
    print(
        f"{counted(plan.shards, 'shard')}, {size(plan.bytes)}, about "
        f"{duration(plan.expected_seconds)} of teacher time"
    )
    if plan.requests is not None and missing:
        print(f"about {requests_in_words(plan.requests)}")
    settings = (f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in plan.settings.items())
    print(f"settings: {'; '.join(settings) or 'none'}")
    print(f"teacher {plan.fingerprint}")


def show_distill(metrics: dict[str, Any], output: Path, as_json: bool) -> None:
    """Print the figures of a run, or the mean and spread of several."""
    warn_skipped(metrics.get("skipped_rows", []))
    if metrics.get("truncated_examples"):
        warn(f"{metrics['truncated_examples']} training texts were truncated at max_length")
    if metrics.get("distinct_predictions") == 1:
        warn(
            "the student predicts the same for every validation text: it has not learned to "
            "distinguish them; try another learning_rate, or more epochs"
        )
    if as_json:
        show_json(metrics)
        return
    for name, value in (metrics["validation"] or {}).items():
        print(f"{name:12} {_figure(value)}")
    if not metrics["validation"] and metrics.get("train_losses"):
        losses = ", ".join(f"{name} {_figure(v)}" for name, v in metrics["train_losses"].items())
        print(f"no validation; at the end of training: {losses}")
    print(f"written to {output}")


def show_evaluation(result: dict[str, Any], as_json: bool) -> None:
    """Print the metrics of a student on a corpus."""
    warn_skipped(result["skipped_rows"])
    if result["truncated_examples"]:
        warn(f"{result['truncated_examples']} texts were truncated at the student's max_length")
    if as_json:
        show_json(result)
        return
    print(_evaluated(result))
    width = max([12, *map(len, result["metrics"])])
    for name, value in result["metrics"].items():
        print(f"{name:{width}} {_figure(value)}")
    if "by_precision" in result:
        _show_precisions(result["by_precision"])
    if "texts_per_second" in result:
        speed, weights = result["texts_per_second"], size(result["model_bytes"])
        print(f"{speed:,.0f} texts a second on this machine, {weights} of weights")


def _show_precisions(table: Mapping[str, Any]) -> None:
    """Print a line for each way to keep vectors: bytes, metrics, and differences to the whole."""
    first = max(map(len, table))
    for name, row in table.items():
        size_bytes = row["vector_bytes"]
        number = size_bytes["mean"] if isinstance(size_bytes, dict) else size_bytes
        figures = []
        for metric, value in row.items():
            if metric == "vector_bytes" or metric.endswith("_difference"):
                continue
            gained = row.get(f"{metric}_difference")
            mean = gained["mean"] if isinstance(gained, dict) else gained
            beside = "" if mean is None else f" ({mean:+.4f})"
            figures.append(f"{metric} {_figure(value)}{beside}")
        print(f"{name:{first}}  {number:>6,.0f} bytes  {', '.join(figures)}")


def _evaluated(result: dict[str, Any]) -> str:
    """What a student was evaluated on."""
    if "tasks" in result:
        return counted(result["examples"], "task") + " of MTEB, each by its main score"
    if "passages" in result:
        without = result["queries_without_relevant"]
        note = f", {without} without a relevant passage, not counted" if without else ""
        return f"{result['examples']} queries, {result['passages']} passages{note}"
    if "captions" in result:
        return f"{result['captions']} captions, {counted(result['pictures'], 'picture')}"
    unlabelled = result.get("unlabelled_examples")  # language models need no labels
    note = "" if unlabelled is None else f", {unlabelled} without a label"
    classes = f" of {result['classes']} classes" if "classes" in result else ""
    return f"{result['examples']} examples{classes}{note}"


def show_predicted(predicted: "PredictReport", as_json: bool) -> None:
    """Print the result of `predict`."""
    warn_skipped(predicted.skipped)
    if predicted.truncated:
        warn(f"{predicted.truncated} texts were truncated at the student's max_length")
    if as_json:
        show_json(predicted)
        return
    print(f"{counted(predicted.rows, 'row')}, {predicted.kind}")
    print(f"written to {predicted.output}")


def show_student_export(found: "StudentExport", as_json: bool) -> None:
    """Print the result of `export`: each model beside the student."""
    warn_skipped(found.skipped)
    if as_json:
        show_json(found)
        return
    print(f"compared on {counted(found.texts, 'text')}: {found.compared_on}")
    if found.spearman is not None:
        print(f"{'the student':16}  spearman {found.spearman:.4f}")
    for name, model in found.models.items():
        print(
            f"{name:16}  {size(model.bytes)}, largest difference {model.largest_difference:.2g}, "
            f"cosine {model.cosine_mean:.5f} (least {model.cosine_least:.5f})"
            + ("" if model.spearman is None else f", spearman {model.spearman:.4f}")
        )
    print(f"written to {found.output}")


def show_corpus(report: "CorpusReport", as_json: bool) -> None:
    """Print the result of `corpus`: what each rule did, and what is kept."""
    warn_skipped(report.skipped)
    if as_json:
        show_json(report)
        return
    print(f"{counted(report.prompts, 'prompt')}, {counted(report.responses, 'response')}")
    for rule in report.rules:
        print(f"  {rule.name:24} {rule.rejected:>9,} rejected, {rule.left:>9,} left")
    if len(report.generators) > 1:
        for each in report.generators:
            print(f"  {each.name:24} {each.kept:>9,} of {each.responses:,} kept")
    print(f"kept {counted(report.kept, 'response')} to {counted(report.kept_prompts, 'prompt')}")
    if report.written is not None:
        print(f"written to {report.output}: {counted(report.written, 'row')}")


def show_mined(report: "MineReport", as_json: bool) -> None:
    """Print the result of `mine`."""
    warn_skipped(report.skipped)
    if as_json:
        show_json(report)
        return
    print(
        f"{counted(report.pairs, 'pair')}, {counted(report.queries, 'different query text')}, "
        f"{counted(report.passages, 'different passage')}"
    )
    print(f"{counted(report.mined, 'negative')}; {counted(report.short, 'pair')} with fewer")
    if report.too_high or report.too_near:
        print(
            f"left out: {report.too_high:,} candidates above max_score, {report.too_near:,} too "
            "near to the positive"
        )
    if report.recall is not None:
        print(f"{report.recall:.1%} of the nearest passages were found".replace("%", " %"))
    print(f"written to {report.output}: {counted(report.written, 'row')}")


def _figure(value: float | dict[str, float]) -> str:
    if isinstance(value, dict):
        return f"{value['mean']:.4f} ± {value['std']:.4f}"
    return f"{value:.4f}"


def show_plan(cells: "list[PlannedCell]", repeated: int, as_json: bool) -> None:
    """Print one line per cell, or JSON."""
    if as_json:
        show_json(cells)
        return
    runs = sum(len(cell.seeds) for cell in cells)
    finished = sum(cell.finished for cell in cells)
    print(f"{counted(runs, 'run')}, {finished} finished, {_steps_left(cells)} steps left")
    if repeated:
        print(f"{counted(repeated, 'cell')} in several grids, run once")
    for cell in cells:
        seeds = ", ".join(map(str, cell.seeds))
        print(
            f"{cell.name}: seeds {seeds}, {cell.train_examples} examples, {cell.steps} steps each"
        )


def _steps_left(cells: "list[PlannedCell]") -> int:
    return sum(cell.steps * (len(cell.seeds) - cell.finished) for cell in cells)
