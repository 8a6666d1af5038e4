"""Many runs from one file: what is shared, what survives, what is refused before anything is trained."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import polars.testing
import pytest
import torch
from conftest import shop, world
from safetensors.torch import load_file
from test_experiment import call

from lorec import grids
from lorec.attacks import DP, NoAttack, Random
from lorec.defenses import DEFENSES, LoRec
from lorec.detectors.lorec import VIEWS
from lorec.errors import ConfigError, DataError, DiskError, RunError
from lorec.files import read_json
from lorec.grids import Done, Job, do, estimate, grid, read_grid_file
from lorec.records import open_run
from lorec.runfile import plain, read_run_file

TOML = """
name = "few"
scenario = "groceries"
encoder = "hash"
defenses = ["lorec", "oracle"]

[data]
path = "{folder}/log.csv"
items = "{folder}/items.csv"

[backbone]
name = "sasrec"
width = 8
max_length = 20
blocks = 1

[attack]
share = 0.1

[targets]
count = 2

[known]
rounds = 2

[training]
epochs = 3
tokens = 512

[grid]
attack = ["random", "bandwagon"]
seed = [1, 2]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a grid")
    log = world()
    log.interactions.write_csv(folder / "log.csv")
    log.items.write_csv(folder / "items.csv")
    return folder


@pytest.fixture(scope="module")
def write(home):
    """A grid file with some of its text replaced; its path."""

    def written(*pairs: tuple[str, str], name: str = "few.toml") -> Path:
        text = TOML.replace("{folder}", str(home))
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new)
        (home / name).write_text(text)
        return home / name

    return written


@pytest.fixture(scope="module")
def done(write, home):
    """A finished grid, made here, one cell after the other: (grid, its folder, the table)."""
    asked = read_grid_file(write())
    return asked, home / "done", grid(asked, home / "done", map=map)


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            told = path.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        found += [int(path.parent.name)] if int(told[1]) == pid else []
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def nothing_to_do(work, jobs):
    assert not jobs
    return []


def refuse(work, jobs):
    raise AssertionError("nothing may start")


