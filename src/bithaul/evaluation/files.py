"""Files people look at: the reliability diagram as SVG, the confusion matrix as CSV.

The picture is plain SVG without fonts or scripts from elsewhere, equal for equal figures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

from bithaul.corpus.files import write_bytes
from bithaul.errors import InvalidInput
from bithaul.evaluation.calibration import CalibrationReport

_SIDE, _LEFT, _TOP, _MASS = 320, 56, 40, 60  # pixels: the diagram, its margins, the histogram below it
_INK, _BAR, _GAP, _FAINT = "#222", "#4878a8", "#d98c5f", "#bbb"


def reliability_svg(report: CalibrationReport, *, title: str) -> str:
    """Accuracy against confidence in 15 bins, the diagonal of a calibrated model, and requests per bin.

    The gap between a bin's accuracy and its mean confidence is drawn beside the bar.
    """
    width, height = _LEFT + _SIDE + 24, _TOP + _SIDE + _MASS + 72
    base = _TOP + _SIDE
    most = max(cell.count for cell in report.bins)
    shapes = [
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(_LEFT, 18, title, size=13),
        _text(_LEFT, 33, _caption(report), size=10),
    ]
    for cell in report.bins:
        x, wide = _LEFT + cell.low * _SIDE, (cell.high - cell.low) * _SIDE - 1
        if cell.count:
            low, high = sorted((cell.accuracy, cell.confidence))
            shapes.append(_rect(x, base - cell.accuracy * _SIDE, wide, cell.accuracy * _SIDE, _BAR))
            shapes.append(_rect(x + wide / 2 - 1, base - high * _SIDE, 2, (high - low) * _SIDE, _GAP))
            tall = _MASS * cell.count / most
            shapes.append(_rect(x, base + 24 + _MASS - tall, wide, tall, _FAINT))
    shapes.append(_line(_LEFT, base, _LEFT + _SIDE, _TOP, dashed=True))
    shapes += [_line(_LEFT, base, _LEFT + _SIDE, base), _line(_LEFT, _TOP, _LEFT, base)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes.append(_text(_LEFT + tick * _SIDE, base + 14, f"{tick:g}", size=10, anchor="middle"))
        shapes.append(_text(_LEFT - 6, base - tick * _SIDE + 4, f"{tick:g}", size=10, anchor="end"))
    shapes.append(_text(_LEFT + _SIDE / 2, height - 28, "confidence", size=11, anchor="middle"))
    shapes.append(_text(_LEFT, height - 12, f"grey: requests per bin, at most {most:,}", size=10))
    shapes.append(_text(8, _TOP - 4, "accuracy", size=10))
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif">\n{body}\n</svg>\n'
    )


def write_plot(report: CalibrationReport, path: Path, *, title: str) -> None:
    """Write the diagram to an .svg file. Raises `InvalidInput` for another kind of file."""
    require_kind(path, ".svg", "--plot")
    write_bytes(path, reliability_svg(report, title=title).encode())


def confusion_csv(matrix: Mapping[tuple[str, str], int]) -> str:
    """The full matrix: a row for each intent there is, a column for each it was taken for, sorted by name."""
    names = sorted({name for pair in matrix for name in pair})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["gold \\ predicted", *names])
    for gold in names:
        writer.writerow([gold, *(matrix.get((gold, predicted), 0) for predicted in names)])
    return out.getvalue()


def write_confusion(matrix: Mapping[tuple[str, str], int], path: Path) -> None:
    """Write the matrix to a .csv file. Raises `InvalidInput` for another kind of file."""
    require_kind(path, ".csv", "--confusion")
    write_bytes(path, confusion_csv(matrix).encode())


def require_kind(path: Path, suffix: str, option: str) -> None:
    """Raises `InvalidInput` unless `path` ends in `suffix`, its folder exists and it is no folder itself."""
    if path.suffix.lower() != suffix:
        raise InvalidInput(f"{option} writes {suffix} files; name one that ends so, not {path.name}.")
    if not path.parent.is_dir():
        raise InvalidInput(f"{option}: there is no folder {path.parent}; make it first.")
    if path.is_dir():
        raise InvalidInput(f"{option}: {path} is a folder; name a file.")


def _caption(report: CalibrationReport) -> str:
    return (
        f"ECE {report.ece:.3f} on {report.examples:,} requests; temperature {report.temperature:.2f} "
        f"would give {report.tempered_ece:.3f}"
    )


def _text(x: float, y: float, words: str, *, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{_INK}">'
        f"{escape(words)}</text>"
    )


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_INK}"{dash}/>'
