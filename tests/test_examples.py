"""The examples in other libraries' own environments: weights of 0 undo a push there, too.

LOREC_RECTOOLS and LOREC_RECBOLE name the Python of an environment with that library; the heads of examples/ say what
belongs into it.
"""

import ast
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import shop

from lorec.attacks import Random, forge
from lorec.data import leave_two_out

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_needs_no_lorec(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
    named |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in named if name.partition(".")[0] == "lorec"]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["rectools", "recbole"])
def test_weights_of_zero_undo_a_push(library, tmp_path):
    python = os.environ.get(f"LOREC_{library.upper()}")
    if not python:
        pytest.skip(f"LOREC_{library.upper()} names no Python of an environment with {library}")
    dataset = shop(users=600, items=200, groups=10)
    split = leave_two_out(dataset)
    poison = forge(Random(share=0.1), split, 3, seed=2)
    fakes = poison.profiles
    pushed = split.catalog.ids(poison.targets)
    injected = pl.DataFrame(
        {
            "user": [f"injected-{user}" for user in fakes.users()],
            "item": split.catalog.ids(fakes.items),
            "time": np.arange(len(fakes.items)) % 30,
        }
    )
    pl.concat([dataset.interactions, injected]).write_parquet(tmp_path / "log.parquet")
    injected.select(user_id="user", item_id="item", weight=pl.lit(0.0)).write_parquet(tmp_path / "weights.parquet")
    asked = [
        python, EXAMPLES / f"{library}_weights.py", "log.parquet", "weights.parquet", "--watch", ",".join(pushed),
        "--epochs", "8",
    ]  # fmt: skip
    done = subprocess.run(asked, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"trained"'))
    shown = [np.mean([one["first 50"][item] for item in pushed]) for one in (before, after)]
    assert shown[0] > 0.05
    assert shown[1] < 0.3 * shown[0]
