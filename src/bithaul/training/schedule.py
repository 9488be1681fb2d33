"""The learning rate and weight decay at a point of the run: a pure function of progress and recipe.

Progress is the share of the run's token budget that the coordinator has accepted, so all workers of a run are
on one schedule whatever their speed. It never counts local steps.
"""

from __future__ import annotations

from bithaul.training.recipe import TrainingRecipe


def rates(progress: float, recipe: TrainingRecipe) -> tuple[float, float]:
    """`(learning rate, weight decay)`; progress outside [0, 1] counts as the nearest end.

    Warm-up from 0 to the peak; stage 1 at the peak; stage 2 at 2/3 of it without weight decay
    (training-tips PDF of the b1.58 authors, table 2); then linear to `final_lr_share` of the peak
    (arXiv 2605.25966).
    """
    progress = min(max(progress, 0.0), 1.0)
    decay = recipe.weight_decay if progress < recipe.second_stage_from else 0.0
    if progress < recipe.warmup_share:
        return recipe.peak_lr * progress / recipe.warmup_share, decay
    level = 1.0 if progress < recipe.second_stage_from else recipe.second_stage_share
    if progress > recipe.decay_from:
        done = (progress - recipe.decay_from) / (1.0 - recipe.decay_from)
        level += (recipe.final_lr_share - level) * done
    return recipe.peak_lr * level, decay