class TestFile:
    def test_is_every_combination(self, write):
        asked = read_grid_file(write())
        assert [cell.name for cell in asked.cells] == [
            "random_seed1", "random_seed2", "bandwagon_seed1", "bandwagon_seed2",
        ]  # fmt: skip
        last = asked.cells[-1]
        assert last.labels == {"data": last.labels["data"], "backbone": "sasrec", "items": "ids", "attack": "bandwagon",
                               "share": 0.1}  # fmt: skip
        assert (last.config.seed, last.config.split.seed, last.config.attack.share) == (2, 2, 0.1)
        assert asked.arms == 2 + 4 * 3  # two clean models, and poisoned, lorec and oracle in each cell

    def test_axes_may_be_any_key_and_tables(self, write):
        path = write(('seed = [1, 2]', 'seed = [4]\n"attack.share" = [0.1, 0.2]\n"training.epochs" = [1, 2]\n'
                      'backbone = ["sasrec", {name = "sasrec", blocks = 2}]'))  # fmt: skip
        asked = read_grid_file(path)
        assert len(asked.cells) == 16
        assert asked.axes == ("data", "backbone", "items", "attack", "share", "training.epochs")
        assert asked.cells[-1].labels["backbone"] == "sasrec,blocks=2"
        assert asked.cells[-1].config.backbone.width == 8  # what else the file says of it stays
        assert asked.cells[-1].name == "bandwagon_seed4_share0.2_epochs2_sasrec-blocks=2"

    def test_names_stay_when_an_axis_grows_and_differ_where_values_do(self, write):
        one = read_grid_file(write(('["random", "bandwagon"]', '["random"]')))
        assert [cell.name for cell in one.cells] == ["random_seed1", "random_seed2"]
        path = write(("seed = [1, 2]", 'scenario = ["a b", "a-b"]\n"data.columns" = [{}, {user = "user"}]'))
        names = [cell.name for cell in read_grid_file(path).cells]
        assert len(set(names)) == len(names) == 8
        path = write(("seed = [1, 2]", f'scenario = ["{"x" * 300}"]'))
        assert all(len(cell.name) <= 100 for cell in read_grid_file(path).cells)

    def test_nobody_attacks_with_the_section_of_an_attack(self, write):
        made = read_grid_file(write(('["random", "bandwagon"]', '["none", "random", {name = "dp", rounds = 2}]')))
        assert [cell.config.attack for cell in made.cells][::2] == [
            NoAttack(),
            Random(share=0.1),
            DP(share=0.1, rounds=2),
        ]

    def test_a_table_on_an_axis_is_not_changed_by_another_axis(self, write):
        path = write(('"bandwagon"]', '{name = "dp", targets_each = 1}]\n"attack.share" = [0.1, 0.2]'))
        cells = read_grid_file(path).cells
        assert cells[-1].name == "dp-targets-each=1_share0.2_seed2"
        assert cells[-1].labels["attack"] == "dp,targets_each=1"

    @pytest.mark.parametrize(
        ("pairs", "said"),
        [
            ([("[grid]", "[attack2]")], "no \\[grid\\] of lists"),
            ([("seed = [1, 2]", "seed = 1")], "it is a list of values"),
            ([("seed = [1, 2]", "seed = []")], "it is a list of values"),
            ([("seed = [1, 2]", "seed = [1, 1]")], "stands twice"),
            ([('"bandwagon"]', '"randon"]')], "attack = randon, seed = 1.*did you mean 'random'"),
            ([("seed = [1, 2]", 'defenses = [["oracle"]]')], "an arm for each"),
            ([("seed = [1, 2]", "sede = [1, 2]")], "sede = 1.*did you mean 'seed'"),
            ([("seed = [1, 2]", '"attack.shares" = [0.1]')], "did you mean 'share'"),
            ([("seed = [1, 2]", 'backbone = ["gru4rec"]')], "backbone = gru4rec.*key in \\[backbone\\]"),
            ([('["random", "bandwagon"]', '["random", {name = "random", share = 0.1}]')], "stands twice"),
            ([("epochs = 3", "epochs = 3\nthreads = 2")], "--threads"),
        ],
    )
    def test_refuses(self, write, pairs, said):
        with pytest.raises(ConfigError, match=said):
            read_grid_file(write(*pairs))

    def test_a_grid_is_no_run_and_a_run_no_grid(self, write):
        with pytest.raises(ConfigError, match="give it to lorec grid"):
            read_run_file(write())


