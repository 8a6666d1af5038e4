"""Scans of real logs: alarms, pushed items and hired users found, by kind and size of the attack; and false alarms.

    python benchmarks/scanning.py FOLDER amazon-beauty steam --shares .002 .005 .01 --clean 20

A row of FOLDER/rows.jsonl is a scan of a log of 70 % of the users, drawn anew, poisoned or not. Its trials are those of
an earlier scan of another draw, without the judged kind. Half of the clean draws have a genuine hit: a new item that a
twentieth of all users took on the last day. A row that is there is not made again. With `--users 500 1500` draws have
so many users, and trials of their own; an attack is five accounts at the least. With `--targets 1 2 3` attacks push so
many items instead of five.

A clean draw of which the notes say that some items may be one product is scanned again with one id for them. With
`--without coherence copies` a draw is scanned again without each of them, by the same trials; with `--one-title` once
more with one title for all targets, as who names them can.

    python benchmarks/scanning.py FOLDER --table
"""

import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest

import lorec
from lorec.attacks import ATTACKS, KINDS
from lorec.data import Dataset, Split, stream, whole
from lorec.detectors import judged
from lorec.detectors.suspicion import Suspicion
from lorec.scans import EVIDENCE
from lorec.scans.findings import twins
from lorec.scans.learning import SUSPECT, campaigns
from lorec.text import MiniLM, TextVectors


def drawn(dataset: Dataset, share: float, seed: int, n: int = 0) -> Dataset:
    """A log of some of the users: a share of them, or `n`."""
    users = dataset.interactions["user"].unique().sort()
    n = min(n, len(users)) or int(share * len(users))
    some = np.sort(stream(seed, "subsample").choice(len(users), n, replace=False))
    kept = dataset.interactions.filter(pl.col("user").is_in(users.gather(some).implode()))
    return dataclasses.replace(dataset, interactions=kept)


def as_dataset(split: Split) -> Dataset:
    """The log of a split as if it had been read."""
    log = split.train
    columns = {"user": split.users.cast(pl.String).gather(log.users()), "item": pl.Series(split.catalog.ids(log.items))}
    times = {} if log.times is None else {"time": log.times}
    return Dataset(split.name, pl.DataFrame(columns | times), split.catalog.items, {})


def with_hit(dataset: Dataset, seed: int) -> Dataset:
    """A release that a twentieth of all users took within a day: an item that nobody had before, at the end."""
    rng, log = stream(seed, "hit"), dataset.interactions
    users = log["user"].unique().sort()
    fans = users.gather(rng.choice(len(users), len(users) // 20, replace=False))
    item = log["item"].unique().sort()[int(rng.integers(log["item"].n_unique()))]
    kept = log.filter(pl.col("item") != item)
    new = {"user": fans, "item": pl.Series([item] * len(fans), dtype=log["item"].dtype)}
    if "time" in log.columns:
        last = int(log["time"].max())
        new["time"] = pl.Series(last - rng.integers(0, 86_400, len(fans)), dtype=log["time"].dtype)
    return dataclasses.replace(dataset, interactions=pl.concat([kept, pl.DataFrame(new).select(log.columns)]))


def scanned(
    dataset: Dataset, judged_kind: str, folder: Path | None, seed: int, cache: Path, without: str = ""
) -> tuple[lorec.Findings, float]:
    """A scan by the trials of an earlier one that never saw the judged kind, or by its own."""
    kinds = [one for one in (*KINDS, "adaptive") if one != judged_kind]
    evidence = [one for one in EVIDENCE if one != without]
    started = time.perf_counter()
    found = lorec.scan(dataset, kinds=kinds, like=folder, cache=cache, seed=seed, evidence=evidence)
    return found, time.perf_counter() - started


def one_title(items: pl.DataFrame, targets: list[str]) -> pl.DataFrame:
    """A catalogue with the first target's title for all of them."""
    title = items.filter(pl.col("item").cast(pl.String) == targets[0])["title"][0]
    theirs = pl.when(pl.col("item").cast(pl.String).is_in(targets)).then(pl.lit(title)).otherwise("title")
    return items.with_columns(title=theirs)


def with_one_title(dataset: Dataset, targets: list[str]) -> Dataset:
    """The log with the first target's title for all of them."""
    return dataclasses.replace(dataset, items=one_title(dataset.items, targets))


def with_one_id(dataset: Dataset, found: lorec.Findings, cache: Path) -> Dataset | None:
    """The log with one id for what may be one product, which a user has once; None where nothing may be."""
    items, catalog = np.append(0.0, found.items["suspicion"].to_numpy()), found.log.catalog
    pairs = twins(items, found.log.train, TextVectors(catalog, MiniLM(), cache).items())
    if not len(pairs):
        return None
    n = len(items)
    label = connected_components(coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n)), directed=False)[
        1
    ]
    first = np.unique(label, return_index=True)[1][label]  # the lowest number of those that are one
    ids = catalog.ids(np.arange(1, n))
    renamed = {ids[one - 1]: ids[int(first[one]) - 1] for one in np.unique(pairs[:, :2])}
    log = dataset.interactions.with_columns(pl.col("item").cast(pl.String).replace(renamed))
    return dataclasses.replace(dataset, interactions=log.unique(["user", "item"], keep="first", maintain_order=True))


