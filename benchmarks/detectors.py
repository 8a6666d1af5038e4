"""Detectors alone, on kinds that they never knew, by encoder: does knowledge help where letters can't? A line a result.

LOREC_DATA=... python benchmarks/detectors.py amazon-games steam ml1m --seeds 11 --out runs/detectors.jsonl
               python benchmarks/detectors.py --table runs/detectors.jsonl

No recommender is trained. Every seed draws new targets; known fakes are of every cheap kind but the judged one; what is
in the file already is not done again. The first six read nothing. LLM4Dec has each of --views; `prompt`, the paper's,
costs a text for every user and known fake. `zeroshot` (--zeroshot) asks smollm2 about a sample of users,
fraudsters among them, as it takes a tenth of a second each; `audit` asks it about its suspects. --only takes the
detectors whose names begin so; with --known they learn from the judged kind itself, with other targets.
"""

import argparse
import json
import time
from pathlib import Path
from typing import get_args

import numpy as np
import platformdirs
from kinds import KINDS, read
from side_by_side import machine

import lorec
from lorec.detectors import DETECTORS, judged
from lorec.text import ENCODERS, View

READERS = ("minilm", "smollm2", "hash", "random")
TOLD = (
    "ROC-AUC", "PR-AUC", "recall@1%", "precision", "recall", "F1", "interactions ROC-AUC", "genuine turned down",
    "genuine interactions turned down", "lies' weight", "targets among the worst 10",
)  # fmt: skip


def asked(it: argparse.Namespace) -> dict[str, tuple[str, object]]:
    """The detectors by a name in the table, each with its encoder."""
    found: dict[str, tuple[str, object]] = {
        name: ("hash", DETECTORS[name]()) for name in ("degree", "pca", "fap", "groups", "copies", "loss")
    }
    for encoder in it.encoders:
        for name in ("coherence", "context", "lorec"):
            found[f"{name}, {encoder}"] = encoder, DETECTORS[name]()
        for view in it.views:
            found[f"llm4dec {view}, {encoder}"] = encoder, DETECTORS["llm4dec"](view=view)
        if encoder == "smollm2":
            found["audit, smollm2"] = encoder, DETECTORS["audit"]()
    return {name: what for name, what in found.items() if name.startswith(tuple(it.only))}


def measure(name: str, seed: int, it: argparse.Namespace, done: set[tuple]) -> None:
    split = read(name, seed)
    cache = Path(platformdirs.user_cache_dir("lorec")) / "vectors"
    texts = {one: lorec.TextVectors(split.catalog, ENCODERS[one](), cache, it.scenario) for one in READERS}
    for kind in it.kinds:
        poison = lorec.forge(KINDS[kind](share=0.01), split, 5, seed, text=texts["minilm"])
        bad = lorec.inject(split, poison, seed=seed)
        known = lorec.known_fakes(bad, seed=seed, **({"kinds": [kind]} if it.known else {"without": kind}))
        kind = f"{kind} (known)" if it.known else kind
        for label, (encoder, detector) in asked(it).items():
            if (name, seed, kind, label) in done:
                continue
            started = time.perf_counter()
            found = lorec.detect(detector, bad, text=texts[encoder], known=known, seed=seed)
            row = judged(found, bad, poison.targets)
            row = {"data": name, "seed": seed, "kind": kind, "detector": label, **{one: row.get(one) for one in TOLD}}
            keep(it, row | {"seconds": time.perf_counter() - started})
        label = f"zeroshot, smollm2, {it.zeroshot} users"
        if it.zeroshot and (name, seed, kind, label) not in done:
            rng = np.random.default_rng(seed)
            half = it.zeroshot // 2
            fakes, honest = np.flatnonzero(bad.fraudsters), np.flatnonzero(~bad.fraudsters)
            rows = np.concatenate([rng.choice(fakes, min(half, len(fakes)), replace=False), rng.choice(honest, half)])
            started = time.perf_counter()
            ask = lorec.ZeroShot()
            said = texts["smollm2"].answers(bad.train.take(rows), ask.question, (ask.yes, ask.no))
            odds = said[:, 0] - said[:, 1]
            told = lorec.evaluation.detection(odds, None, bad.fraudsters[rows])
            row = {"data": name, "seed": seed, "kind": kind, "detector": label, "ROC-AUC": told["ROC-AUC"]}
            row |= {"odds, mean": float(odds.mean()), "odds, std": float(odds.std())}
            keep(it, row | {"seconds": time.perf_counter() - started})


def keep(it: argparse.Namespace, row: dict) -> None:
    it.out.parent.mkdir(parents=True, exist_ok=True)
    with it.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['data']} {row['kind']} {row['detector']}: {row['ROC-AUC']:.3f}", flush=True)


def table(path: Path) -> None:
    """ROC-AUC of users, a column for each log and kind; means where there are several seeds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    columns = list(dict.fromkeys((row["data"], row["kind"]) for row in rows))
    print("| detector | " + " | ".join(f"{data}: {kind}" for data, kind in columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    for label in dict.fromkeys(row["detector"] for row in rows):
        cells = []
        for column in columns:
            found = [row["ROC-AUC"] for row in rows if ((row["data"], row["kind"]), row["detector"]) == (column, label)]
            cells.append(f"{np.mean(found):.3f}" if found else "")
        print(f"| {label} | {' | '.join(cells)} |")


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("data", nargs="*", default=["amazon-games", "steam", "ml1m"])
    asks.add_argument("--seeds", type=int, nargs="+", default=[11])
    asks.add_argument("--kinds", nargs="+", default=[*KINDS], choices=[*KINDS])
    asks.add_argument("--encoders", nargs="*", default=["minilm", "hash", "random"], choices=READERS)
    asks.add_argument("--views", nargs="*", default=["pooled"], choices=get_args(View), help="LLM4Dec's")
    asks.add_argument("--known", action="store_true", help="learn from the judged kind alone: an upper bound")
    asks.add_argument("--only", nargs="*", default=[""], help="detectors by the beginning of their names")
    asks.add_argument("--zeroshot", type=int, default=0, help="how many users a model that writes is asked about")
    asks.add_argument("--scenario", default="an online shop")
    asks.add_argument("--out", type=Path, default=Path("runs/detectors.jsonl"))
    asks.add_argument("--table", type=Path, help="only show what this file holds")
    it = asks.parse_args()
    if it.table:
        table(it.table)
        return
    print(machine())
    held = [json.loads(line) for line in it.out.read_text().splitlines()] if it.out.exists() else []
    done = {(row["data"], row["seed"], row["kind"], row["detector"]) for row in held}
    for name in it.data:
        for seed in it.seeds:
            measure(name, seed, it, done)


if __name__ == "__main__":
    main()
