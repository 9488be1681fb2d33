"""What stands behind pages, tested without HTML: keys, results of actions, accounts, pictures, times."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import delete, func, insert, select, update

from bithaul.coordinator.commands.steer import call_gone, drain_worker, pause_run, pin_version, resume_run
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.database import history, runs, work
from bithaul.coordinator.database.tables import logs, reports, workers
from bithaul.coordinator.identity.audit import record
from bithaul.coordinator.identity.clients import create_client, disable_client, enable_client
from bithaul.coordinator.identity.tables import audit, clients
from bithaul.coordinator.queries import logbook as logbook_query
from bithaul.coordinator.queries.actions import FRESH_SECONDS, NOTHING, SENTENCES, done, newest_action
from bithaul.coordinator.queries.keyring import keyring
from bithaul.coordinator.queries.logbook import log_page, make_filter
from bithaul.coordinator.queries.machines import fleet_page
from bithaul.coordinator.queries.runpage import run_page
from bithaul.coordinator.site.formats import browser, minute
from bithaul.coordinator.site.runs import Pictures
from bithaul.errors import InvalidInput
from bithaul.exchange.messages import ADMIN_SCOPE


@pytest.fixture
def own(make_coordinator: Callable[..., Coordinator]) -> Coordinator:
    return make_coordinator(versions=12)


def audits(c: Coordinator) -> int:
    with c.database.read() as connection:
        return len(connection.execute(select(audit.c.id)).all())


# Keys


def test_a_key_is_told_with_what_its_machine_does(own: Coordinator) -> None:
    """Catches: a key of a machine that works shown as never used, and a key of an operator among them."""
    create_client(own, "attic-nuc", scope="bithaul.worker")
    create_client(own, "not-yet-here", scope="bithaul.worker")
    create_client(own, "ops", scope=ADMIN_SCOPE)
    view = keyring(own)
    assert [(k.id, k.registered, k.last_seen is not None) for k in view.workers] == [
        ("attic-nuc", True, True),
        ("not-yet-here", False, False),
    ]
    assert view.workers[0].hint.startswith("bhw_")
    assert len(view.workers[0].hint) < 12, "not the secret"
    assert "ops" in [k.id for k in view.others]
    assert all(k.is_worker for k in view.workers)
    assert not any(k.is_worker for k in view.others)
    assert (view.matching, view.total, view.next_after) == (2, 2, None)


def test_keys_are_searched_by_name_beginning_and_address_and_paged_by_name(own: Coordinator) -> None:
    for name in ("c", "a", "b"):
        create_client(own, name, scope="bithaul.worker")
    used = {"last_used_from": "10.9.8.7", "secret_hint": "bhw_Qq12"}
    with own.database.write() as connection:
        connection.execute(update(clients).where(clients.c.id == "b").values(used))
    assert [k.id for k in keyring(own, search="10.9.8").workers] == ["b"]
    assert [k.id for k in keyring(own, search="QQ12").workers] == ["b"]
    first = keyring(own, count=2)
    assert ([k.id for k in first.workers], first.next_after) == (["a", "b"], "b")
    rest = keyring(own, count=2, after="b")
    assert ([k.id for k in rest.workers], rest.next_after) == (["c"], None)
    assert [k.id for k in keyring(own, count=None).workers] == ["a", "b", "c"]
    nothing = keyring(own, search="zzz")
    assert (nothing.workers, nothing.matching, nothing.total) == ([], 0, 3)


# Results of actions


def test_every_sentence_is_filled_from_its_row(own: Coordinator) -> None:
    """Catches: a brace that is shown, and an action that a page shows nothing of."""
    for action in SENTENCES:
        with own.database.write() as connection:
            record(connection, own.clock.now(), actor="ada", action=action, subject="x-1", detail="it was so")
        view = done(own, newest_action(own, "ada"))
        assert view is not None
        assert view.changed
        assert "{" not in view.sentence
        assert "x-1" in view.sentence or "it was so" in view.sentence or action.startswith("run.")


def test_only_a_fresh_row_is_told(own: Coordinator) -> None:
    drain_worker(own, "attic-nuc", on=True, actor="ada")
    number = newest_action(own, "ada")
    assert done(own, number) is not None
    assert newest_action(own, "nobody") == NOTHING
    own.clock.time += FRESH_SECONDS + 1
    assert done(own, number) is None
    assert done(own, 10**9) is None
    with own.database.write() as connection:
        record(connection, own.clock.now(), actor="ada", action="session.start", subject="ada")
    assert done(own, newest_action(own, "ada")) is None, "signing in is nothing that a page did"


def test_doing_it_twice_leaves_one_row_and_says_so(own: Coordinator, visit) -> None:
    """Catches: "done" about what was so already, told with the row of something else."""
    site = visit(own)
    for address, word in (
        ("/admin/workers/attic-nuc/drain", "gets no more work"),
        ("/admin/workers/attic-nuc/resume", "gets work again"),
        ("/admin/workers/attic-nuc/gone", "is marked gone"),
        ("/admin/workers/desk-ryzen/set-aside", "is set aside"),
        ("/admin/workers/desk-ryzen/pin", "counts fully"),
        ("/admin/runs/pause", "is paused"),
        ("/admin/runs/resume", "The run goes on."),
    ):
        before = audits(own)
        said = site.get(site.post(address).headers["location"]).text
        assert word in said, address
        assert 'class="note good"' in said, address
        assert audits(own) == before + 1, address
        again = site.get(site.post(address).headers["location"]).text
        assert "Nothing was changed: it was so already." in again, address
        assert 'class="note good"' not in again, address
        assert audits(own) == before + 1, address


def test_a_key_is_disabled_and_enabled_once(own: Coordinator) -> None:
    """Catches: a second disable that counts the credential up again, or a grace that outlives it."""
    create_client(own, "w1", scope="bithaul.worker")

    def row() -> tuple[int, bool]:
        with own.database.read() as connection:
            return tuple(connection.execute(select(clients.c.cv, clients.c.disabled)).first())

    disable_client(own, "w1")
    after = row()
    disable_client(own, "w1")
    assert row() == after
    before = audits(own)
    enable_client(own, "w1")
    enable_client(own, "w1")
    assert audits(own) == before + 1
    held = {"disabled": True, "previous_hash": "0" * 64, "previous_until": own.clock.now() + 999}
    with own.database.write() as connection:
        connection.execute(update(clients).where(clients.c.id == "w1").values(held))
    disable_client(own, "w1")
    with own.database.read() as connection:
        assert connection.execute(select(clients.c.previous_hash)).scalar_one() is None


def test_a_version_is_pinned_and_a_machine_called_gone_once(own: Coordinator) -> None:
    for act in (
        lambda: pin_version(own, 12, on=True),
        lambda: pin_version(own, 12, on=False),
        lambda: call_gone(own, "desk-ryzen"),
    ):
        before = audits(own)
        act()
        act()
        assert audits(own) == before + 1
    with own.database.write() as connection:  # gone, and yet it holds something
        connection.execute(update(workers).where(workers.c.id == "attic-nuc").values(gone=True))
    call_gone(own, "attic-nuc")
    assert audits(own) == before + 2
    with own.database.read() as connection:
        assert work.open_leases(connection, 1, worker="attic-nuc") == []


def test_a_pause_of_the_coordinators_own_becomes_a_persons(own: Coordinator) -> None:
    with own.database.write() as connection:
        run = runs.get_run(connection)
        runs.update_run(connection, run.id, state="paused", paused_because="the disk is full")
    assert pause_run(own, actor="ada").paused_because == ""
    assert resume_run(own, actor="ada").state == "running"


# Accounts


def next_report(c: Coordinator, worker: str, *, verdict: str = "rejected", tokens: int = 500) -> None:
    """One more row of the ledger, for a task of which nothing was accepted."""
    with c.database.write() as connection:
        row = dict(connection.execute(select(reports).order_by(reports.c.seq.desc())).mappings().first())
        free = row["lease_id"] + 1
        row |= {"seq": row["seq"] + 1, "worker": worker, "verdict": verdict, "tokens": tokens, "clip": 0.5}
        row |= {"task_id": free, "lease_id": free, "fence": f"{free:032x}"}
        connection.execute(insert(reports), [row])


def both(c: Coordinator, kept: history.Accounts) -> tuple[object, object]:
    with c.database.read() as connection:
        return kept.of(connection, 1), history.accounts(connection, 1)


def test_accounts_go_on_from_the_last_look(own: Coordinator) -> None:
    """Catches: a report counted twice or never, and a ledger that is added up anew at each refresh."""
    kept = history.Accounts()
    first, whole = both(own, kept)
    assert first == whole
    assert sum(a.accepted for a in first.values()) > 30
    before = first["attic-nuc"]
    next_report(own, "attic-nuc", verdict="accepted")
    next_report(own, "attic-nuc", verdict="stale")
    second, whole = both(own, kept)
    assert second == whole
    after = second["attic-nuc"]
    assert (after.accepted, after.stale) == (before.accepted + 1, before.stale + 1)
    assert (after.tokens, after.clipped) == (before.tokens + 500, before.clipped + 1)
    with own.database.write() as connection:
        connection.execute(update(reports).values(tokens=1))
    third, whole = both(own, kept)
    assert third == second, "what was looked at is not read again"
    assert third != whole


def test_accounts_begin_anew_with_another_ledger(own: Coordinator) -> None:
    """Catches: sums of a run folder that was restored from its backup meanwhile."""
    kept = history.Accounts()
    both(own, kept)
    with own.database.write() as connection:
        newest = connection.execute(select(func.max(reports.c.seq))).scalar_one()
        connection.execute(delete(reports).where(reports.c.seq > newest - 5))
    mine, whole = both(own, kept)
    assert mine == whole


def test_the_pages_of_workers_use_them(own: Coordinator) -> None:
    kept = history.Accounts()
    assert fleet_page(own, accounts=kept.of).rows == fleet_page(own).rows


def test_the_run_page_tells_what_the_ledger_adds_up_to(own: Coordinator) -> None:
    view = run_page(own)
    with own.database.read() as connection:
        assert view.run is not None
        assert view.run.tokens == runs.spent(connection, 1).merged > 0


# Pictures of weights


def test_one_slow_picture_keeps_nobody_else_waiting() -> None:
    """Catches: a lock that is held while 28 MB of weights are read."""
    go_on, begun = threading.Event(), threading.Event()
    read: list[int] = []

    def slow(version: int) -> object:
        read.append(version)
        if version == 1:
            begun.set()
            assert go_on.wait(20)
        return f"picture of {version}"

    pictures = Pictures(slow)  # type: ignore[arg-type]
    got: list[object] = []
    waiting = [threading.Thread(target=lambda: got.append(pictures.of(1))) for _ in range(2)]
    waiting[0].start()
    assert begun.wait(20)
    waiting[1].start()
    other = threading.Thread(target=lambda: got.append(pictures.of(2)))
    other.start()
    other.join(10)
    alone = list(got)
    go_on.set()
    for thread in (*waiting, other):
        thread.join(20)
    assert alone == ["picture of 2"]
    assert got == ["picture of 2", "picture of 1", "picture of 1"]
    assert sorted(read) == [1, 2], "who came second waited for the first one's"


def test_the_last_pictures_are_kept_and_a_failure_is_not() -> None:
    read: list[int] = []
    trouble = [OSError("gone for a moment")]

    def once(version: int) -> object:
        read.append(version)
        if trouble:
            raise trouble.pop()
        return version

    pictures = Pictures(once)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="gone"):
        pictures.of(99)
    assert pictures.of(99) == 99
    for version in range(Pictures.MOST + 3):
        pictures.of(version)
        pictures.of(0)  # looked at all the time
    assert read.count(0) == 1
    read.clear()
    assert pictures.of(0) == 0
    assert pictures.of(1) == 1
    assert read == [1], "those that nobody looked at for longest were given up"


# Times


def hours(c: Coordinator) -> list[float]:
    """One entry an hour, the newest an hour ago; the times, oldest first."""
    times = [c.clock.now() - 3600.0 * back for back in range(40, 0, -1)]
    rows = [
        {"received_at": t, "time": t, "worker": "w1", "level": "info", "event": f"hour {i}", "fields": "{}"}
        for i, t in enumerate(times)
    ]
    with c.database.write() as connection:
        connection.execute(delete(logs))
        connection.execute(insert(logs), rows)
    return times


@pytest.mark.parametrize("text", ["", "hour"])
@pytest.mark.parametrize("worker", ["", "w1"])
def test_entries_are_found_between_two_times(
    own: Coordinator, monkeypatch: pytest.MonkeyPatch, text: str, worker: str
) -> None:
    """Catches: an end that is left out, a count of other times, older entries searched for nothing."""
    monkeypatch.setattr(logbook_query.logbook, "MOST_SEARCHED", 4)
    times = hours(own)
    wanted = make_filter(own, since=iso(times[10]), until=iso(times[20]), text=text, worker=worker)
    found: list[str] = []
    view, pages = log_page(own, wanted, count=3), 1
    assert view.newer is None
    while True:
        found += [line.event for line in view.lines]
        if view.older is None:
            break
        view, pages = log_page(own, wanted, count=3, before=view.older), pages + 1
    assert found == [f"hour {i}" for i in range(19, 9, -1)]
    assert view.searched_to is None, "older ones are not wanted"
    assert pages == 4, "neither newer nor older entries were looked at"
    if not text:
        assert view.counts["info"] == 10
    assert view.newer is not None
    assert len(log_page(own, make_filter(own, until=iso(times[0]))).lines) == 0
    assert len(log_page(own, make_filter(own, since=iso(times[39]))).lines) == 1


def iso(moment: float) -> str:
    return minute(moment) + "Z"


def test_a_period_and_a_time_both_hold_and_nonsense_is_refused(own: Coordinator) -> None:
    now = own.clock.now()
    assert make_filter(own, period="1h", since=iso(now - 60 * 600)).since == now - 3600
    assert (
        make_filter(own, since="2026-11-28T05:30").since
        == make_filter(own, since="2026-11-28T06:30+01:00").since
    )
    for nonsense in ("yesterday", "2026-13-01T00:00", "'; DROP", "9" * 300):
        with pytest.raises(InvalidInput):
            make_filter(own, until=nonsense)


def test_the_export_of_logs_has_the_asked_time_only(own: Coordinator, visit) -> None:
    times = hours(own)
    site = visit(own)
    query = f"?from={iso(times[10])}&until={iso(times[20])}"
    assert len(site.get(f"/admin/logs.json{query}").json()) == 10
    page = site.get(f"/admin/logs{query}").text
    assert page.count("<tr data-id=") == 10
    assert f'value="{minute(times[10])}"' in page
    assert 'data-live="no"' in page, "nothing new comes into a time that is over"
    assert "from=2026" in page.partition("logs.csv")[2][:80], "the export keeps the filter"
    assert site.get("/admin/logs?from=soon").status_code == 422


@pytest.mark.parametrize(
    ("agent", "told"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0", "Firefox 145 on Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) "
            "Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
            "Edge 142 on Windows",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
            "Version/19.1 Mobile/15E148 Safari/604.1",
            "Safari 19 on iPhone",
        ),
        ("curl/8.5.0", "curl/8.5.0"),
        ("Mozilla/5.0 (X11; Linux) Chrome/<b>", "Mozilla/5.0 (X11; Linux) Chrome/<b>"),
        ("", ""),
    ],
)
def test_a_browser_is_told_in_words(agent: str, told: str) -> None:
    """Catches: Edge that is taken for Chrome, a phone for a Mac, and words of somebody else made up."""
    assert browser(agent) == told
