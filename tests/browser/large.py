"""A pretended run made large: 1,000 workers and their keys, a million log entries, 100,000 points of an hour.

By a few statements of SQLite, in seconds. Every added machine has reported and holds a lease that gets on.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from bithaul.coordinator.context import Coordinator

REPORTS_EACH = 20
FIRST = 1_000_000  # the number of the first added task: those of the pretended run stay below
NEEDLE = "cable pulled by the cat"  # in one log entry among all, near the oldest

_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < :count - 1) "
_MACHINES = """
    INSERT INTO workers (id, ready, drained, gone, capabilities, calibrated_speed, speed, activity, failures,
        rest_until, standing, trust, trust_to_go, trust_reason, pinned, registered_at, last_seen)
    SELECT printf('pc-%04d', i), ready, 0, 0, capabilities, calibrated_speed, 400 + i % 977, 'training', 0,
        0, 'steady', 1, 0, '', 0, registered_at, :now - i % 10
    FROM n, workers WHERE workers.id = 'desk-ryzen'
"""
_KEYS = """
    INSERT INTO clients (id, scope, secret_hash, secret_hint, cv, disabled, created_at, last_used_at,
        last_used_from)
    SELECT printf('pc-%04d', i), 'bithaul.worker', printf('%064x', i), printf('bhw_%04d', i), 1, 0,
        :now - 7200, :now - i % 600, printf('10.0.%d.%d', i / 250, i % 250)
    FROM n
"""
_TASKS = """
    INSERT INTO tasks (id, run_id, state, positions, examples, attempts, failed_by, reason, created_at,
        changed_at)
    SELECT :first + i, 1, CASE WHEN i < :machines THEN 'leased' ELSE 'merged' END, '[]', 1024, 0, '[]', '',
        :now - 700, :now - 600
    FROM n
"""
_LEASES = """
    INSERT INTO leases (id, run_id, task_id, worker, fence, state, base_version, granted_at, deadline,
        last_deadline, ended_at, reason, tokens, expected_tokens, aimed_at, soft_stop_seconds,
        progress_start, progress_end, seed, probe, moved_at)
    SELECT :first + i, 1, :first + i, printf('pc-%04d', i % :machines), printf('%032x', :first + i),
        CASE WHEN i < :machines THEN 'open' ELSE 'reported' END, :newest, :now - 3600, :now + 900,
        :now + 3600, NULL, '', 1000 * :points, 400000, :now + 300, 4200, 0, 0, i, 0, :now - 5
    FROM n
"""
_REPORTS = """
    INSERT INTO reports (run_id, task_id, lease_id, worker, fence, verdict, code, reason, received_at,
        base_version, staleness, examples, tokens, steps, seconds, loss_first, loss_last, loss_mean, norm,
        merged_in)
    SELECT 1, :first + i, :first + i, printf('pc-%04d', i % :machines), printf('%032x', :first + i),
        'accepted', '', '', :now - 600, 1, 0, 1024, 400000, 16, 540, 2, 2, 2, 1, 1 + i % :newest
    FROM n WHERE i >= :machines
"""
_POINTS = """
    INSERT INTO telemetry (time, worker, task_id, tokens, tokens_per_second, loss)
    SELECT :now - 3600 + (i / :machines + 1) * 3600.0 / :points, printf('pc-%04d', i % :machines),
        :first + i % :machines, 1000 * (i / :machines + 1), 400 + i % 977, 1.8
    FROM n
"""
_LOGS = """
    INSERT INTO logs (received_at, time, worker, level, event, fields)
    SELECT :now - 0.2 * (:count - i), :now - 0.2 * (:count - i), printf('pc-%04d', i % :machines),
        CASE WHEN i % 997 = 0 THEN 'error' WHEN i % 31 = 0 THEN 'warning' ELSE 'info' END,
        CASE WHEN i % 997 = 0 THEN 'task_failed' ELSE 'task_finished' END,
        CASE WHEN i = 4985 THEN '{"task": 4985, "error": "' || :needle || '"}'
            ELSE '{"task": ' || i || ', "tokens": 48213, "seconds": 31.4}' END
    FROM n
"""


def crowd(c: Coordinator, *, machines: int = 988, entries: int = 1_000_000, points: int = 100_000) -> None:
    """Added to a pretended run in SQLite. The log is of the last two days, which the prune service keeps."""
    with c.database.write() as connection:
        newest = connection.execute(text("SELECT max(version) FROM versions")).scalar_one()
        each = -(-points // machines)
        common = {"machines": machines, "first": FIRST, "newest": newest, "now": c.clock.now()}
        common |= {"points": each, "needle": NEEDLE}
        _fill(connection, _MACHINES, common | {"count": machines})
        _fill(connection, _KEYS, common | {"count": machines})
        for statement in (_TASKS, _LEASES, _REPORTS):
            _fill(connection, statement, common | {"count": machines * (1 + REPORTS_EACH)})
        _fill(connection, _POINTS, common | {"count": machines * each})
        _fill(connection, _LOGS, common | {"count": entries})


def _fill(connection: Connection, statement: str, values: dict[str, object]) -> None:
    wanted = text(_NUMBERS + statement)
    connection.execute(wanted, {name: values[name] for name in wanted._bindparams})
