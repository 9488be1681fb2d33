"""Requests to labels: batched greedy decoding with a KV cache, held to the label grammar at every token.

The intent is the most probable one among the model's intents, and that probability is its confidence; slots
follow greedily. Every request gets a complete label, whatever the weights are. Spelling is not decided here:
values are token ids, `[UNK]` included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bithaul.inference.grammar import Choices, DecodedSlot, LabelGrammar, LabelState
from bithaul.inference.loader import LoadedModel
from bithaul.inference.reading import Reading, read_prompts
from bithaul.model.cache import KVCache
from bithaul.model.config import ModelConfig

LABEL_TOKENS = 96  # the longest label after its intent
LABEL_RESERVE = 32  # tokens of the context that a long request must leave for its label
CACHE_BYTES = 256 * 1024 * 1024
MAX_ROWS = 256
_KEPT_SHARE = 0.75
_FRAME = 4  # [BOS] [USER] ... [INTENT] {"intent":


@dataclass(frozen=True)
class DecodedLabel:
    """A whole label; `confidence` is the probability of `intent` among all intents.

    `reading` holds the probabilities of all of them, where it was asked for.
    """

    intent: str
    confidence: float
    slots: tuple[DecodedSlot, ...]
    reading: Reading | None = None


def longest_request(config: ModelConfig) -> int:
    """How many pieces of a request the context holds: all but the frame and a reserve for the label.

    The reserve is 32 tokens, or a quarter of a context below 128. Further pieces are cut from the end.
    """
    reserve = max(2, min(LABEL_RESERVE, config.context_length // 4))
    return max(1, config.context_length - _FRAME - reserve)


def decode_labels(
    model: LoadedModel, requests: Sequence[Sequence[int]], *, readings: bool = False
) -> list[DecodedLabel]:
    """The label of each request, given as the ids of its pieces (without frame tokens).

    Requests longer than `longest_request` are cut to it. Rows are batched by length; a batch's cache stays
    below 256 MiB. `readings` fills `DecodedLabel.reading`, which costs logits at every token of the requests.
    Raises `InvalidInput` for a model without intents.
    """
    grammar, limit = model.grammar, longest_request(model.config)
    cut = [list(words[:limit]) for words in requests]
    labels: list[DecodedLabel | None] = [None] * len(cut)
    for rows in _batches([len(words) + _FRAME for words in cut], model.config):
        found = _decode_batch(model, grammar, [cut[row] for row in rows], readings=readings)
        for row, label in zip(rows, found, strict=True):
            labels[row] = label
    return [label for label in labels if label is not None]


def _batches(lengths: Sequence[int], config: ModelConfig) -> Iterator[list[int]]:
    """Row numbers, similar lengths together, as many as the cache limit allows."""
    bytes_per_token = 2 * 4 * config.num_layers * config.hidden_size
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda r: (lengths[r], r)):
        capacity = min(config.context_length, lengths[row] + 1 + LABEL_TOKENS)
        if batch and (len(batch) >= MAX_ROWS or (len(batch) + 1) * capacity * bytes_per_token > CACHE_BYTES):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@torch.no_grad()
def _decode_batch(
    model: LoadedModel, grammar: LabelGrammar, requests: list[list[int]], *, readings: bool
) -> list[DecodedLabel]:
    tokenizer, context = model.tokenizer, model.config.context_length
    open_intent = grammar.structure.open_intent
    prompts = [[tokenizer.bos, tokenizer.user, *words, tokenizer.intent, open_intent] for words in requests]
    capacity = min(context, max(map(len, prompts)) + 1 + LABEL_TOKENS)
    reader = _Reader(model, prompts, capacity=capacity, keep_hidden=readings)

    intent_logits = reader.logits[:, list(grammar.intent_ids)]
    read: Sequence[Reading | None] = [None] * len(prompts)
    if reader.hidden is not None:
        read = read_prompts(model.network, reader.hidden, prompts, intent_logits=intent_logits)
        reader.hidden = None
    confidence, chosen = torch.softmax(intent_logits, dim=-1).max(dim=-1)
    intents = [grammar.intents[i] for i in chosen.tolist()]
    states = [
        LabelState(
            grammar,
            intent,
            # The last token is never read, so a label may be one token longer than what is left.
            budget=min(LABEL_TOKENS, context - len(prompt)),
            request=tuple(words),
        )
        for intent, prompt, words in zip(intents, prompts, requests, strict=True)
    ]
    tokens = [grammar.intent_ids[i] for i in chosen.tolist()]
    masks = _Masks(grammar, model.config.vocab_size)
    live = [row for row, state in enumerate(states) if not state.done]
    while live:
        logits = reader.read(live, [tokens[row] for row in live])
        allowed = masks.of([states[row].choices() for row in live])
        best = logits.masked_fill_(~allowed, float("-inf")).argmax(dim=-1).tolist()
        for row, token in zip(live, best, strict=True):
            tokens[row] = token
            states[row].advance(token)
        live = [row for row in live if not states[row].done]
    return [
        DecodedLabel(intent, round(p, 6), state.slots(), reading)
        for intent, p, state, reading in zip(intents, confidence.tolist(), states, read, strict=True)
    ]


class _Reader:
    """A batch of rows inside the network. `logits` are those after the prompts, `hidden` the prompts' own."""

    def __init__(
        self, model: LoadedModel, prompts: list[list[int]], *, capacity: int, keep_hidden: bool
    ) -> None:
        self._network = model.network
        self._cache = KVCache(model.config, batch=len(prompts), capacity=capacity)
        self._rows = list(range(len(prompts)))
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.full((len(prompts), int(lengths.max())), model.tokenizer.pad)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        hidden = self._network(ids, cache=self._cache, lengths=lengths)
        self.logits = self._finite(hidden[torch.arange(len(prompts)), lengths - 1])
        self.hidden: Tensor | None = hidden if keep_hidden else None

    def read(self, rows: list[int], tokens: list[int]) -> Tensor:
        """Append one token to each of `rows` and return logits [rows, V]; `rows` only ever lose members.

        Copying a cache costs more than reading a few rows in vain: rows that are no longer asked for stay, at
        length 0, until they are a quarter of the batch.
        """
        if len(rows) <= _KEPT_SHARE * len(self._rows):
            self._cache = self._cache.select(torch.tensor(self._places(rows)))
            self._rows = rows
        places = torch.tensor(self._places(rows))
        ids = torch.zeros(len(self._rows), dtype=torch.int64)
        ids[places] = torch.tensor(tokens)
        lengths = self._cache.lengths
        self._cache.lengths = torch.zeros_like(lengths).index_copy_(0, places, lengths[places])
        hidden = self._network(ids[:, None], cache=self._cache)
        return self._finite(hidden[places, 0])

    def _places(self, rows: list[int]) -> list[int]:
        place = {row: i for i, row in enumerate(self._rows)}
        return [place[row] for row in rows]

    def _finite(self, hidden: Tensor) -> Tensor:
        """Logits without NaN or infinity, so that broken weights still give a label."""
        return torch.nan_to_num(self._network.logits(hidden), nan=-1e30, posinf=1e30, neginf=-1e30)


class _Masks:
    """`Choices` of many rows as one bool tensor [rows, V]."""

    def __init__(self, grammar: LabelGrammar, vocab_size: int) -> None:
        self._unknown = grammar.unknown
        self._bare = torch.tensor(sorted(grammar.bare), dtype=torch.int64)
        self._words = torch.zeros(vocab_size, dtype=torch.bool)
        self._words[list(grammar.words)] = True

    def of(self, choices: Sequence[Choices]) -> Tensor:
        allowed = torch.zeros((len(choices), self._words.shape[0]), dtype=torch.bool)
        allowed[[i for i, choice in enumerate(choices) if choice.words]] = self._words
        allowed[[i for i, choice in enumerate(choices) if not choice.unknown], self._unknown] = False
        telling = [i for i, choice in enumerate(choices) if choice.words and not choice.bare]
        if telling:
            allowed[torch.tensor(telling)[:, None], self._bare] = False
        pairs = [(i, token) for i, choice in enumerate(choices) for token in choice.fixed]
        if pairs:
            rows, tokens = zip(*pairs, strict=True)
            allowed[list(rows), list(tokens)] = True
        return allowed
