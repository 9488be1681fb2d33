"""What the decoder may say covers what is right: every label of the corpus can be decoded at all."""

from __future__ import annotations

from bithaul.corpus.example import Example
from bithaul.corpus.labels import LabelSet
from bithaul.corpus.tokenizer import Tokenizer
from bithaul.corpus.truckmate.generator import Traced
from bithaul.inference.grammar import LabelGrammar, LabelState


def can_say(grammar: LabelGrammar, tokenizer: Tokenizer, example: Example) -> bool:
    """Whether the label of an example is one of the ways through the grammar."""
    ids = tokenizer.encode_example(example)
    request = tuple(i for i, _ in tokenizer.encode_words(example.text))
    state = LabelState(grammar, example.intent, budget=96, request=request)
    for token in ids[ids.index(tokenizer.intent) + 3 : -1]:
        if state.done:
            return token == grammar.structure.close_no_slots
        choices = state.choices()
        if token not in choices.fixed and not (choices.words and token in grammar.words):
            return False
        state.advance(token)
    return state.done


def test_every_label_can_be_decoded(train: list[Traced], heldout: list[Traced], truckmate: Tokenizer) -> None:
    """Rules that refuse wrong values must not refuse right ones: a limit that no training could lift."""
    labels = LabelSet.from_examples([found.example for found in train], truckmate)
    grammar = LabelGrammar.of(truckmate, labels)
    assert len(grammar.patterns) == len({slot for slots in labels.slots.values() for slot in slots})
    wrong = [f.example.line() for f in train[:3_000] if not can_say(grammar, truckmate, f.example)]
    assert not wrong, "\n".join(wrong[:20])
    unseen = [f.example.line() for f in heldout if not can_say(grammar, truckmate, f.example)]
    assert len(unseen) <= len(heldout) // 500, "\n".join(unseen[:20])
