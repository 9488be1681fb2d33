"""Run every benchmark and rewrite docs/benchmarks.md and the README's figures from benchmarks/results/.

A benchmark is a script in this folder that prints one JSON object on its last line. It is run in a process of
its own; the object is stored with machine and date as results/<name>.json. Results of earlier runs stay until
their script runs again, so `--only step` refreshes one table and keeps the others. What a script printed when
it was run by hand with other arguments is stored with `--record NAME=FILE`, on the same machine and day.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
NOT_A_BENCHMARK = {"run_all", "chart", "demo_picture", "own_data"}
DATA_FOLDERS = {
    "clinc150": "clinc150",
    "kneser_ney": "wikitext2",
    "snips": "snips",
    "wikitext2": "wikitext2",
}  # benchmarks on public data, and their folder inside `--data`

# (benchmark, key of its result, what the README calls it, unit): what is not measured yet is left out.
FIGURES = (
    ("demo", "intent_accuracy", "demo: held-out intent accuracy", ""),
    ("demo", "slot_f1", "demo: held-out slot F1", ""),
    ("demo", "tokens", "demo: tokens trained", ""),
    ("demo", "seconds", "demo: training time", " s"),
    ("demo", "tokens_per_second", "demo: speed over the whole run", " tokens/s"),
    ("demo", "updates_by_worker", "demo: updates by worker", ""),
    ("truckmate", "heavy_noise_intent", "Truck Mate: held-out intent accuracy with heavy noise", ""),
    ("truckmate", "handwritten_intent", "Truck Mate: intent accuracy on 100 hand-written requests", ""),
    (
        "truckmate",
        "fresh_intent",
        "Truck Mate: intent accuracy on 100 fresh requests that nobody tuned for",
        "",
    ),
    ("truckmate", "fresh_slot_f1", "Truck Mate: slot F1 on them", ""),
    ("step", "tokens_per_second", "training step of `small`, one thread", " tokens/s"),
    ("step", "speedup", "the same against fp32 fake quantisation", " ×"),
    ("clinc150", "accuracy_mean", "CLINC150 validation: accuracy on 150 intents, mean of three seeds", ""),
    ("clinc150", "out_of_scope_auroc_mean", "CLINC150: out-of-scope AUROC", ""),
    ("clinc150", "minutes_mean", "CLINC150: training time on two cores", " min"),
    ("snips", "accuracy_mean", "Snips validation: intent accuracy, mean of three seeds", ""),
    ("snips", "slot_f1_mean", "Snips: slot F1", ""),
    ("wikitext2", "perplexity", "WikiText-2 validation: perplexity, vocabulary of 33,278 words", ""),
)

HEAD = """# Benchmarks

Written by `make bench`, the demo's table by `benchmarks/demo_picture.py --result`; do not edit. Each table is
one script in `benchmarks/`, run on the machine and day named below it. Machines are shared and noisy: figures
that are compared come from one run.
"""


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
        flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
        wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")
        model += " (" + ", ".join(flag for flag in wanted if flag in flags) + ")"
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def run(script: Path, *, timeout: float, data: Path | None = None) -> dict[str, object]:
    """One script's last line. Raises CalledProcessError, TimeoutExpired or ValueError when it fails."""
    about = machine()
    more = [] if data is None else ["--data", str(data), "--json"]
    done = subprocess.run(
        [sys.executable, str(script), *more], stdout=subprocess.PIPE, text=True, check=True, timeout=timeout
    )
    return entry_of(script.stem, done.stdout, about)


def entry_of(name: str, printed: str, about: dict[str, object]) -> dict[str, object]:
    """A result to store: the last line of what a script printed, with date and machine.

    A script that names its own `machine` ran on another one.
    """
    result = json.loads(printed.strip().splitlines()[-1])
    return {
        "benchmark": name,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": result.pop("machine", about),
        "result": result,
    }


def store(entry: dict[str, object]) -> None:
    (RESULTS / f"{entry['benchmark']}.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")


