"""Writes docs/security-matrix.md: every SEC number with the tests that carry it, or marked open.

Run `make security-matrix`; a test fails when the page is not what this prints. `test_sec_07_...` proves
SEC-07; a test elsewhere that proves one is named in ALSO and must exist. What is not covered is said in OPEN.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security-matrix.md"
_NAME = re.compile(r"test_sec_(\d\d)_\w+")

GROUPS = {
    "Clients and the token endpoint": range(1, 11),
    "Tokens": range(11, 19),
    "Code flow and OpenID Connect": range(19, 28),
    "Sessions and browser": range(28, 38),
    "Files and sizes": (38, 39, 40, 41, 42, 45, 62),
    "Slow and hostile connections": (43, 44, 54),
    "Between workers": (46, 47, 48, 49),
    "Set-up and operation": (50, 51, 52, 53, 55, 56, 57, 58, 59, 60, 61),
}

PROMISES = {
    1: "unknown client, wrong secret and disabled client are one answer, in one time",
    2: "no secret, code, cookie or token rests in the run's folder or in a log",
    3: "rotating, disabling or deleting ends every token with the next request, also after a restart and "
    "in a second process",
    4: "an upload that began under a rotated credential is not applied",
    5: "an old secret fails at once, or when its grace ends",
    6: "one way of client authentication; malformed Basic is an ordinary 401",
    7: "forms are bounded, urlencoded, and name nothing twice",
    8: "a token never has more scope than its client",
    9: "no-store wherever a secret or token is shown",
    10: "guessing is slowed on every credential path, and nobody else is locked out",
    11: "other algorithms are refused",
    12: "other, missing and hostile key ids are refused",
    13: "a token brings no key of its own, and no connection is opened for one",
    14: "an access token is no ID token and the other way round",
    15: "claims are checked by value and type, with 30 s of skew",
    16: "whatever is not exactly one of our tokens is a 401, quickly",
    17: "signing keys rotate without losing a token, and only public halves are shown",
    18: "a token counts in one Authorization header and nowhere else",
    19: "PKCE S256 is demanded where the code is asked for",
    20: "redirect addresses match byte for byte, or there is no redirect",
    21: "a code is redeemed once; a replay ends what it gave",
    22: "a code is bound to client, address, challenge and session, and lives a minute",
    23: "state, iss, nonce, at_hash, prompt and max_age do what they say",
    24: "flows that are not offered are not announced and refused",
    25: "the issuer is the public URL, and what is announced works for clients that are not ours",
    26: "signing out leads to registered addresses only, and asks when it cannot be sure",
    27: "revocation of one's own tokens only; introspection needs the role",
    28: "the session id changes with every change of privilege",
    29: "cookie attributes for https and http; a banner over plain http",
    30: "sessions end by idleness, age, choice, a new password, and with the way in that opened them",
    31: "every unsafe route refuses requests another site made",
    32: "GET and HEAD change nothing",
    33: "pages carry the content security policy as written, and no page and no action breaks it",
    34: "all safe headers on everything; HSTS under https only",
    35: "what strangers send appears as text",
    36: "`next` never leaves the site",
    37: "a secret is shown once",
    38: "ids are looked up, never joined to a path",
    39: "sizes are judged before, during and after the body",
    40: "encoded bodies are refused before they are read",
    41: "hostile JSON is refused in bounded time and memory",
    42: "ranges are the right bytes or 416, never slow",
    43: "large headers and slow connections end at a deadline, and no address takes every connection",
    44: "event streams are bounded and end with the session",
    45: "a full disk is 507 and leaves nothing behind",
    46: "logs are bounded per worker, and escaped where they are shown",
    47: "one worker cannot act as another",
    48: "late and repeated results are refused or answered with the same receipt",
    49: "status and metrics show no names",
    50: "foreign hosts are refused; forwarded headers count from configured proxies only",
    51: "the first password is generated, shown once, and changed by force",
    52: "unsafe settings do not start, and `bithaul check --deploy` names each",
    53: "who did what is in the audit log",
    54: "a crowd of sign-ins does not stop heartbeats, and takes bounded memory",
    55: "errors carry a request id and never a traceback",
    56: "floors of libraries with fixed holes hold, and everything that is installed is pinned",
    57: "install scripts carry no secret as an argument and quote hostile names",
    58: "only this machine is served unless told otherwise",
    59: "secrets are compared in constant time",
    60: "backups are 0600 and hold no plaintext secret",
    61: "fuzzing the whole API finds no 5xx and nothing undocumented",
    62: "codec headers allocate nothing beyond the declared cap",
}

ALSO = {
    33: (
        "tests/browser/test_browser_site.py::test_every_page_is_quiet_and_fits",
        "tests/browser/test_browser_walk.py::test_every_page_and_every_action_is_quiet",
        "tests/browser/test_browser_try.py::test_a_sentence_is_tried_on_the_newest_version",
    ),
    35: (
        "tests/unit/site/test_site_workers_logs.py::test_hostile_words_appear_as_text",
        "tests/browser/test_browser_site.py::test_words_of_strangers_run_nothing",
        "tests/browser/test_browser_hostile.py::test_hostile_machines_tasks_and_browsers_are_text",
    ),
    37: (
        "tests/browser/test_browser_site.py::test_a_machine_is_added_and_its_page_turns_green",
        "tests/browser/test_browser_hostile.py::test_going_back_shows_no_secret_again",
        "tests/browser/test_browser_hostile.py::test_going_back_after_signing_out_shows_nothing",
    ),
    45: ("tests/unit/coordinator/test_core_backup.py::test_a_full_disk_leaves_no_file_and_no_row",),
    46: (
        "tests/unit/site/test_site_workers_logs.py::test_hostile_words_appear_as_text",
        "tests/browser/test_browser_site.py::test_words_of_strangers_run_nothing",
    ),
    48: (
        "tests/integration/test_api_process.py::test_a_worker_s_whole_day_over_http",
        "tests/unit/coordinator/test_core_gates.py::test_only_the_holder_of_a_lease_may_report",
        "tests/unit/coordinator/test_core_gates.py::test_the_first_valid_report_wins",
    ),
    53: (
        "tests/unit/coordinator/test_core_trust.py"
        "::test_what_an_operator_does_to_workers_and_versions_is_in_the_audit_log",
        "tests/unit/coordinator/test_core_seeding.py::test_what_was_previewed_is_what_is_done",
        "tests/unit/coordinator/test_core_kick.py::test_a_kick_revokes_and_its_worker_hears_it",
    ),
    57: (
        "tests/unit/site/test_site_keys.py::test_the_bash_line_carries_hostile_values_as_one_word",
        "tests/unit/site/test_site_keys.py::test_powershell_quotes_are_doubled",
    ),
    60: (
        "tests/e2e/test_up.py::test_a_run_goes_on_from_a_backup_made_while_it_trained",
        "tests/unit/coordinator/test_core_backup.py::test_the_file_is_private_and_readable_by_tar",
        "tests/unit/coordinator/test_core_backup.py::test_hostile_paths_are_refused",
        "tests/unit/coordinator/test_core_backup.py::test_damage_anywhere_is_found_and_leaves_nothing",
    ),
    62: (
        "tests/unit/exchange/test_exchange_frame.py::test_any_head_is_refused_without_a_large_allocation",
        "tests/unit/exchange/test_exchange_codecs.py::test_random_heads_never_allocate",
    ),
}

OPEN = {
    57: "bash and Docker lines are run by real shells. PowerShell's lines are run where there is a `pwsh`, "
    "and there was none where the tests ran so far; everywhere they are read twice, by a reader written "
    "from the language's specification and by a grammar that others wrote",
}

# Promises about something that bithaul does not have. A test finds it when it comes.
NOT_APPLICABLE = {
    44: "because no route streams events: pages ask again by themselves",
}

# A part of a promise that does not apply, where the rest is covered.
COVERED_WITHOUT = {
    56: "the newest advisories are fetched by `make audit` where the network allows; the tests use a server "
    "of their own",
    40: "caps on what zstd unpacks to are not applicable, because zstd is refused too, before it is read",
}


def carried() -> dict[int, list[str]]:
    """Tests by number, in the order of files and lines."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (match := _NAME.fullmatch(node.name)):
                found.setdefault(int(match[1]), []).append(
                    f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                )
    for number, tests in ALSO.items():
        for test in tests:
            path, _, name = test.partition("::")
            if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8"):
                raise SystemExit(f"{test} does not exist; mend ALSO in {Path(__file__).name}")
            found.setdefault(number, []).append(test)
    return found


