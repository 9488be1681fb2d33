"""The whole audit on models that know everything and nothing; the files it writes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bithaul.corpus.example import Example
from bithaul.errors import InvalidInput, UnknownName
from bithaul.evaluation.audit import audit_intents
from bithaul.evaluation.calibration import calibrate
from bithaul.evaluation.files import confusion_csv, reliability_svg, write_confusion, write_plot
from bithaul.inference.loader import LoadedModel

INTENT_KEYS = {"accuracy", "slot_f1", "exact_match", "examples", "per_intent", "per_slot", "confusion"}
KEYS = {*INTENT_KEYS, "unknown_intents", "out_of_scope", "calibration", "noise"}


def test_a_model_that_knows_the_answers(fitted_model: LoadedModel, requests: list[Example]) -> None:
    seen: list[int] = []
    audit = audit_intents(
        fitted_model, requests, outside=["who are you"], noise=["light", "heavy"], on_progress=seen.append
    )
    assert audit.as_record().keys() == KEYS
    assert audit.intents.accuracy == 1.0
    assert audit.intents.examples == 20
    assert audit.out_of_scope is not None
    assert (audit.out_of_scope.in_scope, audit.out_of_scope.out_of_scope) == (18, 3)
    assert audit.out_of_scope.auroc > 0.6
    assert audit.calibration is not None
    assert audit.calibration.examples == 20
    assert audit.calibration.ece < 0.1
    assert seen == sorted(seen)
    assert seen[-1] == 61


def test_noise_costs_what_was_learnt_by_heart(fitted_model: LoadedModel, requests: list[Example]) -> None:
    """An audit that evaluated the clean text again would show no loss."""
    audit = audit_intents(fitted_model, requests, noise=["heavy"])
    heavy = audit.noise["heavy"]
    assert heavy.word_error_rate > 0.2
    assert heavy.changed_share > 0.8
    assert heavy.intents.exact_match < audit.intents.exact_match == 1.0
    assert audit.as_record()["noise"]["heavy"].keys() == {  # type: ignore[index]
        "accuracy",
        "slot_f1",
        "exact_match",
        "word_error_rate",
        "changed_share",
    }


def test_extra_requests_count_for_nothing_else(random_model: LoadedModel, requests: list[Example]) -> None:
    inside = [request for request in requests if request.intent != "out_of_scope"]
    plain = audit_intents(random_model, inside)
    extra = audit_intents(random_model, inside, outside=["sing a song", "what is love"])
    assert plain.out_of_scope is None
    assert extra.out_of_scope is not None
    assert extra.intents == plain.intents
    assert extra.calibration == plain.calibration


def test_aliases_are_out_of_scope_and_unknown_intents_neither(
    fitted_model: LoadedModel, requests: list[Example]
) -> None:
    asked = [
        Example("take me to dallas", "navigate"),
        Example("tell me a joke", "OOS"),
        Example("brew me a coffee", "coffee"),
    ]
    audit = audit_intents(fitted_model, asked)
    assert audit.out_of_scope is not None
    assert (audit.out_of_scope.in_scope, audit.out_of_scope.out_of_scope) == (1, 1)
    assert audit.calibration is not None
    assert audit.calibration.examples == 2
    nothing = audit_intents(fitted_model, asked[2:])
    assert (nothing.out_of_scope, nothing.calibration) == (None, None)


def test_wrong_input(fitted_model: LoadedModel, requests: list[Example]) -> None:
    with pytest.raises(InvalidInput, match="nothing to evaluate"):
        audit_intents(fitted_model, [])
    with pytest.raises(UnknownName, match="light"):
        audit_intents(fitted_model, requests, noise=["loud"])
    with pytest.raises(UnknownName, match="max_probability"):
        audit_intents(fitted_model, requests, scope_score="best")


def test_the_confusion_matrix_is_whole(tmp_path: Path) -> None:
    """Right answers on the diagonal, names with commas quoted, predicted names that are no gold too."""
    matrix = {("go", "go"): 3, ("go", "a, b"): 1, ("find", "go"): 2}
    rows = list(csv.reader(io.StringIO(confusion_csv(matrix))))
    assert rows == [
        ["gold \\ predicted", "a, b", "find", "go"],
        ["a, b", "0", "0", "0"],
        ["find", "0", "0", "2"],
        ["go", "1", "0", "3"],
    ]
    write_confusion(matrix, tmp_path / "matrix.csv")
    assert (tmp_path / "matrix.csv").read_text(encoding="utf-8") == confusion_csv(matrix)


def test_the_matrix_of_a_report_adds_up(random_model: LoadedModel, requests: list[Example]) -> None:
    report = audit_intents(random_model, requests).intents
    right = sum(count for (gold, predicted), count in report.matrix.items() if gold == predicted)
    assert sum(report.matrix.values()) == report.examples
    assert right / report.examples == report.accuracy


def test_the_reliability_diagram(tmp_path: Path) -> None:
    """Well-formed, nothing from elsewhere, a bar as high as the bin's accuracy, names escaped."""
    logits = np.log(np.array([[0.9, 0.1]] * 4))
    report = calibrate(logits, np.array([0, 0, 0, 1]))
    svg = reliability_svg(report, title="<mine>")
    root = ElementTree.fromstring(svg)
    bars = [node for node in root if node.get("fill") == "#4878a8"]
    assert [float(str(bar.get("height"))) for bar in bars] == [240.0]  # 0.75 of 320
    assert "<mine>" in "".join(root.itertext())
    assert svg.count("http") == 1
    assert svg == reliability_svg(report, title="<mine>")
    write_plot(report, tmp_path / "plot.svg", title="<mine>")
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8") == svg


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"writes \.svg files"):
        write_plot(calibrate(np.zeros((1, 2)), np.array([0])), tmp_path / "plot.png", title="")
    with pytest.raises(InvalidInput, match="no folder"):
        write_confusion({}, tmp_path / "nowhere" / "matrix.csv")