class TestGrid:
    def test_leaves_a_run_folder_for_each_cell(self, done):
        asked, folder, _ = done
        for cell in asked.cells:
            opened = open_run(folder / "runs" / cell.name)
            assert opened.config == cell.config
            assert list(opened.arms) == ["clean", "poisoned", "lorec", "oracle"]
        assert {path.name for path in folder.iterdir()} == {
            "grid.json", "runs", "shared", "ends", "cells.csv", "cells.parquet", "curves.csv", "curves.parquet",
            "table.csv", "table.md", "table.parquet", "table.tex",
        }  # fmt: skip

    def test_shares_clean_models_and_poisons(self, done, write, home):
        asked, folder, _ = done
        assert len([*(folder / "shared" / "clean").glob("*/model.safetensors")]) == 2
        assert len([*(folder / "shared" / "poisons").glob("*/poison.json")]) == 4
        one, same, other = (
            load_file(folder / "runs" / cell / "clean" / "model.safetensors")
            for cell in ("random_seed1", "bandwagon_seed1", "random_seed2")
        )
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert not all(torch.equal(one[name], other[name]) for name in one)
        alone = read_run_file(self.alone(write, home))
        assert plain(alone) == plain(asked.cells[0].config)
        from lorec.experiment import run

        single = run(alone, home / "alone")
        timed = ("seconds an epoch", "training seconds", "peak MB")
        for arm, metrics in open_run(folder / "runs" / "random_seed1").arms.items():
            without = {key: value for key, value in metrics.items() if key not in timed}
            assert without == {key: value for key, value in single.arms[arm].items() if key not in timed}

    @staticmethod
    def alone(write, home) -> Path:
        """The run file of the first cell."""
        text = write(name="one.toml").read_text().partition("[grid]")[0]
        named = text.replace("[attack]\n", '[attack]\nname = "random"\n')
        (home / "one.toml").write_text(f"seed = 1\n{named}")
        return home / "one.toml"

    def test_new_seeds_have_new_targets(self, done):
        _, folder, _ = done
        pushed = [tuple(read_json(path)["targets"]) for path in (folder / "shared" / "poisons").glob("*/poison.json")]
        assert len(set(pushed)) == 2

    def test_curves_are_the_histories(self, done):
        asked, folder, _ = done
        curves = pl.read_parquet(folder / "curves.parquet")
        for cell in asked.cells:
            for arm in ("clean", "poisoned", "lorec", "oracle"):
                history = pl.read_ndjson(folder / "runs" / cell.name / arm / "history.jsonl")
                mine = curves.filter(run=cell.name, arm=arm)
                polars.testing.assert_frame_equal(mine.select(history.columns), history)
                assert set(mine["attack"]) == {cell.labels["attack"]}
        # Only a defense that says p_u has deciles of it.
        assert not [name for name in pl.read_parquet(folder / "cells.parquet").columns if name.startswith("p ")]

    def test_an_axis_may_be_called_as_a_figure_is_and_what_is_followed_is_shared_by_targets(self, write, home):
        paper = '[{name = "lorec-paper", view = "pooled", enter = 1, update_every = 1}]'
        asked = read_grid_file(write(
            ('["lorec", "oracle"]', f"{paper}\nfollow = 2"), ('attack = ["random", "bandwagon"]\nseed = [1, 2]',
             'loss = ["bce", "softmax"]\n"known.share" = [0.05, 0.1]\nseed = [1]\nattack = ["random"]'),
        ))  # fmt: skip
        folder = home / "by loss"
        grid(asked, folder, map=map)
        curves = pl.read_parquet(folder / "curves.parquet")
        assert set(curves["loss"]) == {"bce", "softmax"}
        cell = next(one for one in asked.cells if one.labels["loss"] == "softmax")
        history = pl.read_ndjson(folder / "runs" / cell.name / "poisoned" / "history.jsonl")
        mine = curves.filter(run=cell.name, arm="poisoned")
        assert mine["epoch loss"].to_list() == history["loss"].to_list()
        assert [row["epoch"] for row in history.to_dicts() if row["T-HR@50"] is not None] == [2]
        assert len([*(folder / "shared" / "clean").glob("*/model.safetensors")]) == 2
        assert asked.arms == 2 + 4 * 2
        cells = pl.read_parquet(folder / "cells.parquet")
        told = pl.read_parquet(folder / "runs" / cell.name / "lorec-paper" / "weights.parquet")
        likely = told.filter(pl.col("injected"))["likelihood"].sort().to_list()
        (decile,) = cells.filter(run=cell.name, arm="lorec-paper")["p fraudsters, 90 %"]
        assert likely[0] <= decile <= likely[-1]
        assert sum(one <= decile for one in likely) >= 0.9 * len(likely) - 1

    def test_other_targets_are_followed_apart(self, write):
        both = read_grid_file(write(("seed = [1, 2]", "seed = [1, 2]\nfollow = [1]")))
        apart = read_grid_file(write(("seed = [1, 2]", 'seed = [1, 2]\nfollow = [1]\n"targets.count" = [1, 2]')))
        assert (both.arms, apart.arms) == (2 + 4 * 3, 4 + 8 * 3)

    def test_tells_every_arm_and_their_means(self, done):
        _, folder, table = done
        cells = pl.read_parquet(folder / "cells.parquet")
        assert cells.height == 4 * 4
        assert cells["error"].null_count() == 16
        one = cells.filter((pl.col("attack") == "random") & (pl.col("arm") == "oracle"))
        row = table.row(by_predicate=(pl.col("attack") == "random") & (pl.col("arm") == "oracle"), named=True)
        assert row["HR@10"] == pytest.approx(one["HR@10"].mean())
        assert (row["seeds"], row["judged kind is known"]) == (2, False)
        assert "Seeds 1, 2" in (folder / "table.md").read_text()
        clean = cells.filter(pl.col("arm") == "clean")["HR@10"].to_list()
        change = cells.filter(pl.col("arm") == "poisoned").with_columns(
            wanted=100 * (pl.col("HR@10") / pl.Series(clean) - 1)
        )
        assert change["HR@10 change, %"].to_list() == pytest.approx(change["wanted"].to_list())

    def test_skips_what_is_done(self, done):
        asked, folder, table = done
        before = (folder / "table.md").read_text()
        assert grid(asked, folder, map=nothing_to_do).equals(table)
        assert (folder / "table.md").read_text() == before

    def test_says_where_the_judged_kind_was_known(self, write, home):
        asked = read_grid_file(write(("rounds = 2", 'kinds = ["random"]\nrounds = 2'), ("seed = [1, 2]", "seed = [1]")))
        table = grid(asked, home / "known", map=map)
        told = {row["attack"]: row["judged kind is known"] for row in table.iter_rows(named=True)}
        assert told == {"random": True, "bandwagon": False}
        assert "random (known)" in (home / "known" / "table.md").read_text()

    def test_survives_a_failing_arm_and_mends_it(self, write, home, monkeypatch):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Unlucky(LoRec):
            """A defense that fails."""

            def start(self, *arguments, **more):
                raise ValueError("out of luck")

        monkeypatch.setitem(DEFENSES, "unlucky", Unlucky)
        asked = read_grid_file(write(('["lorec", "oracle"]', '["unlucky", "oracle"]'), ("seed = [1, 2]", "seed = [1]")))
        table = grid(asked, home / "unlucky", map=map)
        errors = dict(table.filter(pl.col("attack") == "random").select("arm", "error").iter_rows())
        assert errors == {"clean": None, "poisoned": None, "oracle": None, "unlucky": "seed 1: ValueError: out of luck"}
        assert "out of luck" in (home / "unlucky" / "table.md").read_text()
        monkeypatch.setattr(Unlucky, "start", LoRec.start)
        mended = grid(asked, home / "unlucky", map=map)
        assert mended["error"].null_count() == mended.height
        trained = mended.filter(pl.col("arm") == "oracle")["HR@10"]
        assert trained.equals(table.filter(pl.col("arm") == "oracle")["HR@10"])

    def test_survives_a_failing_cell(self, write, home, monkeypatch):
        asked = read_grid_file(write())
        real = grids.run

        def sometimes(config, *arguments, **more):
            if config.seed == 2:
                raise MemoryError("no room")
            return real(config, *arguments, **more)

        monkeypatch.setattr(grids, "run", sometimes)
        table = grid(asked, home / "half", map=map)
        assert table["seeds"].to_list() == [1] * 8
        assert table["error"].to_list() == ["seed 2: MemoryError: no room"] * 8
        monkeypatch.undo()
        assert grid(asked, home / "half", map=map)["error"].null_count() == 8
        assert read_json(home / "half" / "ends" / "random_seed2.json")["error"] is None

    def test_stops_at_a_full_disk(self, write, home, monkeypatch):
        asked = read_grid_file(write())
        monkeypatch.setattr(shutil, "disk_usage", lambda at: SimpleNamespace(free=1000))
        with pytest.raises(DiskError, match="are free; make room"):
            grid(asked, home / "full", map=refuse)
        monkeypatch.undo()
        started = []

        def full(config, *arguments, **more):
            started.append(config.seed)
            raise DiskError("can't write: No space left on device")

        monkeypatch.setattr(grids, "run", full)
        with pytest.raises(DiskError, match="random_seed1: can't write"):
            grid(asked, home / "full", map=map)
        assert started == [1]

    def test_shards_are_the_whole(self, done, write, home):
        asked, _, _ = done
        parts: list[list[str]] = []

        def note(work, jobs):
            parts.append([job.cell for job in jobs])
            return []

        for shard in ((1, 2), (2, 2)):
            grid(asked, home / "parts", shard=shard, map=note)
        assert sorted(parts[0] + parts[1]) == sorted(cell.name for cell in asked.cells)
        assert {name[-1] for name in parts[0]} == {"1"}  # cells with one clean model stay together
        left = pl.read_csv(home / "parts" / "cells.csv")
        assert set(left["error"]) == {"not done yet"}
        with pytest.raises(ConfigError, match="shard 3/2"):
            grid(asked, home / "parts", shard=(3, 2), map=refuse)

    def test_one_seed_is_told_over_users(self, home):
        """Every bound and mark of a grid with one seed and two defenses, against its ranks."""
        folder = home / "one seed"
        asked = read_grid_file(self.easy(home))
        table = grid(asked, folder, map=map)
        arms = table["arm"].to_list()
        idle = arms[3]
        assert [arms[:3], arms[4:]] == [["clean", "poisoned", "lorec"], ["oracle"]]
        rows = {row["arm"]: row for row in table.iter_rows(named=True)}
        for arm, row in rows.items():
            users = pl.read_parquet(folder / "runs" / "seed1" / arm / "ranks.parquet")
            hits = users["rank"].to_numpy() <= 10
            error = (hits.mean() * (1 - hits.mean()) / len(hits)) ** 0.5
            assert row["HR@10 high"] - row["HR@10 low"] == pytest.approx(2 * 1.96 * error, rel=0.15, abs=0.005)
            assert row["T-HR@50 low"] <= row["T-HR@50"] <= row["T-HR@50 high"]
        assert rows["lorec"]["success removed"] > 0.9
        assert rows[idle]["success removed low"] <= 0 <= rows[idle]["success removed high"]
        assert (rows["lorec"]["best"], rows[idle]["tied"], rows["lorec"]["tested"]) == (True, False, "users")
        text = (folder / "table.md").read_text()
        assert "a paired bootstrap over users" in text
        assert re.search(r"lorec-collusion.*\]\?", text)
        assert "±" not in text

    @staticmethod
    def easy(home) -> Path:
        """A shop whose model an attack moves; LoRec as it is, and LoRec that turns nobody down."""
        log = shop()
        log.interactions.write_csv(home / "shop.csv")
        log.items.write_csv(home / "things.csv")
        text = TOML.replace("{folder}/log.csv", f"{home}/shop.csv").replace("{folder}/items.csv", f"{home}/things.csv")
        off = ", ".join(f"{view} = 0.0" for view in VIEWS if view != "collusion")
        idle = f'defenses = ["lorec", {{name = "lorec", collusion = 1e12, {off}}}, "oracle"]'
        for old, new in (
            ('defenses = ["lorec", "oracle"]', idle),
            ("width = 8", "width = 32"),
            ("epochs = 3", "epochs = 8"),
            ("rounds = 2", "rounds = 16"),
            ("share = 0.1", 'name = "random"\nshare = 0.02'),
            ('attack = ["random", "bandwagon"]\nseed = [1, 2]', "seed = [1]"),
        ):
            assert old in text
            text = text.replace(old, new)
        (home / "easy.toml").write_text(text)
        return home / "easy.toml"


