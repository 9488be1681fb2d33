"""Line charts for the documentation, as SVG that is the same for the same figures. Not a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

IMAGES = Path(__file__).parent.parent / "docs" / "images"
Line = Sequence[tuple[float, float]]


def lines(
    name: str,
    series: Mapping[str, Line],
    *,
    title: str,
    x: str,
    y: str,
    marks: bool = False,
    log: bool = False,
) -> Path:
    """Write docs/images/NAME.svg with a line for each series of (x, y); lines of one kind share a colour.

    The part of a label before a comma is its kind. `marks` draws the points, `log` makes x logarithmic.
    """
    mpl.rcParams["svg.hashsalt"] = name
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys(label.split(",")[0] for label in series))
    for label, points in series.items():
        kind = label.split(",")[0]
        axes.plot(
            [point[0] for point in points],
            [point[1] for point in points],
            color=f"C{kinds.index(kind)}",
            marker="o" if marks else None,
            linewidth=1.2,
            alpha=0.8,
            label=label,
        )
    axes.set(title=title, xlabel=x, ylabel=y)
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    IMAGES.mkdir(parents=True, exist_ok=True)
    path = IMAGES / f"{name}.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
    return path
