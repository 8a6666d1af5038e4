"""What knowing the genuine users is worth when the epoch is chosen: ours against every account's last items held out.

LOREC_DATA=... python benchmarks/selection.py amazon-beauty bandwagon --seeds 11 12

Ours trains fraudsters' whole profiles and chooses the epoch by genuine users' validation items, which uses labels. The
other way holds the last two items of every account out and chooses by all of them, as somebody without labels must.
That also takes fraudsters' last two items out of training: the second arm differs from the first by both.
"""

import argparse
import dataclasses

import numpy as np
from kinds import KINDS, read
from side_by_side import machine

import lorec


def without_labels(bad: lorec.Split) -> lorec.Split:
    """The same rows, every account's last two items held out and nobody known as a fraudster."""
    fakes = np.flatnonzero(bad.fraudsters)
    lengths, ends = bad.train.lengths.copy(), bad.train.starts[1:]
    valid, test = bad.valid.copy(), bad.test.copy()
    valid[fakes], test[fakes] = bad.train.items[ends[fakes] - 2], bad.train.items[ends[fakes] - 1]
    lengths[fakes] -= 2
    train = bad.train.slices(bad.train.starts[:-1], lengths)
    return dataclasses.replace(bad, train=train, valid=valid, test=test, fraudsters=np.zeros(len(bad), dtype=bool))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data")
    asked.add_argument("kind", choices=sorted(KINDS))
    asked.add_argument("--seeds", type=int, nargs="+", default=[11])
    asked.add_argument("--threads", type=int)
    it = asked.parse_args()
    print(machine())
    training = lorec.Training(epochs=100, patience=5, threads=it.threads)
    for seed in it.seeds:
        split = read(it.data, seed)
        poison = lorec.forge(KINDS[it.kind](), split, targets=5, seed=seed)
        bad = lorec.inject(split, poison, seed=seed)
        for name, log in (("genuine users' items", bad), ("every account's items", without_labels(bad))):
            fitted = lorec.fit(log, lorec.SASRec(width=64), training=training, seed=seed)
            metrics = lorec.evaluate(fitted.recommender, bad, targets=poison.targets).metrics
            figures = {"HR@10": metrics["HR@10"], "T-HR@50": metrics["T-HR@50"], "best epoch": fitted.best_epoch}
            print(seed, f"selected by {name}:", {key: round(value, 4) for key, value in figures.items()}, flush=True)


if __name__ == "__main__":
    main()