class TestRefusedBeforeAnythingStarts:
    def test_text_items_without_texts(self, write, home):
        bare = f'items = "{home}/items.csv"\n'
        asked = read_grid_file(write((bare, ""), ("seed = [1, 2]", 'items = ["ids", "text"]'), ('"lorec", ', "")))
        with pytest.raises(DataError, match="cell random_text: no item has a text"):
            grid(asked, home / "bare", map=refuse)
        assert not (home / "bare").exists()

    def test_more_targets_than_items(self, write, home):
        asked = read_grid_file(write(("seed = [1, 2]", '"targets.count" = [2, 500]')))
        with pytest.raises(ConfigError, match="cell random_count500: 500 targets wanted"):
            grid(asked, home / "many", map=refuse)

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ([('"lorec", "oracle"', '"pld"'), ('name = "sasrec"', 'name = "fmlp"\ncircular = true')], "pld"),
            ([('["lorec", "oracle"]', '[{name = "filter", detector = "audit"}]')], "writes"),
            ([("rounds = 2", 'kinds = ["none"]')], "none can't be among the known kinds"),
            ([("rounds = 2", 'kinds = ["random", "llm"]')], "llm can't be among the known kinds: it reads texts"),
            ([("share = 0.1", "share = 0.1\nlength = 500")], "length is 500"),
            ([("share = 0.1", "share = 0.1\ntargets_each = 7")], "targets_each is 7 of 2 targets"),
            ([("share = 0.1", "share = 0.1\nburst = 7")], "burst is 7"),
        ],
    )
    def test_what_no_cell_can_do(self, write, home, pairs, message):
        with pytest.raises((ConfigError, DataError), match=message):
            grid(read_grid_file(write(*pairs)), home / "never", map=refuse)
        assert not (home / "never").exists()

    def test_a_setting_of_what_is_an_axis(self, write):
        path = write(("seed = [1, 2]", '"attack.share" = [0.1, 0.2]'))
        with pytest.raises(ConfigError, match=r"attack\.share is an axis of this grid"):
            read_grid_file(path, {"attack.share": "0.3"})
        with pytest.raises(ConfigError, match='put the key in quotes: "targets'):
            read_grid_file(write(("seed = [1, 2]", "targets.count = [1, 2]")))

    def test_a_cell_has_a_name_in_any_alphabet(self, write):
        names = [list(cell.name for cell in read_grid_file(write(("seed = [1, 2]", f"scenario = {said}"))).cells)
                 for said in ('["книги", "игры"]', '["игры", "книги"]')]  # fmt: skip
        assert len(set(names[0])) == 4
        assert all(name.strip("_-") for name in names[0])
        assert sorted(names[0]) == sorted(names[1])  # whatever their order

    def test_a_cell_that_was_edited(self, done, home):
        asked, folder, _ = done
        copy = home / "edited"
        shutil.copytree(folder, copy)
        path = copy / "runs" / "random_seed2" / "scorecard.json"
        path.write_text(path.read_text().replace('"HR@10": 0.', '"HR@10": 0.9'))
        with pytest.raises(RunError, match=r"cell random_seed2: .*edited or damaged"):
            grid(asked, copy, map=refuse)

    def test_a_cell_of_another_version(self, done, home, monkeypatch):
        asked, _, _ = done
        monkeypatch.setattr("lorec.records.version", lambda name: "99")
        with pytest.raises(RunError, match="was begun with lorec"):
            grid(asked, done[1], map=refuse)

    def test_another_grid_and_another_folder(self, done, write, home):
        asked = read_grid_file(write(("epochs = 3", "epochs = 4")))
        with pytest.raises(RunError, match="another cell random_seed1"):
            grid(asked, done[1], map=refuse)
        (home / "taken").mkdir(exist_ok=True)
        (home / "taken" / "thesis.txt").write_text("mine")
        with pytest.raises(RunError, match="holds something else"):
            grid(asked, home / "taken", map=refuse)

    def test_a_log_that_changed(self, done, home, write):
        asked, folder, _ = done
        log = home / "log.csv"
        before = log.read_text()
        try:
            log.write_text(before.replace("u000,i", "u000x,i", 1))
            with pytest.raises(RunError, match="the log has changed"):
                grid(asked, folder, map=refuse)
        finally:
            log.write_text(before)


