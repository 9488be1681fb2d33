"""The outer step in one pass: read theta, momentum and D, write theta and momentum, take the distance moved.

Sums run in float64 in the order `outer` writes them, and are rounded once: the same bits on every machine.
Only the distance, which is shown and decides nothing, is added up in the order that is fastest.
"""

from __future__ import annotations

import numpy as np

from bithaul.compiled import STRICT, compiled
from bithaul.kernels import square_distance

_BLOCK = 2048  # values between two looks, so that the second finds them in the first-level cache


@compiled(STRICT)
def plain_step(theta, combined, rate, new):
    """`new = theta - rate * D`; returns |new - theta|^2."""
    square = np.float64(0.0)
    for at in range(0, theta.shape[0], _BLOCK):
        end = min(at + _BLOCK, theta.shape[0])
        _move(theta[at:end], combined[at:end], rate, new[at:end])
        square += square_distance(theta[at:end], new[at:end])
    return square


@compiled(STRICT)
def nesterov_step(theta, momentum, combined, numbers, new, new_momentum):
    """m' = fold * D + keep * m; theta' = theta - eta * (direct * D + ahead * m'); returns |theta' - theta|^2.

    `numbers` is (fold, keep, direct, ahead, eta).
    """
    fold, keep, direct, ahead, eta = numbers
    square = np.float64(0.0)
    for at in range(0, theta.shape[0], _BLOCK):
        end = min(at + _BLOCK, theta.shape[0])
        part = combined[at:end]
        _carry(momentum[at:end], part, fold, keep, new_momentum[at:end])
        _move_ahead(theta[at:end], part, new_momentum[at:end], direct, ahead, eta, new[at:end])
        square += square_distance(theta[at:end], new[at:end])
    return square


@compiled(STRICT)
def _move(theta, combined, rate, new):
    for j in range(theta.shape[0]):
        new[j] = np.float32(np.float64(theta[j]) - rate * combined[j])


@compiled(STRICT)
def _carry(momentum, combined, fold, keep, new_momentum):
    for j in range(momentum.shape[0]):
        new_momentum[j] = np.float32(fold * combined[j] + keep * np.float64(momentum[j]))


@compiled(STRICT)
def _move_ahead(theta, combined, momentum, direct, ahead, eta, new):
    for j in range(theta.shape[0]):
        move = direct * combined[j] + ahead * np.float64(momentum[j])
        new[j] = np.float32(np.float64(theta[j]) - eta * move)
