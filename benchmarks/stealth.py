"""How far each attack's profiles are from genuine ones, and what a cheap detector makes of them; nothing is trained.

LOREC_DATA=... python benchmarks/stealth.py [amazon-beauty] [--seed 11] [--kinds random dp ...]

Means over profiles and over genuine users: length; popularity (the share of the catalogue that is less popular than an
item); coherence (cosine of the texts of neighbours); nearest (the largest Jaccard similarity to a genuine user, other
than itself). The ROC-AUC of users of the detector `degree`, beside it LoRec's of users and of interactions, and the
share of lies that LoRec turns down.
"""

import argparse
import time

import numpy as np
from kinds import KINDS, MORE, encoded, read
from sklearn.metrics import roc_auc_score

import lorec
from lorec.detectors import judged


def nearest(profiles: lorec.Sequences, log: lorec.Sequences, itself: bool) -> float:
    """The mean over profiles of the largest Jaccard similarity to a user of the log, themselves left out."""
    order = np.argsort(log.items, kind="stable")
    users, begins = log.users()[order], np.searchsorted(log.items[order], np.arange(int(log.items.max()) + 2))
    found = []
    for row in range(len(profiles)):
        mine = np.unique(profiles[row])
        shared = np.bincount(np.concatenate([users[begins[i] : begins[i + 1]] for i in mine]), minlength=len(log))
        likeness = shared / (len(mine) + log.lengths - shared)
        if itself:
            likeness[row] = 0
        found.append(likeness.max())
    return float(np.mean(found))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data", nargs="?", default="amazon-beauty")
    asked.add_argument("--seed", type=int, default=11)
    asked.add_argument("--share", type=float, default=0.01)
    asked.add_argument("--kinds", nargs="+", default=[*KINDS, *MORE], choices=[*KINDS, *MORE])
    it = asked.parse_args()
    split = read(it.data, it.seed)
    text = encoded(split, "minilm")
    vectors = text.items()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    counts = split.train.counts(len(split.catalog))
    rarer = np.searchsorted(np.sort(counts[1:]), counts) / len(split.catalog)

    def row(name: str, log: lorec.Sequences, more: str) -> None:
        together = np.diff(log.users()) == 0
        likeness = (unit[log.items[:-1][together]] * unit[log.items[1:][together]]).sum(1).mean()
        near = nearest(log.take(np.arange(min(len(log), 500))), split.train, itself=log is split.train)
        print(f"| {name} | {len(log):,} | {log.lengths.mean():.1f} | {len(np.unique(log.items)):,} | "
              f"{rarer[log.items].mean():.3f} | {likeness:.3f} | {near:.3f} | {more} |", flush=True)  # fmt: skip

    print("| kind | profiles | length | distinct items | popularity | coherence | nearest | degree: AUC | LoRec: AUC, "
          "interactions, lies turned down | forged in |\n| --- |" + " ---: |" * 10)  # fmt: skip
    row("genuine", split.train, "")
    for kind in it.kinds:
        started = time.perf_counter()
        poison = lorec.forge((KINDS | MORE)[kind](share=it.share), split, 5, it.seed, text=text)
        seconds = time.perf_counter() - started
        bad = lorec.inject(split, poison, seed=it.seed)
        known = lorec.known_fakes(bad, without=kind, seed=it.seed)
        cheap = roc_auc_score(bad.fraudsters, lorec.detect(lorec.Degree(), bad, known=known).users)
        found = lorec.detect(lorec.LoRec(), bad, text=text, known=known, seed=it.seed)
        seen = judged(found, bad, poison.targets)
        lorecs = f"{seen['ROC-AUC']:.3f}, {seen['interactions ROC-AUC']:.4f}, {seen['interactions recall']:.2f}"
        row(kind, poison.profiles, f"{cheap:.3f} | {lorecs} | {seconds:.0f} s")


if __name__ == "__main__":
    main()
