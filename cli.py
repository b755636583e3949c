"""The command line: parses, calls `pipeline`, prints results, maps errors to exit codes.

Nothing heavy is imported before a command runs, and what its run needs only when its job was found
right: mistyped keys are refused at once. Results go to standard output, everything else to
standard error. Exit codes: 0 done, 1 the run failed, 2 the input was wrong.
"""

import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from .cache_schemas.errors import (
    AccessError,
    ArmadaError,
    FollowerError,
    InputError,
    JobError,
    shown_url,
)
from .pipeline.caches.commands import AsJson, Quiet, Settings, SkipBadRows, TextColumn
from .pipeline.caches.commands import app as cache_commands
from .pipeline.imports import end_without_search, kept_imports
from .pipeline.messages import LOGGER, LogLevel, set_level, shown

app = typer.Typer(
    help="Knowledge distillation: compute a teacher's outputs once, train any number of students.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(cache_commands, name="cache")

_PATIENCE_S = 5.0
_INTERRUPTED = 130

JobFile = Annotated[Path | None, typer.Argument(help="YAML file of job keys", show_default=False)]
Student = Annotated[
    Path | None, typer.Argument(help="folder that distill wrote", show_default=False)
]
Keys = Annotated[bool, typer.Option("--keys", help="list all job keys and what they mean")]


def _show_version(wanted: bool) -> None:
    from . import __version__

    if wanted:
        print(f"armada {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
    log_level: Annotated[
        LogLevel, typer.Option(help="lowest level of messages shown on standard error")
    ] = LogLevel.INFO,
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=_show_version)
    ] = False,
) -> None:
    """`main` meets an error only after typer is done, so it looks for --debug itself."""
    set_level(log_level)


@app.command()
def precompute(
    job: JobFile = None,
    corpus: Annotated[list[str] | None, typer.Option(help="file or folder of texts")] = None,
    text_column: TextColumn = None,
    teacher: Annotated[str | None, typer.Option(help="KIND:SOURCE, e.g. hash:16")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of the cache")] = None,
    part: Annotated[
        str | None, typer.Option(help="I/N: the I-th of N parts, for job arrays")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="number of processes here, or auto: one for each GPU")
    ] = None,
    dask: Annotated[str | None, typer.Option(help="address of a Dask scheduler")] = None,
    max_requests: Annotated[
        int | None, typer.Option(help="requests to a server after which the run ends")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="cost of requests at which the run ends, by the prices")
    ] = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show what would be done")
    ] = False,
    keys: Keys = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compute a teacher's features once for every text of a corpus, and keep them in a cache.

    --keys lists all job keys; with --teacher KIND, the options of that kind too."""
    from .pipeline.console import show_dry_run, show_keys, show_precompute
    from .pipeline.jobs import collect_keys
    from .pipeline.precompute_job import PrecomputeJob, make_precompute_job, teacher_options

    if keys:
        named = {"this kind of teacher": teacher_options(teacher)} if teacher else {}
        show_keys(PrecomputeJob, **named)
        return
    options = {
        "corpus": corpus,
        "text_column": text_column,
        "teacher": teacher,
        "cache": str(cache) if cache else None,
        "part": part,
        "workers": workers,
        "dask": dask,
        "max_requests": max_requests,
        "max_cost": max_cost,
    }
    made = make_precompute_job(collect_keys(job, options, settings or []))
    with kept_imports():
        from .pipeline import precompute as stage

    if dry_run:
        expected = stage.dry_run(made)
        if stage.tells(made):
            show_dry_run(expected, as_json)
    else:
        report = stage.run_precompute(made, quiet)
        if stage.tells(made):
            show_precompute(report, as_json)


@app.command()
def distill(
    job: JobFile = None,
    train: Annotated[list[str] | None, typer.Option(help="file or folder to train on")] = None,
    validation: Annotated[
        list[str] | None, typer.Option(help="file or folder that the best epoch is chosen on")
    ] = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="column of labels")] = None,
    cache: Annotated[str | None, typer.Option(help="folder or URL of the cache")] = None,
    teacher: Annotated[str | None, typer.Option(help="fingerprint or unique prefix")] = None,
    student: Annotated[str | None, typer.Option(help="folder, hub id, or scratch:bert")] = None,
    output: Annotated[Path | None, typer.Option(help="folder to write the run to")] = None,
    objective: Annotated[str | None, typer.Option(help="armada, kd or feature")] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help="none, undistilled, random-aligner, shuffled, noise=SIGMA; of class logits: "
            "permuted-classes, class-means, smoothed"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an unfinished run")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option(help="USER/NAME on the Hub to upload the student to at the end")
    ] = None,
    settings: Settings = None,
    keys: Keys = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a student from a cache; with several seeds, one after another.

    --keys lists all job keys; with --objective NAME, the options of that objective too."""
    from .pipeline.console import show_distill, show_keys
    from .pipeline.distill_job import DistillJob
    from .pipeline.jobs import collect_keys, make
    from .pipeline.objective_keys import objective_options

    if keys:
        chosen = objective or "armada"
        show_keys(DistillJob, **{f"the objective {chosen}": objective_options(chosen)})
        return
    options = {
        "train": train,
        "validation": validation,
        "text_column": text_column,
        "label_column": label_column,
        "cache": cache,
        "teacher": teacher,
        "student": student,
        "output": str(output) if output else None,
        "objective": objective,
        "control": control,
        "resume": resume or None,
        "push_to_hub": push_to_hub,
    }
    made = make(DistillJob, collect_keys(job, options, settings or []))
    with kept_imports():
        from .pipeline.distill import push_student, run_distill
        from .stages.distill.processes import processes

    metrics = run_distill(made, quiet)
    if processes().first:
        show_distill(metrics, made.output, as_json)
        push_student(made)


