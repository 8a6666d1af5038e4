"""SASRec of RecBole on a log as it is, and with lorec's weights of single interactions.

    lorec scan purchases.parquet --out findings
    python examples/recbole_weights.py purchases.parquet findings/weights.parquet --watch sku4,sku9

Runs in RecBole's own environment (recbole 1.2.1, numpy 1.26, pandas 2, pyarrow 18); lorec need not be there, as weights
are a file. RecBole takes no weights, so its model gets a loss of its own: cross-entropy of each prefix's next item,
times the weight of that interaction. Prints how many users get each watched item among their first 50.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.utils import get_trainer, init_logger, init_seed
from torch.nn import functional as F


class WeightedSASRec(SASRec):
    """SASRec whose loss of a user's step towards an item counts as much as that interaction."""

    def weigh(self, keys: torch.Tensor, weights: torch.Tensor) -> None:
        """`keys`: user times the number of items plus item, sorted; what is not among them counts 1."""
        self.register_buffer("keys", keys)
        self.register_buffer("given", weights)

    def calculate_loss(self, interaction):
        """Mean over the batch."""
        states = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        goals = interaction[self.POS_ITEM_ID]
        losses = F.cross_entropy(states @ self.item_embedding.weight.T, goals, reduction="none")
        keys = interaction[self.USER_ID] * self.n_items + goals
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return (losses * torch.where(self.keys[place] == keys, self.given[place], 1.0)).mean()


def exposed(log: pd.DataFrame, weights: pd.DataFrame | None, watched: list[str], epochs: int, seed: int) -> dict:
    """Train, and give the share of users without a watched item who get it among their first 50."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "log"
        place.mkdir()
        log.to_csv(
            place / "log.inter", sep="\t", index=False, header=["user_id:token", "item_id:token", "timestamp:float"]
        )
        config = Config(
            "SASRec", "log",
            config_dict={
                "data_path": folder, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "loss_type": "CE",
                "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": 50, "n_layers": 2, "n_heads": 2,
                "hidden_size": 64, "inner_size": 256, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2,
                "train_batch_size": 1024, "eval_batch_size": 1024, "epochs": epochs, "stopping_step": epochs,
                "seed": seed, "use_gpu": False, "show_progress": False, "checkpoint_dir": folder, "state": "ERROR",
                "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            },
        )  # fmt: skip
        init_seed(seed, True)
        init_logger(config)
        data = create_dataset(config)
        train, _, test = data_preparation(config, data)
        model = WeightedSASRec(config, train.dataset)
        keys, given = torch.zeros(1, dtype=torch.long), torch.ones(1)
        if weights is not None:
            some = weights.drop_duplicates(["user_id", "item_id"], keep="last")
            users, items = (data.field2token_id[name] for name in ("user_id", "item_id"))
            some = some[some["user_id"].isin(users.keys()) & some["item_id"].isin(items.keys())]
            if some.empty:
                raise SystemExit("no user and item of the weights is in the log; give the weights of this log's scan")
            pairs = some["user_id"].map(users).to_numpy() * model.n_items + some["item_id"].map(items).to_numpy()
            order = np.argsort(pairs)
            keys = torch.from_numpy(pairs[order])
            given = torch.from_numpy(some["weight"].to_numpy(np.float32)[order])
        model.weigh(keys, given)
        trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
        for epoch in range(epochs):
            trainer._train_epoch(train, epoch)
        model.eval()
        numbers = [int(data.token2id("item_id", item)) for item in watched]
        shown, without = np.zeros(len(watched)), np.zeros(len(watched))
        with torch.no_grad():
            for interaction, *_ in test:
                scores = model.full_sort_predict(interaction).view(len(interaction), -1)
                scores[:, 0] = -torch.inf
                seen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, interaction["item_id_list"], True)
                best = scores.masked_fill(seen, -torch.inf).topk(50).indices
                for n, number in enumerate(numbers):
                    without[n] += int((~seen[:, number]).sum())
                    shown[n] += int((best == number).any(1).sum())
        return dict(zip(watched, (shown / np.maximum(without, 1)).tolist(), strict=True))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("log", help="Parquet: user, item, time in seconds")
    asked.add_argument("weights", help="Parquet: user_id, item_id, weight, as lorec scan leaves it")
    asked.add_argument("--watch", default="", help="items, with commas between them")
    asked.add_argument("--epochs", type=int, default=10)
    asked.add_argument("--seed", type=int, default=0)
    it = asked.parse_args()
    log = pd.read_parquet(it.log)[["user", "item", "time"]].astype({"user": str, "item": str})
    weights = pd.read_parquet(it.weights).astype({"user_id": str, "item_id": str})
    watched = [one for one in it.watch.split(",") if one]
    for name, told in (("as it is", None), ("with lorec's weights", weights)):
        print(json.dumps({"trained": name, "first 50": exposed(log, told, watched, it.epochs, it.seed)}))


if __name__ == "__main__":
    main()
