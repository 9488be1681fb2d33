"""SEC-53 for settings: a budget, a setting of the coordinator, and nothing that changes rows without one."""

from __future__ import annotations

import ast
from pathlib import Path

import bithaul.coordinator
from bithaul.coordinator.commands.steer import set_budget
from bithaul.coordinator.context import open_coordinator
from bithaul.coordinator.identity.audit import read_audit
from bithaul.coordinator.services.startup import note_start, settings_to_note
from bithaul.coordinator.settings import Settings, load_settings

PACKAGE = Path(bithaul.coordinator.__file__).parent
OPERATOR = [PACKAGE / "api" / "admin.py", PACKAGE / "api" / "queue.py", *(PACKAGE / "site").glob("*.py")]
OPERATOR += (PACKAGE.parent / "cli").rglob("*.py")
# What an operator's modules call that writes and is no decision of an operator, and why.
NO_DECISION = {
    "create_run": "makes the run; its row is the run itself",
    "ensure_admin_site": "made once by the program, for itself",
}


def settings_in(site_folder: Path, **values: object) -> list[tuple[str, str]]:
    """What a start with these settings adds to the audit log, as (setting, value)."""
    c = open_coordinator(load_settings(site_folder, **values))
    before = {row.id for row in read_audit(c, limit=1000)}
    note_start(c)
    rows = [row for row in read_audit(c, limit=1000, action="setting") if row.id not in before]
    c.close()
    return sorted((row.subject, row.detail) for row in rows)


def test_sec_53_a_setting_that_changes_has_a_row(tmp_path):
    """Wrong results: the port is opened to the LAN and the log does not say since when; a password in it."""
    assert settings_in(tmp_path) == []
    assert settings_in(tmp_path, host="192.168.1.7", port=1) == [("host", "192.168.1.7")]
    assert settings_in(tmp_path, host="192.168.1.7", port=2) == []
    (tmp_path / "bithaul.toml").write_text('trusted_proxies = ["10.0.0.1"]\nlog_days = 9.0\n')
    assert settings_in(tmp_path, host="192.168.1.7") == [
        ("log_days", "9.0"),
        ("trusted_proxies", "('10.0.0.1',)"),
    ]
    assert ("host", "127.0.0.1") in settings_in(tmp_path)
    url = f"sqlite://ann:hunter2@/{(tmp_path / 'x.db').as_posix()}"
    settings = Settings(directory=tmp_path, database_url=url, oidc_client_secret="hunter2")
    noted = settings_to_note(settings)
    assert "hunter2" not in str(noted)
    assert noted.keys() == Settings.model_fields.keys() - {"directory", "port"}


def test_sec_53_a_new_budget_has_a_row(run_site):
    set_budget(run_site.c, tokens=2e6, actor="olga")
    set_budget(run_site.c, seconds=60, tokens=3e6)
    rows = [(row.actor, row.subject, row.detail) for row in read_audit(run_site.c, limit=9, action="run")]
    assert rows[:2] == [("cli", "test", "tokens=3e+06 seconds=60"), ("olga", "test", "tokens=2e+06")]


def functions_of(module: Path) -> dict[str, ast.FunctionDef]:
    return {
        node.name: node for node in ast.parse(module.read_text()).body if isinstance(node, ast.FunctionDef)
    }


def called(node: ast.AST) -> set[str]:
    """Names and attributes that are called somewhere inside."""
    calls = [n.func for n in ast.walk(node) if isinstance(n, ast.Call)]
    names = {n.id for n in calls if isinstance(n, ast.Name)}
    return names | {n.attr for n in calls if isinstance(n, ast.Attribute)}


def imported(module: Path) -> set[tuple[str, str]]:
    """(module, name) of everything taken from the coordinator's commands and identity, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            ("bithaul.coordinator.commands.", "bithaul.coordinator.identity.")
        ):
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def everywhere() -> dict[str, list[ast.FunctionDef]]:
    """Functions of commands and identity by name."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for module in (*(PACKAGE / "commands").glob("*.py"), *(PACKAGE / "identity").glob("*.py")):
        for name, node in functions_of(module).items():
            found.setdefault(name, []).append(node)
    return found


def records(node: ast.FunctionDef, known: dict[str, list[ast.FunctionDef]], seen: set[str]) -> bool:
    """Whether `record` is called in it, or in a function of commands and identity that it calls."""
    names = called(node)
    if "record" in names:
        return True
    for name in names & known.keys() - seen:
        if any(records(other, known, seen | {name}) for other in known[name]):
            return True
    return False


def test_sec_53_whatever_an_operator_calls_and_writes_leaves_a_row():
    """Wrong result: a command, page or address that changes rows and does not say who did it."""
    known = everywhere()
    checked = []
    for module, name in sorted({pair for file in OPERATOR for pair in imported(file)}):
        path = PACKAGE.parents[1] / (module.replace(".", "/") + ".py")
        function = functions_of(path).get(name)
        if function is None or "write" not in called(function) or name in NO_DECISION:
            continue
        assert records(function, known, {name}), f"{module}.{name} writes and leaves no audit row"
        checked.append(name)
    assert {"set_budget", "pause_run", "create_person", "rotate_client", "roll_back", "kick_task"} <= set(
        checked
    )