@app.command()
def ablate(
    job: JobFile = None,
    output: Annotated[Path | None, typer.Option(help="folder of all runs")] = None,
    workers: Annotated[str | None, typer.Option(help="runs at a time, or auto")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an unfinished one")] = False,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list the runs")] = False,
    keys: Keys = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the students of a grid of job keys against one cache, in parallel, and compare them."""
    from .pipeline.ablation.job import AblateJob, make_ablation
    from .pipeline.console import show_json, show_keys, show_plan
    from .pipeline.distill_job import DistillJob
    from .pipeline.jobs import collect_keys
    from .pipeline.objective_keys import objective_options

    if keys:
        named = {"the objective armada": objective_options("armada")}
        show_keys(AblateJob, DistillJob, **named)
        return
    options = {
        "output": str(output) if output else None,
        "workers": workers,
        "resume": resume or None,
    }
    ablation = make_ablation(collect_keys(job, options, settings or []))
    with kept_imports():
        from .pipeline.ablation.ablate import plan, run_ablate
        from .pipeline.findings.table import show_findings

    if dry_run:
        show_plan(plan(ablation), ablation.repeated, as_json)
        return
    findings = run_ablate(ablation, quiet)
    show_json(findings.document()) if as_json else show_findings(findings)


@app.command()
def evaluate(
    student: Student = None,
    corpus: Annotated[list[str] | None, typer.Option(help="file or folder with labels")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="default as in training")] = None,
    label_column: Annotated[str | None, typer.Option(help="default as in training")] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="cache of embeddings to compare with, if the student learned a feature"),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="fingerprint or prefix of one")] = None,
    beir: Annotated[
        Path | None, typer.Option(help="instead of a corpus: BEIR folder to search in")
    ] = None,
    split: Annotated[str | None, typer.Option(help="of the BEIR folder; default test")] = None,
    settings: Settings = None,
    keys: Keys = False,
    as_json: AsJson = False,
) -> None:
    """Measure a trained student on a corpus."""
    from .pipeline.console import show_evaluation, show_keys
    from .pipeline.jobs import collect_keys, make
    from .pipeline.student_jobs import EvaluateJob

    if keys:
        show_keys(EvaluateJob)
        return
    options = {
        "student": str(student) if student else None,
        "corpus": corpus,
        "text_column": text_column,
        "label_column": label_column,
        "cache": cache,
        "teacher": teacher,
        "beir": str(beir) if beir else None,
        "split": split,
    }
    made = make(EvaluateJob, collect_keys(None, options, settings or []))
    with kept_imports():
        from .pipeline.evaluate import run_evaluate

    show_evaluation(run_evaluate(made), as_json)


@app.command()
def predict(
    student: Student = None,
    corpus: Annotated[list[str] | None, typer.Option(help="file or folder of texts")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="default as in training")] = None,
    id_column: Annotated[str | None, typer.Option(help="column of unique ids")] = None,
    output: Annotated[Path | None, typer.Option(help="new .parquet or .jsonl file")] = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    keys: Keys = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained student's predictions for each row of a corpus, which needs no labels."""
    from .pipeline.console import show_keys, show_predicted
    from .pipeline.jobs import collect_keys, make
    from .pipeline.student_jobs import PredictJob

    if keys:
        show_keys(PredictJob)
        return
    options = {
        "student": str(student) if student else None,
        "corpus": corpus,
        "text_column": text_column,
        "id_column": id_column,
        "output": str(output) if output else None,
        "skip_bad_rows": skip_bad_rows or None,
    }
    made = make(PredictJob, collect_keys(None, options, settings or []))
    with kept_imports():
        from .pipeline.predict import run_predict

    show_predicted(run_predict(made, quiet), as_json)