def row_of(found: lorec.Findings, bad: Split | None, targets: list[str]) -> dict[str, object]:
    """What was found, and how right it is by the labels that only this script has."""
    suspect = found.groups.filter(pl.col("suspicion") >= SUSPECT)
    row: dict[str, object] = {
        "alarm": found.alarm, "groups": suspect.height, "loud groups": found.loud().height, "figures": found.figures,
        "worst group": suspect.head(1).select("suspicion", "items", "users", "together", "expected").to_dicts(),
    }  # fmt: skip
    likely, holders = (found.items[name].to_numpy() for name in ("suspicion", "holders"))
    sizes = campaigns(np.append(0.0, likely / max(found.alarm, 1e-12)), np.append(0, holders), len(found.log))
    row["sizes"] = [float(f"{one:.4g}") for one in sizes]  # what alarm.py fits the curve on
    log, fake = found.log, found.users["user_id"].str.starts_with("injected-").to_numpy()
    users, share = found.users["suspicion"].to_numpy(), float(fake.mean())
    row["likelihoods of users"] = {
        "sum": float(users.sum()), "fraudsters": int(fake.sum()), "Brier": float(((users - fake) ** 2).mean()),
        "Brier of the share": share * (1 - share),
    }  # fmt: skip
    if bad is None:
        return row
    numbers = log.catalog.numbers(targets)
    items = np.append(0.0, found.items["suspicion"].to_numpy())
    said = Suspicion(
        users=users, flagged=users >= 0.5, items=items, interactions=items[log.train.items],
    )  # fmt: skip
    row["judged"] = judged(said, dataclasses.replace(log, fraudsters=fake), numbers, found.weights)
    row["ranks"] = [int((items > items[one]).sum()) + 1 for one in numbers]
    row["suspicion of targets"] = [round(float(items[one]), 4) for one in numbers]
    row["in the worst group"] = bool((found.items["group"].to_numpy()[numbers - 1] == 1).any())
    return row


