"""SASRec here and in others' code: seconds an epoch, tokens a second, memory, ranking, quality by minutes.

LOREC_DATA=... python benchmarks/peers.py amazon-games --rectools ENV/bin/python --recbole ENV/bin/python [--epochs 3]
    [--authors CHECKOUT]

Each library in its own environment (RecTools 0.19.0 with pytorch-lightning 2.5.2; RecBole 1.2.1 with numpy 1.26.4), on
the same split: the last two events are held out, and everybody trains on the 50 before them (figures of November 24
were made with 52). Width 64, 2 blocks, 2 heads, length 50, dropout .2, one uniform negative, AdamW or Adam at .001,
about 512 histories a step. What the libraries fix stays as they fix it:
RecTools has a feed-forward of 64 (ours and RecBole's: 256) in the first authors' block; RecBole has no BCE but BPR, and
a padded prefix for every target. `--steps` ends RecBole's epoch after so many steps: the rest of it is extrapolated.
`--authors` names a checkout of github.com/Kaike-Zhang/LoRec (7fecbe7), which runs in our own environment: its SASRec by
ids without a calibrator, its own dropout of .1 made ours, its draws of negatives made to run on Python 3.11 (it samples
from a set), without `transformers` (for a language model alone), users who repeat an item left out as it does.

To convergence: `--epochs 1000 --every 5 --patience 10` ends a library's training when ten judgements in a row brought
no better NDCG@10 on validation items, and `--minutes` ends it in any case; the best epoch by validation is what counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

WIDTH, BLOCKS, HEADS, LENGTH, DROPOUT = 64, 2, 2, 50, 0.2


class Curve:
    """Seconds of each epoch, and what the model was worth after some of them; time spent on judging is left out.

    `judge` gives HR@10 and NDCG@10 of the validation items or the test items.
    """

    def __init__(self, it: argparse.Namespace, epochs: int, judge: Callable[[str], tuple[float, float]]) -> None:
        self.it, self.epochs, self.judge = it, epochs, judge
        self.seconds: list[float] = []
        self.quality: list[tuple[int, float, float, float, float]] = []
        self.ranking: list[float] = []
        self.over = False
        self.started = time.perf_counter()

    def epoch(self) -> None:
        """An epoch is over."""
        self.seconds.append(time.perf_counter() - self.started)
        n, minutes = len(self.seconds), sum(self.seconds) / 60
        self.over = n == self.epochs or 0 < self.it.minutes <= minutes
        if n % self.it.every == 0 or self.over:
            begun = time.perf_counter()
            tested = self.judge("test")
            self.ranking.append(time.perf_counter() - begun)
            self.quality.append((n, minutes, self.judge("valid")[1], *tested))
            gains = [one[2] for one in self.quality]
            self.over |= 0 < self.it.patience <= len(gains) - 1 - int(np.argmax(gains))
        self.started = time.perf_counter()

    def told(self, **more: float) -> dict:
        """All figures."""
        # What getrusage says is at least what the parent held; lorec.records.peak_memory is not there for others.
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(status["VmHWM"].split()[0]) / 1024
        return {"seconds": self.seconds, "quality": self.quality, "ranking": self.ranking, "peak": peak, **more}


def histories(world: dict) -> list[list[int]]:
    """Everybody's items: those trained on, the validation item, the test item."""
    parts = np.split(world["items"], world["starts"][1:-1])
    return [[*one.tolist(), int(a), int(b)] for one, a, b in zip(parts, world["valid"], world["test"], strict=True)]


def quality(best: np.ndarray, goals: np.ndarray) -> tuple[float, float]:
    """HR@10 and NDCG@10 of each user's best ten items [users, 10]."""
    found = best == goals[:, None]
    return float(found.any(1).mean()), float((found / np.log2(np.arange(best.shape[1]) + 2)).sum(1).mean())


# ------------------------------------------------------------------------------------------------------- each library


