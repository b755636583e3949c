"""The keys of a report, and the mark by which its page is known again."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ..jobs import MEASURES, Job, Names

MARK = '<meta name="generator" content="armada report">'
"""Mark of a page that may be replaced."""

Method = Literal["pca", "tsne"]


class ReportJob(Job):
    """Keys of a report."""

    runs: tuple[Path, ...] = Field(
        min_length=1, description="folders of finished runs, or folders around such"
    )
    out: Path = Field(default=Path("report.html"), description="file of the page")
    title: str = Field(default="Distillation report", description="heading of the page")
    colour_by: str | None = Field(
        default=None,
        description="column of the training corpus to colour texts by; default: the labels",
    )
    manifold: Method = Field(default="pca", description="projection to two dimensions: pca or tsne")
    texts: int = Field(default=500, ge=10, description="number of texts in plots of students")
    students: bool = Field(
        default=True,
        description="false: do not load students; skips manifolds, agreement and calibration",
    )
    measures: Names | None = Field(default=None, description=MEASURES)
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="device for the students"
    )
    cache: Path | None = Field(
        default=None,
        description="folder of a cache to read instead of the one that runs name; caches at a URL "
        "are not opened",
    )
    force: bool = Field(default=False, description="replace a page that is not a report")

    @field_validator("runs", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value
