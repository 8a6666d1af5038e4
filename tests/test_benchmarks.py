"""The benchmarks run: each can be imported, and what only they have is tried on a small world."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import shop

from lorec.attacks import Random, forge, known_fakes
from lorec.data import inject, leave_two_out
from lorec.text import Hash, TextVectors

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """A script of the folder, by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_is_importable_and_says_what_it_is_for(benchmark, name):
    assert benchmark(name).__doc__


def test_every_condition_of_the_diagnosis_learns_and_is_told(benchmark):
    diagnosis = benchmark("diagnosis")
    split = leave_two_out(shop(users=300, items=120, groups=6))
    bad = inject(split, forge(Random(share=0.05), split, 5, seed=1), seed=1)
    known = known_fakes(bad, without="random", rounds=1, share=0.1, seed=1)
    text, n = TextVectors(bad.catalog, Hash(dim=32)), len(bad.catalog)
    rows = []
    for name in diagnosis.CONDITIONS:
        log = bad.train.take(bad.genuine()) if name == "fraudsters not label 0" else bad.train
        model = diagnosis.Model(bad.train, n, 1)
        model.train()
        condition = diagnosis.Condition(name, log, known, text, model.recommender, [1, 0])
        before = condition.guard.calibrator.head.out.weight.detach().clone()
        condition.learn([model.recommender] * 2)
        assert not (condition.guard.calibrator.head.out.weight == before).all()
        told = diagnosis.told_of(condition, [model.recommender] * 2, bad)
        assert all(0 <= told[key] <= 1 for key in ("AUC of fraudsters", "AUC of known fakes", "above the mean"))
        assert np.diff(told["genuine"]).min() >= 0
        rows.append({"data": "shop", "kind": "random", "seed": 1, "condition": name, "epoch": 1, "draw": 0} | told)
    assert diagnosis.table(rows).count("\n| ") == 2 + len(diagnosis.CONDITIONS)


def test_the_tables_of_kinds_hold_the_rows(benchmark):
    kinds = benchmark("kinds")
    world = {"data": "shop", "backbone": "sasrec", "item kind": "ids", "encoder": "hash", "share": 0.01, "items": 900}
    popular = {"slots": [0.1] * 10, "hits": list(range(10))}
    arms = {"clean": (0.05, 0.001), "none": (0.04, 0.101), "lorec": (0.045, 0.026)}
    rows = [
        world | {"seed": seed, "kind": "random", "arm": arm, "HR@10": hits, "T-HR@50": shown, "by popularity": popular}
        for seed in (1, 2) for arm, (hits, shown) in arms.items()
    ]  # fmt: skip
    told = kinds.tables(rows)
    assert "| random | lorec | 2 | 0.0450 ± 0.0000 | -10.0 ± 0.0 | 0.0260 ± 0.0000 | 0.750 ± 0.000 |" in told
    assert "| lorec | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 |  | 2 |" in told


def test_arms_are_paired_by_seed_and_kind(benchmark):
    kinds = benchmark("kinds")
    hits = {  # seed 2 has no clean model of segment, and a kind that is not one of the four
        (1, "random"): (0.05, 0.04, 0.044), (1, "segment"): (0.05, 0.05, 0.045), (2, "random"): (0.06, 0.05, 0.06),
        (2, "segment"): (None, 0.04, 0.05), (2, "covisit"): (0.06, 0.06, 0.01),
    }  # fmt: skip
    rows = [
        {"seed": seed, "kind": kind, "arm": arm, "HR@10": value}
        for (seed, kind), values in hits.items()
        for arm, value in zip(("clean", "none", "lorec"), values, strict=True)
        if value is not None
    ]
    told = kinds.paired(rows)
    half = 12.706 / 2  # of the interval of two numbers, in their difference
    assert f"| lorec against clean | -6.0 ± {12 * half:.1f} | -10.0 | -5.5 ± {11 * half:.1f} |" in told
    assert f"| lorec against none | 15.0 ± {10 * half:.1f} | 7.5 ± {35 * half:.1f} | 11.2 ± " in told
    assert "oracle" not in told
    assert "covisit" not in told


def test_a_likelihood_is_counted_in_its_bin(benchmark):
    kinds = benchmark("kinds")
    found = kinds.reliability(np.array([0.0, 0.002, 0.2, 0.2, 1.0]), np.array([False, False, True, False, True]))
    assert found[0] == [1, 0.0, 0]
    assert found[1] == [1, 0.002, 0]
    assert found[5] == [2, 0.4, 1]
    assert found[8] == [1, 1.0, 1]
    assert sum(n for n, _, _ in found) == 5


def test_new_hits_are_late_and_popular(benchmark):
    kinds = benchmark("kinds")
    split = leave_two_out(shop(users=300, items=120, groups=6))
    log, counts = split.train, split.train.counts(len(split.catalog))
    found = kinds.new_hits(split)
    late = np.quantile(log.times, 0.8)
    for item in range(1, len(counts)):
        times = log.times[log.items == item]
        popular = counts[item] >= np.sort(counts[1:])[-(len(counts) - 1) // 10]
        assert (item in found) == bool(len(times) and times.min() >= late and popular)


def test_draws_that_were_changed_stand_beside_the_draw_as_it_is(benchmark):
    scanning = benchmark("scanning")
    draw = {"log": "shop", "kind": "random", "share": 0.01, "seed": 1, "users": 0, "targets": 5}
    rows = []
    for seed, change, alarm, found in ((1, "", 0.9, 1.0), (1, "without copies", 0.5, 0.2), (2, "", 0.1, 0.0)):
        told = {"targets among the worst 10": found, "recall@1%": found / 2, "PR-AUC": found / 4}
        users = {"sum": 30 * found, "fraudsters": 10, "Brier": 0.005, "Brier of the share": 0.01}
        rows.append(draw | {"seed": seed, "alarm": alarm, "judged": told, "likelihoods of users": users})
        rows[-1] |= {"change": change} if change else {}
    rows.append(draw | {"share": 0.0, "kind": "clean", "alarm": 0.0, "likelihoods of users": {"sum": 3.25}})
    # the second seed was not changed, so it says nothing of the change
    assert "| shop | random | 1 % | 0.90, 1.00, 0.50, 0.25 | 0.50, 0.20, 0.10, 0.05 |" in scanning.changed(rows)
    # nor does one of another size that was changed otherwise
    other = [rows[0] | {"share": 0.002}, rows[0] | {"share": 0.002, "change": "one title", "alarm": 0.0}]
    assert "| shop | random | 0.2 % | 0.90, 1.00, 0.50, 0.25 |  | 0.00, 1.00, 0.50, 0.25 |" in scanning.changed(
        rows + other
    )
    assert "| shop | 2 | 15 | 10 | 0.50 | 1 | 3.2 |" in scanning.likelihoods(rows)
    assert scanning.changed(rows[2:]) == ""


def test_one_title_is_that_of_the_first_target(benchmark):
    scanning = benchmark("scanning")
    dataset = shop(users=100, items=60, groups=6)
    before, after = dataset.items, scanning.with_one_title(dataset, ["i003", "i010"]).items
    assert (after["item"] == before["item"]).all()
    changed = {row["item"]: row["title"] for row in after.iter_rows(named=True) if row not in before.to_dicts()}
    assert changed == {"i010": before.filter(before["item"] == "i003")["title"][0]}
