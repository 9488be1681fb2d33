"""The box that tries the model, in a real browser: the newest version of a run that real workers trained.

`bithaul up` trains a tiny model for seconds; then a coordinator serves the run that it left.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from served import Process, serving, train_tiny, welcome
from sqlalchemy import select, text

from bithaul.coordinator.database.tables import reports

pytestmark = [pytest.mark.browser, pytest.mark.process]

SENTENCES = ("take me to dallas", "how many hours can i still drive today")


@pytest.fixture(scope="module")
def coordinator() -> Iterator[Process]:
    with serving(train_tiny, welcome) as running:
        yield running


def classified(coordinator: Process) -> list[dict[str, object]]:
    """What `bithaul classify` makes of the sentences, with the model that `up` has published."""
    done = subprocess.run(
        [sys.executable, "-m", "bithaul", "classify", "-", "--dir", str(coordinator.folder)],
        input="\n".join(SENTENCES) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ask(page, sentence: str) -> str:
    page.get_by_label("A request, as a driver would say it").fill(sentence)
    with page.expect_response(lambda r: r.url.endswith("/admin/runs/try"), timeout=60_000):
        page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#answer .answer")
    return str(page.locator("#answer").inner_text())


def test_a_sentence_is_tried_on_the_newest_version(open_tab, coordinator) -> None:
    """Catches: an answer of another model than `classify` has, of an old version, or of none at all."""
    with coordinator.c.database.read() as connection:
        newest = connection.execute(text("SELECT max(version) FROM versions")).scalar_one()
        assert len(connection.execute(select(reports.c.worker).distinct()).all()) == 2, "real workers"
    tab = open_tab()
    page = tab.go("/admin/runs")
    for sentence, known in zip(SENTENCES, classified(coordinator), strict=True):
        told = ask(page, sentence)
        assert str(known["intent"]) in told
        assert f"{100 * float(str(known['confidence'])):.0f} % sure, version {newest}" in told
        slots = known["slots"]
        assert isinstance(slots, dict)
        assert all(str(value) in told for value in slots.values())
        assert ("no slots" in told) == (not slots)
    page.evaluate("window.bithaul.refresh()")
    page.wait_for_timeout(500)
    assert str(newest) in page.locator("#answer").inner_text(), "a refresh keeps the answer"
    tab.assert_quiet()


def test_a_sentence_is_tried_without_script(open_tab, coordinator) -> None:
    """Catches: a form that only the script makes a POST; without it the token stands in the address."""
    page = open_tab(java_script_enabled=False).go("/admin/runs")
    page.get_by_label("A request, as a driver would say it").fill(SENTENCES[0])
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector("#answer .answer")
    assert page.url == coordinator.url + "/admin/runs/try"
    assert str(classified(coordinator)[0]["intent"]) in page.locator("#answer").inner_text()
    assert page.locator("[name=sentence]").input_value() == SENTENCES[0]
    assert page.locator("h1").count() == 1


def test_why_there_is_no_answer_is_said_in_its_place(open_tab, coordinator) -> None:
    """Catches: a button that does nothing that one can see."""
    tokenizer = coordinator.folder / "corpus" / "tokenizer.json"
    away = tokenizer.with_suffix(".away")
    newest = "UPDATE versions SET version = version {} 1 WHERE version = (SELECT max(version) FROM versions)"
    try:
        tokenizer.rename(away)
        with coordinator.c.database.write() as connection:  # a newer version: the model is loaded again
            connection.execute(text(newest.format("+")))
        page = open_tab().go("/admin/runs")
        assert "tokenizer" in ask(page, SENTENCES[0])
        assert page.locator("#answer [role=alert]").count() == 1
        assert page.locator("h1").count() == 1, "not a page within the page"
    finally:
        away.rename(tokenizer)
        with coordinator.c.database.write() as connection:
            connection.execute(text(newest.format("-")))
