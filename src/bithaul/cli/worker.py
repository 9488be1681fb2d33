"""`bithaul worker`: lend this machine to a coordinator until told to stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import httpx2
import psutil
import typer
from filelock import FileLock, Timeout

from bithaul.errors import Conflict, InvalidInput, Unauthorized
from bithaul.worker.stop import Stop

app = typer.Typer()
SECRET_VARIABLE = "BITHAUL_CLIENT_SECRET"  # noqa: S105 - the variable's name, not a secret
_LONGEST_GOODBYE = 90.0  # seconds: one long inner step and a coordinator that is silent


@app.command()
def worker(
    url: str = typer.Option(
        ..., "--url", envvar="BITHAUL_URL", help="The coordinator, e.g. https://host:8817."
    ),
    client_id: str = typer.Option(..., "--client-id", envvar="BITHAUL_CLIENT_ID", help="Who this worker is."),
    state_dir: Path = typer.Option(
        Path("worker-state"),
        "--state-dir",
        envvar="BITHAUL_STATE_DIR",
        help="Where finished updates, the residual and the cache rest. One folder per worker.",
    ),
    secret_file: Path | None = typer.Option(
        None,
        "--secret-file",
        envvar="BITHAUL_CLIENT_SECRET_FILE",
        help=f"File with the client secret. Else ${SECRET_VARIABLE}, else standard input.",
    ),
    threads: int | None = typer.Option(
        None, "--threads", envvar="BITHAUL_THREADS", min=1, max=4096, help="Compute threads (all cores)."
    ),
    path: str | None = typer.Option(
        None,
        "--path",
        envvar="BITHAUL_COMPUTE_PATH",
        help="Force a compute path such as int_mm+bf16 or cuda (the fastest).",
    ),
    nice: int = typer.Option(0, "--nice", min=0, max=19, help="Give way to other programs: 0 no, 19 most."),
    name: str = typer.Option("", "--name", help="How this machine is called in its own log."),
    beacon: Path | None = typer.Option(None, "--beacon", help="Health file (STATE_DIR/health)."),
    calibration_seconds: float = typer.Option(
        5.0,
        "--calibration-seconds",
        min=0.1,
        envvar="BITHAUL_CALIBRATION_SECONDS",
        help="Time to measure.",
    ),
    exit_when_finished: bool = typer.Option(
        False, "--exit-when-finished", help="End when the run is finished."
    ),
    allow_insecure_lan: bool = typer.Option(
        False, "--allow-insecure-lan", help="Send the secret over plain http to another machine."
    ),
    json_log: bool = typer.Option(False, "--json", help="Log lines as JSON."),
) -> None:
    """Join a coordinator and train. Ctrl-C or SIGTERM: report what is done and end."""
    stop = Stop()
    _stop_on_signals(stop)  # before the slow imports: a worker that is just starting must end politely too
    from bithaul.worker.client import CoordinatorClient, is_loopback
    from bithaul.worker.logship import LogBuffer, worker_log
    from bithaul.worker.loop import Worker
    from bithaul.worker.settings import WorkerSettings, default_threads

    address = _address(url)
    if address.scheme == "http" and not is_loopback(address.host) and not allow_insecure_lan:
        raise InvalidInput(
            f"{url} is plain http: anyone on the way could read the secret. Use https, or add "
            "--allow-insecure-lan on a network you trust."
        )
    if path is not None:  # before the first call: a machine that cannot run it need not ask for work
        from bithaul.model.device import choose_path

        choose_path([], forced=path)
    secret = _secret(secret_file)
    settings = WorkerSettings(
        url=url,
        client_id=client_id,
        state_dir=state_dir,
        threads=threads or default_threads(),
        path=path,
        name=name,
        beacon=beacon or state_dir / "health",
        exit_when_finished=exit_when_finished,
        calibration_seconds=calibration_seconds,
    )
    _be_nice(nice)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"The state folder {state_dir} cannot be made: {error}.") from error
    buffer = LogBuffer()
    log = worker_log(buffer, json_lines=json_log)
    if name:
        log = log.bind(worker=name)
    client = CoordinatorClient(url, client_id=client_id, secret=secret, stop=stop, log=log)
    try:
        with FileLock(state_dir / "lock", timeout=0):
            Worker(settings, client, stop=stop, log=log, buffer=buffer).run()
    except Timeout as error:
        raise Conflict(f"Another worker uses {state_dir}; give each worker its own --state-dir.") from error
    finally:
        client.close()


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InvalidInput(f"{url!r} is not an address: {error}.") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise InvalidInput(f"{url!r} is not a coordinator's address; give one like https://host:8817.")
    return address


def _secret(file: Path | None) -> str:
    """From the file, the environment or standard input; never from an argument others could see."""
    if file is not None:
        try:
            secret = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"The secret file {file} cannot be read: {error}.") from error
    elif SECRET_VARIABLE in os.environ:
        secret = os.environ.pop(SECRET_VARIABLE).strip()
    elif sys.stdin.isatty():
        secret = str(typer.prompt("Client secret", hide_input=True)).strip()
    else:
        secret = sys.stdin.readline().strip()
    if not secret:
        raise Unauthorized(f"There is no client secret; set {SECRET_VARIABLE} or give --secret-file.")
    return secret


def _be_nice(nice: int) -> None:
    """Windows has classes instead of numbers: anything above 0 is below normal there."""
    if nice and sys.platform == "win32":
        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    elif nice:
        os.nice(nice)


def _stop_on_signals(stop: Stop) -> None:
    def handler(number: int, _frame: FrameType | None) -> None:
        if stop.requested:  # the second time: now. What is finished rests in the outbox.
            signal.signal(number, signal.SIG_DFL)
        stop.request()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    threading.Thread(target=_end_anyway, args=(stop,), name="goodbye", daemon=True).start()


def _end_anyway(stop: Stop) -> None:
    """A silent connection must not hold up the end for ever: what is finished rests in the outbox."""
    while not stop.requested:
        stop.wait(3_600.0)
    time.sleep(_LONGEST_GOODBYE)
    print(
        "bithaul: the coordinator is silent; finished updates are kept for the next start.", file=sys.stderr
    )
    os._exit(0)
