"""Scans of a log without labels: in a shop where the effect is visible, and with input that is odd or broken."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import polars as pl
import pytest
import torch
from conftest import shop
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lorec.attacks import Random, Segment, forge
from lorec.cli import app
from lorec.data import Dataset, Sequences, Weights, inject, leave_two_out, whole
from lorec.defenses import WeightFile
from lorec.detectors import Bursts, Copies, Suspicion, detect
from lorec.detectors.reasons import percent, share_below
from lorec.errors import ConfigError, DataError, RunError
from lorec.evaluation import detection
from lorec.evidence import bursts, doubles
from lorec.files import load_state, save_state
from lorec.scans import (
    EVIDENCE,
    Findings,
    Model,
    _of_holders,
    _shortened,
    _turned_down,
    _why_untold,
    read_verdicts,
    scan,
)
from lorec.scans.findings import TRAITS, by_chance, grouped, twins
from lorec.scans.learning import Looked, alarm, campaigns, resolvable
from lorec.sight import Sight
from lorec.sources import moment, oddities
from lorec.terminal import show_findings
from lorec.text import Hash, MiniLM

KINDS = ("bandwagon", "covisit", "replace", "segment")
"""What the scanner synthesises; the judged attack is not among them."""


def poisoned(dataset: Dataset) -> tuple[Dataset, list[str]]:
    log = whole(dataset)
    poison = forge(Random(share=0.015), log, 5, seed=1)
    bad = inject(log, poison, 1)
    return as_dataset(bad), log.catalog.ids(poison.targets)


def as_dataset(split) -> Dataset:
    log = split.train
    frame = pl.DataFrame({
        "user": split.users.gather(log.users()), "item": pl.Series(split.catalog.ids(log.items)), "time": log.times,
    })  # fmt: skip
    return Dataset(split.name, frame, split.catalog.items)


@pytest.fixture(scope="module")
def market() -> tuple[Dataset, list[str]]:
    """A poisoned shop and what is pushed in it."""
    return poisoned(shop())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scan") / "found"


@pytest.fixture(scope="module")
def found(market, folder) -> Findings:
    return scan(market[0], encoder=Hash(), kinds=KINDS, trials=8, folder=folder)


@pytest.fixture(scope="module")
def innocent() -> Findings:
    return scan(shop(seed=3), encoder=Hash(), kinds=KINDS, trials=8)


def hired(found: Findings):
    return found.users["user_id"].str.starts_with("injected-").to_numpy()


class TestScan:
    def test_finds_what_is_pushed_and_who_was_hired(self, found, market):
        worst = found.items.sort("suspicion", descending=True)["item_id"].head(10).to_list()
        assert set(market[1]) <= set(worst)
        assert detection(found.users["suspicion"].to_numpy(), None, hired(found))["ROC-AUC"] > 0.98
        assert found.alarm > 0.7
        assert "An attack is likely" in found.verdict()

    def test_one_group_holds_the_campaign_and_says_what_is_odd_about_it(self, found, market):
        pushed = found.items.filter(pl.col("item_id").is_in(market[1]))
        assert pushed["group"].to_list() == [1] * 5
        worst = found.groups.row(0, named=True)
        assert worst["together"] >= hired(found).sum() > 2 * worst["expected"]
        assert all("looks" in one or "look" in one or "holders" in one for one in pushed["reasons"])
        theirs = found.users.filter(pl.Series(hired(found)) & (pl.col("suspicion") > 0.1))
        assert theirs["reasons"].str.contains("of the .* items look pushed: 'thing ").all()

    def test_weights_take_the_lies_out_and_little_else(self, found, market):
        rows = found.interactions()
        lies = rows["user_id"].str.starts_with("injected-") & rows["item_id"].is_in(market[1])
        assert rows.filter(lies)["weight"].sum() == 0
        assert rows.filter(~rows["user_id"].str.starts_with("injected-"))["weight"].mean() > 0.9
        assert f"{1 - rows['weight'].mean():.1%}" in found.would_do()

    def test_an_innocent_shop_is_less_suspicious(self, found, innocent):
        assert innocent.alarm < found.alarm
        assert innocent.items["suspicion"].max() < found.items["suspicion"].max()
        if innocent.alarm < 0.1:
            assert "Nothing found" in innocent.verdict()

    def test_models_have_no_slope_below_0(self, found, innocent):
        for model in (*found.models, *innocent.models):
            assert min(model.slopes.values()) >= 0

    def test_every_user_and_item_has_a_row_with_shares(self, found, market):
        assert set(found.users["user_id"]) == set(market[0].interactions["user"])
        assert set(found.items["item_id"]) == set(market[0].interactions["item"])
        for name in EVIDENCE:
            assert found.users[name].is_between(0, 1).all()
        for frame in (found.users, found.items):
            assert frame["suspicion"].is_between(0, 1).all()
            assert frame["weight"].is_between(0, 1).all()


class TestFolder:
    def test_holds_what_was_found(self, found, folder):
        assert {one.name for one in folder.iterdir()} == {
            "users.parquet", "items.parquet", "groups.parquet", "weights.parquet", "findings.json", "trials",
        }  # fmt: skip
        assert pl.read_parquet(folder / "users.parquet").equals(found.users)
        told = json.loads((folder / "findings.json").read_text("utf-8"))
        assert told["verdict"] == found.verdict()
        assert told["log"]["digest"] == found.log.train.digest()

    def test_a_second_scan_takes_the_trials_from_it_and_makes_damaged_ones_again(
        self, found, folder, market, monkeypatch
    ):
        (folder / "trials" / "03.safetensors").write_bytes(b"nonsense")
        made = []
        monkeypatch.setattr("lorec.scans.learning.forge", lambda *a, **k: made.append(a) or forge(*a, **k))
        again = scan(market[0], encoder=Hash(), kinds=KINDS, trials=8, folder=folder)
        assert len(made) == 1
        assert again.users.equals(found.users)
        assert again.items.equals(found.items)

    def test_the_trials_of_an_earlier_scan_will_do(self, found, folder, market, monkeypatch):
        monkeypatch.setattr("lorec.scans.learning.forge", None)
        again = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder)
        assert again.users["suspicion"].equals(found.users["suspicion"])
        assert again.figures["trials"] == 8
        assert any("earlier scan" in note for note in again.notes)

    def test_trials_of_other_findings_do_not_stay(self, folder, market, tmp_path):
        """Or a third scan would take them for those of the log that these findings are of."""
        quick = {"encoder": Hash(), "kinds": KINDS}
        scan(shop(users=300, seed=4), trials=2, folder=tmp_path / "one", **quick)
        again = scan(market[0], like=folder, folder=tmp_path / "one", **quick)
        assert again.figures["trials"] == 8
        with pytest.raises(RunError, match="holds no trials"):
            scan(market[0], like=tmp_path / "one", **quick)
        assert len(list((folder / "trials").iterdir())) == 8

    def test_an_old_verdict_does_not_outlive_its_tables(self, found, tmp_path, monkeypatch):
        found.save(tmp_path)
        (tmp_path / "report.html").write_text("of before")

        def full(*_):
            raise OSError("no space left")

        monkeypatch.setattr("lorec.scans.findings.write_parquet", full)
        with pytest.raises(OSError, match="no space"):
            found.save(tmp_path)
        assert not {"findings.json", "report.html"} & {one.name for one in tmp_path.iterdir()}

    def test_what_is_no_scan_is_refused(self, market, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(RunError, match="something else than a scan"):
            scan(market[0], folder=tmp_path)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"
        with pytest.raises(RunError, match="holds no trials"):
            scan(market[0], like=tmp_path)
        save_state(tmp_path / "trials" / "00.safetensors", {"weights": torch.zeros(3)})
        with pytest.raises(RunError, match="holds no trials"):
            scan(market[0], like=tmp_path)

    def test_one_trial_or_those_of_two_scans_are_refused(self, market, folder, tmp_path):
        trial = load_state(folder / "trials" / "00.safetensors")
        save_state(tmp_path / "trials" / "00.safetensors", trial)
        with pytest.raises(RunError, match="holds only 1 trials"):
            scan(market[0], like=tmp_path)
        save_state(tmp_path / "trials" / "01.safetensors", trial | {"identity": "another:1"})
        with pytest.raises(RunError, match="of several scans"):
            scan(market[0], like=tmp_path)

    def test_trials_with_less_evidence_are_not_enough(self, market, folder, tmp_path):
        for name in ("00.safetensors", "01.safetensors"):
            trial = load_state(folder / "trials" / name)
            del trial["users"]["copies"], trial["asked"]["copies"]
            save_state(tmp_path / "trials" / name, trial)
        with pytest.raises(RunError, match="copies is not that of the trials"):
            scan(market[0], encoder=Hash(), kinds=KINDS, like=tmp_path)
        found = scan(market[0], encoder=Hash(), kinds=KINDS, like=tmp_path, evidence=["lorec", "degree"])
        assert found.figures["trials"] == 2

    def test_its_weights_train_a_run(self, found, folder, market):
        split = leave_two_out(market[0])
        ids = split.catalog.items["item"].to_list()
        weights = WeightFile(path=str(folder / "weights.parquet")).of(split.users, split.train, ids).weights
        lies = split.users.str.starts_with("injected-").to_numpy()[split.train.users()]
        lies &= np.isin(split.train.items, split.catalog.numbers(market[1]))
        assert weights.events[lies].sum() == 0
        assert weights.events.mean() > 0.9


class TestVerdicts:
    def test_cleared_users_keep_their_weight_and_confirmed_ones_lose_it(self, found, folder, market):
        fakes = found.users.filter(pl.Series(hired(found)))["user_id"].to_list()
        judged = dict.fromkeys(fakes[:8], True) | {fakes[8]: False, fakes[9]: False}
        again = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts=judged)
        users = again.users.filter(pl.col("user_id").is_in(list(judged))).sort("user_id")
        confirmed = users["user_id"].replace_strict(judged)
        assert users.filter(confirmed)["suspicion"].to_list() == [1.0] * 8
        assert users.filter(confirmed)["weight"].to_list() == [0.0] * 8
        assert users.filter(~confirmed)["suspicion"].to_list() == [0.0] * 2
        assert users.filter(~confirmed)["weight"].to_list() == [1.0] * 2
        assert set(users.filter(~confirmed)["reasons"]) == {"cleared by an analyst"}
        appeals = users.filter(confirmed)["reasons"]  # why they were suspect stays there
        assert appeals.str.contains("^confirmed by an analyst; .* items look pushed").all()
        told = again.items.filter(pl.col("item_id").is_in(market[1]))["reasons"]
        assert told.str.contains(
            "of its .* holders an analyst confirmed 8; of its .* holders an analyst cleared 2"
        ).any()

    def test_strangers_are_no_more_suspicious_when_a_ring_is_confirmed(self, found, folder, market):
        fakes = [user for user in market[0].interactions["user"].unique() if user.startswith("injected-")]
        sure = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts=dict.fromkeys(fakes, True))
        holders = market[0].interactions.filter(pl.col("item").is_in(market[1]))["user"].unique()
        strangers = ~pl.col("user_id").is_in(holders.implode())
        before, after = (one.users.filter(strangers)["suspicion"] for one in (found, sure))
        assert (after - before).max() < 0.1
        assert sure.alarm == 1.0

    def test_two_confirmed_users_are_too_few_and_that_is_said(self, found, folder, market):
        fakes = found.users.filter(pl.Series(hired(found)))["user_id"].to_list()
        again = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts=dict.fromkeys(fakes[:2], True))
        assert any(note.startswith("2 users are confirmed; ") for note in again.notes)
        assert again.alarm == found.alarm

    def test_confirmed_users_tell_what_the_others_push(self, found, folder, market):
        fakes = found.users.filter(pl.Series(hired(found)))["user_id"].to_list()
        options = {"encoder": Hash(), "kinds": KINDS, "like": folder}
        taught = scan(market[0], verdicts=dict.fromkeys(fakes[:20], True), **options)
        pushed = pl.col("item_id").is_in(market[1])
        before, after = (one.items.filter(pushed).sort("item_id")["suspicion"] for one in (found, taught))
        assert (after - before).min() > 0.15
        others = pl.Series(hired(found)) & ~pl.col("user_id").is_in(fakes[:20])
        assert taught.users.filter(others)["suspicion"].mean() > 1.1 * found.users.filter(others)["suspicion"].mean()

    def test_who_clears_everybody_ends_the_alarm(self, found, folder, market):
        everybody = dict.fromkeys(market[0].interactions["user"].unique().to_list(), False)
        calm = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts=everybody)
        assert found.alarm > 0.7
        assert calm.alarm < 0.1
        assert calm.groups.height == 0
        assert "Nothing found" in calm.verdict()

    def test_who_confirms_a_campaign_has_an_attack(self, folder, market):
        fakes = [user for user in market[0].interactions["user"].unique() if user.startswith("injected-")]
        sure = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts=dict.fromkeys(fakes, True))
        assert sure.alarm == 1.0

    def test_may_name_users_by_what_came_out(self, market, folder):
        options = {"encoder": Hash(), "kinds": KINDS, "like": folder, "key": b"sixteen bytes or more"}
        name = scan(market[0], **options).users.sort("suspicion")["user_id"][-1]
        again = scan(market[0], verdicts={name: False}, **options)
        assert again.users.filter(user_id=name)["suspicion"].item() == 0.0

    def test_of_users_who_left_are_noted_and_of_none_who_is_there_refused(self, market, folder):
        options = {"encoder": Hash(), "kinds": KINDS, "like": folder}
        found = scan(market[0], verdicts={"nobody": True, "u0007": False, "gone": False}, **options)
        (note,) = (one for one in found.notes if "verdicts" in one)
        assert note.startswith("2 of 3 verdicts are about users who are not in this log")
        assert found.asked["verdicts"] == 1
        with pytest.raises(ConfigError, match="none of the 1 users of the verdicts is in the log, as 'nobody'"):
            scan(market[0], verdicts={"nobody": True}, **options)

    @pytest.mark.parametrize("heavy", [False, True])
    def test_confirmed_users_who_have_nothing_to_do_with_each_other_push_nothing(self, heavy):
        """Of thousands of items some are held by several of any hundred users, the more so where these take much."""
        log, rng = whole(shop()), np.random.default_rng(0)
        able = np.argsort(log.train.lengths)[-300:] if heavy else np.arange(len(log))
        alarms = 0
        for count in (20, 80, 150, 200) * 10:
            judged = np.full(len(log), -1)
            judged[rng.choice(able, count, replace=False)] = 1
            alarms += _of_holders(judged, log)[0].any()
        assert alarms <= 2

    def test_it_takes_three_confirmed_holders_far_more_than_others_and_than_chance(self):
        """By hand: of 1,000 users ten are confirmed; 1 has three of them and two others, 2 two, 3 all, 4 four of 94."""
        held = {
            1: [*range(3), 100, 101],
            2: [0, 1],
            3: [*range(10), *range(200, 600)],
            4: [*range(4), *range(700, 790)],
        }
        rows = [[item for item, users in held.items() if user in users] + [5 + user % 40] for user in range(1000)]
        log = dataclasses.replace(whole(shop(users=1000, items=60)), train=Sequences.of(rows))
        judged = np.where(np.arange(1000) < 10, 1, -1)
        judged[101] = 0
        pushing, cleared = _of_holders(judged, log)
        assert pushing[1] == pytest.approx(3 / 5)
        assert cleared[1] == pytest.approx(1 / 5)
        assert not pushing[2:].any()
        assert not cleared[2:5].any()

    def test_what_a_reason_says_to_count_nothing_does(self, found, folder, market):
        """However much of what a confirmed user took others have, too."""
        lengths = found.users.sort("events", "user_id", descending=True)
        much = lengths.filter(~pl.col("user_id").str.starts_with("injected-"))["user_id"][0]
        again = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts={much: True, "u0007": False})
        rows, checked = again.interactions(), 0
        nothing = rows.filter(pl.col("weight") == 0).group_by("user_id").agg(pl.col("item_id").n_unique().alias("n"))
        of_users = dict(nothing.iter_rows())
        for user, reasons in again.users.select("user_id", "reasons").iter_rows():
            if told := re.search(r"(\d+) of the \d+ items count nothing", reasons):
                assert int(told[1]) == of_users[user]
                checked += 1
        assert checked > 5
        # An item of theirs counts as before; what is turned down does so for all whom nobody judged.
        others = rows.filter(~pl.col("user_id").is_in([much, "u0007"])).group_by("item_id").agg(pl.col("weight").mean())
        told = again.items.join(others, on="item_id")
        np.testing.assert_allclose(told["weight"], told["weight_right"], atol=1e-6)
        assert (told["weight"] == 1).sum() > 0.9 * told.height

    def test_an_interaction_is_as_suspicious_as_its_item_or_as_an_analyst_says(self, found, folder, market):
        fakes = found.users.filter(pl.Series(hired(found)))["user_id"].to_list()
        for judged in ({}, {fakes[0]: True, fakes[1]: False}):
            one = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, verdicts=judged)
            rows = one.interactions().join(one.items.select("item_id", of_item="suspicion"), on="item_id")
            spoken = rows["user_id"].replace_strict(judged, default=None, return_dtype=pl.Float64)
            wanted = pl.select(pl.coalesce(spoken, rows["of_item"])).to_series()
            np.testing.assert_array_equal(rows["suspicion"], wanted)
            assert rows["suspicion"].n_unique() > 100

    def test_a_file(self, tmp_path):
        path = tmp_path / "verdicts.csv"
        path.write_text("user,verdict\n007,fraud\n7,genuine\n")
        assert read_verdicts(path) == {"007": True, "7": False}
        path.write_text("note, User_ID ,Verdict\nx,007,fraud\n")
        assert read_verdicts(path) == {"007": True}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("user,verdict\na,fraud\nb,maybe\n", "line 3: 'b' is 'maybe'"),
            ("user,verdict\na,fraud\na,genuine\n", "line 3: 'a' is judged both ways"),
            ("who,what\na,fraud\n", "columns who, what"),
            ("user,verdict\na,fraud\n,fraud\n", "line 3: 'fraud' is said of nobody"),
            ("", "can't be read"),
        ],
    )
    def test_broken_files_say_where(self, tmp_path, text, message):
        path = tmp_path / "verdicts.csv"
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_verdicts(path)
        with pytest.raises(DataError, match="can't be read"):
            read_verdicts(tmp_path / "none.csv")


class TestOddLogs:
    def test_ids_are_hashed_everywhere(self, market, folder):
        found = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, key=b"sixteen bytes or more")
        raw = market[0].interactions["user"].unique().to_list()
        text = found.users.write_csv() + found.interactions().write_csv() + " ".join(found.notes)
        assert not any(name in text for name in raw if name.startswith("injected-"))
        assert found.users["user_id"].str.len_chars().unique().to_list() == [64]
        assert found.users["user_id"].is_sorted()  # or the order of rows would tell who is who
        assert found.interactions()["user_id"].is_sorted()
        bare = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder)
        assert sorted(found.users["suspicion"].to_list()) == pytest.approx(sorted(bare.users["suspicion"].to_list()))
        totals = [
            one.interactions().group_by("item_id").agg(pl.col("weight").sum()).sort("item_id") for one in (found, bare)
        ]
        assert totals[0].equals(totals[1])
        other = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder, key=b"another key of sixteen")
        assert not set(found.users["user_id"]) & set(other.users["user_id"])

    @pytest.mark.parametrize(
        ("titles", "items", "said"),
        [
            (pl.lit(" "), pl.col("item"), "The catalogue has the log's items and no title for any of them"),
            (pl.lit("A shop"), pl.col("item"), "items are called 'A shop': is that column a title?"),
            (pl.col("title"), pl.lit("sku") + pl.col("item"), "ids is in the log: it has ids like 'sku"),
        ],
    )
    def test_a_catalogue_that_tells_nothing_is_said_to(self, market, titles, items, said):
        told = Dataset("told", market[0].interactions, market[0].items.with_columns(title=titles, item=items))
        found = scan(told, kinds=KINDS, trials=2, encoder=Hash())
        assert sum(said in note for note in found.notes) == 1
        assert found.asked["encoder"] is None

    def test_without_titles_and_time_it_says_what_is_lost_and_goes_on(self, market):
        bare = Dataset("bare", market[0].interactions.drop("time"), market[0].items.with_columns(title=pl.lit(None)))
        found = scan(bare, kinds=KINDS, trials=3)
        assert set(market[1]) <= set(found.items.sort("suspicion", descending=True)["item_id"].head(25))
        (lost,) = (note for note in found.notes if "no title for any of them" in note)
        assert "coherence" in lost
        assert "adaptive" in lost
        assert "adaptive" not in found.asked["kinds"]
        assert any("no time" in note for note in found.notes)
        assert not {"coherence", "bursts"} & set(found.users.columns)
        assert found.groups["first"].null_count() == found.groups.height

    def test_a_machine_with_half_of_everything_is_named_and_cut(self, market, folder):
        log = market[0].interactions
        rng = np.random.default_rng(0)
        items = log["item"].unique().sort()
        robot = pl.DataFrame(
            {"user": "robot", "item": items.gather(rng.integers(len(items), size=log.height)), "time": 0}
        )
        more = dataclasses.replace(
            market[0], interactions=pl.concat([log, robot.select(log.columns)], how="vertical_relaxed")
        )
        found = scan(more, encoder=Hash(), kinds=KINDS, like=folder)
        assert any("1 users have more than 1,000" in note and "'robot' with 50.0%" in note for note in found.notes)
        assert found.users.filter(user_id="robot")["events"].item() == log.height

    def test_of_a_long_history_the_newest_part_is_looked_at(self):
        histories, notes = [[1, 2, 3]] * 60 + [list(range(1, 1202))], []
        log = dataclasses.replace(whole(shop(users=61, items=60)), train=Sequences.of(histories))
        short = _shortened(log, notes)
        assert short.train[60].tolist() == list(range(202, 1202))
        assert short.train[59].tolist() == [1, 2, 3]
        assert "1 users have more than 1,000 interactions" in notes[0]

    @pytest.mark.parametrize(("length", "told"), [(19, False), (21, True)])
    def test_a_user_with_a_tenth_of_everything_is_told(self, length, told):
        notes = []
        log = whole(shop(users=61, items=60))
        log = dataclasses.replace(log, train=Sequences.of([[1, 2, 3]] * 60 + [list(range(1, length + 1))]))
        assert _shortened(log, notes) is log
        assert [note.startswith("One user is much of the log") for note in notes] == [True] * told

    @pytest.mark.parametrize("histories", [[[1]] * 80, [list(range(1, 26))] * 80])
    def test_a_log_without_room_for_an_attack_says_what_it_takes(self, histories):
        rows = [(f"u{user}", f"i{(item + user * (len(history) == 1)) % 25}", 0)
                for user, history in enumerate(histories) for item in history]  # fmt: skip
        log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
        items = pl.DataFrame({"item": [f"i{n}" for n in range(25)], "title": [f"thing {n}" for n in range(25)]})
        with pytest.raises(DataError, match="needs users who have two items or more, and not all of them"):
            scan(Dataset("narrow", log, items), encoder=Hash(), trials=2)

    @pytest.mark.parametrize(("users", "items"), [(49, 60), (80, 19)])
    def test_a_log_that_is_too_small_says_how_small(self, users, items):
        rows = [(f"u{user}", f"i{(user * 7 + step) % items}", step) for user in range(users) for step in range(5)]
        log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
        with pytest.raises(DataError, match=f"has {users} users and {items} items; .* needs 50 users and 20 items"):
            scan(Dataset("few", log, pl.DataFrame({"item": [], "title": []}, {"item": pl.String, "title": pl.String})))

    def test_wrong_options(self, market):
        with pytest.raises(ConfigError, match="did you mean 'groups'"):
            scan(market[0], evidence=["lorec", "group"])
        with pytest.raises(ConfigError, match="without lorec"):
            scan(market[0], evidence=["groups"])
        with pytest.raises(ConfigError, match="two or more of"):
            scan(market[0], kinds=["random", "adaptive"])
        with pytest.raises(ConfigError, match="no kind of attack called 'shilling'"):
            scan(market[0], kinds=["shilling", "random"])
        with pytest.raises(ConfigError, match="2 or more"):
            scan(market[0], trials=1)
        with pytest.raises(ConfigError, match="encoder is 'hash'; give one"):
            scan(market[0], encoder="hash")
        with pytest.raises(DataError, match="empty"):
            scan(dataclasses.replace(market[0], interactions=market[0].interactions.head(0)))


class TestCommand:
    @pytest.fixture
    def files(self, market, tmp_path):
        market[0].interactions.write_csv(tmp_path / "log.csv")
        market[0].items.write_csv(tmp_path / "items.csv")
        return [str(tmp_path / "log.csv"), "--items", str(tmp_path / "items.csv"), "--encoder", "hash"]

    def test_scans_and_shows_reasons(self, files, tmp_path, folder, found, market, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        asked = ["scan", *files, "--out", str(tmp_path / "out"), "--like", str(folder), "--kinds", ",".join(KINDS)]
        done = CliRunner().invoke(app, asked)
        assert done.exit_code == 0, done.output
        assert "An attack is likely" in done.stdout
        assert "look pushed" in done.stdout
        assert "columns: user = user, item = item, time = time" in done.stderr
        assert (tmp_path / "out" / "weights.parquet").is_file()
        refused = CliRunner().invoke(app, [*asked, "--trials", "4"]).exception
        assert isinstance(refused, ConfigError)
        assert "leave --trials out" in str(refused)
        done = CliRunner().invoke(app, [*asked, "--json", "--fail-above", "0.5"])
        assert done.exit_code == 1
        assert json.loads(done.stdout)["alarm"] > 0.5
        assert "replaced" not in done.stderr  # the same once more
        again = [
            "scan",
            *files,
            "--out",
            str(tmp_path / "out"),
            "--kinds",
            ",".join(KINDS),
            "--trials",
            "2",
            "--seed",
            "3",
        ]
        done = CliRunner().invoke(app, again)
        assert done.exit_code == 0, done.output
        assert "this replaced a scan in" in done.stderr
        assert "with another trials, seed" in done.stderr.replace("\n", " ")
        assert "2 trials are few" in done.stdout

    def test_a_log_that_cannot_be_judged_passes_no_pipeline(self, tmp_path):
        rng = np.random.default_rng(0)
        rows = [(f"u{user}", f"i{item}") for user in range(60) for item in rng.choice(30, 6, replace=False)]
        pl.DataFrame(rows, schema=["user", "item"], orient="row").write_csv(tmp_path / "log.csv")
        asked = ["scan", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out"), "--kinds", ",".join(KINDS)]
        done = CliRunner().invoke(app, [*asked, "--trials", "4", "--json", "--fail-above", "0.5"])
        assert json.loads(done.stdout)["can tell"] is False
        assert done.exit_code == 3
        assert json.loads((tmp_path / "out" / "findings.json").read_text("utf-8"))["can tell"] is False
        assert CliRunner().invoke(app, [*asked, "--trials", "4"]).exit_code == 0

    def test_an_encoder_takes_its_options(self, files, tmp_path, folder, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        asked = ["scan", *files[:3], "--out", str(tmp_path / "out"), "--kinds", ",".join(KINDS), "--trials", "2"]
        done = CliRunner().invoke(app, [*asked, "--encoder", "sentence"])
        assert "lacks model" in str(done.exception)
        done = CliRunner().invoke(app, [*asked, "--encoder", "hash", "--encoder-option", "dim=16"])
        assert done.exit_code == 0, done.output
        assert json.loads((tmp_path / "out" / "findings.json").read_text())["asked"]["encoder"]["dim"] == 16

    def test_a_short_key_is_refused_before_anything_is_done(self, files, tmp_path):
        (tmp_path / "key").write_text("short")
        asked = ["scan", *files, "--out", str(tmp_path / "out"), "--key-file", str(tmp_path / "key")]
        done = CliRunner().invoke(app, asked)
        assert isinstance(done.exception, ConfigError)
        assert "5 bytes" in str(done.exception)
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- the pieces


class TestModel:
    def test_finds_the_evidence_that_tells_and_leaves_out_what_would_speak_for_fakes(self):
        rng = np.random.default_rng(0)
        own = {"good": rng.normal(size=4000), "noise": rng.normal(size=4000), "reverse": rng.normal(size=4000)}
        fakes = {"good": rng.normal(4, 1, 40), "noise": rng.normal(size=40), "reverse": rng.normal(-2, 1, 40)}
        model = Model.fit(own, fakes, np.ones(40), 8, 10)
        assert model.slopes["reverse"] == 0
        assert model.slopes["good"] > 5 * model.slopes["noise"]
        assert model(fakes).mean() > 20 * model(own).mean()

    def test_fakes_among_the_own_don_t_teach_that_fakes_are_honest(self):
        rng = np.random.default_rng(1)
        own = {"seen": np.concatenate([rng.normal(size=4000), rng.normal(9, 0.5, 12)])}
        fakes = {"seen": rng.normal(9, 0.5, 40)}
        model = Model.fit(own, fakes, np.ones(40), 8, 15)
        assert model(own)[-12:].min() > 0.5
        assert model(own)[:-12].max() < 0.1

    def test_knows_only_what_it_learned(self):
        model = Model({"a": 1.0, "b": 2.0}, -1.0)
        assert model({"a": np.array([0.0, 3.0]), "c": np.array([9.0, 9.0])}) == pytest.approx(
            1 / (1 + np.exp([1.0, -2.0]))
        )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_share_below_is_the_mean_rank(values):
    array = np.array(values, dtype=float)
    expected = [(np.sum(array < one) + np.sum(array <= one)) / 2 / len(array) for one in array]
    assert share_below(array) == pytest.approx(expected)


histories = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True), min_size=2, max_size=12)


class TestDoubles:
    @given(histories)
    def test_nobody_is_their_own_and_shares_are_counted(self, lists):
        nearest, share = doubles(Sequences.of(lists), 13)
        for user, items in enumerate(lists):
            if nearest[user] < 0:
                assert share[user] == 0
            else:
                assert nearest[user] != user
                assert share[user] == pytest.approx(len(set(items) & set(lists[nearest[user]])) / len(items))

    def test_copies_and_rings_of_copies_are_found(self):
        rng = np.random.default_rng(0)
        lists = [list(rng.choice(np.arange(1, 400), 10, replace=False)) for _ in range(200)]
        lists[7] = lists[150][:]
        ring = list(rng.choice(np.arange(1, 400), 9, replace=False))
        lists[40:80] = [ring[:] for _ in range(40)]
        nearest, share = doubles(Sequences.of(lists), 400)
        assert (nearest[7], nearest[150]) == (150, 7)
        assert (share[40:80] == 1).all()
        honest = np.setdiff1d(np.arange(200), [7, 150, *range(40, 80)])
        assert share[honest].max() < 0.5
        found = Copies().detect(Sight(Sequences.of(lists), 399)).users
        assert found[[7, 150, *range(40, 80)]].min() > found[honest].max()


class TestBursts:
    @given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=6))
    def test_against_all_windows(self, times):
        """Item by item: of all stretches from one holder's time to another's with half of them, the quietest."""
        items = np.repeat(np.arange(1, len(times) + 1), [len(one) for one in times]).astype(np.int32)
        when = np.concatenate(times)
        log = Sequences(items, np.arange(len(items) + 1), when)
        shares, spans = bursts(log, len(times))
        for item, mine in enumerate(times, start=1):
            if len(mine) < 3:
                assert shares[item] == 1
                continue
            half = (len(mine) + 1) // 2
            windows = [
                np.mean((when >= low) & (when <= high))
                for low in mine
                for high in mine
                if sum(low <= one <= high for one in mine) >= half and low <= high
            ]
            assert shares[item] == pytest.approx(min(windows))
            assert np.mean((when >= spans[item][0]) & (when <= spans[item][1])) == pytest.approx(shares[item])

    def test_a_burst_is_seen_and_who_came_then(self):
        rng = np.random.default_rng(0)
        lists = [np.sort(rng.choice(np.arange(1, 300), 12, replace=False)) for _ in range(1000)]
        times = rng.integers(0, 10**6, (1000, 12))
        for user in range(40):
            lists[user][-1], times[user][-1] = 300, 500_000 + user
        log = Sequences.of(lists)
        log = dataclasses.replace(log, times=times.ravel())
        found = Bursts().detect(Sight(log, 300))
        assert np.argmax(found.items) == 300
        in_time = (log.items == 300) & (found.interactions > 0)
        assert 20 <= in_time.sum() <= 40
        assert found.users[:40][found.interactions.reshape(1000, 12)[:40, -1] > 0].min() > np.quantile(
            found.users, 0.97
        )

    def test_without_times_it_says_so(self, split):
        bare = dataclasses.replace(split, train=dataclasses.replace(split.train, times=None))
        with pytest.raises(DataError, match="no times"):
            detect(Bursts(), bare)


class TestWhole:
    def test_holds_what_leaving_two_out_parts(self, tiny):
        log, split = whole(tiny, seed=5), leave_two_out(tiny, repeats="keep", last=0, seed=5)
        assert log.users.to_list() == split.users.to_list()
        assert log.catalog.items.equals(split.catalog.items)
        for user in range(len(split)):
            assert log.train[user].tolist() == [*split.train[user], split.valid[user], split.test[user]]
        assert not log.fraudsters.any()

    def test_keeps_everybody(self):
        frame = pl.DataFrame({"user": ["a", "b", "b"], "item": ["x", "x", "x"], "time": [2, 3, 1]})
        log = whole(Dataset("small", frame, pl.DataFrame({"item": ["x"], "title": ["X"]})))
        assert log.train.lengths.tolist() == [1, 2]
        assert log.train.times.tolist() == [2, 1, 3]


class TestOddities:
    def told(self, **columns):
        return oddities(Dataset("odd", pl.DataFrame(columns), pl.DataFrame({"item": ["x"], "title": ["X"]})))

    def test_nothing_to_say_of_a_plain_log(self):
        assert self.told(user=["a", "b"], item=["x", "x"], time=[1_600_000_000, 1_600_000_001]) == []

    def test_rows_twice_ids_alike_and_the_future(self):
        late = 4_000_000_000
        told = self.told(user=["a", "a", "A ", "b"], item=["x", "x", "x", "x"], time=[10**9, 10**9, 11 * 10**8, late])
        assert "1 rows stand there twice or more, to the moment" in told[0]
        assert "1 user ids are another one's" in told[1]
        assert "1 interactions lie in the future, the last at 2096-10-02" in told[2]

    @pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
    def test_times_that_no_clock_shows(self, unit):
        """Whatever the unit, and however far off: it is that of most of the log."""
        usual = [1_600_000_000, 1_600_000_001, 1_600_000_002]

        def told(*odd):
            times = [one * unit for one in (*usual, *odd)]
            return self.told(user=[f"u{n}" for n in range(len(times))], item=["x"] * len(times), time=times)

        assert told() == []
        assert "2 interactions lie before 1990, the first at 1970-01-01, as" in told(0, 1000)[0]
        assert "the first at 1969-12-31" in told(-1)[0]
        if unit < 10**9:
            assert "1 interactions lie in the future, the last at 2200-01-01" in told(7_258_118_400)[0]
        if unit < 10**6:
            assert f"the last at {10**13 * unit}" in told(10**13)[0]

    def test_numbers_that_are_no_times_are_not_judged(self):
        assert self.told(user=["a", "b", "c"], item=["x", "x", "x"], time=[0, 1, 2]) == []

    def test_ids_that_stand_for_none_and_rows_twice_without_times(self):
        told = self.told(user=["a", "a", "NULL", "b"], item=["x", "x", "x", "nan"])
        assert "without times a second purchase looks the same" in told[0]
        assert "1 rows have the user id 'NULL', which may stand for one that is missing" in told[1]
        assert "1 rows have the item id 'nan'" in told[2]


class TestGivenPairs:
    def test_weights_go_by_user_and_item(self, split, tmp_path):
        user, item = split.users[3], split.catalog.ids(split.train[3][[1]])[0]
        pl.DataFrame({"user": [user, user], "item": [item, "i999"], "weight": [0.25, 0.0]}).write_parquet(
            tmp_path / "w.parquet"
        )
        ids = split.catalog.items["item"].to_list()
        given = WeightFile(path=str(tmp_path / "w.parquet")).of(split.users, split.train, ids).weights
        expected = np.ones(len(split.train.items), dtype=np.float32)
        expected[split.train.starts[3] + 1] = 0.25
        assert isinstance(given, Weights)
        assert given.events.tolist() == expected.tolist()

    def test_of_another_log_are_refused(self, split, tmp_path):
        pl.DataFrame({"user": [split.users[0]], "item": ["i999"], "weight": [0.0]}).write_parquet(
            tmp_path / "w.parquet"
        )
        with pytest.raises(DataError, match="names no interaction"):
            WeightFile(path=str(tmp_path / "w.parquet")).of(
                split.users, split.train, split.catalog.items["item"].to_list()
            )

    def test_single_items_need_the_ids_of_the_log(self, split, tmp_path):
        """Or the last of them would speak for the whole user."""
        item = split.catalog.ids(split.train[3][[1]])[0]
        pl.DataFrame({"user": [split.users[3]], "item": [item], "weight": [0.0]}).write_parquet(tmp_path / "w.parquet")
        with pytest.raises(DataError, match="is of single items; give the ids of the log's items"):
            WeightFile(path=str(tmp_path / "w.parquet")).of(split.users, split.train)


class TestSmallLogs:
    """What a log of few people can tell."""

    def by_chance(self, users, items, seed=0):
        """Nobody does anything but by chance."""
        rng = np.random.default_rng(seed)
        rows = [(f"u{user}", f"i{item}", n) for user in range(users)
                for n, item in enumerate(rng.choice(items, 6, replace=False))]  # fmt: skip
        return Dataset("few", pl.DataFrame(rows, schema=["user", "item", "time"], orient="row"), pl.DataFrame(
            {"item": [f"i{n}" for n in range(items)], "title": [""] * items}
        ))  # fmt: skip

    @pytest.mark.parametrize(("users", "items"), [(60, 30), (300, 50), (1000, 50)])
    def test_chance_is_no_attack(self, users, items):
        found = scan(self.by_chance(users, items), kinds=KINDS, trials=4)
        assert found.alarm < 0.5
        assert found.verdict().startswith("Nothing" if found.can_tell else "This log can't be judged")
        assert found.can_tell == (users > 60)
        few = any("can't be told from chance" in note for note in found.notes)
        assert few == (users < 1000)

    @pytest.mark.parametrize("seed", range(3))
    def test_what_everybody_has_is_pushed_by_nobody(self, seed):
        """A delivery, a bag: no trial may have it as a target, and no history need lack it."""
        log = self.by_chance(120, 60, seed)
        delivered = pl.DataFrame({"user": log.interactions["user"].unique(), "item": "delivery", "time": 9})
        everywhere = pl.concat([log.interactions, delivered.cast(log.interactions.schema)])
        found = scan(dataclasses.replace(log, interactions=everywhere), trials=6, seed=seed, kinds=KINDS)
        assert found.items.filter(item_id="delivery")["suspicion"].item() < 0.1

    def test_an_alarm_without_an_item_says_so(self, innocent):
        bare = dataclasses.replace(innocent, alarm=0.8, groups=innocent.groups.head(0))
        assert bare.verdict() == "There may be an attack (0.80), but no single item stands out."


class TestAlarm:
    """Sizes of campaigns, and the curve."""

    @given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 400)), min_size=1, max_size=30), st.integers(50, 10_000))
    def test_sizes_against_a_written_out_reference(self, told, users):
        suspicion, holders = np.array([0.0, *(one for one, _ in told)]), np.array([0, *(n for _, n in told)])
        judged = sum(n >= 3 for _, n in told)
        usual = 5 / (5 + 2 * max(judged, 1))
        bought = sorted((max(one - usual, 0) * n for one, n in told), reverse=True)[:5]
        bought += [0.0] * (5 - len(bought))
        wanted = [math.prod(max(one, 1e-3) for one in bought[:k]) ** (1 / k) / (users + 2000) for k in range(1, 6)]
        sizes = campaigns(suspicion, holders, users)
        np.testing.assert_allclose(sizes, wanted, rtol=1e-9)
        assert (np.diff(sizes) <= 1e-12).all()  # nothing is a larger campaign for more items

    @given(st.lists(st.floats(1e-7, 0.5), min_size=5, max_size=5), st.integers(0, 4), st.floats(1, 10))
    def test_a_larger_campaign_never_calms(self, sizes, which, times):
        more = np.array(sizes)
        more[which] *= times
        assert alarm(np.array(sizes)) <= alarm(more)

    @pytest.mark.parametrize("users", [100, 5000])
    def test_what_a_log_can_tell_is_where_the_alarm_is_even(self, users):
        """Found by halving; two fifths of the fraudsters of a random attack are seen."""
        low, high = 1e-6, 1.0
        for _ in range(60):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if alarm(np.array([1e-9] * 4 + [middle])) > 0.5 else (middle, high)
        assert resolvable(users) == pytest.approx(low * (users + 2000) / 0.4, rel=1e-6)

    def test_who_takes_a_pushed_item_again_makes_no_larger_campaign(self, found, folder, market):
        log, (pushed, *_) = market[0].interactions, market[1]
        user = log.filter(pl.col("item") == pushed)["user"][0]
        again = log.filter((pl.col("user") == user) & (pl.col("item") == pushed))
        more = dataclasses.replace(market[0], interactions=pl.concat([log, *[again] * 300]))
        other = scan(more, encoder=Hash(), kinds=KINDS, like=folder)
        assert other.figures["size of a campaign"] < 1.2 * found.figures["size of a campaign"]

    @pytest.mark.parametrize(("held", "why"), [(24, 0), (26, 1)])
    def test_evidence_that_would_turn_down_a_quarter_has_lost_its_footing(self, held, why):
        log = dataclasses.replace(
            whole(shop(users=100, items=60)), train=Sequences.of([[1 if user < held else 2] for user in range(100)])
        )
        off = np.arange(61) == 1
        assert len(_why_untold(off, Model({"lorec": 1.0}, 0.0), log)) == why
        assert len(_why_untold(off, Model({"lorec": 0.0, "holders": 1.0}, 0.0), log)) == why + 1

    def test_what_is_more_likely_pushed_than_not_is_turned_down_and_what_lorec_turns_down(self):
        log = dataclasses.replace(whole(shop(users=3, items=60)), train=Sequences.of([[1, 2], [3, 4], [5, 1]]))
        says = Suspicion(users=np.zeros(3), lies=np.array([False, True, False, False, False, False]))
        off = _turned_down(says, np.array([0, 0.1, 0.1, 0.5, 0.49, 0.9]), log)
        assert np.flatnonzero(off).tolist() == [2, 3, 5]

    def test_a_campaign_for_one_item_is_told(self):
        log = whole(shop())
        poison = forge(Segment(share=0.03), log, 1, seed=1)
        bad = as_dataset(inject(log, poison, 1))
        kinds = ("bandwagon", "covisit", "replace", "random")  # not the judged one
        told = scan(bad, encoder=Hash(), kinds=kinds, trials=8)
        assert told.alarm > 0.7
        assert "as by a campaign for 1 item)" in told.verdict()
        worst = told.items.sort("suspicion", descending=True)["item_id"].head(3)
        assert set(log.catalog.ids(poison.targets)) <= set(worst)

    @pytest.mark.parametrize("pushed", [1, 2, 3, 4, 5])
    def test_few_items_that_many_bought_tell_as_much_as_several(self, pushed):
        """3 % of 3,000 users bought each; everything else is as in a log where nothing is odd."""
        items = np.full(501, 0.003)
        items[1 : pushed + 1] = 0.98
        holders = np.full(501, 30)
        holders[1 : pushed + 1] = 90
        assert alarm(campaigns(items, holders, 3000)) > 0.7
        assert alarm(campaigns(np.full(501, 0.003), holders, 3000)) < 0.1

    def test_users_are_told_by_how_many_pushed_items_they_hold_and_not_by_how_innocent_the_rest_are(self):
        """A history with an item twice, one of unsuspicious items, one of none that are suspicious at all, and both."""
        log = Sequences(np.array([1, 2, 1, 3, 4, 4, 1, 3]), np.array([0, 3, 5, 6, 8]))
        likely = np.array([0.0, 0.5, 0.2, 0.001, 0.0])
        told = Looked(log, 4, {}).users(likely)["items"]
        assert told[0] == pytest.approx(np.log(-np.log(0.5 * 0.8)))
        assert told[3] == pytest.approx(np.log(-np.log(0.5 * 0.999)))
        assert told[1] == told[2] == told.min()  # .1 % more or less is chance, and would let titles speak louder
        assert told[0] > told[3]


class TestTrials:
    def test_every_kind_comes_in_several_sizes_and_sizes_in_bursts_and_not(self, monkeypatch):
        made = []

        def noted(attack, *of, **how):
            made.append((type(attack).__name__, attack.share, attack.burst is not None))
            return forge(attack, *of, **how)

        monkeypatch.setattr("lorec.scans.learning.forge", noted)
        scan(shop(users=3000, items=100), encoder=Hash(), trials=10, kinds=("random", *KINDS), evidence=["lorec"])
        kinds, shares, times = zip(*made, strict=True)
        assert {kinds.count(kind) for kind in kinds} == {2}
        assert set(shares) == {0.002, 0.005, 0.01}
        assert len(set(made)) == 10
        assert all(len({share for one, share, _ in made if one == kind}) == 2 for kind in kinds)
        assert all(len({burst for _, one, burst in made if one == share}) == 2 for share in set(shares))
        assert 3 <= sum(times) <= 7

    def test_those_of_a_larger_scan_are_not_left_behind(self, market, tmp_path):
        quick = {"encoder": Hash(), "kinds": KINDS, "evidence": ["lorec"], "folder": tmp_path / "one"}
        scan(market[0], trials=3, **quick)
        scan(shop(users=300, seed=4), trials=2, **quick)
        assert len(list((tmp_path / "one" / "trials").iterdir())) == 2

    @pytest.mark.parametrize("what", ["nothing", "titles", "seed", "log"])
    def test_those_of_another_log_or_other_titles_are_made_anew(self, tmp_path, monkeypatch, what):
        made, few = [], shop(users=300, seed=4)
        quick = {"encoder": Hash(), "kinds": KINDS, "evidence": ["lorec"], "trials": 2, "folder": tmp_path / "one"}
        scan(few, **quick)
        monkeypatch.setattr("lorec.scans.learning.forge", lambda *a, **k: made.append(a) or forge(*a, **k))
        if what == "titles":
            few = dataclasses.replace(few, items=few.items.with_columns(title=pl.col("title").reverse()))
        if what == "log":
            few = dataclasses.replace(few, interactions=few.interactions.head(-1))
        scan(few, seed=int(what == "seed"), **quick)
        assert len(made) == (0 if what == "nothing" else 2)

    def test_no_more_than_so_many_users_are_looked_at(self, monkeypatch):
        monkeypatch.setattr("lorec.scans.learning.MOST_USERS", 150)
        made = []
        monkeypatch.setattr("lorec.scans.learning.forge", lambda *a, **k: made.append(len(a[1])) or forge(*a, **k))
        found = scan(shop(users=300), encoder=Hash(), kinds=KINDS, evidence=["lorec"], trials=2)
        assert made == [150, 150]
        assert found.users.height == 300

    def test_those_of_another_encoder_judge_nobody(self, market, folder):
        with pytest.raises(RunError, match="the encoder is not that of the trials"):
            scan(market[0], encoder=Hash(dim=16), kinds=KINDS, like=folder)


def test_the_oddest_items_are_shown_where_none_looks_pushed(found, capsys):
    calm = dataclasses.replace(
        found, alarm=0.05, groups=found.groups.head(0),
        items=found.items.with_columns(suspicion=pl.col("suspicion") / 20),
        users=found.users.with_columns(suspicion=pl.col("suspicion") / 20),
    )  # fmt: skip
    show_findings(calm)
    said = capsys.readouterr().out
    assert "Nothing found" in said
    assert "The oddest items, the oddest first; none looks pushed" in said
    assert "suspicion" not in said.partition("The oddest items")[2].splitlines()[1]  # a column of 0.00 compares nothing
    assert calm.items.sort("suspicion", descending=True)["item_id"][0] in said
    assert "Users who look hired" not in said
    assert "Groups of items that far more users took together" not in said
    ring = found.groups.head(1).with_columns(together=pl.lit(30), expected=pl.lit(2.5), suspicion=pl.lit(0.01))
    show_findings(dataclasses.replace(calm, groups=ring))
    assert "Groups of items that far more users took together" in capsys.readouterr().out


class TestReasons:
    def test_an_items_holders_are_counted_once_however_often_they_come(self):
        """Ten people over ten days, one of whom took it twelve times within a minute."""
        day = 86_400
        rows = [(0, 1, one * day) for one in range(10)]
        rows = [(user, 1, user * day) for user in range(10)] + [(3, 1, 3 * day + second) for second in range(1, 12)]
        rows += [(user, 2 + user % 3, 20 * day + user) for user in range(10)]
        rows.sort(key=lambda row: (row[0], row[2]))
        counts = np.bincount([row[0] for row in rows])
        log = Sequences(
            np.array([row[1] for row in rows], dtype=np.int32), np.concatenate([[0], np.cumsum(counts)]),
            np.array([row[2] for row in rows]),
        )  # fmt: skip
        _, when = bursts(log, 4)
        taken = {row[0] for row in rows if row[1] == 1 and when[1][0] <= row[2] <= when[1][1]}
        assert len(taken) >= 5

    def test_chance_against_a_simulation(self):
        """Whoever has more of everything has more of these, too."""
        rng = np.random.default_rng(0)
        lengths, items = rng.geometric(0.1, 2000) + 1, 300
        fame = 1 / np.arange(2, items + 2) ** 0.7
        log = Sequences.of([rng.choice(np.arange(1, items + 1), min(n, 60), replace=False, p=fame / fame.sum())
                            for n in lengths])  # fmt: skip
        for some in ([5, 20, 40], [100, 150, 200, 250, 299], [290, 295]):
            holders = log.counts(items)[some].astype(float)
            held = np.bincount(log.users(), np.isin(log.items, some), len(log))
            assert by_chance(log, holders) == pytest.approx((held >= 2).sum(), rel=0.25, abs=3)

    def test_two_items_by_chance_against_a_permutation(self):
        """An item counts once in a history, however often it would be drawn."""
        rng = np.random.default_rng(0)
        lengths = rng.geometric(0.12, 800) + 1
        items = rng.integers(3, 2000, lengths.sum())
        items[:60] = np.repeat([1, 2], 30)
        drawn = []
        for _ in range(400):
            mixed = np.split(rng.permutation(items), np.cumsum(lengths)[:-1])
            drawn.append(sum({1, 2} <= set(one.tolist()) for one in mixed))
        log = Sequences.of(np.split(items, np.cumsum(lengths)[:-1]))
        assert by_chance(log, np.array([30.0, 30.0])) == pytest.approx(np.mean(drawn), rel=0.15)

    def test_a_group_came_when_its_items_were_taken(self, found, market):
        log, worst = market[0].interactions, found.groups.row(0, named=True)
        inside = found.items.filter(group=1)["item_id"]
        theirs = log.filter(pl.col("item").is_in(inside.implode()))
        together = theirs.group_by("user").agg(pl.col("item").n_unique()).filter(pl.col("item") >= 2)["user"]
        when = theirs.filter(pl.col("user").is_in(together.implode()))["time"]
        assert len(together) == worst["together"]
        assert (worst["first"], worst["last"]) == (moment(when.min()), moment(when.max()))
        every = log.filter(pl.col("user").is_in(together.implode()))["time"]
        assert (every.min(), every.max()) != (when.min(), when.max())

    def test_a_double_is_named_and_has_what_is_said(self, found, innocent):
        checked = 0
        for one in (found, innocent):
            rows = one.interactions().group_by("user_id").agg(pl.col("item_id").unique())
            histories = {user: set(items) for user, items in rows.iter_rows()}
            for user, reasons in one.users.select("user_id", "reasons").iter_rows():
                if told := re.search(r"([\d.]+)% of the (\d+) items are also in the history of '([^']+)'", reasons):
                    share = len(histories[user] & histories[told[3]]) / len(histories[user])
                    assert told[3] != user
                    assert float(told[1]) == pytest.approx(100 * share, abs=0.51)
                    assert int(told[2]) == len(histories[user])
                    checked += 1
        assert checked

    def test_a_burst_is_told_of_what_is_more_of_one_than_most(self, found, innocent):
        for one in (found, innocent):
            sight = Sight(one.log.train, len(one.log.catalog), None, (), np.random.default_rng(0))
            scores = Bursts().detect(sight).items[1:]
            told = one.items["reasons"].str.contains("of its .* holders came between").to_numpy()
            assert (scores[told] > 2).all()
            assert told.sum() < (one.items["reasons"] != "").sum()

    @pytest.mark.parametrize(
        ("together", "expected", "loud"), [(40, 3.9, True), (40, 4.1, False), (9, 0.1, False), (10, 0.9, True)]
    )
    def test_a_loud_group_is_told_whatever_the_alarm(self, found, together, expected, loud):
        one = found.groups.head(1).with_columns(
            together=pl.lit(together, pl.Int64), expected=pl.lit(expected, pl.Float64)
        )
        calm = dataclasses.replace(found, alarm=0.2, groups=one)
        assert calm.loud().height == loud
        assert ("something to look at" in calm.verdict()) == loud
        assert ("Nothing out of the ordinary" in calm.verdict()) != loud
        honest = dataclasses.replace(calm, groups=one.with_columns(suspicion=0.01))
        assert honest.loud().height == loud  # a small genre's fans are told and accuse nobody
        assert honest.verdict().startswith("Nothing found")

    def test_what_counts_nothing_hangs_together_too_and_alone_makes_no_group(self):
        rows = [[1, 2]] * 12 + [[3, 4]] * 12 + [[1, 5], [4, 6]] * 3
        log = dataclasses.replace(whole(shop(users=len(rows), items=60)), train=Sequences.of(rows))
        items, nothing = np.zeros(61), np.isin(np.arange(61), [1, 2, 3, 6])
        items[1:7] = 1e-6
        table, of_items, of_users = grouped(items, nothing, log)
        assert table.height == 1
        assert of_items[:7].tolist() == [0, 1, 1, 0, 0, 0, 0]
        assert of_users.tolist() == [1] * 12 + [0] * 18
        assert table.row(0, named=True)["together"] == 12

    @pytest.mark.parametrize(("shared", "holders", "groups"), [(3, 10, 1), (2, 10, 2), (3, 20, 2), (4, 20, 1)])
    def test_items_go_together_by_three_holders_and_a_fifth(self, shared, holders, groups):
        """Two suspect items of so many holders each, some of whom have both."""
        rows = [[1, 2]] * shared + [[1, 3]] * (holders - shared) + [[2, 3]] * (holders - shared)
        log = dataclasses.replace(whole(shop(users=len(rows), items=60)), train=Sequences.of(rows))
        items = np.zeros(61)
        items[1:3] = 0.9
        table, of_items, of_users = grouped(items, np.zeros(61, dtype=bool), log)
        assert table.height == groups == len(set(of_items[1:3].tolist()))
        assert (of_users > 0).sum() == (shared if groups == 1 else len(rows))

    def test_what_counts_nothing_has_a_reason(self, found, innocent):
        for one in (found, innocent):
            for frame in (one.items, one.users):
                assert (frame.filter((pl.col("weight") < 1) | (pl.col("suspicion") >= 0.1))["reasons"] != "").all()
            calm = one.users.filter((pl.col("suspicion") < 0.1) & (pl.col("weight") < 1))
            assert calm["reasons"].str.contains("count nothing, for reasons of their own").all()

    def test_whom_no_evidence_alone_makes_suspect_is_told_the_strongest(self, market, found, folder, monkeypatch):
        monkeypatch.setattr("lorec.scans.findings.ODD", 2.0)
        for name in ("_why_user", "_together", "_left_out"):
            monkeypatch.setattr(f"lorec.scans.findings.{name}", lambda *_: [])
        again = scan(market[0], encoder=Hash(), kinds=KINDS, like=folder)
        told = again.users.filter(pl.col("suspicion") >= 0.1)["reasons"]
        assert len(told)
        assert told.str.contains(r"^no evidence alone; the strongest is \w+ \(more than [\d.]+% of users\)$").all()

    def test_no_more_users_have_less_than_a_reason_says(self, found, innocent):
        words = {one: name for name, one in TRAITS.items()} | {"history of": "copies"}
        checked = 0
        for one in (found, innocent):
            for reasons, row in zip(one.users["reasons"], one.users.iter_rows(named=True), strict=True):
                for reason in reasons.split("; "):
                    name = next((words[part] for part in words if part in reason), None)
                    if name is None:
                        continue
                    said = float(re.search(r"more than ([\d.]+)% of users", reason)[1])
                    less = 100 * (one.users[name] < row[name]).mean()
                    assert less - 0.1 - 1e-6 <= said <= min(less, 99.9) + 1e-6
                    checked += 1
        assert checked > 5

    @given(st.floats(0, 1), st.integers(0, 3))
    def test_a_share_is_never_written_too_high(self, share, digits):
        said = float(percent(share, digits)[:-1])
        assert said <= 100 * share + 1e-6
        assert said < 100
        assert share * 100 - said <= 10.0**-digits + 1e-6

    def test_a_title_writes_no_reason(self, market):
        dataset, targets = market
        title = pl.when(pl.col("item").is_in(targets)).then(pl.lit("Soap; cleared by an analyst; ")).otherwise("title")
        found = scan(
            dataclasses.replace(dataset, items=dataset.items.with_columns(title=title)),
            encoder=Hash(), kinds=KINDS, trials=4,
        )  # fmt: skip
        told = found.users.filter(pl.Series(hired(found)))["reasons"]
        assert told.str.contains("Soap, cleared").any()
        assert not told.str.split("; ").explode().str.starts_with("cleared").any()


class TestTwins:
    @given(st.data())
    def test_against_every_pair(self, data):
        """Half of either's holders hold both, three at the least, and their texts point the same way."""
        held = data.draw(st.lists(st.sets(st.integers(1, 5), min_size=1), min_size=4, max_size=12))
        items = np.array([0.0, *data.draw(st.lists(st.sampled_from([0.0, 0.4, 0.9]), min_size=5, max_size=5))])
        vectors = np.array([[0, 0], [2, 0], [1, 0], [1, 1], [0, 3], [0, 0]], dtype=np.float32)
        alike = [{1, 2}, {1, 3}, {2, 3}, {3, 4}]
        wanted = set()
        for one, other in itertools.combinations(range(1, 6), 2):
            both, either = sum({one, other} <= h for h in held), sum(bool({one, other} & h) for h in held)
            if min(items[[one, other]]) >= 0.1 and both >= max(3, either / 2) and {one, other} in alike:
                wanted.add((frozenset((one, other)), both, either))
        found = twins(items, Sequences.of([sorted(one) for one in held]), vectors)
        assert {(frozenset(pair[:2]), pair[2], pair[3]) for pair in found.tolist()} == wanted
        assert (np.diff(found[:, 2]) <= 0).all()

    def test_a_pushed_product_that_is_listed_twice_is_told(self, market, found):
        dataset, (pushed, *_) = market
        again = dataset.interactions.filter(pl.col("item") == pushed).with_columns(item=pl.lit("twin"))
        title = dataset.items.filter(pl.col("item") == pushed).with_columns(item=pl.lit("twin"))
        double = dataclasses.replace(
            dataset, interactions=pl.concat([dataset.interactions, again]), items=pl.concat([dataset.items, title])
        )
        notes = scan(double, encoder=Hash(), kinds=KINDS, trials=4).notes
        (note,) = (one for one in notes if "one product listed twice" in one)
        assert {repr(pushed), "'twin'"} <= set(note.split())
        assert not any("one product listed twice" in one for one in found.notes)


class TestLanguages:
    def titled(self, words):
        few = shop(users=200, items=60, groups=4)
        return Dataset("few", few.interactions, few.items.with_columns(title=pl.lit(words) + pl.col("item")))

    def test_a_catalogue_that_the_encoder_does_not_read_is_told(self):
        for encoder, words, told in (
            (MiniLM(), "тёплый чай ", True),
            (MiniLM(), "soğuk çay bardağı ", True),
            (MiniLM(), "coffee for the kitchen ", False),
            (Hash(), "чай ", False),
        ):
            found = scan(self.titled(words), encoder=encoder, kinds=KINDS[:2], trials=2)
            assert any("not English ones" in note for note in found.notes) == told
