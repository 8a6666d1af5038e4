"""Why the published calibrator fails on short histories: what it sees, epoch by epoch, under several conditions.

LOREC_DATA=... python benchmarks/diagnosis.py amazon-beauty bandwagon --epochs 30 --out runs/diagnosis.jsonl
               python benchmarks/diagnosis.py --table runs/diagnosis.jsonl

A recommender trains undefended; at every epoch a calibrator for each condition learns from its states (two passes, as
published, but that users' views are pooled texts). With --draws 3 three calibrators for each condition, which begin and
learn in orders of their own: how far chance goes. "shadow": from the states of a second recommender that trains on the
log and the known fakes; "cross-fitted": of a user, from those of a recommender that trained on the other half of all
users and known fakes.

Told of each: the ROC-AUC of p between genuine users and fraudsters, and between genuine users and known fakes; the
same of the best linear view of z_u, fitted with labels on one half and judged on the other (what could be seen);
quartiles of p for the three kinds of users; the share of users above the mean, which must stay below a third.
"""

import argparse
import copy
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from kinds import KINDS, encoded, read
from side_by_side import machine, trained
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

import lorec
from lorec.data import stream
from lorec.defenses.lorec_paper import Calibrator
from lorec.detectors.language import calibration_loss

CONDITIONS = (
    "as published", "random known alone", "judged kind known", "fraudsters not label 0", "frozen early", "shadow",
    "cross-fitted", "padding attended", "view when scoring",
)  # fmt: skip


