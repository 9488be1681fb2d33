"""The README's picture: what a terminal shows at the end of a run, drawn from the run's folder.

Reads `--dir` (default runs/demo) after `bithaul up` has ended and writes an SVG with the same renderer that
`up` uses, then the figures of result.json and its answer. The file refers to nothing outside itself and is
the same for the same run. `--result` also stores the run's figures for the README and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import io
import json
import re
import sys
from contextlib import closing
from pathlib import Path

from rich.console import Console, Group
from rich.terminal_theme import MONOKAI
from rich.text import Text

from bithaul.cli.local.watch import picture
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.queries.progress import ProgressView, progress
from bithaul.coordinator.settings import load_settings

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "demo.svg"
RESULT = HERE / "results" / "demo.json"
WIDTH = 88
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*|<!-- Generated.*?-->\s*", re.DOTALL)
LOCAL_FONT = (
    "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"  # a picture must not make a browser fetch anything
)
LEFT_OUT = {"dir", "run", "state", "asked"}  # of result.json: not figures


def draw(view: ProgressView, result: dict[str, object], *, command: str) -> str:
    """The SVG of a finished run."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(Text(f"$ {command}", style="bold green"))
    console.print(picture(view))
    console.print(closing_words(result))
    svg = console.export_svg(title="bithaul", theme=MONOKAI, unique_id="demo")
    return WEB_FONT.sub("", svg).replace("Fira Code", LOCAL_FONT)


def closing_words(result: dict[str, object]) -> Group:
    """What the run measured, and the one request it answered."""
    lines = [Text()]
    accuracy, f1 = result.get("intent_accuracy"), result.get("slot_f1")
    if isinstance(accuracy, float):
        slots = f", slot F1 {f1:.1%}" if isinstance(f1, float) else ""
        examples = result.get("heldout_examples")
        lines.append(
            Text(f"intent accuracy {accuracy:.1%}{slots} on {examples:,} held-out requests", style="bold")
        )
    asked = result.get("asked")
    if isinstance(asked, dict):
        answer = {"intent": asked["intent"], "slots": asked["slots"]}
        lines += [Text(), Text(f"you    {asked['text']}"), Text(f"model  {json.dumps(answer)}", style="cyan")]
    return Group(*lines)


def entry(directory: Path, result: dict[str, object]) -> dict[str, object]:
    """The run's figures as run_all.py stores those of a benchmark. The machine is this one."""
    from run_all import machine

    ended = dt.datetime.fromtimestamp((directory / "result.json").stat().st_mtime, dt.UTC)
    return {
        "benchmark": "demo",
        "date": ended.date().isoformat(),
        "machine": machine() | {"load_before": None},
        "result": {key: value for key, value in result.items() if key not in LEFT_OUT},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/demo"), help="a finished run's folder")
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--command", default="make demo", help="what the first line of the picture says")
    parser.add_argument("--result", action="store_true", help="also store the figures in results/demo.json")
    arguments = parser.parse_args()
    if not (arguments.dir / "result.json").is_file():
        parser.error(
            f"{arguments.dir} holds no result.json; finish the run first: bithaul up --dir {arguments.dir}"
        )
    result = json.loads((arguments.dir / "result.json").read_text(encoding="utf-8"))
    with closing(open_coordinator(load_settings(arguments.dir))) as coordinator:
        view = progress(coordinator)
    svg = draw(view, result, command=arguments.command)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(svg, encoding="utf-8")
    if arguments.result:
        from run_all import rewrite

        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(entry(arguments.dir, result), indent=2) + "\n", encoding="utf-8")
        rewrite()
    print(json.dumps({"picture": str(arguments.out), "bytes": len(svg), "result": arguments.result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
