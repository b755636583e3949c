"""A run of `corpus`: decide about all responses to the prompts of a corpus, then write some.

The corpus is read in blocks, once for what the rules decide, once more to write. Memory: a block of
prompts with their responses, one byte a response; of shares 9 more; of duplicates 100. The order is
that of the corpus, then of the generators, then of the samples, so the same job writes the same
file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache_schemas.errors import CorpusError, JobError, MissingKeysError
from ...cache_schemas.keys import IntArray
from ...stages.corpus.corpus import CorpusStream, stream_corpus
from ...stages.corpus.reading import CorpusRequest
from ..messages import SHOWN_PROBLEMS, CountProgress
from ..outputs import check_new_file, new_file
from ..signals import telling_what_is_kept
from .generators import CachedResponses, Generator, Predictions, Prompts, Responses
from .job import CorpusJob
from .judges import Judge, in_order, make_judge
from .provenance import CorpusReport, GeneratorCount, RuleCount, provenance
from .tables import Tables

BLOCK_PROMPTS = 1024
SHARE = "share"
"""Name of the rule that the shares of generators are."""


@dataclass(slots=True)
class _Decisions:
    """About all responses, block by block: the generator of each, the number of the rule that
    rejects it, 0 for none, whether it is the first of its prompt, and the numbers that choose among
    them where there are shares."""

    verdicts: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    generators: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    draws: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    firsts: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    lacking_prompts: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    skipped: list[str] = field(default_factory=list)

    def kept_prompts(self) -> int:
        """Prompts with a response that is kept."""
        kept = np.concatenate([np.empty(0, np.uint8), *self.verdicts]) == 0
        starts = np.flatnonzero(np.concatenate([np.empty(0, bool), *self.firsts]))
        return int(np.logical_or.reduceat(kept, starts).sum()) if len(starts) else 0


@telling_what_is_kept(lambda: "nothing was written; run the same command again")
def run_corpus(job: CorpusJob, dry: bool = False, quiet: bool = False) -> CorpusReport:
    """Write the responses that the rules keep, or only count (`dry`). Raises an InputError for
    invalid input, and for rules that keep nothing."""
    if not dry:
        _check_outputs(job)
    run = _Run.of(job)
    decided = run.decide(quiet)
    report = run.report(decided)
    if dry:
        return report
    return run.write(decided, report, quiet)


def _check_outputs(job: CorpusJob) -> None:
    if job.output is None:
        raise JobError("job key 'output' is missing (new .parquet file to write to)")
    for path in filter(None, (job.output, job.rejected)):
        check_new_file(path)
    if job.output == job.rejected:
        raise JobError("job keys 'output' and 'rejected': are the same file; name two")


def _generators(job: CorpusJob) -> list[Generator]:
    if job.predictions is not None:
        predictions = Predictions(job.predictions)
        if predictions.by_row and len(job.corpus) > 1:
            raise JobError(
                f"job key 'predictions': {job.predictions} counts the rows of each file "
                "anew; name one corpus, or predict with an id_column"
            )
        return [predictions]
    named = job.named_generators()
    return [CachedResponses(name, keys, keys.tokenizer) for name, keys in named.items()]


@dataclass(frozen=True, slots=True)
class _Run:
    job: CorpusJob
    generators: Sequence[Generator]
    judges: Sequence[Judge]
    stream: CorpusStream
    given_response: bool

    @classmethod
    def of(cls, job: CorpusJob) -> "_Run":
        generators = _generators(job)
        given = any(each.gives_response for each in generators)
        judges = [make_judge(rule) for rule in job.rules]
        request = CorpusRequest(
            text_columns=job.text_column,
            label_column=job.label_column,
            id_column=job.id_column,
            skip_bad_rows=job.skip_bad_rows,
            limit=job.limit,
            prompts_only=not given,
            form=job.file_format,
        )
        stream = stream_corpus(job.corpus, request)
        if given and len(job.text_column) == 1 and not stream.head.chats:
            raise JobError(
                f"job key 'text_column': {job.text_column[0]!r} alone, but the teacher read "
                "a given response, too; name its column as the last one"
            )
        return cls(job, generators, judges, stream, given)

    @property
    def shares(self) -> list[float]:
        """Shares of the generators, which sum to 1; none if there are none."""
        named = [each.share for each in self.job.named_generators().values()]
        known = [share for share in named if share is not None]
        return [share / sum(known) for share in known]

    @property
    def rule_names(self) -> list[str]:
        return [*(judge.name for judge in self.judges), *([SHARE] if self.shares else [])]

    def blocks(self) -> Iterator[Prompts]:
        """The prompts, some at a time."""
        for block in self.stream.blocks():
            for start in range(0, len(block), BLOCK_PROMPTS):
                part = block.take(np.arange(start, min(start + BLOCK_PROMPTS, len(block))))
                segments = part.examples(np.arange(len(part)))
                yield Prompts(part, segments, self.given_response)

    def read(self, prompts: Prompts) -> tuple[Responses, list[IntArray]]:
        """The responses of all generators, and the prompts that each has none to."""
        found = [each.read(prompts) for each in self.generators]
        return Responses.together([part for part, _ in found]), [lacking for _, lacking in found]

    def decide(self, quiet: bool) -> _Decisions:
        """What the rules say about all responses."""
        decided = _Decisions(lacking_prompts=np.zeros(len(self.generators), dtype=np.int64))
        missing = list[str]()
        with CountProgress("decide", "rows", self.stream.rows, quiet) as progress:
            for prompts in self.blocks():
                responses, lacking = self.read(prompts)
                decided.lacking_prompts += [len(each) for each in lacking]
                nowhere = np.flatnonzero(
                    np.bincount(np.concatenate(lacking), minlength=len(prompts)) == len(lacking)
                )
                missing += map(prompts.corpus.where, nowhere.tolist())
                verdicts = in_order(self.judges, prompts, responses)
                decided.verdicts.append(verdicts.astype(np.uint8))
                decided.generators.append(responses.generators.astype(np.uint8))
                decided.firsts.append(np.diff(responses.prompts, prepend=-1) != 0)
                if self.shares:
                    decided.draws.append(self._draws(prompts, responses))
                progress.advance(len(prompts))
        self._refuse_missing(decided, missing)
        decided.skipped = [f"{where}: has no response" for where in missing]
        if self.shares:
            self._share(decided)
        return decided

    def _refuse_missing(self, decided: _Decisions, missing: Sequence[str]) -> None:
        if self.job.skip_bad_rows or not decided.lacking_prompts.any():
            return
        counts = ", ".join(
            f"{count} in {each.name}"
            for each, count in zip(self.generators, decided.lacking_prompts.tolist(), strict=True)
            if count
        )
        first = f". First: {'; '.join(missing[:SHOWN_PROBLEMS])}" if missing else ""
        raise MissingKeysError(
            f"of {self.stream.rows} rows, not there: {counts}; run `armada precompute` (or "
            "`predict`) on them with the same text columns, or leave them out with "
            f"skip_bad_rows=true{first}",
            [],
        )

    def _draws(self, prompts: Prompts, responses: Responses) -> npt.NDArray[np.uint64]:
        """A number for each response that depends on it, its generator and the seed alone."""
        keys = prompts.keys(with_response=False)
        both = zip(
            responses.prompts.tolist(),
            responses.generators.tolist(),
            responses.samples.tolist(),
            strict=True,
        )
        parts = [
            hashlib.blake2b(
                bytes(keys[prompt]) + f"{self.job.seed}/{self.generators[who].name}/{n}".encode(),
                digest_size=8,
            ).digest()
            for prompt, who, n in both
        ]
        return np.frombuffer(b"".join(parts), dtype=np.uint64)

    def _share(self, decided: _Decisions) -> None:
        """Reject as many of the kept ones as it takes for each generator to have its share."""
        verdicts = np.concatenate(decided.verdicts)
        generators, draws = np.concatenate(decided.generators), np.concatenate(decided.draws)
        kept = [
            np.flatnonzero((verdicts == 0) & (generators == who))
            for who in range(len(self.generators))
        ]
        whole = min(len(rows) / share for rows, share in zip(kept, self.shares, strict=True))
        for rows, share in zip(kept, self.shares, strict=True):
            # The next float below a whole number stands for it.
            wanted = min(int(whole * share + 1e-6), len(rows))
            order = rows[np.argsort(draws[rows], kind="stable")]
            verdicts[order[wanted:]] = len(self.judges) + 1
        ends = np.cumsum([len(each) for each in decided.verdicts])[:-1]
        decided.verdicts = np.split(verdicts, ends)

    def report(self, decided: _Decisions) -> CorpusReport:
        """The counts."""
        verdicts = np.concatenate([np.empty(0, np.uint8), *decided.verdicts])
        generators = np.concatenate([np.empty(0, np.uint8), *decided.generators])
        rejected = np.bincount(verdicts, minlength=len(self.rule_names) + 1)
        left = len(verdicts) - np.cumsum(rejected[1:])
        return CorpusReport(
            output=None,
            prompts=self.stream.rows,
            kept_prompts=decided.kept_prompts(),
            generators=tuple(
                GeneratorCount(
                    each.name,
                    int((generators == who).sum()),
                    int(((generators == who) & (verdicts == 0)).sum()),
                    int(decided.lacking_prompts[who]),
                )
                for who, each in enumerate(self.generators)
            ),
            rules=tuple(
                RuleCount(name, int(rejected[at]), int(left[at - 1]))
                for at, name in enumerate(self.rule_names, 1)
            ),
            kept=int(rejected[0]),
            written=None,
            skipped=(*self.stream.skipped, *decided.skipped),
        )

    def write(self, decided: _Decisions, report: CorpusReport, quiet: bool) -> CorpusReport:
        """Write the files; raises JobError if there is nothing to write."""
        job = self.job
        assert job.output is not None
        tables = self._tables()
        if not report.kept and job.write != "failed_prompts":
            counts = ", ".join(f"{each.rejected} by {each.name}" for each in report.rules)
            raise JobError(
                f"rules: none of {report.responses} responses is kept (rejected {counts or 'none'})"
            )
        document = provenance(job, self.stream, self.generators, self.shares, self.judges, report)
        kind = tables.schema_of_pairs if job.write == "pairs" else None
        kind = kind or tables.schema(job.write == "responses")
        schema = kind.with_metadata({"armada": document})
        written = 0
        with ExitStack() as files:
            write = files.enter_context(new_file(job.output))
            rejected = None
            if job.rejected is not None:
                rejected = files.enter_context(new_file(job.rejected))
                rejected(tables.schema(responses=True, rule=True).empty_table())
            write(schema.empty_table())
            with CountProgress("write", "rows", self.stream.rows, quiet) as progress:
                for prompts, verdicts in zip_longest(self.blocks(), decided.verdicts):
                    if prompts is None or verdicts is None:
                        raise _has_changed()
                    table, others = self._chosen(tables, prompts, verdicts.astype(np.int64))
                    write(table.cast(schema))
                    written += len(table)
                    if rejected is not None and others is not None:
                        rejected(others)
                    progress.advance(len(prompts))
            if not written and job.write == "pairs":
                raise JobError(
                    "write=pairs: no prompt has two different responses that are kept, one of each "
                    "generator; loosen the rules"
                )
            if not written:
                raise JobError("write: no prompt has failed, so there is nothing to write")
        return replace(report, output=str(job.output), written=written)

    def _tables(self) -> Tables:
        return Tables(
            self.job,
            self.stream.head,
            self.given_response,
            self.stream.has_ids,
            self.generators,
            self.rule_names,
        )

    def _chosen(
        self, tables: Tables, prompts: Prompts, verdicts: IntArray
    ) -> tuple[pa.Table, pa.Table | None]:
        """The rows of a block to write, and its rejected responses, if they are to be written."""
        responses, lacking = self.read(prompts)
        if len(responses) != len(verdicts):
            raise _has_changed()
        kept = responses.take(np.flatnonzero(verdicts == 0))
        others = np.flatnonzero(verdicts)
        rejected = None
        if self.job.rejected is not None:
            rejected = tables.of_responses(prompts, responses.take(others), verdicts[others])
        if self.job.write == "responses":
            return tables.of_responses(prompts, kept), rejected
        if self.job.write == "pairs":
            return tables.of_pairs(prompts, kept), rejected
        rows = np.unique(kept.prompts)
        if self.job.write == "failed_prompts":
            counts = np.bincount(np.concatenate(lacking), minlength=len(prompts))
            rows = np.setdiff1d(np.flatnonzero(counts < len(lacking)), rows)
        return tables.of_prompts(prompts, rows), rejected


def _has_changed() -> CorpusError:
    return CorpusError("cache, corpus: have changed in between; run the command again")
