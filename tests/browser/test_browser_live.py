"""The operator's day in a real browser, on a run that real workers train meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from served import Process, serving, train_tiny, welcome
from sqlalchemy import select, text, update
from steps import SCALE, zoom

from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database.tables import leases, runs, versions
from bithaul.coordinator.identity.clients import create_client

pytestmark = [pytest.mark.browser, pytest.mark.process]


def reopen(c: Coordinator) -> None:
    """Goes on with a finished run, under a budget that nobody uses up here."""
    with c.database.write() as connection:
        connection.execute(update(runs).values(state="running", budget_tokens=1e12))


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Process]:
    with serving(train_tiny, welcome, reopen) as running:
        yield running


@contextmanager
def worker(coordinator: Process, name: str, secret: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real one, until the test ends."""
    state = coordinator.folder.parent / f"state-{name}"
    log = (coordinator.folder.parent / f"{name}.log").open("ab")
    words = ["worker", "--url", coordinator.url, "--client-id", name, "--state-dir", str(state)]
    process = subprocess.Popen(
        [sys.executable, "-m", "bithaul", *words, "--threads", "1", "--calibration-seconds", "0.5"],
        env={**os.environ, "BITHAUL_CLIENT_SECRET": secret},
        stdout=log,
        stderr=log,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def newest(coordinator: Process) -> int:
    with coordinator.c.database.read() as connection:
        return int(connection.execute(text("SELECT max(version) FROM versions")).scalar_one())


def holds(coordinator: Process, name: str) -> bool:
    query = select(leases.c.id).where(leases.c.worker == name, leases.c.state == "open")
    with coordinator.c.database.read() as connection:
        return bool(connection.execute(query).all())


def wait_until(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


def test_the_curve_grows_by_itself_while_zoomed(open_tab, coordinator) -> None:
    """Catches: a zoom that a real merge throws away, a curve that only grows when somebody asks."""
    with worker(coordinator, "ann", create_client(coordinator.c, "ann", scope="bithaul.worker")):
        begun = newest(coordinator)
        wait_until(lambda: newest(coordinator) > begun)
        tab = open_tab()
        page = tab.go("/admin")
        page.locator("[data-interval]").select_option("2")
        zoomed = zoom(page, 0.3, 0.6)
        drawn = int(page.locator("[data-chart=loss]").get_attribute("data-newest"))
        page.wait_for_function(
            "(drawn) => Number(document.querySelector('[data-chart=loss]').dataset.newest) >= drawn + 2",
            arg=drawn,
            timeout=60_000,
        )
        assert page.evaluate(SCALE) == zoomed
        shown = page.locator("#totals dd").nth(6).inner_text()
        assert int(shown.replace(",", "")) >= drawn + 2
        tab.assert_quiet()


def test_a_worker_is_drained_and_resumed(open_tab, coordinator) -> None:
    """Catches: a drain that takes work away, one that gives more, a resume that a worker never hears of."""
    with worker(coordinator, "bea", create_client(coordinator.c, "bea", scope="bithaul.worker")):
        wait_until(lambda: holds(coordinator, "bea"))
        tab = open_tab()
        page = tab.go("/admin/workers/bea")
        page.get_by_role("button", name="Drain").first.click()
        page.locator("#drain").get_by_role("button", name="Drain").click()
        page.wait_for_selector(".note.good")
        wait_until(lambda: not holds(coordinator, "bea"))
        query = select(leases.c.state).where(leases.c.worker == "bea").distinct()
        with coordinator.c.database.read() as connection:
            ended = connection.execute(query).scalars().all()
        assert ended == ["reported"], "it finished what it had"
        time.sleep(3)
        assert not holds(coordinator, "bea"), "and got nothing more"
        page.evaluate("window.bithaul.refresh()")
        page.wait_for_selector("main .badge:has-text('drained')")
        page.get_by_role("button", name="Resume").first.click()
        page.locator("[popover]:popover-open").get_by_role("button", name="Resume").click()
        page.wait_for_selector(".note.good")
        wait_until(lambda: holds(coordinator, "bea"))
        tab.assert_quiet()


def test_a_rotated_key_refuses_at_once_and_the_new_one_works(open_tab, coordinator) -> None:
    """Catches: a token that outlives its secret, and a worker that cannot come back."""
    secret = create_client(coordinator.c, "cleo", scope="bithaul.worker")
    with httpx2.Client(base_url=coordinator.url, timeout=20, trust_env=False) as http:
        form = {"grant_type": "client_credentials"}
        with worker(coordinator, "cleo", secret):
            wait_until(lambda: holds(coordinator, "cleo"))
            token = http.post("/connect/token", data=form, auth=("cleo", secret)).json()["access_token"]
            bearer = {"Authorization": f"Bearer {token}"}
            beat = {"tokens": 0, "activity": "idle"}
            assert http.post("/heartbeat", json=beat, headers=bearer).status_code == 200
            tab = open_tab()
            page = tab.go("/admin/keys")
            page.locator("tr", has_text="cleo").get_by_role("button", name="Rotate").first.click()
            page.locator("#rotate-cleo").get_by_role("button", name="Rotate").click()
            new = page.locator("#secret").inner_text()
            assert new != secret
            assert http.post("/heartbeat", json=beat, headers=bearer).status_code == 401, "the next request"
            assert http.post("/connect/token", data=form, auth=("cleo", secret)).status_code == 401
    with coordinator.c.database.write() as connection:
        connection.execute(update(leases).where(leases.c.worker == "cleo").values(state="expired"))
    with worker(coordinator, "cleo", new):
        wait_until(lambda: holds(coordinator, "cleo"))
        page = tab.go("/admin/workers/cleo")
        page.locator("[data-interval]").select_option("2")
        page.wait_for_selector("main .badge:has-text('training')", timeout=60_000)
    tab.assert_quiet()


def test_a_version_is_rolled_back_and_training_goes_on(open_tab, coordinator) -> None:
    """Catches: a rollback that only says so, and one after which the run stands still."""
    with worker(coordinator, "dora", create_client(coordinator.c, "dora", scope="bithaul.worker")):
        begun = newest(coordinator)
        wait_until(lambda: newest(coordinator) >= begun + 3)
        chosen = newest(coordinator) - 2
        tab = open_tab()
        page = tab.go(f"/admin/runs/{chosen}")
        page.get_by_role("button", name="Roll back").first.click()
        dialog = page.locator("#rollback")
        assert "become the newest version at once" in dialog.inner_text()
        dialog.get_by_role("button", name="Roll back").click()
        page.wait_for_selector(".note.good")
        query = select(versions.c.version).where(versions.c.restores == chosen)
        with coordinator.c.database.read() as connection:
            made = connection.execute(query).scalar_one()
        wait_until(lambda: newest(coordinator) > made)
        page = tab.go("/admin")
        page.wait_for_selector("[data-chart=loss][data-newest]")
        tab.assert_quiet()


def packages_without_bithaul(folder: Path) -> Path:
    """What bithaul needs, as on a machine where PyTorch was installed before; bithaul itself is not there."""
    there = folder / "packages"
    there.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        name = entry.name.lower()
        if "bithaul" not in name and name.partition("-")[0] != "pip" and entry.suffix != ".pth":
            (there / entry.name).symlink_to(entry)
    return there


@pytest.mark.parametrize(
    "found", ["here", pytest.param("by pip", marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_the_shown_bash_line_installs_a_worker_and_the_page_turns_green(
    open_tab, coordinator, tmp_path: Path, found: str
) -> None:
    """In a clean shell: nothing of this environment but where pip finds packages.

    `here`: they are on the machine, and pip installs bithaul alone, from the coordinator. `by pip`: it
    brings them all, which takes minutes.
    """
    name = "fresh-box" if found == "here" else "bare-box"
    tab = open_tab()
    page = tab.go("/admin/install")
    page.get_by_label("Name of the machine").fill(name)
    page.get_by_role("button", name="Make its key").click()
    line = page.locator("#line-bash").inner_text()
    kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    clean = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "BITHAUL_CALIBRATION_SECONDS": "0.5", **kept}
    if found == "here":
        clean |= {"PYTHONPATH": str(packages_without_bithaul(tmp_path)), "PIP_NO_INDEX": "1"}
        clean["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{clean['PATH']}"  # the Python of those packages
    log = (tmp_path / "shell.log").open("wb")
    shell = subprocess.Popen(
        ["bash", "-c", line], env=clean, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    try:
        wait_until(
            lambda: page.locator("#arrived .note.good").count() > 0 or shell.poll() is not None, seconds=900
        )
        assert shell.poll() is None, (tmp_path / "shell.log").read_text()
        assert f"{name} has arrived" in page.locator("#arrived").inner_text()
        wait_until(lambda: holds(coordinator, name))
        installed = list(
            (tmp_path / ".bithaul" / "env").glob("lib/python*/site-packages/bithaul/cli/main.py")
        )
        assert len(installed) == 1, "it runs from what the coordinator gave it"
        page.get_by_role("link", name="See what it does").click()
        page.wait_for_url(f"**/admin/workers/{name}")
        tab.assert_quiet()
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(30)
        log.close()
