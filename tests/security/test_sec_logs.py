"""SEC-46: letters that act instead of being seen, on pages, in exports, in terminals and in log files."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bithaul.cli.coordinator import _OneLine
from bithaul.cli.local.processes import Child
from bithaul.cli.main import run
from bithaul.coordinator.database.tables import workers
from bithaul.errors import InvalidInput
from bithaul.visible import visible
from bithaul.worker.logship import LogBuffer, worker_log

ACTING = "\r\n\x00\x07\x08\x1b\x7f\x85\x9b\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069\ufeff"
EVIL = f"ok{ACTING}\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil\x07 2026-01-01 admin signed out"


def acting(text, *, lines=""):
    """The letters in `text` that a page or terminal would obey; `lines` are our own line ends."""
    return {letter for letter in text if letter in ACTING and letter not in lines}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_sec_46_nothing_that_acts_is_left_and_the_rest_stays(text):
    """Wrong results: a mark in a plane nobody thought of; a name in another script that becomes digits."""
    shown = visible(text)
    for letter in shown:
        kind = unicodedata.category(letter)
        assert kind not in ("Cc", "Zl", "Zp"), hex(ord(letter))
        assert kind != "Cf" or letter in "\u200c\u200d", hex(ord(letter))
    assert visible(shown) == shown
    assert len(shown.splitlines()) <= 1
    if not any(unicodedata.category(letter)[0] == "C" or letter in "\u2028\u2029" for letter in text):
        assert shown == text


def test_sec_46_what_is_left_out_is_still_told():
    assert visible("a\r\nb\x1b[2J\u202e\0") == r"a\r\nb\x1b[2J\u202e\x00"
    assert visible("naïve 東京 עברית é\u00a0x", keep="") == "naïve 東京 עברית é\u00a0x"
    assert visible("two\nlines\r", keep="\n") == "two\nlines\\r"


@pytest.fixture
def hostile(run_site):
    """A site with a worker that sends such words wherever it may, and somebody who looks."""
    headers = run_site.worker("w1")
    message = {"codecs": ["int8-block-v1"], "weight_formats": ["weights-v1"]}
    described = run_site.http.post("/register", json=message, headers=headers).json()["run"]
    able = {"threads": 1, "memory_bytes": 1, "tokens_per_second": 50.0}
    ready = {
        **message,
        "layout_hash": described["layout_hash"],
        "capabilities": {**able, "device": EVIL[:60], "software": EVIL[:30]},
    }
    assert run_site.http.post("/register", json=ready, headers=headers).status_code == 200
    entry = {"time": 1.0, "level": "error", "event": EVIL, "fields": {EVIL: EVIL, "n": 1}}
    assert run_site.http.post("/logs", json={"entries": [entry]}, headers=headers).status_code == 204
    run_site.person()
    browser = run_site.browser()
    browser.enter()
    return run_site, browser


def test_sec_46_log_pages_and_exports_spell_them_out(hostile, engine):
    """Wrong results: a mark that turns a line around, a line that pretends to be the next entry."""
    _, browser = hostile
    for path in ("/admin/logs", "/admin/logs/tail?after=0", "/admin/workers/w1", "/admin/workers"):
        page = browser.get(path)
        assert page.status_code == 200, path
        assert not acting(page.text, lines="\n"), path
        assert r"\r" in page.text, path
    row = next(line for line in browser.get("/admin/logs").text.splitlines() if "data-id=" in line)
    nul = "\0" if engine == "sqlite" else "\N{REPLACEMENT CHARACTER}"  # PostgreSQL stores no NUL as text
    spelt = r"\r\n{}\x07\x08\x1b"
    event = spelt.format(r"\x00" if engine == "sqlite" else nul)
    assert row.count(spelt.format(r"\x00")) == 3 - (engine != "sqlite")  # a field's name and its value, and
    assert event in row  # the event, in one line
    assert row.endswith("</tr>")
    table = browser.get("/admin/logs.csv").text
    assert not acting(table, lines="\r\n")
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len(rows) == len(table.splitlines()) - 1 == 1
    kept = browser.get("/admin/logs.json").json()[0]["event"]
    assert kept == EVIL.replace("\0", nul)  # a program gets what was sent


def test_sec_46_commands_spell_them_out(hostile, capsys):
    """Wrong result: a worker's or an operator's words move the cursor of who lists workers."""
    site, _ = hostile
    with site.c.database.write() as connection:
        connection.execute(workers.update().values(standing="set aside", trust_reason=EVIL[:200]))
    for words in (["workers", "list"], ["workers", "set-aside", "w1", "--reason", EVIL[:60]]):
        with pytest.raises(SystemExit) as ended:
            run([*words, "--dir", str(site.directory)])
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert not acting(out, lines="\n"), words
        assert r"\x1b" in out
        assert out.count("\n") == 1


def test_sec_46_errors_spell_them_out(tmp_path, capsys):
    """Wrong result: a name in a message, a folder's or a peer's, clears the screen."""
    with pytest.raises(SystemExit):
        run(["workers", "list", "--dir", str(tmp_path / "a\x1b[2J\u202eb\r")])
    said = capsys.readouterr().err
    assert not acting(said, lines="\n")
    assert r"a\x1b[2J\u202eb\r" in said


@pytest.mark.parametrize("json_lines", [False, True])
def test_sec_46_a_workers_own_log_spells_out_the_coordinators_words(json_lines):
    """Wrong result: a hostile coordinator writes to the terminals of everybody who lends a machine."""
    stream, buffer, sent = io.StringIO(), LogBuffer(), []
    worker_log(buffer, stream=stream, json_lines=json_lines).warning(EVIL, reason=EVIL)
    assert not acting(stream.getvalue(), lines="\n")
    assert stream.getvalue().count("\n") == 1
    buffer.ship(sent.append)
    assert sent[0].entries[0].fields == {"reason": EVIL}  # the copy is as it was


def test_sec_46_the_coordinators_log_file_spells_them_out():
    """Wrong results: a second line in a log file that nobody logged; a traceback squeezed into one."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_OneLine("%(name)s %(message)s"))
    logger = logging.Logger("bithaul.test")
    logger.addHandler(handler)
    logger.warning("service %s failed", EVIL)
    assert not acting(stream.getvalue(), lines="\n")
    assert stream.getvalue().count("\n") == 1
    try:
        raise InvalidInput(EVIL)
    except InvalidInput:
        logger.exception("failed")
    assert not acting(stream.getvalue(), lines="\n")
    assert "Traceback" in stream.getvalue().splitlines()[2]


def test_sec_46_last_words_of_a_process_spell_them_out(tmp_path):
    """Wrong result: `bithaul up` repeats what a log file says, to the letter, on the terminal."""
    child = Child(name="w1", arguments=[], log=tmp_path / "w1.log")
    child.log.write_text(EVIL.replace("\n", ""), encoding="utf-8", newline="")
    assert not acting(child.last_words())
    assert r"\x1b]0;title" in child.last_words()
    json.dumps(child.last_words())
