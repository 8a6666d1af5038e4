"""A recommender trained with a scan's weights, beside clean, undefended and oracle: exposure of targets and hits.

    python benchmarks/scan_training.py FOLDER amazon-beauty --kinds random replace --shares .002 .005 .01 --epochs 25

A row of FOLDER/rows.jsonl is a recommender. The scan looks at the training log alone; it has no trial of the judged
kind, nor does its lorec know it. Rows that are there are not made again.

    python benchmarks/scan_training.py FOLDER --table
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from scanning import as_dataset

import lorec
from lorec.attacks import ATTACKS, KINDS
from lorec.defenses import Oracle, Undefended, WeightFile

ARMS = ("clean", "poisoned", "oracle", "scan")


def table(rows: list[dict]) -> str:
    """Exposure of the targets and hits under each arm, as Markdown: a line for each attack."""
    found = {(row["log"], row["kind"], row["share"], row["seed"], row["arm"]): row for row in rows}
    clean = {(row["log"], row["kind"], row["seed"]): row for row in rows if row["arm"] == "clean"}
    lines = [
        "| log | share | kind | clean | undefended | oracle | scan's weights | HR@10, undefended | oracle "
        "| scan's weights | likelihood |", "| --- | ---: | --- |" + " ---: |" * 8,
    ]  # fmt: skip
    attacks = {
        (row["log"], row["share"], row["kind"], row["seed"]) for row in rows if row["arm"] in ("poisoned", "scan")
    }
    for log, share, kind, seed in sorted(attacks):
        arms = [found.get((log, kind, share, seed, arm)) for arm in ARMS]
        arms[0] = clean.get((log, kind, seed))  # its targets are those of the kind and the seed, whatever the share
        shown = [f"{arm['T-HR@50']:.4f}" if arm else "" for arm in arms]
        hits = [f"{arm['HR@10']:.4f}" if arm else "" for arm in arms[1:]]
        alarm = f"{arms[3]['alarm']:.2f}" if arms[3] else ""
        lines.append(f"| {log} | {100 * share:g} % | {kind} | {' | '.join([*shown, *hits, alarm])} |")
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("log", nargs="?", default="amazon-beauty")
    asked.add_argument("--table", action="store_true", help="show what was measured so far, and end")
    asked.add_argument("--kinds", nargs="*", default=["random", "bandwagon", "segment", "replace"])
    asked.add_argument("--shares", type=float, nargs="+", default=[0.01], help="fraudsters for each genuine user")
    asked.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    asked.add_argument("--seed", type=int, default=41)
    asked.add_argument("--epochs", type=int, default=25)
    asked.add_argument("--trials", type=int, default=10)
    asked.add_argument("--cache", type=Path, default=Path("runs/vectors"))
    options = asked.parse_args()
    torch.set_num_threads(1)
    rows = options.folder if options.folder.suffix == ".jsonl" else options.folder / "rows.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    before = [json.loads(line) for line in rows.read_text("utf-8").splitlines()] if rows.exists() else []
    if options.table:
        print(table(before))
        return
    done = {(row["log"], row["kind"], row["share"], row["seed"], row["arm"]) for row in before}
    training = lorec.Training(epochs=options.epochs, patience=options.epochs, valid_users=5000, threads=1)
    split = lorec.leave_two_out(lorec.load(options.log), seed=options.seed)
    without = None  # the clean model is one and the same, whatever would have been injected
    for kind, share in itertools.product(options.kinds, options.shares):
        poison = lorec.forge(ATTACKS[kind](share=share), split, 5, seed=options.seed)
        bad = lorec.inject(split, poison, options.seed)
        for arm in options.arms:
            about = {"log": options.log, "kind": kind, "share": share, "seed": options.seed, "arm": arm}
            if tuple(about.values()) in done:
                continue
            started, defense, more = time.perf_counter(), Undefended(), {}
            if arm == "oracle":
                defense = Oracle().reveal(bad.fraudsters)
            if arm == "scan":
                kinds = [one for one in (*KINDS, "adaptive") if one != kind]
                folder = options.folder / "scans" / f"{options.log}-{kind}-{share}"
                found = lorec.scan(
                    as_dataset(bad), kinds=kinds, trials=options.trials, folder=folder, cache=options.cache,
                    seed=options.seed,
                )  # fmt: skip
                more = {"alarm": found.alarm, "scan seconds": found.figures["seconds"]}
                ids = bad.catalog.items["item"].to_list()
                defense = WeightFile(path=str(folder / "weights.parquet")).of(bad.users, bad.train, ids)
            log = split if arm == "clean" else bad
            fitted = without if arm == "clean" else None
            if fitted is None:
                fitted = lorec.fit(log, lorec.SASRec(), defense=defense, training=training, seed=options.seed)
            without = fitted if arm == "clean" else without
            judged = lorec.evaluate(fitted.recommender, log, targets=poison.targets).metrics
            row = (
                about
                | more
                | {"seconds": round(time.perf_counter() - started, 1), "best epoch": fitted.best_epoch}
                | judged
            )
            with rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
