"""Why the published calibrator fails on short histories: what it sees, epoch by epoch, under five conditions.

LOREC_DATA=... python benchmarks/diagnosis.py amazon-beauty bandwagon --epochs 20 --out runs/diagnosis.jsonl

One recommender trains undefended; at every epoch a calibrator for each condition learns from its states (two passes, as
published). Told of each: the ROC-AUC of p between genuine users and fraudsters, and between genuine users and known
fakes; the same of the best linear view of z_u, fitted with labels on one half and judged on the other (what could be
seen); quartiles of p for the three kinds of users; the share of users above the mean, which must stay below a third.
"""

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from kinds import KINDS, encoded, read
from side_by_side import machine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import lorec
from lorec.data import Feed, stream


def looked_at(guard, recommender: lorec.Recommender, log: lorec.Sequences) -> tuple[np.ndarray, np.ndarray]:
    """p [users] and z [users, 2H] of any log."""
    guard.calibrator.eval()
    table = guard._table(recommender)
    p, z = np.empty(len(log)), np.empty((len(log), 2 * recommender.spec.width), dtype=np.float32)
    with torch.no_grad():
        for rows, history in lorec.data.histories(log, guard.max_length, guard.spec.tokens):
            seen = guard._sees(recommender, table, history)
            p[rows] = guard.calibrator(*seen, None)[0].sigmoid().numpy()
            z[rows] = guard.calibrator.summary(*seen).numpy()
    return p, z


def probe(good: np.ndarray, bad: np.ndarray) -> float:
    """ROC-AUC of a linear view with labels, fitted on even rows and judged on odd ones."""
    x, y = np.concatenate([good, bad]), np.repeat([0, 1], [len(good), len(bad)])
    fitted = LogisticRegression(max_iter=500, class_weight="balanced").fit(x[::2], y[::2])
    return float(roc_auc_score(y[1::2], fitted.decision_function(x[1::2])))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data")
    asked.add_argument("kind", choices=sorted(KINDS))
    asked.add_argument("--seed", type=int, default=11)
    asked.add_argument("--epochs", type=int, default=20)
    asked.add_argument("--freeze", type=int, default=3, help="after which epoch the frozen recommender stops")
    asked.add_argument("--threads", type=int)
    asked.add_argument("--out", type=Path, required=True)
    it = asked.parse_args()
    if it.threads:
        torch.set_num_threads(it.threads)
    print(machine())

    split = read(it.data, it.seed)
    text = encoded(split, "minilm")
    bad = lorec.inject(split, lorec.forge(KINDS[it.kind](), split, 5, seed=it.seed), seed=it.seed)
    honest, fraud = bad.train.take(bad.genuine()), bad.train.take(np.flatnonzero(bad.fraudsters))
    torch.manual_seed(it.seed)
    recommender = lorec.Recommender(lorec.SASRec(width=64), "ids", len(split.catalog), seed=it.seed)
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3, weight_decay=0.0)
    unseen, told = ({"without": it.kind}, {"kinds": [it.kind]})
    fakes = {
        "as published": lorec.known_fakes(bad, **unseen, rounds=1, seed=it.seed),
        "random known alone": lorec.known_fakes(bad, kinds=["random"], rounds=1, seed=it.seed),
        "judged kind known": lorec.known_fakes(bad, **told, rounds=1, seed=it.seed),
    }
    fakes |= {"fraudsters not label 0": fakes["as published"], "frozen early": fakes["as published"]}
    guards = {
        name: lorec.LoRecPaper(view="pooled").start(
            recommender, honest if name == "fraudsters not label 0" else bad.train, text=text, known=known,
            rng=np.random.default_rng(it.seed),
        )
        for name, known in fakes.items()
    }  # fmt: skip
    feed, rng, frozen = Feed(bad.train, len(split.catalog), 50), stream(it.seed, "batches"), recommender
    it.out.parent.mkdir(parents=True, exist_ok=True)
    for epoch in range(1, it.epochs + 1):
        recommender.train()
        for batch in feed.epoch(rng):
            loss = lorec.defenses.Guard().loss(recommender, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch <= it.freeze:
            frozen = copy.deepcopy(recommender)
        for name, guard in guards.items():
            model = frozen if name == "frozen early" else recommender
            for _ in range(guard.spec.passes):
                guard._learn(model)
            if epoch % 2 == 0 or epoch == 1:
                row = told_of(
                    lambda log, guard=guard, model=model: looked_at(guard, model, log),
                    honest,
                    fraud,
                    fakes[name][0].profiles,
                )
                with it.out.open("a") as file:
                    file.write(
                        json.dumps(
                            {"data": it.data, "kind": it.kind, "seed": it.seed, "condition": name, "epoch": epoch} | row
                        )
                        + "\n"
                    )
                print(
                    epoch,
                    name,
                    {key: round(value, 3) for key, value in row.items() if isinstance(value, float)},
                    flush=True,
                )


def told_of(look: Callable, honest: lorec.Sequences, fraud: lorec.Sequences, known: lorec.Sequences) -> dict:
    """The figures of one calibrator at one epoch."""
    (p, z), (p_fraud, z_fraud), (p_known, z_known) = (look(log) for log in (honest, fraud, known))

    def auc(bad: np.ndarray) -> float:
        return float(roc_auc_score(np.repeat([0, 1], [len(p), len(bad)]), np.concatenate([p, bad])))

    return {
        "AUC of fraudsters": auc(p_fraud),
        "AUC of known fakes": auc(p_known),
        "z: AUC of fraudsters, with labels": probe(z, z_fraud),
        "z: AUC of known fakes, with labels": probe(z, z_known),
        "above the mean": float((np.concatenate([p, p_fraud]) > np.concatenate([p, p_fraud]).mean()).mean()),
        "genuine": np.quantile(p, [0.05, 0.25, 0.5, 0.75, 0.95]).round(4).tolist(),
        "fraudsters": np.quantile(p_fraud, [0.05, 0.25, 0.5, 0.75, 0.95]).round(4).tolist(),
        "known fakes": np.quantile(p_known, [0.05, 0.25, 0.5, 0.75, 0.95]).round(4).tolist(),
    }


if __name__ == "__main__":
    main()
