"""The newest model answers a sentence: the box on the page of runs. Loads the model when first asked.

One question at a time: this machine has a run to lead. The model is published into a folder that lives only
as long as the loading takes, so what answers here is what `classify` would load.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from bithaul.coordinator.commands.publish_model import publish_model
from bithaul.coordinator.context import Coordinator
from bithaul.coordinator.queries.blobs import current_version
from bithaul.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from bithaul.inference.loader import LoadedModel

LONGEST = 400  # characters
PATIENCE = 20.0  # seconds to wait for another question to be answered


class Answer(BaseModel):
    """What the model understood. `confidence` is 0..1; `cut`: only the beginning fitted its context."""

    model_config = ConfigDict(frozen=True)

    version: int
    text: str
    intent: str
    confidence: float
    slots: dict[str, object]
    cut: bool


class Trial:
    """Keeps the newest model in memory once somebody has asked."""

    def __init__(self, c: Coordinator) -> None:
        self._c = c
        self._lock = threading.Lock()
        self._version = 0
        self._model: LoadedModel | None = None

    def ask(self, text: str) -> Answer:
        """Raises `InvalidInput`, `NotFound` without a run or its tokenizer, `Unavailable` when busy."""
        if not text.strip() or len(text) > LONGEST:
            raise InvalidInput(f"Write a sentence of 1 to {LONGEST} characters.", code="bad_sentence")
        if not self._lock.acquire(timeout=PATIENCE):
            raise Unavailable("The model is answering others; try again in a moment.")
        try:
            return self._answer(text.strip())
        finally:
            self._lock.release()

    def _answer(self, text: str) -> Answer:
        from bithaul.inference.classify import classify  # torch: seconds, and only for who asks

        model = self._newest()
        parse = classify(model, [text])[0]
        return Answer(
            version=self._version,
            text=parse.text,
            intent=parse.intent,
            confidence=parse.confidence,
            slots=dict(parse.slots),
            cut=parse.cut,
        )

    def _newest(self) -> LoadedModel:
        from bithaul.inference.loader import load_model

        if self._model is None or self._version != current_version(self._c).version:
            with tempfile.TemporaryDirectory(prefix="bithaul-trial-") as scratch:
                folder = Path(scratch) / "model"
                published = publish_model(
                    self._c, corpus=self._c.settings.directory / "corpus", folder=folder
                )
                self._model = load_model(folder)
                _ = self._model.grammar  # a model of plain text says so in words
            self._version = published.version
        return self._model
