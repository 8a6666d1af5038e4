"""The DP attack here and in ARLib (DLAttack, after the same paper) on MovieLens-100K: seconds, and its effect.

python benchmarks/arlib.py CHECKOUT --python ENV/bin/python [--seeds 11 12 13]

CHECKOUT is ARLib (github.com/CoderWZW/ARLib, as of 8e9b536) with its data; ENV has torch, numpy, scipy and numba. Both
get the same log (ratings of 4 and 5, 5-core, each user's last two held out), targets, number of fraudsters and length.
ARLib's own defaults hold otherwise: a surrogate GMF of width 64 trained for 30 epochs, then for each fraudster 6 epochs
of training on and 2 of bending. It wants a GPU; here `.cuda()` does nothing, and its copy of a tensor in the midst of a
graph, which torch refuses, is detached first. Judged by SASRec, which neither knows, every arm 40 epochs, best by
validation. Seconds are of one thread, of forging with the surrogate's training.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path


def child(folder: Path, fraudsters: int, length: int, seed: int) -> None:
    """In ARLib's environment: forge, and write fake_users JSON and what it took."""
    import numpy as np
    import torch

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    torch.set_num_threads(1)
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_: self  # there is no GPU
    from attack.White import DLAttack as module
    from recommender.GMF import GMF
    from util.DataLoader import DataLoader
    from util.tool import seedSet

    seedSet(seed)
    args = types.SimpleNamespace(
        dataset="ours", data_path="data/clean/", training_data="/train.txt", val_data="/val.txt", test_data="/test.txt",
        maxEpoch=30, batch_size=2048, emb_size=64, n_layers=2, reg=1e-4, lRate=0.005, topK="50", Epoch=5, innerEpoch=6,
        outerEpoch=2, maliciousUserSize=fraudsters, maliciousFeedbackSize=length, attackTargetChooseWay="unpopular",
        targetSize=5,
    )  # fmt: skip
    data = DataLoader(args)
    started = time.perf_counter()
    surrogate = GMF(args, data)
    surrogate.train()
    trained = time.perf_counter() - started
    whole = module.deepcopy
    module.deepcopy = lambda one: one.detach().clone() if isinstance(one, torch.Tensor) else whole(one)
    attack = module.DLAttack(args, data)
    genuine = data.user_num
    made = np.asarray(attack.posionDataAttack(surrogate).todense())[genuine:]
    told = {
        "fake_users": [[data.id2item[item] for item in np.flatnonzero(row)] for row in made],
        "target_items": [data.id2item[item] for item in attack.targetItem],
        "seconds": time.perf_counter() - started,
        "surrogate": trained,
    }
    Path("forged.json").write_text(json.dumps(told))


def theirs(it: argparse.Namespace, split, targets: list[str], fraudsters: int, length: int, seed: int, home: Path):
    """The poison that ARLib makes, as ours, and what it took."""
    import numpy as np

    import lorec

    folder = home / f"arlib-{seed}"
    shutil.copytree(it.checkout, folder, ignore=shutil.ignore_patterns(".git", "clean"))
    data = folder / "data" / "clean" / "ours"
    data.mkdir(parents=True)
    users, items = split.train.users(), split.catalog.ids(split.train.items)
    held = {"val": split.valid, "test": split.test}
    (data / "train.txt").write_text("".join(f"{u} {i} 1\n" for u, i in zip(users, items, strict=True)))
    for name, numbers in held.items():
        rows = zip(np.arange(len(split)), split.catalog.ids(numbers), strict=True)
        (data / f"{name}.txt").write_text("".join(f"{u} {i} 1\n" for u, i in rows))
    (data / "targetItem_unpopular_5.txt").write_text(", ".join(f"'{one}'" for one in targets))
    asked = [str(folder), str(fraudsters), str(length), str(seed)]
    command = [it.python, Path(__file__).resolve(), "--child", *asked]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if run.returncode:
        raise SystemExit(run.stderr[-2000:])
    told = json.loads((folder / "forged.json").read_text())
    return told, lambda: lorec.open_poison(folder / "forged.json", split)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("checkout", type=Path)
    asked.add_argument("--python", required=True)
    asked.add_argument("--seeds", type=int, nargs="+", default=[11])
    asked.add_argument("--share", type=float, default=0.01)
    asked.add_argument("--epochs", type=int, default=40)
    it = asked.parse_args()

    import numpy as np
    import polars as pl
    import torch
    from side_by_side import machine

    import lorec

    torch.set_num_threads(1)
    print(machine())
    frame = pl.read_csv(
        it.checkout / "data" / "clean" / "ml-100k" / "u.data", separator="\t", has_header=False,
        new_columns=["user", "item", "rating", "time"],
    )  # fmt: skip
    liked = frame.filter(pl.col("rating") >= 4).drop("rating").with_columns(pl.col("user", "item").cast(pl.String))
    untold = pl.DataFrame(schema={"item": pl.String, "title": pl.String})

    def judged(log: lorec.Split, targets: np.ndarray, seed: int) -> dict:
        training = lorec.Training(epochs=it.epochs, patience=it.epochs, threads=1)
        fitted = lorec.fit(log, lorec.SASRec(width=64), training=training, seed=seed)
        metrics = lorec.evaluate(fitted.recommender, log, targets=targets).metrics
        return {name: metrics[name] for name in ("HR@10", "T-HR@50", "target rank")}

    def show(seed: int, arm: str, figures: dict) -> None:
        print(seed, arm, {name: round(value, 4) for name, value in figures.items()}, flush=True)

    for seed in it.seeds:
        with tempfile.TemporaryDirectory() as home:
            split = lorec.leave_two_out(lorec.Dataset("ml-100k", liked, untold), seed=seed, k_core=5)
            targets = lorec.choose_targets(split, 5, seed=seed)
            length = round(float(split.train.lengths.mean()))
            spec = {"share": it.share, "length": length, "targets_each": None}
            show(seed, "clean", judged(split, targets, seed))
            for name, kind in (("random", lorec.Random), ("dp", lorec.DP)):
                started = time.perf_counter()
                poison = lorec.forge(kind(**spec), split, targets=split.catalog.ids(targets), seed=seed)
                figures = {"seconds": time.perf_counter() - started}
                figures["targets in a profile"] = float(
                    np.isin(poison.profiles.items, targets).sum() / len(poison.profiles)
                )
                show(seed, name, figures | judged(lorec.inject(split, poison, seed=seed), targets, seed))
            ids = split.catalog.ids(targets)
            told, opened = theirs(it, split, ids, len(poison.profiles), length, seed, Path(home))
            figures = {name: told[name] for name in ("seconds", "surrogate")}
            held = sum(len(set(ids) & set(row)) for row in told["fake_users"]) / len(told["fake_users"])
            show(seed, "arlib", figures | {"targets in a profile": held})
            forged = opened()
            show(seed, "arlib", judged(lorec.inject(split, forged, seed=seed), forged.targets, seed))


if __name__ == "__main__":
    main()
