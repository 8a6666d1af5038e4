"""Every kind of attack against LoRec, as published or not, its parts and the oracle on one log: a line a result.

LOREC_DATA=... python benchmarks/kinds.py amazon-beauty --seeds 11 12 13 --out runs/kinds-beauty.jsonl
               python benchmarks/kinds.py --table runs/kinds-beauty.jsonl

For each seed one clean model, then for each kind undefended, oracle and LoRec (with --paper as published, but that
users' views are pooled texts instead of answered questions), trained and judged; others by --arms. With --parts nothing
is trained: what would LoRec turn down without each of its sources and views, with texts that mean nothing, and on the
clean log? Known fakes are of every kind but the judged one, every seed draws new targets, and what is in the file
already is not done again.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import time
from pathlib import Path

import numpy as np
import platformdirs
from scanning import one_title
from side_by_side import machine

import lorec
from lorec.comparison import interval
from lorec.evaluation import by_popularity
from lorec.evidence import MEASURES
from lorec.experiment import detected
from lorec.figures import title_of, written
from lorec.text import Random as RandomText

KINDS = {"random": lorec.Random, "bandwagon": lorec.Bandwagon, "segment": lorec.Segment, "replace": lorec.Replace}
MORE = {
    "covisit": lorec.CoVisit, "llm": lorec.LLM, "dp": lorec.DP, "rev": lorec.Rev, "gradient": lorec.Gradient,
    "adaptive": lorec.Adaptive, "disguise": functools.partial(lorec.Segment, by="text", segment=200, stray=0.0),
}  # fmt: skip
"""Kinds that LoRec knows none of, and a segment of the titles nearest to its target: asked for by name."""
HELD_OUT = {"disguise": "segment"}
"""The kind that is judged, by its name among the known ones, where it is another."""
BACKBONES = {"sasrec": lorec.SASRec, "gru4rec": lorec.GRU4Rec, "fmlp": lorec.FMLP}
ENCODERS = {"minilm": lorec.MiniLM, "hash": lorec.Hash, "random": RandomText}
PARTS = {
    "whole": {},
    "without collusion": {"collusion": 0.0},
    "without incoherence": {"incoherence": 0.0},
    "without intruders": {"intruders": 0.0},
    "without surprise": {"surprise": 0.0},
    "without copying": {"copying": 0.0},
    "without profile": {"profile": 0.0},
    "without association": {"association": 0.0},
    "without contradiction": {"contradiction": 0.0},
    "without nameless": {"nameless": 0.0},
    "with camouflage": {"camouflage": 5.0},
    "without text": {"sources": ("log",)},
    "without log": {"sources": ("text",)},
    **{f"without the measure {name}": {"without": (name,)} for name in MEASURES},
    "with twins": {"without": ("twins",)},
}

CLEAN_LOG = "lorec on the clean log"
ALIKE = {"one title for all targets": {}, "one title, without nameless": {"nameless": 0.0}}
"""What whoever names the pushed items can do, and what it did before `nameless`."""
CHANGED = [f"lorec {name}" for name in PARTS if name != "whole"]
ARMS = ("clean", "none", "oracle", "lorec", "lorec-paper", CLEAN_LOG, *CHANGED)


def read(name: str, seed: int) -> lorec.Split:
    groceries = {"k_core": 20, "last": 100} if name == "complete-journey" else {}
    return lorec.leave_two_out(lorec.load(name), seed=seed, **groceries)


def encoded(split: lorec.Split, encoder: str) -> lorec.TextVectors:
    return lorec.TextVectors(split.catalog, ENCODERS[encoder](), Path(platformdirs.user_cache_dir("lorec")) / "vectors")


class Job:
    """One seed of one log."""

    def __init__(self, it: argparse.Namespace, seed: int) -> None:
        self.it, self.seed, self.split = it, seed, read(it.data, seed)
        self.text = encoded(self.split, it.encoder)
        self.clean: lorec.Fit | None = None
        self.new_hits = new_hits(self.split)

    def fit(self, log: lorec.Split, defense=None, known=None) -> lorec.Fit:
        """Train on a log."""
        # Every arm trains as long, and its best epoch is taken: stopping at a plateau would be most of a difference.
        training = lorec.Training(epochs=self.it.epochs, patience=self.it.epochs, threads=self.it.threads)
        backbone = BACKBONES[self.it.backbone](width=64)
        return lorec.fit(
            log, backbone, items=self.it.items, text=self.text, defense=defense, known=known, training=training,
            seed=self.seed,
        )  # fmt: skip

    def arms(self, kind: str, share: float):
        """Name and figures of each arm, when asked for; nothing is forged before."""

        @functools.cache
        def world():
            attack = (KINDS | MORE)[kind](share=share)
            poison = lorec.forge(attack, self.split, targets=5, seed=self.seed, text=self.text)
            bad = lorec.inject(self.split, poison, seed=self.seed)
            return poison, bad, self.known(bad, kind)

        def trained(name: str):
            poison, bad, known = world()
            if name == "clean":
                return self.judged(self.of_clean(), self.split, poison)
            if name == CLEAN_LOG:
                fitted = self.fit(self.split, lorec.LoRec(), self.known(self.split, kind))
                return self.judged(fitted, self.split, poison)
            defenses = {
                "none": lambda: None, "oracle": lambda: lorec.Oracle().reveal(bad.fraudsters), "lorec": lorec.LoRec,
                "lorec-paper": lambda: lorec.LoRecPaper(view="pooled"),
            }  # fmt: skip
            changed = PARTS.get(name.removeprefix("lorec "))
            defense = defenses[name]() if changed is None else dataclasses.replace(lorec.LoRec(), **changed)
            return self.judged(self.fit(bad, defense, known), bad, poison)

        if self.it.parts is not None:
            every = self.parts(kind, world)
            yield from (one for one in every if not self.it.parts or one[0].removeprefix("part: ") in self.it.parts)
            return
        names = self.it.arms or ["clean", "none", "oracle", "lorec", *(["lorec-paper"] if self.it.paper else [])]
        yield from ((name, functools.partial(trained, name)) for name in names)

    def known(self, log: lorec.Split, kind: str):
        """Fakes of every kind but the judged one."""
        return lorec.known_fakes(log, without=HELD_OUT.get(kind, kind), seed=self.seed)

    def of_clean(self) -> lorec.Fit:
        """The clean model is the same for every kind."""
        self.clean = self.clean or self.fit(self.split)
        return self.clean

    def judged(self, fitted: lorec.Fit, log: lorec.Split, poison: lorec.Poison) -> dict:
        """The figures of a trained model."""
        card = lorec.evaluate(fitted.recommender, log, targets=poison.targets, top=10)
        figures = dict(card.metrics)
        figures |= detected(fitted.guard, log, poison.targets)
        figures |= {"items": len(log.catalog), "epochs": len(fitted.history), "best epoch": fitted.best_epoch}
        figures |= {"seconds": sum(row["seconds"] for row in fitted.history)}
        figures |= {"slots of new hits": float(np.isin(card.users["top"].to_numpy(), self.new_hits).mean())}
        return figures | {"by popularity": by_popularity(card.users, log).to_dict(as_series=False)}

    def parts(self, kind: str, world):
        """LoRec without each of its parts."""

        def seen(fields: dict, encoder: str) -> dict:
            poison, bad, known = world()
            text = self.text if encoder == self.it.encoder else encoded(self.split, encoder)
            return self.seen(bad, known, poison, fields, text)

        def alike(fields: dict) -> dict:
            poison, bad, known = world()
            catalog = lorec.Catalog(one_title(bad.catalog.items, bad.catalog.ids(poison.targets)))
            text = encoded(dataclasses.replace(bad, catalog=catalog), self.it.encoder)
            return self.seen(bad, known, poison, fields, text)

        def clean(fields: dict) -> dict:
            return self.seen(self.split, self.known(self.split, kind), world()[0], fields, self.text)

        for name, fields in PARTS.items():
            yield f"part: {name}", functools.partial(seen, fields, self.it.encoder)
        for encoder in ENCODERS:
            if encoder != self.it.encoder:
                yield f"part: encoder {encoder}", functools.partial(seen, {}, encoder)
        for named, fields in ALIKE.items():
            yield f"part: {named}", functools.partial(alike, fields)
        yield "part: clean log", functools.partial(clean, {})
        yield "part: clean log, with camouflage", functools.partial(clean, PARTS["with camouflage"])

    def seen(self, log: lorec.Split, known, poison: lorec.Poison, fields: dict, text: lorec.TextVectors) -> dict:
        """What LoRec with these fields turns down; no recommender is trained."""
        started, rng = time.perf_counter(), np.random.default_rng(self.seed)
        recommender = lorec.Recommender(lorec.SASRec(), "ids", len(log.catalog))
        spec = dataclasses.replace(lorec.LoRec(), **fields)
        guard = spec.start(recommender, lorec.Sight(log.train, recommender.n_items, text, known, rng))
        guard.decide()
        figures = detected(guard, log, poison.targets) | {"seconds": time.perf_counter() - started}
        of_hits = np.isin(log.train.items, self.new_hits) & ~log.fraudsters[log.train.users()]
        down = guard.weights.turned_down(log.train)[of_hits]
        figures |= {"new hits": len(self.new_hits), "new hits turned down": float(down.mean()) if len(down) else None}
        figures |= {"users Brier": float(((guard.suspicion - log.fraudsters) ** 2).mean())}
        figures |= {"users Brier of the share": float(log.fraudsters.mean() * (1 - log.fraudsters.mean()))}
        figures |= {"users reliability": reliability(guard.suspicion, log.fraudsters)}
        fake = log.fraudsters[log.train.users()]
        lies = fake & np.isin(log.train.items, poison.targets)
        either = lies | ~fake  # fakes' fillers are neither
        return figures | {"reliability": reliability(guard.interactions[either], lies[either])}


def new_hits(split: lorec.Split) -> np.ndarray:
    """Honest items that a defense might take for pushed ones: new and at once popular.

    First bought when four fifths of the clean log were over, and yet in the most popular tenth of the catalogue.
    """
    log, n_items = split.train, len(split.catalog)
    first = np.full(n_items + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, log.items, log.times)
    counts = log.counts(n_items)
    often = counts >= np.sort(counts[1:])[-max(1, n_items // 10)]
    new = (first >= np.quantile(log.times, 0.8)) & (counts > 0)
    return np.flatnonzero(new & often)


BINS = (0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.8, 1.01)


def reliability(p: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """For each bin of p: how many, the sum of their p, and of how many it is true."""
    place = np.digitize(p, BINS) - 1
    return [
        [int((place == n).sum()), float(p[place == n].sum()), int(true[place == n].sum())] for n in range(len(BINS) - 1)
    ]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data", nargs="?", default="amazon-beauty")
    asked.add_argument("--seeds", type=int, nargs="+", default=[11])
    asked.add_argument("--kinds", nargs="+", default=list(KINDS), choices=[*KINDS, *MORE])
    asked.add_argument("--shares", type=float, nargs="+", default=[0.01], help="fraudsters for each genuine user")
    asked.add_argument("--backbone", default="sasrec", choices=list(BACKBONES))
    asked.add_argument("--items", default="ids")
    asked.add_argument("--encoder", default="minilm", choices=list(ENCODERS))
    asked.add_argument("--epochs", type=int, default=40, help="of every arm")
    asked.add_argument("--threads", type=int)
    asked.add_argument("--arms", nargs="+", choices=ARMS, help="only these")
    asked.add_argument("--paper", action="store_true", help="also LoRec as published: several times as long")
    asked.add_argument("--parts", nargs="*", help="train nothing; what LoRec sees without each part, or these of them")
    asked.add_argument("--out", type=Path, default=Path("runs/kinds.jsonl"))
    asked.add_argument("--table", type=Path, nargs="+", help="only write the tables of these files")
    asked.add_argument("--strength", type=Path, nargs="+", help="only write what attacks do, a column for each setting")
    it = asked.parse_args()
    if it.table or it.strength:
        rows = [json.loads(line) for path in it.table or it.strength for line in path.read_text().splitlines()]
        print(tables(rows)) if it.table else strength(rows)
        return
    print(machine())
    it.out.parent.mkdir(parents=True, exist_ok=True)
    lines = it.out.read_text().splitlines() if it.out.exists() else []
    done = {tuple(row[key] for key in KEY) for row in map(json.loads, lines)}
    for seed in it.seeds:
        job = Job(it, seed)
        for kind, share in itertools.product(it.kinds, it.shares):
            for arm, figures in job.arms(kind, share):
                row = {"data": it.data, "backbone": it.backbone, "item kind": it.items, "encoder": it.encoder}
                row |= {"share": share, "seed": seed, "kind": kind, "arm": arm}
                if tuple(row[key] for key in KEY) in done:
                    continue
                row |= figures()
                with it.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(seed, kind, arm, {name: round(row[name], 4) for name in SHOWN if name in row}, flush=True)


KEY = ("data", "backbone", "item kind", "encoder", "share", "seed", "kind", "arm")
"""What tells one row from another."""
WORLD = KEY[:5]
"""What rows of one table share."""
CHANGE = "HR@10 change, %"
SHOWN = (
    "HR@10", CHANGE, "T-HR@50", "success removed", "ROC-AUC", "recall@1%", "interactions ROC-AUC",
    "interactions recall", "genuine interactions turned down",
)  # fmt: skip


def tables(rows: list[dict]) -> str:
    """Means over seeds, with 95 % intervals where there are several; a section for each log and setting."""
    parts = []
    for world in dict.fromkeys(tuple(row[key] for key in WORLD) for row in rows):
        these = [row for row in rows if tuple(row[key] for key in WORLD) == world]
        data, backbone, items, encoder, share = world
        parts.append(f"## {data}, {backbone}, items by {items}, texts by {encoder}, {100 * share:g} % fraudsters")
        of_parts = [row for row in these if row["arm"].startswith("part: ")]
        made = [row for row in these if row not in of_parts]
        parts += [trained(made), paired(made), harm(these), taken_out(of_parts)]
        told = [row for row in of_parts if row["arm"] in ("part: whole", "part: clean log")]
        parts += [accused(told), calibrated(told, "reliability"), calibrated(told, "users reliability")]
    return "\n\n".join(filter(None, parts)) + "\n"


def strength(rows: list[dict]) -> None:
    """T-HR@50, and HR@10 in brackets, of each kind and arm in each setting; of the first seed in the file."""
    worlds = sorted({tuple(row[key] for key in WORLD) for row in rows}, key=lambda one: (one[4], one[:4]))
    heads = [f"{data}, {backbone}, {items}, {100 * share:g} %" for data, backbone, items, _, share in worlds]
    print(f"| kind | arm | {' | '.join(heads)} |\n| --- | --- |{' ---: |' * len(heads)}")
    for kind, arm in itertools.product(KINDS | MORE, dict.fromkeys(row["arm"] for row in rows)):
        cells = []
        for world in worlds:
            these = [row for row in rows if tuple(row[key] for key in KEY) == (*world, rows[0]["seed"], kind, arm)]
            cells.append(f"{these[0]['T-HR@50']:.4f} ({these[0]['HR@10']:.4f})" if these else "")
        if any(cells):
            print(f"| {kind} | {arm} | {' | '.join(cells)} |")


def trained(rows: list[dict]) -> str:
    """What was trained and judged: a row for each kind and arm."""
    for row in rows:
        same = {other["arm"]: other for other in rows if (other["seed"], other["kind"]) == (row["seed"], row["kind"])}
        if row["arm"] not in ("clean", "none", CLEAN_LOG) and {"clean", "none"} <= set(same):
            removed = lorec.success_removed(same["clean"], same["none"], row, 50, row["items"])
            row |= {} if removed is None else {"success removed": removed}
        if row["arm"] != "clean" and "clean" in same:
            row[CHANGE] = 100 * (row["HR@10"] / same["clean"]["HR@10"] - 1)
    made = [
        f"| kind | arm | seeds | {' | '.join(map(title_of, SHOWN))} |",
        f"| --- | --- | --- |{' ---: |' * len(SHOWN)}",
    ]
    for kind, arm in itertools.product(KINDS | MORE, ARMS):
        if these := [row for row in rows if (row["kind"], row["arm"]) == (kind, arm)]:
            cells = [cell([row[name] for row in these if name in row], name) for name in SHOWN]
            made.append(f"| {kind} | {arm} | {len(these)} | {' | '.join(cells)} |")
    return "\n".join(made) if made[2:] else ""


def paired(rows: list[dict]) -> str:
    """What LoRec costs or brings, pair by pair: HR@10 against other arms of the same seed and kind, in percent."""
    found = {(row["arm"], row["kind"], row["seed"]): row["HR@10"] for row in rows}
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    made = [f"| HR@10 against, % | {' | '.join(kinds)} | all of them |", f"| --- |{' ---: |' * (len(kinds) + 1)}"]
    for arm, other in itertools.product(("lorec", "lorec-paper"), ("clean", "none", "oracle")):
        changes: dict[str, list[float]] = {kind: [] for kind in kinds}
        by_seed: dict[int, list[float]] = {}
        for (one, kind, seed), value in found.items():
            if one == arm and kind in changes and (other, kind, seed) in found:
                changes[kind].append(100 * (value / found[other, kind, seed] - 1))
                by_seed.setdefault(seed, []).append(changes[kind][-1])
        if by_seed:
            cells = [cell(changes[kind], CHANGE) for kind in kinds]
            cells.append(cell([float(np.mean(one)) for one in by_seed.values()], CHANGE))
            made.append(f"| {arm} against {other} | {' | '.join(cells)} |")
    return "\n".join(made) if made[2:] else ""


def harm(rows: list[dict]) -> str:
    """Who is shown and hit, in tenths of the catalogue from the least popular on; means of runs."""
    told = [row for row in rows if "by popularity" in row and row["arm"] not in CHANGED]
    tables = []
    for what, form in (("slots", "% of the first ten places"), ("hits", "test items among them")):
        made = [f"| {form}, by tenth | {' | '.join(map(str, range(1, 11)))} | new hits | runs |"]
        made.append(f"| --- |{' ---: |' * 12}")
        for arm in ARMS:
            if these := [row for row in told if row["arm"] == arm]:
                mean = np.mean([row["by popularity"][what] for row in these], axis=0)
                cells = [f"{100 * one:.2f}" if what == "slots" else f"{one:.0f}" for one in mean]
                of_new = [row["slots of new hits"] for row in these if what == "slots" and "slots of new hits" in row]
                cells.append(f"{100 * np.mean(of_new):.2f} ({len(of_new)})" if of_new else "")
                made.append(f"| {arm} | {' | '.join(cells)} | {len(these)} |")
        tables.append("\n".join(made))
    return "\n\n".join(tables) if told else ""


OF_PARTS = ("ROC-AUC", "recall@1%", "interactions ROC-AUC", "interactions recall", "genuine interactions turned down")


def taken_out(rows: list[dict]) -> str:
    """What LoRec sees without a part of it: a row for each part, `OF_PARTS` of each kind; means over seeds."""
    kinds = [kind for kind in KINDS | MORE if any(row["kind"] == kind for row in rows)]
    made = [
        "AUC of users, recall in the worst 1 %, AUC of interactions, lies turned down, genuine turned down "
        "(in brackets, of new hits):\n",
        f"| LoRec | {' | '.join(kinds)} |", f"| --- |{' ---: |' * len(kinds)}",
    ]  # fmt: skip
    encoders = (f"encoder {name}" for name in ENCODERS)
    arms = [f"part: {name}" for name in (*PARTS, *encoders, *ALIKE, "clean log", "clean log, with camouflage")]
    for arm in (arm for arm in arms if any(row["arm"] == arm for row in rows)):
        cells = []
        for kind in kinds:
            these = [row for row in rows if (row["kind"], row["arm"]) == (kind, arm)]
            means = ((name, np.mean([row[name] for row in these])) for name in OF_PARTS if these and name in these[0])
            said = ", ".join(written(name, mean) for name, mean in means)
            hits = [one for row in these if (one := row.get("new hits turned down")) is not None]
            cells.append(said + (f" ({np.mean(hits):.3f})" if hits else ""))
        made.append(f"| {arm.removeprefix('part: ')} | {' | '.join(cells)} |")
    return "\n".join(made) if rows else ""


def accused(rows: list[dict]) -> str:
    """Users: how many are accused without reason, and whether their likelihoods are worth anything; means of runs."""
    rows = [row for row in rows if "users Brier" in row]
    made = ["| users | genuine accused | fraudsters accused | sum of p | fraudsters | Brier over knowing their share |"]
    made.append(f"| --- |{' ---: |' * 5}")
    for kind, arm in itertools.product(KINDS | MORE, ("part: whole", "part: clean log")):
        if not (these := [row for row in rows if (row["kind"], row["arm"]) == (kind, arm)]):
            continue
        _, said, bad = np.mean([np.sum(row["users reliability"], axis=0) for row in these], axis=0)
        innocent = np.mean([row["genuine turned down"] for row in these])
        cells = [f"clean log, {kind} not known" if not bad else kind, f"{innocent:.4f}", "", f"{said:.0f}", "", ""]
        if bad:
            ratio = np.mean([row["users Brier"] / row["users Brier of the share"] for row in these])
            cells[2:] = [f"{np.mean([row['recall'] for row in these]):.3f}", cells[3], f"{bad:.0f}", f"{ratio:.2f}"]
        made.append(f"| {' | '.join(cells)} |")
    return "\n".join(made) if rows else ""


def calibrated(rows: list[dict], what: str) -> str:
    """Said and found, bin by bin, for each kind."""
    rows = [row for row in rows if what in row and row["arm"] == "part: whole"]
    kinds = [kind for kind in KINDS | MORE if any(row["kind"] == kind for row in rows)]
    told = {kind: np.sum([row[what] for row in rows if row["kind"] == kind], axis=0) for kind in kinds}
    which = "a user" if what.startswith("users") else "an interaction"
    made = [f"| p of {which}: how many, mean p, share of which it is true | {' | '.join(kinds)} |"]
    made.append(f"| --- |{' ---: |' * len(kinds)}")
    for place, (low, high) in enumerate(itertools.pairwise(BINS)):
        found = [told[kind][place] for kind in kinds]
        cells = [f"{n:,.0f}, {said / n:.4f}, {true / n:.4f}" if n else "" for n, said, true in found]
        made.append(f"| {low} to {min(high, 1)} | {' | '.join(cells)} |")
    return "\n".join(made) if rows else ""


def cell(values: list[float], name: str) -> str:
    """The mean, with half an interval where there are several."""
    if not values:
        return ""
    mean, _, high = interval(values)
    return written(name, mean) + (f" ± {written(name, high - mean)}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
