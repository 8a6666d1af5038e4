"""What lorec's weights do in other libraries: a poisoned log, a scan that knows other kinds, training without and with.

LOREC_DATA=... python benchmarks/other_libraries.py amazon-beauty --rectools ENV/bin/python [--recbole ENV/bin/python]

Each library in its own environment, as the heads of examples/ say. Prints the share of users to whom each pushed item
is shown among the first 50. A shop's whole log, fraudsters among its people: nothing is held out, no hits are counted.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import platformdirs
import polars as pl
from side_by_side import machine

import lorec

EXAMPLES = Path(__file__).parents[1] / "examples"
KINDS = ("random", "segment", "replace", "covisit")
"""Of the scan's trials."""


def poisoned(data: str, seed: int) -> tuple[lorec.Dataset, list[str]]:
    """The log with bandwagon accounts among its people, 1 % of them, and the five items that they push."""
    dataset = lorec.load(data)
    split = lorec.leave_two_out(dataset, seed=seed)
    poison = lorec.forge(lorec.Bandwagon(share=0.01), split, targets=5, seed=seed)
    fakes = poison.profiles
    injected = pl.DataFrame(
        {
            "user": [f"injected-{user}" for user in fakes.users()],
            "item": split.catalog.ids(fakes.items),
            "time": fakes.times,
        }
    )
    types = {"user": pl.String, "item": pl.String, "time": pl.Int64}
    log = dataset.interactions.select(*types).cast(types)
    log = log.filter(pl.col("user").is_in(split.users.cast(pl.String).implode()))
    mixed = pl.concat([log, injected.cast(types)]).sample(fraction=1, shuffle=True, seed=seed)
    return lorec.Dataset(data, mixed, dataset.items), split.catalog.ids(poison.targets)


def main() -> None:
    asks = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asks.add_argument("data", nargs="?", default="amazon-beauty")
    for library in ("rectools", "recbole"):
        asks.add_argument(f"--{library}", help="the Python of an environment that has it")
    asks.add_argument("--seed", type=int, default=51)
    asks.add_argument("--epochs", type=int, default=4)
    it = asks.parse_args()
    print(machine())
    dataset, pushed = poisoned(it.data, it.seed)
    cache = Path(platformdirs.user_cache_dir("lorec")) / "vectors"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found = lorec.scan(dataset, kinds=KINDS, trials=8, cache=cache, seed=it.seed)
        print(json.dumps({"pushed": pushed, "alarm": found.alarm}))
        dataset.interactions.write_parquet(place / "log.parquet")
        found.interactions().write_parquet(place / "weights.parquet")
        for library in ("rectools", "recbole"):
            python = getattr(it, library)
            if python:
                asked = [python, EXAMPLES / f"{library}_weights.py", place / "log.parquet", place / "weights.parquet"]
                asked += ["--watch", ",".join(pushed), "--epochs", str(it.epochs)]
                told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
                for line in told.splitlines():
                    if line.startswith('{"trained"'):
                        print(json.dumps({"library": library} | json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