class Unmasked(Calibrator):
    """The calibrator attends to padding, as the published code does."""

    def summary(self, steps: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        """z_u [B, 2H], padding among what the token reads."""
        return super().summary(steps.masked_fill(padding[:, :, None], 0), torch.zeros_like(padding))


class Viewing(Calibrator):
    """p_u is made from z_u + g_u: the language model's view is asked when users are scored, too."""

    def forward(self, steps: torch.Tensor, padding: torch.Tensor, views: torch.Tensor) -> tuple:
        """Logits [B], and nothing to align."""
        return self.head(self.summary(steps, padding) + F.gelu(self.view(views))), None


CALIBRATORS = {"padding attended": Unmasked, "view when scoring": Viewing}


class Model:
    """A recommender that trains undefended, on all users of a log or on some."""

    def __init__(self, log: lorec.Sequences, n_items: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.recommender = lorec.Recommender(lorec.SASRec(width=64), "ids", n_items, seed=seed)
        self.optimizer = torch.optim.AdamW(self.recommender.parameters(), lr=1e-3, weight_decay=0.0)
        self.feed, self.rng = self.recommender.feed(log), stream(seed, "batches")

    def train(self) -> None:
        """An epoch."""
        self.recommender.train()
        guard = lorec.defenses.Guard()
        trained(self.feed.epoch(self.rng), lambda batch: guard.loss(self.recommender, batch), self.optimizer)


class Condition:
    """A calibrator, what it is told, and the recommenders whose states it reads: [0] for users of even number."""

    def __init__(self, name: str, log: lorec.Sequences, known, text: lorec.TextVectors, recommender, seed) -> None:
        self.name, self.draw = name, seed[1]
        sight = lorec.Sight(log, recommender.n_items, text, known, np.random.default_rng(seed))
        self.guard = lorec.LoRecPaper(view="pooled").start(recommender, sight)
        if name in CALIBRATORS:
            guard, dim = self.guard, self.guard.views.shape[1]
            guard.calibrator = CALIBRATORS[name](2 * recommender.spec.width, dim)
            spec = guard.spec
            guard.optimizer = torch.optim.AdamW(
                guard.calibrator.parameters(), spec.learning_rate, weight_decay=spec.weight_decay
            )

    def learn(self, models: list[lorec.Recommender]) -> None:
        """One pass, as the guard's own, but for whose states are read."""
        guard = self.guard
        guard.calibrator.train()
        tables, numbers = [guard._table(model) for model in models], np.arange(len(guard.everyone))
        batches = [
            (half, *batch)
            for half in range(2)
            for batch in models[half].histories(
                guard.everyone, guard.spec.tokens, guard.rng.permutation(numbers[numbers % 2 == half])
            )
        ]
        for place in guard.rng.permutation(len(batches)):
            half, rows, history = batches[place]
            seen = guard._sees(models[half], tables[half], history)
            logits, alignment = guard.calibrator(*seen, guard.views[torch.from_numpy(rows)])
            fake, weights = torch.from_numpy(rows >= guard.n_users), (guard.spec.entropy, guard.spec.alignment)
            loss = calibration_loss(logits, fake, alignment, *weights)
            guard.optimizer.zero_grad()
            loss.backward()
            guard.optimizer.step()

    def look(self, models: list[lorec.Recommender], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p and z [rows, 2H] of users of the guard's log, known fakes behind them."""
        guard, width = self.guard, 2 * models[0].spec.width
        guard.calibrator.eval()
        p, z = np.empty(len(guard.everyone)), np.empty((len(guard.everyone), width), dtype=np.float32)
        with torch.no_grad():
            for half in range(2):
                table = guard._table(models[half])
                for some, history in models[half].histories(guard.everyone, guard.spec.tokens, rows[rows % 2 == half]):
                    seen = guard._sees(models[half], table, history)
                    p[some] = guard.calibrator(*seen, guard.views[torch.from_numpy(some)])[0].sigmoid().numpy()
                    z[some] = guard.calibrator.summary(*seen).numpy()
        return p[rows], z[rows]


def probe(good: np.ndarray, bad: np.ndarray) -> float:
    """ROC-AUC of a linear view with labels, fitted on even rows and judged on odd ones."""
    x, y = np.concatenate([good, bad]), np.repeat([0, 1], [len(good), len(bad)])
    fitted = LogisticRegression(max_iter=500, class_weight="balanced").fit(x[::2], y[::2])
    return float(roc_auc_score(y[1::2], fitted.decision_function(x[1::2])))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data", nargs="?")
    asked.add_argument("kind", nargs="?", choices=sorted(KINDS))
    asked.add_argument("--seed", type=int, default=11)
    asked.add_argument("--epochs", type=int, default=20)
    asked.add_argument("--freeze", type=int, default=3, help="after which epoch the frozen recommender stops")
    asked.add_argument("--conditions", nargs="+", default=list(CONDITIONS), choices=CONDITIONS)
    asked.add_argument("--draws", type=int, default=1, help="calibrators of each condition")
    asked.add_argument("--first-draw", type=int, default=0)
    asked.add_argument("--threads", type=int)
    asked.add_argument("--out", type=Path, default=Path("runs/diagnosis.jsonl"))
    asked.add_argument("--table", type=Path, help="only write the table of this file")
    it = asked.parse_args()
    if it.table:
        print(table([json.loads(line) for line in it.table.read_text().splitlines()]))
        return
    if it.threads:
        torch.set_num_threads(it.threads)
    print(machine())

    split = read(it.data, it.seed)
    text, n = encoded(split, "minilm"), len(split.catalog)
    bad = lorec.inject(split, lorec.forge(KINDS[it.kind](), split, 5, seed=it.seed), seed=it.seed)
    told = {"random known alone": {"kinds": ["random"]}, "judged kind known": {"kinds": [it.kind]}}
    plain = Model(bad.train, n, it.seed)
    models: dict[str, list[Model]] = {"": [plain, plain]}
    conditions = []
    for name, draw in itertools.product(it.conditions, range(it.first_draw, it.first_draw + it.draws)):
        known = lorec.known_fakes(bad, **told.get(name, {"without": it.kind}), rounds=1, seed=it.seed)
        log = bad.train.take(bad.genuine()) if name == "fraudsters not label 0" else bad.train
        conditions.append(Condition(name, log, known, text, plain.recommender, [it.seed, draw]))
        everyone = log.extended(known[0].profiles)
        if name == "shadow":
            shadow = Model(everyone, n, it.seed)
            models[name] = [shadow, shadow]
        if name == "cross-fitted":  # who is read by the first model trains the second
            halves = (np.arange(len(everyone)) % 2 == half for half in (1, 0))
            models[name] = [Model(everyone.take(np.flatnonzero(half)), n, it.seed) for half in halves]
    it.out.parent.mkdir(parents=True, exist_ok=True)
    frozen = plain.recommender
    for epoch in range(1, it.epochs + 1):
        for model in {id(one): one for pair in models.values() for one in pair}.values():
            model.train()
        if epoch <= it.freeze:
            frozen = copy.deepcopy(plain.recommender)
        for condition in conditions:
            read_by = [model.recommender for model in models.get(condition.name, models[""])]
            read_by = [frozen, frozen] if condition.name == "frozen early" else read_by
            for _ in range(condition.guard.spec.passes):
                condition.learn(read_by)
            if epoch % 2 == 0 or epoch == 1:
                row = {"data": it.data, "kind": it.kind, "seed": it.seed, "condition": condition.name, "epoch": epoch}
                row |= {"draw": condition.draw}
                row |= told_of(condition, read_by, bad)
                with it.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                shown = {key: round(value, 3) for key, value in row.items() if isinstance(value, float)}
                print(epoch, condition.name, shown, flush=True)


def told_of(condition: Condition, models: list[lorec.Recommender], bad: lorec.Split) -> dict:
    """The figures of one calibrator at one epoch."""
    guard = condition.guard
    known = np.arange(guard.n_users, len(guard.everyone))
    if condition.name == "fraudsters not label 0":  # then they are nowhere in its log: they are read beside it
        fraud = bad.train.take(np.flatnonzero(bad.fraudsters))
        guard.everyone, kept = guard.everyone.extended(fraud), guard.views
        guard.views = torch.cat([kept, torch.zeros(len(fraud), kept.shape[1])])  # this calibrator's p does not ask
        honest = np.arange(guard.n_users)
        rows = (honest, np.arange(len(guard.everyone) - len(fraud), len(guard.everyone)), known)
        (p, z), (p_fraud, z_fraud), (p_known, z_known) = (condition.look(models, some) for some in rows)
        guard.everyone, guard.views = guard.everyone.take(np.arange(len(kept))), kept
    else:
        rows = (bad.genuine(), np.flatnonzero(bad.fraudsters), known)
        (p, z), (p_fraud, z_fraud), (p_known, z_known) = (condition.look(models, some) for some in rows)

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


def table(rows: list[dict]) -> str:
    """A row for each condition and epoch: means of draws and, where there are several, the lowest and the highest."""
    figures = ("AUC of fraudsters", "AUC of known fakes", "z: AUC of fraudsters, with labels",
               "z: AUC of known fakes, with labels", "above the mean")  # fmt: skip
    people = ("genuine", "fraudsters", "known fakes")
    head = [*figures, *(f"p of {who}: 5, 25, 50, 75, 95 %" for who in people)]
    made = [f"| condition | epoch | {' | '.join(head)} |", f"| --- | ---: |{' ---: |' * len(head)}"]
    worlds = dict.fromkeys((row["data"], row["kind"], row["seed"]) for row in rows)
    parts = []
    for world in worlds:
        mine = [row for row in rows if (row["data"], row["kind"], row["seed"]) == world]
        body = []
        for condition, epoch in sorted(
            {(row["condition"], row["epoch"]) for row in mine}, key=lambda one: (CONDITIONS.index(one[0]), one[1])
        ):
            these = [row for row in mine if (row["condition"], row["epoch"]) == (condition, epoch)]
            cells = []
            for name in figures:
                values = [row[name] for row in these]
                apart = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.2f}{apart}")
            cells += [", ".join(f"{one:.3f}" for one in np.mean([row[who] for row in these], axis=0)) for who in people]
            body.append(f"| {condition} | {epoch} | {' | '.join(cells)} |")
        parts.append("\n".join([f"{world[0]}, {world[1]}, seed {world[2]}:\n", *made, *body]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
