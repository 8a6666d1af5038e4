"""The alarm's curve, fitted to draws for development: what honest logs have, and what to think of more.

    python benchmarks/scanning.py FOLDER amazon-beauty amazon-games mind-small steam --seeds 70 --targets 1 2 3 5 \\
        --kinds random segment replace --shares .005 .01 .02 --clean 12 --clean-from 70
    python benchmarks/alarm.py FOLDER/rows.jsonl

Every log weighs as much, its clean draws as much as its poisoned ones, and draws of few users (`--users`) a third. An
attack may hide: a share of them is taken to have no larger campaigns than honest logs, and is fitted, too. Prints the
constants of `lorec.scans.learning`, and the log loss on each log with the curve of the others, beside that of the five
items alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

FEW = 1 / 3
"""What a draw of few users counts."""


def weights(rows: list[dict]) -> np.ndarray:
    """[rows]: draws of one log and size as much as those of another, clean and poisoned."""
    group = [(row["log"], row["users"], row["share"] > 0) for row in rows]
    return np.array([(FEW if one[1] else 1) / group.count(one) for one in group])


def honest(rows: list[dict], which: slice) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of log(100 sizes) in clean draws."""
    clean = [row for row in rows if not row["share"]]
    logs, share = np.log([[100 * one for one in row["sizes"][which]] for row in clean]), weights(clean)
    mean = np.average(logs, axis=0, weights=share)
    return mean, np.sqrt(np.average((logs - mean) ** 2, axis=0, weights=share))


def fitted(rows: list[dict], which: slice):
    """What honest logs have, the curve's slope and offset, and the share of attacks that show."""
    mean, spread = honest(rows, which)
    odd, bad, share = oddest(rows, which, mean, spread), np.array([row["share"] > 0 for row in rows]), weights(rows)

    def loss(at: np.ndarray) -> float:
        return float(np.average(surprise(odd, bad, *at), weights=share)) + 5e-4 * at[0] ** 2

    starts = [(slope, offset, 0.5) for slope in (1, 2, 4) for offset in (-4, -2, 0)]
    best = min((minimize(loss, one, bounds=[(0, 8), (None, None), (-4, 6)]) for one in starts), key=lambda it: it.fun)
    return mean, spread, best.x


def oddest(rows: list[dict], which: slice, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """[rows]: the largest oddness, as `lorec.scans.learning.oddness` has it."""
    logs = np.log([[100 * one for one in row["sizes"][which]] for row in rows])
    return ((logs - mean) / spread).max(axis=1)


def surprise(odd: np.ndarray, bad: np.ndarray, slope: float, offset: float, shows: float) -> np.ndarray:
    """[rows]: -log likelihood of what a draw is. Attacks that show are exp(slope odd + offset) times as likely."""
    ratio = expit(shows) * np.exp(np.clip(slope * odd + offset, -50, 50)) + expit(-shows)
    return np.where(bad, np.log1p(1 / ratio), np.log1p(ratio))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("rows", type=Path, nargs="+")
    rows = [json.loads(line) for path in asked.parse_args().rows for line in path.read_text("utf-8").splitlines()]
    mean, spread, (slope, offset, shows) = fitted(rows, slice(0, 5))
    print(f"{len(rows)} draws\nHONEST {mean.round(2).tolist()}\nSPREAD {spread.round(2).tolist()}")
    print(f"SLOPE, OFFSET {slope:.2f}, {offset:.2f}; of the attacks {expit(shows):.0%} show")
    for what, which in (("one to five items", slice(0, 5)), ("five items", slice(4, 5))):
        losses = {}
        for log in sorted({row["log"] for row in rows}):
            others, mine = ([row for row in rows if (row["log"] == log) == same] for same in (False, True))
            mean, spread, at = fitted(others, which)
            odd, bad = oddest(mine, which, mean, spread), np.array([row["share"] > 0 for row in mine])
            losses[log] = float(np.average(surprise(odd, bad, *at), weights=weights(mine)))
        told = ", ".join(f"{log} {loss:.3f}" for log, loss in losses.items())
        print(f"left out, {what}: {np.mean(list(losses.values())):.3f} ({told})")


if __name__ == "__main__":
    main()