def table(rows: list[dict]) -> str:
    """What was found, as Markdown: alarm, targets among the worst 10, recall of fraudsters in the worst 1 %."""
    bad = [row for row in rows if row["share"]]
    shares = sorted({row["share"] for row in bad})
    lines = [
        "| log | kind | " + " | ".join(f"{100 * one:g} %" for one in shares) + " |",
        "| --- | --- " + "| --- " * len(shares) + "|",
    ]
    for log, kind in dict.fromkeys((row["log"], row["kind"]) for row in sorted(bad, key=lambda row: row["log"])):
        cells = []
        for share in shares:
            some = [row for row in bad if (row["log"], row["kind"], row["share"]) == (log, kind, share)]
            figures = [
                [row["alarm"], row["judged"]["targets among the worst 10"], row["judged"]["recall@1%"]] for row in some
            ]
            cells.append(", ".join(f"{one:.2f}" for one in np.mean(figures, axis=0)) if figures else "")
        lines.append(f"| {log} | {kind} | " + " | ".join(cells) + " |")
    lines += [
        "", "| log | clean draws | alarm of .5 or more | of .7 or more | of .5 or more with one id for one product |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    clean = [row for row in rows if not row["share"]]
    for log in [*sorted({row["log"] for row in clean}), "all"]:
        mine = [row for row in clean if log in (row["log"], "all")]
        cells = []
        for border, again in ((0.5, False), (0.7, False), (0.5, True)):
            alarms = np.array([row.get("alarm, one id", row["alarm"]) if again else row["alarm"] for row in mine])
            within = binomtest(int((alarms >= border).sum()), len(alarms)).proportion_ci()
            cells.append(f"{(alarms >= border).mean():.2f} ({within.low:.2f} to {within.high:.2f})")
        lines.append(f"| {log} | {len(alarms)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def few(rows: list[dict]) -> str:
    """The alarm of attacks for few items, as Markdown."""
    sizes = sorted({(row["targets"], row["share"]) for row in rows})
    heads = [f"{many} item{'s' * (many > 1)}, {100 * share:g} %" for many, share in sizes]
    lines = [f"| log | kind | {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * len(heads)]
    found = {(row["log"], row["kind"], row["targets"], row["share"]): row["alarm"] for row in rows}
    for log, kind in sorted({(row["log"], row["kind"]) for row in rows}):
        cells = [f"{found[log, kind, *size]:.2f}" if (log, kind, *size) in found else "" for size in sizes]
        lines.append(f"| {log} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def changed(rows: list[dict]) -> str:
    """What each evidence adds, as Markdown: means of alarm, targets among the worst 10, users' recall@1% and PR-AUC."""
    bad = [row for row in rows if row["share"]]
    named = [*dict.fromkeys(row["change"] for row in bad if row.get("change"))]
    if not named:
        return ""
    lines = ["| log | kind | share | as it is | " + " | ".join(named) + " |"]
    lines += ["| --- | --- | ---: |" + " --- |" * (len(named) + 1)]
    cells: dict[tuple, dict[str, list]] = {}
    for row in bad:
        of_draw = cells.setdefault((row["log"], row["kind"], row["share"]), {})
        wanted = ("targets among the worst 10", "recall@1%", "PR-AUC")
        figures = [row["alarm"], *(row["judged"][one] for one in wanted)]
        of_draw.setdefault(row.get("change", ""), []).append((key(row)[:-1], figures))
    for (log, kind, share), told in sorted(cells.items()):
        draws = {draw for change, some in told.items() if change for draw, _ in some}
        if draws:  # as it is: of the draws that were scanned again
            again = [[figures for draw, figures in told.get(change, ()) if draw in draws] for change in ("", *named)]
            said = [", ".join(f"{one:.2f}" for one in np.mean(some, axis=0)) if some else "" for some in again]
            lines.append(f"| {log} | {kind} | {100 * share:g} % | {' | '.join(said)} |")
    return "\n".join(lines)


def likelihoods(rows: list[dict]) -> str:
    """What users' likelihoods add up to, and their Brier score over that of knowing how many fraudsters there are."""
    lines = [
        "| log | draws | sum, poisoned | fraudsters | Brier ratio | clean draws | sum, clean |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows = [row for row in rows if "likelihoods of users" in row and not row.get("change")]
    for log in sorted({row["log"] for row in rows}):
        told = [(row["share"], row["likelihoods of users"]) for row in rows if row["log"] == log]
        bad, clean = [one for share, one in told if share], [one["sum"] for share, one in told if not share]
        mean = [np.mean([one[name] for one in bad]) for name in ("sum", "fraudsters")]
        ratio = np.mean([one["Brier"] / one["Brier of the share"] for one in bad])
        honest = f"{np.mean(clean):.1f}" if clean else ""
        lines.append(f"| {log} | {len(bad)} | {mean[0]:.0f} | {mean[1]:.0f} | {ratio:.2f} | {len(clean)} | {honest} |")
    return "\n".join(lines)


def key(row: dict) -> tuple:
    """What tells a row from others: the draw, the attack, and what was changed."""
    names = ("log", "kind", "share", "seed", "users", "targets", "change")
    usual = {"users": 0, "targets": 5, "change": ""}
    return tuple((usual | row)[name] for name in names)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("logs", nargs="*")
    asked.add_argument("--table", action="store_true", help="show what was found so far, and end")
    asked.add_argument("--kinds", nargs="*", default=["random", "bandwagon", "segment", "replace"])
    asked.add_argument("--shares", nargs="*", type=float, default=[0.002, 0.005, 0.01])
    asked.add_argument("--seeds", nargs="*", type=int, default=[31])
    asked.add_argument("--clean", type=int, default=0, help="clean draws of each log, half of them with a hit")
    asked.add_argument("--clean-from", type=int, default=1000, help="the first of their seeds")
    asked.add_argument("--users", nargs="*", type=int, default=[0], help="of a draw; 0: 70 %%")
    asked.add_argument("--targets", nargs="*", type=int, default=[5], help="of an attack")
    asked.add_argument("--without", nargs="*", default=[], choices=[one for one in EVIDENCE if one != "lorec"])
    asked.add_argument("--one-title", action="store_true")
    asked.add_argument("--trials", type=int, default=10)
    asked.add_argument("--cache", type=Path, default=Path("runs/vectors"))
    options = asked.parse_args()
    torch.set_num_threads(1)
    rows = options.folder if options.folder.suffix == ".jsonl" else options.folder / "rows.jsonl"
    rows.parent.mkdir(parents=True, exist_ok=True)
    before = [json.loads(line) for line in rows.read_text("utf-8").splitlines()] if rows.exists() else []
    if options.table:
        unchanged = [row for row in before if not row.get("change")]
        usual = [row for row in unchanged if row.get("targets", 5) == 5]
        for n in sorted({row.get("users", 0) for row in usual}):
            print(
                f"draws of {n or '70 % of the'} users\n\n{table([row for row in usual if row.get('users', 0) == n])}\n"
            )
        print(few([row for row in unchanged if row.get("targets", 5) != 5]))
        print(f"\n{changed(before)}\n\n{likelihoods(before)}")
        return
    done = {key(row) for row in before}
    changes = [*(f"without {one}" for one in options.without), *(["one title"] if options.one_title else [])]
    for name, n in itertools.product(options.logs, options.users):
        dataset = lorec.load(name)
        wanted = list(itertools.product(options.kinds, options.shares, options.seeds, options.targets))
        clean = range(options.clean_from, options.clean_from + options.clean)
        wanted += [("hit" if seed % 2 else "clean", 0.0, seed, 5) for seed in clean]
        for kind, share, seed, many in wanted:
            about = {"log": name, "kind": kind, "share": share, "seed": seed, "users": n, "targets": many}
            missing = [one for one in ("", *(changes if share else ())) if key(about | {"change": one}) not in done]
            if not missing:
                continue
            earlier = None if n else options.folder / "earlier" / name / (kind if kind in KINDS else "all")
            if earlier is not None and not (earlier / "findings.json").is_file():
                kinds = [one for one in (*KINDS, "adaptive") if one != kind]
                lorec.scan(
                    drawn(dataset, 0.7, 7), kinds=kinds, trials=options.trials, folder=earlier, cache=options.cache
                )
            some, targets, bad = drawn(dataset, 0.7, seed, n), [], None
            if share:
                log = whole(some, seed)
                poison = lorec.forge(ATTACKS[kind](share=max(share, 5 / len(log))), log, many, seed=seed)
                bad, targets = lorec.inject(log, poison, seed), log.catalog.ids(poison.targets)
                some = as_dataset(bad)
            elif kind == "hit":
                some = with_hit(some, seed)
            for change in missing:
                one = with_one_title(some, targets) if change == "one title" else some
                without = change.removeprefix("without ") if change.startswith("without ") else ""
                found, seconds = scanned(one, kind, earlier, seed, options.cache, without)
                again = {"change": change} if change else {}
                single = None if bad is not None else with_one_id(one, found, options.cache)
                if single is not None:
                    again["alarm, one id"] = scanned(single, kind, earlier, seed, options.cache)[0].alarm
                row = about | {"seconds": round(seconds, 1)} | row_of(found, bad, targets) | again
                with rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(about, change, f"alarm {found.alarm:.3f}", flush=True)


if __name__ == "__main__":
    main()