@app.command()
def embed(
    student: Student = None,
    corpus: Annotated[list[str] | None, typer.Option(help="file or folder of texts")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="column of the texts")] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the cache to write")] = None,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus by a trained student, into a cache as any: started again, it goes on.

    The same as `precompute` with teacher student:STUDENT, whose keys it takes; `cache export`
    writes it as Parquet or NumPy files."""
    from .pipeline.console import show_precompute
    from .pipeline.jobs import collect_keys
    from .pipeline.precompute_job import make_precompute_job

    if student is None:
        raise JobError("job key 'student' is missing; name a folder that `distill` wrote")
    if output is None and not any(each.startswith("cache=") for each in settings or []):
        raise JobError("--output is missing; name the folder of a cache, new or begun")
    options = {
        "corpus": corpus,
        "text_column": text_column,
        "teacher": f"student:{student}",
        "cache": str(output) if output else None,
    }
    made = make_precompute_job(collect_keys(None, options, settings or []))
    with kept_imports():
        from .pipeline import precompute as stage

    report = stage.run_precompute(made, quiet)
    if stage.tells(made):
        show_precompute(report, as_json)


@app.command()
def export(
    student: Student = None,
    quantize: Annotated[str | None, typer.Option(help="int8: write a second model")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="file or folder of texts")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="column of texts")] = None,
    label_column: Annotated[str | None, typer.Option(help="column of scores of pairs")] = None,
    settings: Settings = None,
    keys: Keys = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained student that embeds as an ONNX model into its folder, and compare the two.

    The corpus is what they are compared on."""
    from .pipeline.console import show_keys, show_student_export
    from .pipeline.jobs import collect_keys, make
    from .pipeline.student_export import StudentExportJob, run_student_export

    if keys:
        show_keys(StudentExportJob)
        return
    options = {
        "student": str(student) if student else None,
        "quantize": quantize,
        "corpus": corpus,
        "text_column": text_column,
        "label_column": label_column,
    }
    made = make(StudentExportJob, collect_keys(None, options, settings or []))
    show_student_export(run_student_export(made), as_json)