class TestProcesses:
    def test_do_the_same_side_by_side_however_often_they_are_killed(self, done, write, home):
        """Again and again everything is killed at a random moment; the tables are those of an undisturbed grid."""
        _, folder, _ = done
        rng, out = random.Random(5), home / "killed"
        command = [sys.executable, "-m", "lorec", "grid", str(write()), "--out", str(out)]
        killed = 0
        for _ in range(3):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            with process.stderr:
                at_work = any("read the log" in line for line in process.stderr)  # a fast machine may be done already
                time.sleep(rng.uniform(0, 0.8))
                for pid in [process.pid, *children(process.pid)] if at_work and process.poll() is None else ():
                    os.kill(pid, signal.SIGKILL)
                    killed += pid == process.pid
            process.wait()
        assert killed
        last = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert last.returncode == 0, last.stderr
        assert read_json(out / "grid.json") == read_json(folder / "grid.json")
        for name in ("table.md", "table.tex", "table.csv"):
            assert (out / name).read_text() == (folder / name).read_text()

    def test_end_with_whoever_started_them(self, write, home):
        """Nobody is left at work on a folder when the command is killed, not even one that says nothing."""
        command = [
            sys.executable,
            "-m",
            "lorec",
            "grid",
            str(write(("epochs = 3", "epochs = 3000\npatience = 3000"))),
        ]
        process = subprocess.Popen(
            [*command, "--out", str(home / "orphans")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        with process.stderr:
            next(line for line in process.stderr if "read the log" in line)
            workers = children(process.pid)
            process.kill()
        process.wait()
        assert workers
        until = time.monotonic() + 20
        while any(alive(pid) for pid in workers) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(alive(pid) for pid in workers)

    def test_a_killed_process_costs_its_cell_only(self, write, home, monkeypatch):
        asked = read_grid_file(write(("seed = [1, 2]", "seed = [1]")))
        told, processes, start = [], [], subprocess.Popen

        def started(*arguments, **more):
            processes.append(start(*arguments, **more))
            return processes[-1]

        def watch(cell, event):
            told.append((cell, event.stage))
            if (cell, event.stage, event.finished) == ("random_seed1", "read the log", True):
                processes[0].kill()

        monkeypatch.setattr(subprocess, "Popen", started)
        table = grid(asked, home / "victim", workers=1, threads=1, watch=watch)
        errors = {row["attack"]: row["error"] for row in table.iter_rows(named=True)}
        assert "killed by signal 9" in errors["random"]
        assert errors["bandwagon"] is None
        assert ("bandwagon_seed1", "oracle") in told

    def test_stay_within_the_memory(self, monkeypatch):
        """What is known of a log decides how many run at once."""
        most, killed = [], []

        class Pool:
            def __init__(self, threads, watch):
                self.running = {}

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def start(self, job):
                self.running[job.cell] = job
                most.append(len(self.running))

            def next(self):
                cell = next(iter(self.running))
                gone = cell in killed
                return self.running.pop(cell), Done(cell, 1.0, 0 if gone else 600, "killed" if gone else None)

        monkeypatch.setattr(grids, "_Pool", Pool)
        jobs = [Job(f"c{n}", {"data": {"name": "x"}}, "") for n in range(6)]
        assert len([*grids._local(4, 1, 1000, lambda cell, event: None, do, jobs)]) == 6
        assert most[:4] == [1, 2, 3, 4]  # nothing is known: equal parts
        assert set(most[4:]) == {1}  # each takes 600 of 1000
        killed, most[:] = ["c0"], []
        assert len([*grids._local(4, 1, 5000, lambda cell, event: None, do, jobs)]) == 6
        assert most == [1, 2, 3, 4, 1, 1]  # one was killed: the rest one by one


class TestEstimate:
    def test_counts_and_measures(self, done, write, home):
        asked = read_grid_file(write())
        told = estimate(asked, home / "never", workers=2)
        assert (told.cells, told.left, told.arms) == (4, 4, 14)
        assert told.rates["arm"].to_list() == ["clean", "poisoned", "lorec", "oracle"]
        epochs = (told.rates["seconds before"] + 3 * told.rates["seconds an epoch"]).to_list()
        assert told.seconds == pytest.approx((2 * epochs[0] + 4 * sum(epochs[1:])) / 2)
        assert not (home / "never").exists()
        finished = estimate(done[0], done[1], workers=2)
        assert (finished.left, finished.arms, finished.seconds) == (0, 0, 0)


class TestCommand:
    def test_shows_the_table(self, done, write, monkeypatch, capsys):
        _, folder, _ = done
        code, out, err = call(monkeypatch, capsys, "grid", write(), "--out", folder)
        assert code == 0
        assert "bandwa" in out
        assert "table.md" in out
        assert "random_seed1, cell: done before" in err

    def test_says_what_it_would_take(self, write, home, monkeypatch, capsys):
        code, out, _ = call(monkeypatch, capsys, "grid", write(), "--out", home / "dry", "--dry-run")
        assert (code, (home / "dry").exists()) == (0, False)
        assert "4 cells, 4 to do: 14 recommenders, about" in out

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--shard", "2"), "write 2/4"),
            (("--set", "grid.seed=3"), "it is a list of values"),
            (("--set", "seed=3"), "an axis"),
        ],
    )
    def test_refuses_in_one_line(self, write, home, monkeypatch, capsys, more, said):
        code, out, err = call(monkeypatch, capsys, "grid", write(), "--out", home / "bad", *more)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert said in err


def test_a_job_is_plain_values(done):
    job = Job("c", plain(done[0].cells[0].config), "folder")
    assert Job(**json.loads(json.dumps(dataclasses.asdict(job)))) == job
