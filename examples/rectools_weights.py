"""SASRec of RecTools on a log as it is, and with lorec's weights of single interactions.

    lorec scan purchases.parquet --out findings
    python examples/rectools_weights.py purchases.parquet findings/weights.parquet --watch sku4,sku9

Runs in RecTools' own environment (pip install 'rectools[torch]' 'pyarrow<19'); lorec need not be there, as weights are
a file. RecTools scales the loss of an item by the weight that stands beside it, so a weight of 0 teaches nothing, and
the item stays in the history. Prints how many users get each watched item among their first 50.
"""

import argparse
import json

import pandas as pd
from pytorch_lightning import Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def weighted(log: pd.DataFrame, weights: pd.DataFrame | None) -> pd.DataFrame:
    """The log as RecTools wants it; what no row of the weights names counts 1."""
    frame = log.rename(columns={"user": Columns.User, "item": Columns.Item}).astype(
        {Columns.User: str, Columns.Item: str}
    )
    frame[Columns.Datetime] = pd.to_datetime(frame.pop("time"), unit="s")
    if weights is None:
        return frame.assign(**{Columns.Weight: 1.0})
    told = weights[["user_id", "item_id", "weight"]].astype({"user_id": str, "item_id": str})
    told = told.drop_duplicates(["user_id", "item_id"], keep="last")
    told.columns = [Columns.User, Columns.Item, Columns.Weight]
    frame = frame.merge(told, on=[Columns.User, Columns.Item], how="left")
    if frame[Columns.Weight].isna().all():
        raise SystemExit("no user and item of the weights is in the log; give the weights of this log's scan")
    return frame.fillna({Columns.Weight: 1.0})


def trainer(epochs: int) -> Trainer:
    """One that is silent."""
    return Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def exposed(frame: pd.DataFrame, watched: list[str], epochs: int, seed: int) -> dict[str, float]:
    """Train, and give the share of users without a watched item who get it among their first 50."""
    seed_everything(seed)
    data = Dataset.construct(frame)
    model = SASRecModel(
        n_blocks=2, n_heads=2, n_factors=64, session_max_len=50, loss="BCE", n_negatives=1, lr=1e-3, batch_size=256,
        get_trainer_func=lambda: trainer(epochs),
    )  # fmt: skip
    model.fit(data)
    users = frame[Columns.User].unique()
    told = model.recommend(users=users, dataset=data, k=50, filter_viewed=True)
    found = {}
    for item in watched:
        holders = frame.loc[frame[Columns.Item] == item, Columns.User].nunique()
        shown = told.loc[told[Columns.Item] == item, Columns.User].nunique()
        found[item] = shown / max(len(users) - holders, 1)
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("log", help="Parquet: user, item, time in seconds")
    asked.add_argument("weights", help="Parquet: user_id, item_id, weight, as lorec scan leaves it")
    asked.add_argument("--watch", default="", help="items, with commas between them")
    asked.add_argument("--epochs", type=int, default=10)
    asked.add_argument("--seed", type=int, default=0)
    it = asked.parse_args()
    log, weights = pd.read_parquet(it.log), pd.read_parquet(it.weights)
    watched = [one for one in it.watch.split(",") if one]
    for name, told in (("as it is", None), ("with lorec's weights", weights)):
        shown = exposed(weighted(log, told), watched, it.epochs, it.seed)
        print(json.dumps({"trained": name, "first 50": shown}))


if __name__ == "__main__":
    main()
