"""How a model is trained, apart from its shape: rates, weights and batch size of one run.

Data; the coordinator stores it and every worker of the run gets the same. The numbers per preset come
from training.md (section 2) and docs/lab/0001-first-recipe.md.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bithaul.errors import InvalidConfig

CorpusKind = Literal["intents", "text"]

_PEAK_LR: dict[CorpusKind, dict[str, float]] = {
    "intents": {"small": 1e-3, "medium": 7e-4, "large": 5e-4},
    "text": {"small": 2.8e-3, "medium": 2e-3, "large": 1.4e-3},  # docs/lab/0016
}
_OTHER_PEAK_LR = 1e-3
_BATCH_EXAMPLES: dict[CorpusKind, int] = {"intents": 32, "text": 32}
_EMBEDDING_LR_OF_FEW = 0.3
_DROPOUT_OF_FEW = 0.1
_BETA1, _BETA2 = 0.9, 0.98  # of a whole batch
_SMALLEST_BATCH = 8  # below it the cost of a step hardly falls any more


class TrainingRecipe(BaseModel):
    """AdamW on a warm-up, stable, decay schedule over the run's budget; see `schedule.rates`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    peak_lr: float = Field(default=3e-3, gt=0, le=1.0)
    embedding_lr_share: float = Field(default=1.0, gt=0, le=10)  # of the rate, for the token embedding
    final_lr_share: float = Field(default=0.05, ge=0, le=1)  # of the peak, at the end of the budget
    warmup_share: float = Field(default=0.02, ge=0, lt=0.5)  # of the budget
    second_stage_share: float = Field(default=2 / 3, gt=0, le=1)  # of the peak, from `second_stage_from` on
    second_stage_from: float = Field(default=0.5, ge=0, le=1)  # weight decay ends here too
    decay_from: float = Field(default=0.67, ge=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=10)  # on latent matrices only, first stage only
    betas: tuple[float, float] = (_BETA1, _BETA2)
    eps: float = Field(default=1e-8, gt=0)
    clip: float = Field(default=1.0, gt=0)  # largest gradient norm
    optimizer_warmup_steps: int = Field(
        default=20, ge=0
    )  # of a fresh optimizer state, on top of the schedule
    batch_examples: int = Field(default=32, ge=1, le=65_536)  # examples per inner step
    text_loss_weight: float = Field(default=0.3, ge=0, le=1)  # of targets up to the label token; 1 after it
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @classmethod
    def for_preset(
        cls, preset: str, kind: CorpusKind, *, workers: int = 1, few: bool = False
    ) -> TrainingRecipe:
        """The recipe of a preset (any other model name gets cautious values) for a kind of corpus.

        `workers` is how many are expected: a merged step averages over all of them, so each takes a smaller
        batch, and together they take about the batch that one process learns best with. Three things make up
        for the smaller batch (docs/lab/0003). AdamW divides by its noise, so the averaged step would be
        shorter by the root of the ratio: the peak rate is higher by it. The second moment looks back over as
        many examples, hence more steps. A rare word is in the batch of one worker and not in the others',
        so its embedding is averaged with nothing: its rate is higher once more. `few` is for requests
        without slots that are read many times, whose rare words are learnt by heart (docs/lab/0007);
        copying slot values takes steps instead.
        """
        together = _BATCH_EXAMPLES[kind]
        batch = max(_SMALLEST_BATCH, together // workers)
        noisier = math.sqrt(together / batch)
        return cls(
            peak_lr=_PEAK_LR[kind].get(preset, _OTHER_PEAK_LR) * noisier,
            batch_examples=batch,
            betas=(_BETA1, 1 - (1 - _BETA2) * batch / together),
            embedding_lr_share=(_EMBEDDING_LR_OF_FEW if few else 1.0) * noisier,
            dropout=_DROPOUT_OF_FEW if few else 0.0,
        )

    def changed(self, changes: Mapping[str, Any]) -> TrainingRecipe:
        """This recipe with some fields replaced. `InvalidConfig` for one that cannot be."""
        try:
            return TrainingRecipe.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            known = ", ".join(TrainingRecipe.model_fields)
            raise InvalidConfig(
                f"{field!r} in the recipe: {first['msg']}; a recipe may set {known}."
            ) from error


def read_recipe_changes(path: Path) -> dict[str, Any]:
    """Fields of a recipe from a TOML file, checked. `InvalidConfig` where the file cannot be used."""
    try:
        changes = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(
            f"The recipe {path} cannot be read ({error.strerror}); name a TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is not valid TOML: {error}.") from error
    TrainingRecipe().changed(changes)
    return changes