def lorec(world: dict, it: argparse.Namespace) -> dict:
    import torch
    from side_by_side import trained

    import lorec as library
    from lorec.defenses import Guard
    from lorec.models import Recommender

    split = read(it.data)
    torch.manual_seed(it.seed)
    backbone = library.SASRec(width=WIDTH, blocks=BLOCKS, heads=HEADS, feed_forward=it.feed_forward)
    recommender = Recommender(backbone, "ids", world["n"], seed=it.seed)
    optimizer = torch.optim.AdamW(recommender.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    guard, feed, rng = Guard(), recommender.feed(split.train, it.tokens), np.random.default_rng(it.seed)

    def judge(on: str) -> tuple[float, float]:
        metrics = library.evaluate(recommender.eval(), split, on=on).metrics
        return metrics["HR@10"], metrics["NDCG@10"]

    curve = Curve(it, it.epochs, judge)
    while not curve.over:
        recommender.train()
        trained(feed.epoch(rng), lambda batch: guard.loss(recommender, batch), optimizer)
        curve.epoch()
    return curve.told()


def rectools(world: dict, it: argparse.Namespace) -> dict:
    import pandas as pd
    from pytorch_lightning import Callback, Trainer, seed_everything
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    def frame(*more: np.ndarray) -> pd.DataFrame:
        users = np.repeat(np.arange(len(world["test"])), np.diff(world["starts"]))
        order, items = np.arange(len(users)), world["items"]
        for n, held in enumerate(more):
            users, items = np.append(users, np.arange(len(held))), np.append(items, held)
            order = np.append(order, len(world["items"]) + n * len(held) + np.arange(len(held)))
        when = pd.Timestamp("2000-01-01") + pd.to_timedelta(order, unit="s")
        return pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1.0, Columns.Datetime: when})

    trained = Dataset.construct(frame())
    asked = {"valid": trained, "test": Dataset.construct(frame(world["valid"]))}
    seed_everything(it.seed)

    class Judge(Callback):
        """Between epochs of one fit: a fit of its own for each epoch would begin with a new optimizer each time."""

        def on_train_epoch_end(self, trainer, module) -> None:
            model.is_fitted = True
            curve.epoch()
            trainer.should_stop = curve.over
            module.train()

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=it.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[Judge()],
        )  # fmt: skip

    model = SASRecModel(
        n_blocks=BLOCKS, n_heads=HEADS, n_factors=WIDTH, dropout_rate=DROPOUT, session_max_len=LENGTH, loss="BCE",
        n_negatives=1, lr=1e-3, batch_size=it.batch, get_trainer_func=trainer,
    )  # fmt: skip

    def judge(on: str) -> tuple[float, float]:
        known = np.intersect1d(asked[on].item_id_map.external_ids, trained.item_id_map.external_ids)
        told = model.recommend(
            users=np.arange(len(world["test"])), dataset=asked[on], k=10, filter_viewed=True, items_to_recommend=known
        )
        best = np.zeros((len(world["test"]), 10), dtype=np.int64)
        best[told[Columns.User].to_numpy(), told[Columns.Rank].to_numpy() - 1] = told[Columns.Item].to_numpy()
        return quality(best, world[on])

    curve = Curve(it, it.epochs, judge)
    model.fit(trained)
    return curve.told()


