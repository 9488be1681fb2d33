"""Evaluation figures against cases counted by hand, and against a model that knows the answers."""

from __future__ import annotations

import pytest

from bithaul.corpus.example import Example, SlotValue
from bithaul.errors import InvalidInput
from bithaul.evaluation.intents import Confusion, IntentReport, evaluate_intents, score
from bithaul.evaluation.scores import f1_score
from bithaul.inference.classify import Parse
from bithaul.inference.loader import LoadedModel

Label = tuple[str, dict[str, SlotValue]]
KNOWN = ("find", "go", "out_of_scope")


def fold(text: str) -> str:
    return " ".join(text.lower().split())


def scored(*pairs: tuple[Label, Label], known: tuple[str, ...] = KNOWN) -> IntentReport:
    """A report on (gold, predicted) labels."""
    examples = [Example(f"t{i}", gold[0], tuple(gold[1].items())) for i, (gold, _) in enumerate(pairs)]
    parses = [
        Parse(f"t{i}", found[0], 0.5, {k: v if isinstance(v, str) else list(v) for k, v in found[1].items()})
        for i, (_, found) in enumerate(pairs)
    ]
    return score(examples, parses, known_intents=known, fold=fold)


def test_all_right() -> None:
    report = scored(
        (("go", {"city": "Dallas"}), ("go", {"city": "dallas"})),
        (("find", {"stops": ("A", "B")}), ("find", {"stops": ("a", "b")})),
    )
    assert (report.accuracy, report.slot_f1, report.exact_match, report.examples) == (1.0, 1.0, 1.0, 2)
    assert report.confusion == ()
    assert report.mistakes == ()


def test_counted_by_hand() -> None:
    """Gold pairs 5, found 6, hits 3: F1 = 6/11. Macro averages or positions instead of pairs differ."""
    report = scored(
        (("go", {"city": "Dallas", "chain": "Petro"}), ("go", {"city": "Dallas", "chain": "Loves"})),
        (("go", {"stops": ("A", "B")}), ("go", {"stops": ("A", "C", "B")})),
        (("find", {"near": "Waco"}), ("go", {"city": "Waco"})),
        (("find", {}), ("find", {})),
    )
    assert report.accuracy == 3 / 4
    assert report.slot_f1 == pytest.approx(6 / 11)
    assert report.exact_match == 1 / 4
    rows = {row.intent: row for row in report.per_intent}
    go, find = rows["go"], rows["find"]
    assert (go.n, go.precision, go.recall, go.exact) == (2, 2 / 3, 1.0, 0.0)
    assert go.f1 == pytest.approx(0.8)
    assert (find.n, find.precision, find.recall, find.exact) == (2, 1.0, 0.5, 0.5)
    slots = {row.slot: row for row in report.per_slot}
    assert (slots["stops"].n, slots["stops"].precision, slots["stops"].recall) == (2, 2 / 3, 1.0)
    assert (slots["chain"].n, slots["chain"].f1) == (1, 0.0)
    assert (slots["city"].n, slots["city"].precision, slots["city"].recall) == (1, 0.5, 1.0)
    assert report.confusion == (Confusion("find", "go", 1),)
    assert [wrong.example.text for wrong in report.mistakes] == ["t0", "t1", "t2"]


def test_a_right_intent_with_a_wrong_slot_is_not_exact() -> None:
    report = scored((("go", {"city": "Dallas"}), ("go", {"city": "Waco"})))
    assert (report.accuracy, report.slot_f1, report.exact_match) == (1.0, 0.0, 0.0)


def test_an_invented_slot_costs_precision() -> None:
    """Counting only the gold pairs would forgive every invention."""
    report = scored((("go", {"city": "Dallas"}), ("go", {"city": "Dallas", "chain": "Petro"})))
    assert report.slot_f1 == pytest.approx(2 / 3)
    assert report.exact_match == 0.0


def test_a_value_said_twice_is_found_twice() -> None:
    """A set of pairs instead of a multiset gives 1.0."""
    report = scored((("go", {"stops": ("A", "A")}), ("go", {"stops": ("A",)})))
    assert report.slot_f1 == pytest.approx(2 / 3)


def test_the_order_of_a_list_counts_for_exact_match_only() -> None:
    """Memphis before Dallas is another trip."""
    report = scored((("go", {"stops": ("A", "B")}), ("go", {"stops": ("B", "A")})))
    assert (report.slot_f1, report.exact_match) == (1.0, 0.0)


def test_no_slots_on_either_side_is_no_f1() -> None:
    """0 or 1 would be an invented figure for data without slots."""
    report = scored((("go", {}), ("go", {})), (("find", {}), ("go", {})))
    assert (report.slot_f1, report.exact_match) == (None, 0.5)
    assert report.as_record()["slot_f1"] is None
    assert scored((("go", {}), ("go", {"city": "x"}))).slot_f1 == 0.0


def test_unknown_intents_are_errors_and_named() -> None:
    report = scored((("make_coffee", {}), ("go", {})), (("GO", {}), ("go", {})))
    assert report.unknown_intents == ("make_coffee",)
    assert report.accuracy == 0.5


@pytest.mark.parametrize("alias", ["oos", "OOS", "out_of_scope", "out-of-scope"])
def test_names_of_out_of_scope_mean_the_models_own(alias: str) -> None:
    report = scored(((alias, {}), ("out_of_scope", {})))
    assert (report.accuracy, report.unknown_intents) == (1.0, ())
    without = scored(((alias, {}), ("go", {})), known=("go",))
    assert (without.accuracy, without.unknown_intents) == (0.0, (alias,))


def test_confusions_come_largest_first() -> None:
    wrong = [(("go", {}), ("find", {}))] * 2 + [(("find", {}), ("go", {}))] * 3
    report = scored(*wrong)
    assert report.confusion == (Confusion("find", "go", 3), Confusion("go", "find", 2))


def test_nothing_to_evaluate_is_a_clear_error() -> None:
    with pytest.raises(InvalidInput, match="nothing to evaluate"):
        scored()


def test_f1_from_counts() -> None:
    assert f1_score(0, 0, 0) is None
    assert f1_score(0, 3, 0) == 0.0
    assert f1_score(2, 4, 2) == pytest.approx(2 / 3)


def test_a_model_that_knows_the_answers_scores_one(
    fitted_model: LoadedModel, requests: list[Example]
) -> None:
    """A decoder or a metric that loses anything on the way falls below."""
    seen: list[int] = []
    report = evaluate_intents(fitted_model, requests, on_progress=seen.append)
    assert (report.accuracy, report.slot_f1, report.exact_match) == (1.0, 1.0, 1.0)
    assert report.examples == seen[-1] == len(requests)


def test_wrong_labels_fall_to_chance(fitted_model: LoadedModel, requests: list[Example]) -> None:
    """An evaluation that reads the labels instead of the model's answers would still say 1.0."""
    moved = [
        Example(example.text, requests[(i + 10) % 20].intent, requests[(i + 10) % 20].slots)
        for i, example in enumerate(requests)
    ]
    report = evaluate_intents(fitted_model, moved)
    assert report.accuracy <= 0.2
    assert report.exact_match == 0.0


def test_a_random_model_is_not_good(random_model: LoadedModel, requests: list[Example]) -> None:
    report = evaluate_intents(random_model, requests)
    assert report.accuracy <= 0.6
    assert report.exact_match <= 0.2