@app.command()
def corpus(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CACHE]",
            help="folder of a cache of responses, or YAML file of job keys",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="new .parquet file")] = None,
    corpus: Annotated[list[str] | None, typer.Option(help="file or folder of the prompts")] = None,
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option(help="column of labels; kept")] = None,
    teacher: Annotated[str | None, typer.Option(help="fingerprint or unique prefix")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="instead of a cache: file that predict wrote")
    ] = None,
    rejected: Annotated[
        Path | None, typer.Option(help="new file of the responses that are not kept")
    ] = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only count what each rule rejects")
    ] = False,
    keys: Keys = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the responses of a cache as a corpus: those that declared rules keep."""
    from .pipeline.console import show_corpus, show_keys
    from .pipeline.corpora.job import CorpusJob
    from .pipeline.corpora.rules import RULES
    from .pipeline.jobs import collect_keys, make

    if keys:
        show_keys(CorpusJob, **{f"the rule {name}": kind for name, kind in RULES.items()})
        return
    job_file = source if source is not None and source.suffix in (".yaml", ".yml") else None
    options = {
        "cache": str(source) if source and not job_file else None,
        "output": str(output) if output else None,
        "corpus": corpus,
        "text_column": text_column,
        "label_column": label_column,
        "teacher": teacher,
        "predictions": str(predictions) if predictions else None,
        "rejected": str(rejected) if rejected else None,
        "skip_bad_rows": skip_bad_rows or None,
    }
    made = make(CorpusJob, collect_keys(job_file, options, settings or []))
    with kept_imports():
        from .pipeline.corpora.corpus import run_corpus

    show_corpus(run_corpus(made, dry_run, quiet), as_json)


@app.command()
def mine(
    job: JobFile = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="file or folder of queries and positives")
    ] = None,
    text_column: Annotated[
        list[str] | None, typer.Option(help="two: that of queries, and of their positives")
    ] = None,
    passages: Annotated[
        list[str] | None, typer.Option(help="file or folder of passages; default the positives")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="folder of the cache of embeddings")] = None,
    teacher: Annotated[str | None, typer.Option(help="fingerprint or unique prefix")] = None,
    output: Annotated[Path | None, typer.Option(help="new .parquet file")] = None,
    negatives: Annotated[int | None, typer.Option(help="negatives for each row")] = None,
    skip_bad_rows: SkipBadRows = False,
    settings: Settings = None,
    keys: Keys = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Mine hard negatives for queries and their positives, by a teacher's cached embeddings."""
    from .pipeline.console import show_keys, show_mined
    from .pipeline.jobs import collect_keys, make
    from .pipeline.retrieval.mine_job import MineJob

    if keys:
        show_keys(MineJob)
        return
    options = {
        "corpus": corpus,
        "text_column": text_column,
        "passages": passages,
        "cache": str(cache) if cache else None,
        "teacher": teacher,
        "output": str(output) if output else None,
        "negatives": negatives,
        "skip_bad_rows": skip_bad_rows or None,
    }
    made = make(MineJob, collect_keys(job, options, settings or []))
    with kept_imports():
        from .pipeline.retrieval.mine import run_mine

    show_mined(run_mine(made, quiet), as_json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="folders that distill or ablate wrote")],
    out: Annotated[Path, typer.Option(help="file of the page")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="heading of the page")] = None,
    colour_by: Annotated[
        str | None, typer.Option(help="column of the training corpus to colour texts by")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="replace a file that is not a report")
    ] = False,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a page about finished runs: one file that opens anywhere, and its pictures."""
    from .pipeline.console import show_json
    from .pipeline.jobs import collect_keys, make
    from .pipeline.reports.job import ReportJob
    from .pipeline.reports.report import run_report

    options = {
        "runs": runs,
        "out": out,
        "title": title,
        "colour_by": colour_by,
        "force": force or None,
    }
    files = run_report(make(ReportJob, collect_keys(None, options, settings or [])), quiet)
    show_json([str(file) for file in files]) if as_json else print(f"written to {files[0]}")


@app.command()
def objectives(
    name: Annotated[str | None, typer.Argument(help="one of them", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the objectives of distill: what each is, needs and computes."""
    from .pipeline.console import show_objectives
    from .pipeline.objectives import description_of, descriptions

    show_objectives([description_of(name)] if name else descriptions(), as_json)


@app.command()
def schema(
    command: Annotated[
        str, typer.Argument(help="precompute, distill, ablate, evaluate, predict, corpus, mine")
    ],
) -> None:
    """Print the JSON Schema of a command's job files, for editors."""
    from .pipeline.console import show_json
    from .pipeline.schemas import job_schema

    show_json(job_schema(command))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="empty folder to write to")] = Path("armada-demo"),
    seed: Annotated[int, typer.Option(help="seed of corpus and students")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="one seed instead of three")] = False,
    task: Annotated[str, typer.Option(help="what students learn: colour or shape")] = "colour",
) -> None:
    """See both stages work in four minutes: nothing is downloaded, nothing is needed."""
    from .pipeline.demo.demo import DemoJob, run_demo
    from .pipeline.jobs import make

    run_demo(make(DemoJob, {"output": output, "seed": seed, "quick": quick, "task": task}))


def _let_the_first_speak(error: ArmadaError) -> None:
    """Wrong input is mostly wrong for all processes of a launcher: one per node prints the error,
    and the launcher ends the others, unless only theirs was wrong. So with one that fails because
    another has."""
    if isinstance(error, InputError | FollowerError) and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(_PATIENCE_S)


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Messages of other libraries may hold a URL with its password."""
    whole = "".join(traceback.format_exception(kind, error, trace))
    print(shown_url(whole), end="", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; exits with 0, 1 or 2. Without `arguments`, this process is
    the command's own."""
    if arguments is None:
        end_without_search()
    try:
        with shown():
            _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:  # before typer is there, which ends by 130 itself
        sys.exit(_INTERRUPTED)
    finally:
        sys.excepthook = _show_traceback  # typer puts its own there


def _run(given: list[str]) -> None:
    try:
        app(given, prog_name="armada")
    except ArmadaError as error:
        if "--debug" in given:
            raise
        _let_the_first_speak(error)
        LOGGER.error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in given:
            raise
        denied = isinstance(error, PermissionError) and error.filename is not None
        LOGGER.error(f"{error.filename}: permission denied" if denied else error)
        sys.exit(AccessError.exit_code if denied else ArmadaError.exit_code)


if __name__ == "__main__":  # `torchrun -m armada.cli`
    main()
