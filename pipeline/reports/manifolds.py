"""Pictures of where teacher and students put the same texts, and of how sure students are."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..pictures.canvas import COLOURS, LINES, MARKERS, OTHER, new_figure, plain, png
from ..pictures.scatter import (
    Components,
    draw_classes,
    draw_numbers,
    label_axes,
    main_components,
)
from .figures import DPI, SMALL, TEXT, WIDTH, Picture
from .looks import Looks, Points, StudentLook

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Method = Literal["pca", "tsne"]

MAX_CALIBRATED = 2


def manifolds(looks: Looks, method: Method) -> Iterator[Picture]:
    """The teacher's texts, those of the distilled student, those of the undistilled one."""
    title = "Teacher, as the aligner sees it"
    yield _cloud("teacher", title, looks.teacher, looks, method)
    for student in looks.students[:2]:
        name = plain(student.condition.name, 30)
        distilled = student.condition.first.distilled
        title = f"Student, projected: {name}" if distilled else f"Student: {name}"
        kind = "student" if distilled else "undistilled"
        yield _cloud(kind, title, student.points, looks, method)


def _cloud(name: str, title: str, points: Points, looks: Looks, method: Method) -> Picture:
    figure = new_figure(WIDTH, 3.6, DPI)
    panel = figure.subplots()
    components = main_components(points) if method == "pca" else _tsne(points)
    draw = draw_numbers if looks.colours.dtype.kind == "f" else draw_classes
    draw(panel, components, looks.colours, looks.colours_title)
    panel.set_title(title, fontsize=TEXT + 1)
    if method == "pca":
        label_axes(panel, components)
    else:
        panel.set_xlabel("t-SNE 1 (no unit)", fontsize=TEXT)
        panel.set_ylabel("t-SNE 2 (no unit)", fontsize=TEXT)
        panel.tick_params(labelsize=SMALL)
    caption = f"{len(points)} training texts, coloured by {looks.colours_title or 'nothing'}."
    return Picture(f"manifold-{name}", caption, png(figure))


def _tsne(points: Points) -> Components:
    from sklearn.manifold import TSNE

    flat = points.reshape(len(points), -1).astype(np.float64)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(flat)
    places: npt.NDArray[np.float64] = made.astype(np.float64)
    return Components(places, (0.0, 0.0))


def reliability(looks: Looks) -> Picture | None:
    """How often predictions of like confidence are right; None without classes to predict."""
    shown = [each for each in looks.students if each.calibration is not None][:MAX_CALIBRATED]
    if not shown:
        return None
    figure = new_figure(WIDTH, 3.9, DPI)
    panel = figure.subplots()
    panel.plot([0, 1], [0, 1], color=OTHER, linestyle="--", linewidth=1, label="calibrated")
    for student, colour, line, marker in zip(shown, COLOURS, LINES, MARKERS, strict=False):
        _draw_reliability(panel, student, colour, line, marker)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_xlabel("confidence (softmax of the predicted class)", fontsize=TEXT)
    panel.set_ylabel("share that is right", fontsize=TEXT)
    panel.tick_params(labelsize=SMALL)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False)
    caption = (
        "Predictions on the validation set in 15 bins of confidence; larger marks hold more of "
        "them. ECE: mean distance from the diagonal."
    )
    return Picture("calibration", caption, png(figure))


def _draw_reliability(
    panel: "Axes", student: StudentLook, colour: str, line: Any, marker: str
) -> None:
    found = student.calibration
    assert found is not None
    label = f"{plain(student.condition.name)}: ECE {found.error:.2f}"
    panel.plot(found.confidence, found.accuracy, color=colour, linestyle=line, lw=1)
    sizes = 12 + 120 * found.counts / found.counts.sum()
    panel.scatter(
        found.confidence,
        found.accuracy,
        s=sizes,
        color=colour,
        marker=marker,
        label=label,
        clip_on=False,  # the best is in a corner
        zorder=3,
    )
