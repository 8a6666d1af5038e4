"""Logistic regression by Newton's method, of counts and with a penalty: all that our detectors learn with.

A few parameters over many trials; a library's solvers neither take counts nor find the last digits.
"""

import math
from dataclasses import dataclass

import numpy as np

from lorec.data import Floats, Ints

__all__ = ["Logistic", "calibrate", "fit_logistic", "sigmoid", "squared"]


def calibrate(seen: Floats, lies: Floats | Ints, honest: Floats | Ints) -> "Logistic":
    """Logistic regression by Newton's method: of `lies` + `honest` interactions of each item, how many are lies.

    `seen` [items] is a view's score. The slope is kept at 0 or above: more suspicion never makes an item more innocent.
    """
    n = (lies + honest).astype(np.float64)
    middle, spread = float(np.average(seen, weights=n)), max(float(seen.std()), 1e-9)
    x = np.column_stack([(seen - middle) / spread, np.ones(len(seen))])
    base = np.array([0.0, math.log((lies.sum() + 0.5) / (honest.sum() + 0.5))])
    fitted = fit_logistic(x, lies, n, start=base)
    if fitted[0] < 0:
        fitted = base
    slope = fitted[0] / spread
    return Logistic(float(slope), float(fitted[1] - slope * middle))


@dataclass(frozen=True)
class Logistic:
    """p = sigmoid(slope * score + offset)."""

    slope: float
    offset: float

    def __call__(self, seen: Floats) -> Floats:
        """The likelihood of each score."""
        return sigmoid(self.slope * seen + self.offset)


def fit_logistic(
    x: Floats, lies: Floats | Ints, n: Floats, *, ridge: float = 1e-6, start: Floats | None = None
) -> Floats:
    """Logistic regression: of n trials in each row of x [rows, d] `lies` came true; `ridge` / 2 |fitted|^2 is added."""
    fitted: Floats = np.zeros(x.shape[1]) if start is None else start

    def loss(at: Floats) -> float:
        z = x @ at
        return float(n @ np.logaddexp(0, z) - lies @ z + ridge / 2 * at @ at)

    for _ in range(100):
        p = sigmoid(x @ fitted)
        bend = (x * (n * p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1])
        step = np.linalg.solve(bend, x.T @ (lies - n * p) - ridge * fitted)
        while loss(fitted + step) > loss(fitted) and np.abs(step).max() > 1e-8:
            step = step / 2  # few rows far out can send a whole step beyond the valley
        fitted = fitted + step
        if np.abs(step).max() < 1e-8:
            break
    return fitted


def squared(x: Floats) -> Floats:
    """[rows, ...]: columns, their products two by two, all standardised, and ones."""

    def standard(x: Floats) -> Floats:
        scaled: Floats = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
        return scaled

    one, other = np.tril_indices(x.shape[1])
    x = standard(x)
    return np.column_stack([standard(np.column_stack([x, x[:, one] * x[:, other]])), np.ones(len(x))])


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + e^-x), of x cut at 30 either way."""
    p: Floats = 1 / (1 + np.exp(-np.clip(x, -30, 30)))
    return p
