"""What a coordinator answers a thousand workers, with small updates and beside large ones, and its transfers.

`bithaul bench coordinator`, its figures as a table: a row for each kind of request of each crowd. Bars: p99
of heartbeats and leases below 150 ms, transfers at least half as fast as nginx, memory that does not grow.
The last line is JSON. Example:

    python benchmarks/coordinator.py --workers 1000 --task-seconds 600
"""

from __future__ import annotations

import json
import subprocess
import sys

KEPT = ("errors", "repeated", "uploads", "upload_seconds", "coordinator_cores", "crowd_cores")
MACHINE = ("threads", "cpu", "torch", "date")  # `run_all` says it below the table


def flat(found: dict[str, dict[str, object]]) -> dict[str, object]:
    """One level, and rows."""
    result: dict[str, object] = {
        k: v for k, v in found.items() if not isinstance(v, dict) and k not in MACHINE
    }
    rows = []
    for name in ("small", "large"):
        crowd = found[name]
        result["workers"] = crowd["workers"]
        result |= {f"{name}_{key}": crowd[key] for key in KEPT if crowd[key] is not None}
        rows += [{"crowd": name, "request": kind, **taken} for kind, taken in crowd["requests"].items()]
    memory = found["small"]["memory"]
    result |= {f"memory_{key}": value for key, value in memory.items()}
    return {**result, **found["transfers"], "rows": rows}


def main() -> None:
    command = [sys.executable, "-m", "bithaul", "bench", "coordinator", "--json", *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(json.dumps(flat(json.loads(done.stdout.splitlines()[-1]))))


if __name__ == "__main__":
    main()