def table(entry: dict[str, object]) -> str:
    """One result as a Markdown section; nested rows become a table of their own."""
    result, about = dict(entry["result"]), entry["machine"]  # type: ignore[call-overload]
    rows = result.pop("rows", None)
    lines = [f"\n## {entry['benchmark']}\n"]
    if result:
        lines += ["| figure | value |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {show(value)} |" for key, value in result.items()]
    if rows:
        keys = list(rows[0])
        lines += [
            "",
            "| " + " | ".join(key.replace("_", " ") for key in keys) + " |",
            "|---" * len(keys) + "|",
        ]
        lines += ["| " + " | ".join(show(row.get(key)) for key in keys) + " |" for row in rows]
    gpu = f"{about['gpu']}, torch {about['torch']}; " if "gpu" in about else ""
    lines.append(f"\n{gpu}{about['cpu']}, {about['cores']} cores, Python {about['python']}, {entry['date']}.")
    return "\n".join(lines) + "\n"


def figures(entries: list[dict[str, object]]) -> str:
    """The README's table: the figures of `FIGURES` that were measured, with machine and date."""
    known = {str(entry["benchmark"]): entry for entry in entries}
    rows: list[str] = []
    machines: dict[str, None] = {}  # in order, without repeats
    for name, key, label, unit in FIGURES:
        value = dict(known[name]["result"]).get(key) if name in known else None  # type: ignore[call-overload]
        if value is not None:
            rows.append(f"| {label} | {show(value)}{unit} |")
            about = known[name]["machine"]
            machines[f"{about['cpu']}, {about['cores']} cores, {known[name]['date']}"] = None  # type: ignore[index]
    if not rows:
        return "Nothing measured yet: `make bench` fills this table.\n"
    return "\n".join(["| figure | value |", "|---|---|", *rows, "", f"{'; '.join(machines)}."]) + "\n"


def rewrite() -> None:
    """docs/benchmarks.md, and the README between its two marks, from what is in results/."""
    entries = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text(HEAD + "".join(table(entry) for entry in entries), encoding="utf-8")
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        README.write_text(f"{before}{BEGIN}\n{figures(entries)}{END}{after}", encoding="utf-8")


def show(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(item)}" for key, item in value.items())
    return str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", help="run only this benchmark (repeatable)")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds a benchmark may take")
    parser.add_argument(
        "--data", type=Path, help=f"folder with {', '.join(sorted(set(DATA_FOLDERS.values())))}"
    )
    parser.add_argument("--record", action="append", metavar="NAME=FILE", help="store what FILE ends with")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if arguments.record:
        for name, _, file in (record.partition("=") for record in arguments.record):
            store(entry_of(name, Path(file).read_text(encoding="utf-8"), machine() | {"load_before": None}))
        rewrite()
        return 0
    scripts = sorted(p for p in HERE.glob("*.py") if p.stem not in NOT_A_BENCHMARK)
    if arguments.only:
        unknown = set(arguments.only) - {p.stem for p in scripts}
        if unknown:
            parser.error(
                f"no such benchmark: {', '.join(unknown)}; there are {', '.join(p.stem for p in scripts)}"
            )
        scripts = [p for p in scripts if p.stem in arguments.only]
    ran, failed = 0, []
    for script in scripts:
        folder = DATA_FOLDERS.get(script.stem)
        if folder is not None and arguments.data is None:
            if arguments.only:
                parser.error(f"{script.stem} needs --data, a folder with {folder}")
            print(f"{script.stem} is left out: it needs --data, a folder with {folder}", file=sys.stderr)
            continue
        if script.stem == "gpu" and not torch.cuda.is_available():
            print("gpu is left out: torch sees no CUDA device here", file=sys.stderr)
            continue
        print(f"{script.stem} ...", flush=True)
        try:
            data = None if folder is None else arguments.data / folder
            entry = run(script, timeout=arguments.timeout, data=data)
        except (subprocess.SubprocessError, ValueError, IndexError) as error:
            print(f"{script.stem} failed: {error}", file=sys.stderr)
            failed.append(script.stem)
            continue
        store(entry)
        ran += 1
    rewrite()
    print(json.dumps({"ran": ran, "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
