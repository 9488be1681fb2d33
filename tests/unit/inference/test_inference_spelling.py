"""Values as people write them: unknown words restored, capitals kept, known spellings preferred."""

from __future__ import annotations

from bithaul.corpus.tokenizer import Tokenizer
from bithaul.inference.grammar import DecodedSlot
from bithaul.inference.loader import LoadedModel
from bithaul.inference.spelling import Request, spell_slots


def spell(model: LoadedModel, text: str, *slots: tuple[str, str | list[str]]) -> dict[str, str | list[str]]:
    """Slots whose values are given as text; `[UNK]` stands for the unknown token."""
    request = Request.of(text, model.tokenizer, longest=50)
    decoded = [
        DecodedSlot(
            name,
            tuple(value_ids(model.tokenizer, v) for v in ([value] if isinstance(value, str) else value)),
            not isinstance(value, str),
        )
        for name, value in slots
    ]
    return spell_slots(request, decoded, model)


def value_ids(tokenizer: Tokenizer, value: str) -> tuple[int, ...]:
    ids: list[int] = []
    for word in value.split():
        ids += [tokenizer.unk] if word == "[UNK]" else [i for i, _ in tokenizer.encode_words(word)]
    return tuple(ids)


def test_unknown_becomes_the_users_word(random_model: LoadedModel) -> None:
    """`[UNK]` in the answer is what a missing alignment gives."""
    assert spell(random_model, "take me to Zanzibar", ("city", "[UNK]")) == {"city": "Zanzibar"}
    assert spell(random_model, "take me to the petro in Köln", ("city", "[UNK]")) == {"city": "Köln"}


def test_unknown_words_go_to_values_in_the_order_said(random_model: LoadedModel) -> None:
    """Taking the first unknown word twice gives the same city for both."""
    found = spell(
        random_model, "stop in Oslo then Bergen then dallas", ("stops", ["[UNK]", "[UNK]", "dallas"])
    )
    assert found == {"stops": ["Oslo", "Bergen", "Dallas"]}


def test_a_value_is_looked_for_behind_the_one_before(random_model: LoadedModel) -> None:
    """Without the order, `[UNK]` would be the greeting in front."""
    found = spell(random_model, "howdy take me to the petro in Oslo", ("chain", "petro"), ("city", "[UNK]"))
    assert found == {"chain": "Petro", "city": "Oslo"}


def test_known_words_around_an_unknown_one_fix_its_place(random_model: LoadedModel) -> None:
    found = spell(random_model, "Howdy take me to the Quik j in dallas", ("chain", "the [UNK] j"))
    assert found == {"chain": "the Quik j"}


def test_a_value_that_is_no_span_still_loses_its_unknowns(random_model: LoadedModel) -> None:
    """`[UNK]` next to a word the user did not say: the unknown word itself is still known."""
    found = spell(
        random_model, "take me to Zanzibar", ("city", "dallas [UNK]"), ("chain", "[UNK] [UNK] [UNK]")
    )
    assert found == {"city": "dallas zanzibar"}


def test_canonical_spelling_wins_over_the_users(random_model: LoadedModel) -> None:
    assert spell(random_model, "the FLYING j", ("chain", "flying j")) == {"chain": "Flying J"}


def test_the_users_spelling_where_the_data_has_none(random_model: LoadedModel) -> None:
    assert spell(random_model, "load  NUMBER\t42 is LATE", ("load_id", "number 42"), ("reason", "late")) == {
        "load_id": "NUMBER 42",
        "reason": "LATE",
    }


def test_a_value_the_user_did_not_say_is_in_normal_form(random_model: LoadedModel) -> None:
    assert spell(random_model, "take me home", ("reason", "late")) == {"reason": "late"}


def test_inside_a_written_word(random_model: LoadedModel) -> None:
    """Pieces of one word have their own place in the text, also when the normal form is longer (ﬁ is fi)."""
    assert spell(random_model, "Load#42 is late", ("load_id", "42")) == {"load_id": "42"}
    assert spell(random_model, "ﬁnd Dallas", ("city", "[UNK]")) == {"city": "ﬁnd"}


def test_escaped_quotes_are_undone() -> None:
    r"""Values are trained as JSON text, so a quote is two tokens, `\` and `"`."""
    from bithaul.corpus.example import Example
    from bithaul.corpus.labels import LabelSet
    from bithaul.inference.spelling import _units

    example = Example('play "hey jude" by the beatles', "play", (("song", '"hey jude"'), ("path", "a\\b")))
    tokenizer = Tokenizer.train([example] * 3)
    row = tokenizer.encode_example(example)
    marks = tokenizer.structure()
    first = row.index(marks.key_value) + 1
    value = row[first : row.index(marks.next_slot)]
    second = row.index(marks.key_value, first) + 1
    path = row[second : row.index(marks.close)]
    assert "".join(s for _, s in _units(value, tokenizer)).strip() == '"hey jude"'
    assert "".join(s for _, s in _units(path, tokenizer)).strip() == "a\\b"
    assert LabelSet.from_examples([example], tokenizer).canonical == {}


def test_an_empty_request_has_no_values(random_model: LoadedModel) -> None:
    """Nothing to align with: what cannot be spelled is left out instead of shown as [UNK]."""
    assert spell(random_model, "", ("city", "[UNK]"), ("stops", ["[UNK]", "dallas"])) == {"stops": ["Dallas"]}