def page() -> str:
    tests = carried()
    unknown = tests.keys() - PROMISES.keys()
    if unknown:
        raise SystemExit(f"Tests carry numbers that do not exist: {sorted(unknown)}")
    without = PROMISES.keys() - tests.keys() - OPEN.keys()
    if without:
        raise SystemExit(f"Neither a test nor a word in OPEN: {sorted(without)}")
    alone = NOT_APPLICABLE.keys() - tests.keys() | NOT_APPLICABLE.keys() & OPEN.keys()
    if alone:
        raise SystemExit(f"Not applicable, and no test that keeps it so: {sorted(alone)}")
    covered = len(tests.keys() - OPEN.keys() - NOT_APPLICABLE.keys())
    partly = len(tests.keys() & OPEN.keys())
    lines = [
        "# What the security tests prove",
        "",
        "Written by `make security-matrix` from the tests; a test fails when this page is not up to date.",
        "Numbers are names and never change. *Partly* and *open* say what is missing. *Not applicable* says",
        "what bithaul does not have; its tests find it when it comes.",
        "",
        "The coordinator of a test has SQLite; tests about rows that processes share run on PostgreSQL too,",
        "and `make test-security-postgres` runs all of them there. Its programs (`initdb`) must be",
        "installed; tests of SQLite's own file are skipped.",
        "",
        f"{covered} covered, {len(NOT_APPLICABLE)} not applicable, {partly} partly, "
        f"{len(PROMISES) - covered - len(NOT_APPLICABLE) - partly} open.",
    ]
    for title, numbers in GROUPS.items():
        lines += ["", f"## {title}", "", "| number | promise | state | tests |", "|---|---|---|---|"]
        for number in numbers:
            names = tests.get(number, [])
            missing = OPEN.get(number)
            if number in NOT_APPLICABLE:
                state = f"not applicable, {NOT_APPLICABLE[number]}"
            elif missing is not None:
                state = f"{'partly' if names else '**open**'}: {missing}"
            else:
                state = "; ".join(filter(None, ("covered", COVERED_WITHOUT.get(number))))
            shown = "<br>".join(f"`{name.removeprefix('tests/')}`" for name in names) or "none"
            lines.append(f"| SEC-{number:02} | {PROMISES[number]} | {state} | {shown} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} written\n")
