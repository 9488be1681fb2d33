"""The queue in a real browser before a real coordinator: seed with preview and undo, kick what is stuck."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select
from steps import refresh

from bithaul.coordinator.commands.seed_tasks import seed_tasks, withdraw_seeding
from bithaul.coordinator.database.tables import leases, tasks
from bithaul.coordinator.identity.clients import rotate_client

pytestmark = pytest.mark.browser


def pending(coordinator: Any) -> int:
    with coordinator.c.database.read() as connection:
        query = select(func.count()).select_from(tasks).where(tasks.c.state == "pending")
        return int(connection.execute(query).scalar_one())


def fact(page: Any, name: str) -> str:
    """What the preview says of it."""
    return str(page.locator(f"#preview dt:text-is('{name}') + dd").inner_text())


def test_seeding_with_preview_and_undo(open_tab, coordinator) -> None:
    """Catches: a preview that cuts, a button that cuts something else, an undo of too much or too little."""
    tab = open_tab()
    page = tab.go("/admin/tasks")
    before = pending(coordinator)
    page.get_by_role("link", name="Seed tasks").click()
    page.get_by_label("Tasks", exact=True).fill("20")
    page.get_by_label("Examples in each").fill("640")
    page.get_by_role("button", name="Preview").click()
    page.wait_for_url("**/admin/tasks/seed?tasks=20&examples=640")
    assert fact(page, "Passes").startswith("0.26 over the corpus")
    assert fact(page, "Tokens") == "about 307k"
    assert "at the fleet's present speed" in fact(page, "Will take")
    assert pending(coordinator) == before, "a preview changes nothing"
    positions = fact(page, "Positions")
    page.get_by_role("button", name="Seed 20 tasks").click()
    page.wait_for_selector(".note.good")
    said = page.locator(".note.good").inner_text()
    assert f"20 tasks of 640 examples each, positions {positions}." in said
    assert pending(coordinator) == before + 20
    page.get_by_role("button", name="Undo").first.click()
    dialog = page.locator("[popover]:popover-open")
    assert "withdrawn, 20 now" in dialog.inner_text()
    dialog.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".note.good:has-text('withdrawn')")
    said = page.locator(".note.good").inner_text()
    assert "20 tasks of seeding" in said
    assert "12,800 examples went back; none had been taken" in said
    assert pending(coordinator) == before
    assert page.locator("#seedings tbody tr").first.get_by_role("button", name="Undo").count() == 0
    tab.assert_quiet()


def test_the_preview_follows_the_queue_and_never_lies(open_tab, coordinator) -> None:
    """Catches: a confirmation of what is shown no more, and one that the refresh made something else."""
    tab = open_tab()
    page = tab.go("/admin/tasks/seed?tasks=3&examples=128")
    page.locator("[data-interval]").select_option("0")
    shown = fact(page, "Positions")
    other = seed_tasks(coordinator.c, tasks=1, examples=128)
    before = pending(coordinator)
    page.get_by_role("button", name="Seed 3 tasks").click()
    page.wait_for_selector(".note.warn")
    assert (
        "The queue has moved since the preview, so nothing was seeded." in page.locator("main").inner_text()
    )
    assert pending(coordinator) == before
    assert fact(page, "Positions") != shown
    withdraw_seeding(coordinator.c, other.seeding)
    refresh(page)
    assert fact(page, "Positions").split(",")[:2] == shown.split(",")[:2], "the refresh follows"
    page.get_by_role("button", name="Seed 3 tasks").click()
    page.wait_for_selector(".note.good")
    assert pending(coordinator) == before + 2
    tab.assert_quiet()


def test_what_cannot_be_seeded_is_said_where_it_was_asked(open_tab) -> None:
    tab = open_tab(width=360)
    page = tab.go("/admin/tasks/seed")
    page.get_by_label("Tasks", exact=True).fill("many")
    page.get_by_label("Examples in each").fill("100")
    page.get_by_role("button", name="Preview").click()
    page.wait_for_selector("#preview .note.bad")
    told = page.locator("#preview").inner_text()
    assert "tasks from 1 to 10,000" in told
    assert "take 64 or 128" in told
    assert page.locator("#preview button").count() == 0
    assert page.get_by_label("Tasks", exact=True).input_value() == "many"
    tab.assert_quiet()


def test_a_task_is_taken_back_and_waits(open_tab, coordinator) -> None:
    """Catches: a button that says so and leaves the lease as it was."""
    with coordinator.c.database.read() as connection:
        query = select(leases.c.id, leases.c.task_id)
        query = query.where(leases.c.worker == "shed-celeron", leases.c.state == "open")
        lease, number = connection.execute(query).one()
    tab = open_tab()
    page = tab.go(f"/admin/tasks/{number}")
    page.get_by_role("button", name="Take back").first.click()
    dialog = page.locator("#requeue")
    assert "the next worker that asks gets the task whole" in dialog.inner_text()
    dialog.get_by_role("button", name="Take back").click()
    page.wait_for_selector(".note.good")
    assert f"Task {number} was taken back" in page.locator(".note.good").inner_text()
    assert "pending" in page.locator("#task header").first.inner_text()
    with coordinator.c.database.read() as connection:
        state = connection.execute(select(leases.c.state).where(leases.c.id == lease)).scalar_one()
    assert state != "open"
    tab.assert_quiet()


def test_a_stuck_task_is_kicked_and_its_worker_hears_it(open_tab, coordinator) -> None:
    """Catches: a kick of somebody else's task, one that the worker never hears of, one without an answer."""
    with coordinator.c.database.read() as connection:
        query = select(leases.c.id, leases.c.task_id, leases.c.fence)
        query = query.where(leases.c.worker == "kitchen-laptop", leases.c.state == "open")
        lease, number, fence = connection.execute(query).one()
    tab = open_tab()
    page = tab.go("/admin/tasks?state=stuck")
    assert page.locator("tbody tr a").first.inner_text() == str(number)
    page.locator("tbody tr a").first.click()
    page.wait_for_url(f"**/admin/tasks/{number}")
    page.get_by_role("button", name="Kick", exact=True).first.click()
    dialog = page.locator("#kick")
    assert "kitchen-laptop hears it at its next heartbeat" in dialog.inner_text()
    dialog.get_by_role("button", name="Kick").click()
    page.wait_for_selector(".note.good")
    assert f"Task {number} of kitchen-laptop was kicked" in page.locator(".note.good").inner_text()
    assert "revoked" in page.locator("main").inner_text()
    with coordinator.c.database.read() as connection:
        state = connection.execute(select(leases.c.state).where(leases.c.id == lease)).scalar_one()
    assert state == "revoked"
    secret = rotate_client(coordinator.c, "kitchen-laptop")
    with httpx2.Client(base_url=coordinator.url, timeout=20, trust_env=False) as http:
        token = http.post(
            "/connect/token",
            data={"grant_type": "client_credentials"},
            auth=("kitchen-laptop", secret),
        ).json()["access_token"]
        beat = {"task": number, "fence": fence, "tokens": 10**6, "activity": "training"}
        answer = http.post("/heartbeat", json=beat, headers={"Authorization": f"Bearer {token}"})
    assert answer.json()["lease_open"] is False
    tab.assert_quiet()


def test_all_stuck_tasks_are_kicked_from_the_list(open_tab, coordinator) -> None:
    """By then the other machines of the pretended run have said nothing for long enough."""
    with coordinator.c.database.write() as connection:
        held = leases.update().where(leases.c.state == "open").values(granted_at=1.0, tokens=0)
        count = connection.execute(held).rowcount
    assert count > 1
    tab = open_tab()
    page = tab.go("/admin/tasks")
    assert f"{count} tasks are stuck" in page.locator(".note.stuck").inner_text()
    page.get_by_role("button", name="Kick stuck").click()
    page.locator("#kick-all").get_by_role("button", name="Kick").click()
    page.wait_for_selector(".note.good")
    assert f"{count} stuck tasks were kicked" in page.locator(".note.good").inner_text()
    assert page.locator(".note.stuck").count() == 0
    tab.assert_quiet()