def recbole(world: dict, it: argparse.Namespace) -> dict:
    import logging
    from itertools import islice

    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    folder = Path(it.world).parent / "recbole" / "log"
    folder.mkdir(parents=True)
    with (folder / "log.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, history in enumerate(histories(world)):
            file.writelines(f"{user}\t{item}\t{place}\n" for place, item in enumerate(history))
    config = Config(
        "SASRec", "log",
        config_dict={
            "data_path": str(folder.parent), "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}, "metrics": ["Hit", "NDCG"],
            "topk": 10, "valid_metric": "NDCG@10", "MAX_ITEM_LIST_LENGTH": LENGTH, "n_layers": BLOCKS, "n_heads": HEADS,
            "hidden_size": WIDTH, "inner_size": 4 * WIDTH, "hidden_dropout_prob": DROPOUT,
            "attn_dropout_prob": DROPOUT, "train_batch_size": it.batch, "eval_batch_size": 4096, "seed": it.seed,
            "use_gpu": False, "show_progress": False, "checkpoint_dir": str(folder.parent), "state": "ERROR",
        },
    )  # fmt: skip
    logging.disable(logging.WARNING)
    init_seed(it.seed, True)
    data = create_dataset(config)
    train, *held = data_preparation(config, data)
    held = dict(zip(("valid", "test"), held, strict=True))
    model = get_model("SASRec")(config, train.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)

    class Cut:
        def __iter__(self):
            return islice(iter(train), it.steps or None)

        def __getattr__(self, name: str):
            return getattr(train, name)

    def judge(on: str) -> tuple[float, float]:
        model.eval()
        hits, gains, n = 0.0, 0.0, 0
        with torch.no_grad():
            for interaction, *_, goals in held[on]:
                scores = model.full_sort_predict(interaction).view(len(interaction), -1)
                scores[:, 0] = -torch.inf
                scores.scatter_(1, interaction["item_id_list"], -torch.inf)
                found = quality(scores.topk(10).indices.numpy(), goals.numpy())
                hits, gains, n = hits + found[0] * len(goals), gains + found[1] * len(goals), n + len(goals)
        return hits / n, gains / n

    curve = Curve(it, it.epochs, judge)
    while not curve.over:
        trainer._train_epoch(Cut(), len(curve.seconds))
        curve.epoch()
    if it.steps:
        curve.seconds = [one * len(train) / it.steps for one in curve.seconds]
    return curve.told(batches=len(train))


def authors(world: dict, it: argparse.Namespace) -> dict:
    import random
    from types import ModuleType, SimpleNamespace

    import torch

    folder = Path(it.world).parent / "authors" / "data" / "log"
    folder.mkdir(parents=True)
    people = histories(world)
    (folder / "user_dict.json").write_text(json.dumps(dict(enumerate(people))))
    (folder / "item_dict.json").write_text(json.dumps({item: "" for item in sorted(set().union(*people))}))
    os.chdir(folder.parents[1])
    sys.path.insert(0, it.authors)
    sys.modules["transformers"] = ModuleType("transformers")
    from utls import model_config, mydataset
    from utls.trainer import SASrecTrainer
    from utls.utilize import set_seed

    mydataset.random = SimpleNamespace(sample=lambda population, k: random.sample(tuple(population), k))
    config = {
        "device": torch.device("cpu"), "use_gpu": False, "dataset": "log", "max_interaction": LENGTH, "LLM": "none",
        "use_LLM": False, "LLM_size": 1, "out_dim": WIDTH, "with_lct": False, "inject_user": False, "user_weight": 3.0,
        "batch_size": it.batch, "lr": 1e-3, "weight_decay": 0.0, "top_k": 10, "n_epochs": it.epochs, "min_epochs": 0,
    }  # fmt: skip
    config["lct_config"] = model_config.get_LCT_config(config)
    config["model_config"] = model_config.get_SASrec_config(config) | {"dropout_rate": DROPOUT}
    set_seed(it.seed)
    trainer = SASrecTrainer(config)
    held = {"valid": trainer.dataset.get_val_batch, "test": trainer.dataset.get_test_batch}

    def judge(on: str) -> tuple[float, float]:
        trainer.model.eval()
        found = np.zeros(2)
        for users in trainer.dataloader:
            found += trainer._eval_rec(*held[on](users))
        return tuple((found / trainer.dataset.n_users).tolist())

    curve = Curve(it, it.epochs, judge)
    while not curve.over:
        trainer._train_epoch(len(curve.seconds))
        curve.epoch()
    return curve.told(users=trainer.dataset.n_users)


LIBRARIES = {"lorec": lorec, "rectools": rectools, "recbole": recbole, "authors": authors}


def read(name: str):
    """The split that all of them see."""
    import lorec as library

    return library.leave_two_out(library.load(name), last=LENGTH)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("data", nargs="?", default="amazon-games")
    for library in ("rectools", "recbole"):
        asked.add_argument(f"--{library}", help="the Python of the environment that has it")
    asked.add_argument("--authors", help="the folder with the code of the paper's authors")
    asked.add_argument("--epochs", type=int, default=3)
    asked.add_argument("--recbole-epochs", type=int, default=1)
    asked.add_argument("--every", type=int, default=1000, help="judge quality after so many epochs, and after the last")
    asked.add_argument("--patience", type=int, default=0, help="judgements without a better one that end a training")
    asked.add_argument("--minutes", type=float, default=0, help="of training that end it in any case")
    asked.add_argument("--batch", type=int, default=512, help="histories in a batch of the others")
    asked.add_argument("--feed-forward", type=int, help="inner width of ours; 4 x width if omitted")
    asked.add_argument("--only", nargs="+", default=list(LIBRARIES), choices=list(LIBRARIES), help="libraries to run")
    asked.add_argument("--steps", type=int, default=0, help="of RecBole's epoch; the rest is extrapolated; 0: all")
    asked.add_argument("--rounds", type=int, default=1, help="of all libraries in turns")
    asked.add_argument("--tokens", type=int, default=4096, help="positions in a batch of ours")
    asked.add_argument("--threads", type=int, default=os.cpu_count())
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--out", type=Path, help="every run's figures as a line of JSON")
    asked.add_argument("--as", dest="worker", choices=list(LIBRARIES), help=argparse.SUPPRESS)
    asked.add_argument("--world", help=argparse.SUPPRESS)
    it = asked.parse_args()
    it.authors = it.authors and str(Path(it.authors).resolve())  # a worker runs elsewhere
    if it.worker:
        with np.load(it.world) as stored:
            world = {name: stored[name] for name in stored.files} | {"n": int(stored["n"])}
        print("told:" + json.dumps(LIBRARIES[it.worker](world, it)))
        return
    from side_by_side import machine

    split = read(it.data)
    print(machine())
    print(f"{it.data}: {len(split):,} users, {len(split.catalog):,} items, {len(split.train.items):,} training events")
    pythons = {"lorec": sys.executable, "rectools": it.rectools, "recbole": it.recbole}
    pythons["authors"] = it.authors and sys.executable
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world.npz"
        arrays = {"items": split.train.items, "starts": split.train.starts, "valid": split.valid, "test": split.test}
        np.savez(world, n=len(split.catalog), **arrays)
        for _ in range(it.rounds):
            for library, python in pythons.items():
                if python and library in it.only:
                    told = ask(library, python, world, it)
                    show(library, told, len(split.train.items))
                    if it.out:
                        with it.out.open("a") as file:
                            file.write(json.dumps({"data": it.data, "seed": it.seed, "library": library} | told) + "\n")


def ask(library: str, python: str, world: Path, it: argparse.Namespace) -> dict:
    """One library's figures, from its own environment."""
    epochs = it.recbole_epochs if library == "recbole" else it.epochs
    command = [python, __file__, it.data, "--as", library, "--world", str(world), "--epochs", str(epochs)]
    for name in ("every", "patience", "minutes", "steps", "tokens", "batch", "feed-forward", "seed", "authors"):
        if (value := getattr(it, name.replace("-", "_"))) is not None:
            command += [f"--{name}", str(value)]
    room = {name: str(it.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        command, env=os.environ | room, cwd=world.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("told:"))
    return json.loads(line.removeprefix("told:"))


def show(library: str, told: dict, tokens: int) -> None:
    seconds = sorted(told["seconds"][1:] or told["seconds"])  # the first epoch warms up, where there are more
    epoch = seconds[len(seconds) // 2]
    rounds = " ".join(f"{one:.2f}" for one in told["seconds"][:8])
    ranking = f"{min(told['ranking']):.2f} s" if told["ranking"] else "-"
    print(f"{library:<10} epoch {epoch:8.2f} s ({rounds}) {tokens / epoch:10,.0f} tokens/s   ranking {ranking}   "
          f"peak {told['peak']:,.0f} MB", flush=True)  # fmt: skip
    for n, minutes, valid, hits, gains in told["quality"]:
        print(
            f"    epoch {n:4d}, {minutes:7.2f} minutes: HR@10 {hits:.4f}, NDCG@10 {gains:.4f}; validation {valid:.4f}"
        )
    n, minutes, _, hits, gains = max(told["quality"], key=lambda one: one[2])
    best = f"epoch {n}, {minutes:.2f} minutes, HR@10 {hits:.4f}, NDCG@10 {gains:.4f}"
    print(f"    best by validation: {best}", flush=True)


if __name__ == "__main__":
    main()
