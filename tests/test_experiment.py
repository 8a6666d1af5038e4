"""The main job from a run file to a record, as a user meets it, on a small log of CSV files."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import polars.testing
import pytest
from conftest import world

from lorec import experiment, records, stages
from lorec.attacks import ATTACKS
from lorec.cli import main
from lorec.defenses import DEFENSES, Filter, LoRec, LoRecPaper
from lorec.detectors import Degree
from lorec.errors import ConfigError, DataError, LorecError, RunError, UnknownName
from lorec.experiment import reevaluate, run, save_recommendations
from lorec.files import replacing
from lorec.models import SASRec
from lorec.records import Run, open_run
from lorec.reports import report
from lorec.runfile import arms_of, plain, read_run_file, resolve
from lorec.sources import CompleteJourney, prepared
from lorec.stages import detect
from lorec.terminal import literal, show_arms
from lorec.text import Hash, MiniLM, TextVectors

TOML = """
name = "small"
seed = 3
items = "ids"
scenario = "groceries"
encoder = "hash"

[data]
path = "{folder}/log.csv"
items = "{folder}/items.csv"

[backbone]
name = "sasrec"
width = 16
max_length = 20
blocks = 1

[attack]
name = "random"
share = 0.1

[targets]
count = 2

[[defenses]]
name = "lorec"

[[defenses]]
name = "lorec-paper"
view = "pooled"
enter = 3
update_every = 1

[[defenses]]
name = "oracle"

[training]
epochs = 5
tokens = 256
patience = 3
"""


COSTS = ("seconds an epoch", "training seconds", "peak MB")
"""Figures that differ between two runs that are the same."""
ARMS = ("clean", "poisoned", "lorec", "lorec-paper", "oracle")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a shop")  # with a space
    log = world()
    log.interactions.write_csv(folder / "log.csv")
    evil = (
        pl.when(pl.col("item") == "i001").then(pl.lit("[red]x[/red]\x1b[31m\u202eevil 🎮")).otherwise(pl.col("title"))
    )
    log.items.with_columns(title=evil).write_csv(folder / "items.csv")
    (folder / "run.toml").write_text(TOML.format(folder=folder))
    return folder / "run.toml"


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory) -> Run:
    return run(read_run_file(recipe), tmp_path_factory.mktemp("runs") / "one")


def lorec(*arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "lorec", *map(str, arguments)], capture_output=True, text=True, timeout=300, **more
    )


def call(monkeypatch, capsys, *arguments):
    """The command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["lorec", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    return left.value.code or 0, said.out, said.err


class TestRun:
    def test_leaves_the_whole_record(self, done):
        files = {str(path.relative_to(done.folder)) for path in done.folder.rglob("*") if path.is_file()}
        each = {f"{arm}/{name}" for arm in ARMS for name in
                ("model.safetensors", "history.jsonl", "ranks.parquet", "scorecard.json")}  # fmt: skip
        weights = {f"{arm}/{name}.parquet" for arm in ARMS[2:] for name in ("weights", "harm")}
        weights |= {"lorec/interactions.parquet"}
        record = {"run.json", "scorecard.json", "catalog.parquet", "poison/profiles.parquet", "poison/poison.json"}
        assert files == each | weights | record
        assert set(done.record["files"]) == files - {"run.json"}
        assert done.record["versions"]["torch"]
        assert done.record["data"]["steps"][0]["users"] == 80

    def test_judges_every_arm(self, done):
        assert tuple(done.arms) == ARMS
        for metrics in done.arms.values():
            assert 0 <= metrics["HR@10"] <= 1
            assert 0 <= metrics["T-HR@50"] <= 1
        assert done.arms["oracle"]["ROC-AUC"] == 1.0
        assert done.arms["oracle"]["weight fraudsters"] == 0.0
        assert {"ROC-AUC", "PR-AUC", "F1", "recall@1%", "weight genuine"} <= set(done.arms["lorec"])
        assert {"interactions ROC-AUC", "genuine interactions turned down"} <= set(done.arms["lorec"])
        assert "ROC-AUC" not in done.arms["poisoned"]

    def test_weights_are_of_every_user_and_worst_first(self, done):
        frame = pl.read_parquet(done.folder / "lorec" / "weights.parquet")
        assert frame.height == 88
        assert frame["injected"].sum() == 8
        assert frame["suspicion"].is_sorted(descending=True)

    def test_interactions_are_all_there_with_the_weights_that_were_trained_on(self, done):
        frame = pl.read_parquet(done.folder / "lorec" / "interactions.parquet")
        fakes = pl.read_parquet(done.folder / "poison" / "profiles.parquet")
        assert frame.height == done.record["data"]["steps"][-1]["interactions"] - 2 * 80 + fakes.height
        assert set(frame["weight"]) <= {0.0, 1.0}
        assert (frame["weight"] == 0).mean() <= 0.02
        assert (
            frame.group_by("item").agg(pl.col("suspicion").n_unique())["suspicion"].to_list()
            == [1] * frame["item"].n_unique()
        )

    def test_ranks_are_of_genuine_users_only(self, done):
        assert pl.read_parquet(done.folder / "poisoned" / "ranks.parquet").height == 80

    def test_the_configuration_resolves_to_itself(self, done):
        assert resolve(done.record["config"]) == done.config
        assert resolve(json.loads(json.dumps(plain(done.config)))) == done.config

    def test_the_same_run_again_is_only_shown(self, done, recipe):
        before = (done.folder / "lorec" / "model.safetensors").stat().st_mtime_ns
        again = run(read_run_file(recipe), done.folder)
        assert again.arms == done.arms
        assert (done.folder / "lorec" / "model.safetensors").stat().st_mtime_ns == before

    def test_the_same_seed_elsewhere_gives_the_same_figures(self, done, recipe, tmp_path):
        again = run(read_run_file(recipe), tmp_path / "two")
        for arm, metrics in done.arms.items():
            assert {k: v for k, v in metrics.items() if k not in COSTS} == {
                k: v for k, v in again.arms[arm].items() if k not in COSTS
            }

    def test_a_run_that_was_interrupted_twice_still_ends_the_same(self, done, recipe, tmp_path):
        class Killed(Exception):
            pass

        for stage, epoch in (("poisoned", "epoch 3"), ("poisoned", "epoch 4"), ("lorec", "epoch 3")):

            def kill(event, stage=stage, epoch=epoch):
                if event.stage == stage and event.note.startswith(epoch):
                    raise Killed

            with pytest.raises(Killed):
                run(read_run_file(recipe), tmp_path / "three", watch=kill)
        again = run(read_run_file(recipe), tmp_path / "three")
        for arm in done.arms:
            assert again.arms[arm]["HR@10"] == done.arms[arm]["HR@10"]
        assert again.record["files"]["lorec/weights.parquet"]
        assert not list(again.folder.rglob("checkpoint*"))

    def test_showing_a_finished_run_again_writes_nothing(self, done, recipe):
        before = (done.folder / "run.json").stat().st_mtime_ns
        run(read_run_file(recipe), done.folder)
        assert (done.folder / "run.json").stat().st_mtime_ns == before

    def test_a_saved_model_is_judged_as_before(self, done):
        found = reevaluate(open_run(done.folder))
        for arm, metrics in found.items():
            assert metrics == pytest.approx({name: done.arms[arm][name] for name in metrics})

    def test_notes_say_what_a_reader_must_know(self, done, recipe, tmp_path):
        assert any("concession" in note for note in done.scorecard["notes"])
        knowing = read_run_file(recipe, {"known.kinds": '["random"]', "defenses": '["oracle"]', "training.epochs": "1"})
        assert any("judged kind, random, was among" in note for note in run(knowing, tmp_path / "k").scorecard["notes"])

    @pytest.mark.parametrize("kind", ["random", "bandwagon", "segment"])
    def test_no_defense_and_no_detector_learns_from_the_judged_kind(self, recipe, kind, tmp_path, monkeypatch):
        """What they are given is looked at, in a run and in a detection."""
        seen = []

        def look(make):
            def made(*given, **named):
                seen.extend(one.provenance["kinds"] for one in named["known"] or ())
                return make(*given, **named)

            return made

        monkeypatch.setattr(experiment, "fit", look(experiment.fit))
        monkeypatch.setattr(stages, "ask", look(stages.ask))
        settings = {"attack": kind, "training.epochs": "1", "defenses": '["lorec"]', "detectors": '["lorec"]'}
        config = read_run_file(recipe, settings)
        run(config, tmp_path / "t")
        runs = len(seen)
        detect(config)
        assert 0 < runs < len(seen)
        assert all(kinds and kind not in kinds for kinds in seen)

    def test_a_defense_is_fitted_on_text_items_too(self, recipe, tmp_path):
        settings = {"items": "both", "training.epochs": "3", "split.last": "0"}
        assert run(read_run_file(recipe, settings), tmp_path / "t").arms["lorec"]["HR@10"] >= 0

    def test_without_an_attack_every_defense_has_its_price(self, recipe, tmp_path, monkeypatch, capsys):
        every = [*sorted(set(DEFENSES) - {"weighted", "none", "filter", "lorec-paper"})]
        named = ", ".join(f'"{name}"' for name in every)
        some = f'[{named}, {{name = "filter", detector = "fap"}}, {{name = "lorec-paper", view = "pooled", enter = 2}}]'
        config = read_run_file(recipe, {"attack": "none", "training.epochs": "3", "defenses": some})
        made = run(config, tmp_path / "t")
        assert len(made.arms) == 2 + len(every) + 2
        for name, arm in made.arms.items():
            assert arm["HR@10"] >= 0
            assert not {"success removed", "ROC-AUC", "recall@1%", "weight fraudsters"} & arm.keys()
            if name in ("lorec", "llm4dec", "filter"):
                assert 0 <= arm["genuine interactions turned down"] <= 1
        assert any("Nobody attacks" in note for note in made.scorecard["notes"])
        page = report(tmp_path / "t").read_text("utf-8")
        assert "Nobody attacks: the arms show" in page
        assert "No defense has an opinion" not in page
        code, out, _ = call(
            monkeypatch, capsys, "detect", recipe, "--set", "attack=none", "--set", 'detectors=["lorec"]'
        )
        assert code == 0
        assert "0 fraudsters" in out

    def test_one_defense_with_other_settings_is_another_arm(self, recipe, tmp_path):
        twice = '[{name = "lorec"}, {name = "lorec", sources = ["log"], budget = 0.1}]'
        made = run(read_run_file(recipe, {"defenses": twice, "training.epochs": "1"}), tmp_path / "t")
        assert list(made.arms)[2:] == ["lorec", "lorec-sources-log-budget-0.1"]
        with pytest.raises(ConfigError, match="'lorec' stands twice"):
            run(read_run_file(recipe, {"defenses": '["lorec", "lorec"]'}), tmp_path / "u")


class TestRunFile:
    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"traning.epochs": "3"}, UnknownName, "no key called 'traning'; did you mean 'training'"),
            ({"training.epoch": "3"}, UnknownName, r"no key in \[training\] called 'epoch'; did you mean 'epochs'"),
            ({"training.epochs": '"3"'}, ConfigError, r"\[training\] epochs is '3': input should be a valid integer"),
            ({"attack.name": "bandwagn"}, UnknownName, "no attack called 'bandwagn'; did you mean 'bandwagon'"),
            ({"attack.name": "average"}, UnknownName, 'there is no average: .* write "random"'),
            ({"backbone.name": "average"}, UnknownName, "no backbone called 'average'"),
            ({"backbone.name": "os:system"}, UnknownName, "no backbone called 'os:system'"),
            ({"defenses": '["lorek"]'}, UnknownName, "no defense called 'lorek'; did you mean 'lorec'"),
            ({"defenses.1.passes": "0"}, ConfigError, "1 or more"),
            ({"defenses.7.passes": "1"}, ConfigError, "none of the 3 places"),
            ({"defenses.0.budget": "2.0"}, ConfigError, "shares of interactions"),
            ({"defenses.0.sources": '["texts"]'}, ConfigError, "input should be 'log'"),
            ({"defenses": "3"}, ConfigError, "defenses is a list"),
            ({"split": "3"}, ConfigError, "it is a table"),
            ({"name": "../x"}, ConfigError, "names a folder"),
            ({"seed.x": "3"}, ConfigError, "has no keys"),
            ({"items": "letters"}, ConfigError, "items is 'letters'"),
            ({"data": "{items = 'x.csv'}"}, ConfigError, r"\[data\] has no name"),
            ({"attack.share": "nan"}, ConfigError, r"\[attack\] share is nan: give a number that is finite"),
            ({"known.share": "inf"}, ConfigError, "finite"),
            ({"known.share": "5.0"}, ConfigError, "a share in"),
        ],
    )
    def test_wrong_keys_and_names_are_told(self, recipe, settings, error, message):
        with pytest.raises(error, match=message):
            read_run_file(recipe, settings)

    def test_settings_overrule_and_names_may_be_short(self, recipe):
        config = read_run_file(recipe, {"attack": "bandwagon", "attack.share": "0.03", "training.device": "cpu"})
        assert (type(config.attack).__name__, config.attack.share, config.training.device) == ("Bandwagon", 0.03, "cpu")
        assert config.split.seed == 3  # the run's seed orders ties unless told otherwise

    def test_settings_without_a_name_are_the_default_members(self, recipe):
        config = read_run_file(recipe, {"backbone": "{width = 32}", "encoder": "{tokens = 512}"})
        assert (config.backbone, config.encoder) == (SASRec(width=32), MiniLM(tokens=512))

    def test_no_file_and_no_toml(self, tmp_path):
        with pytest.raises(ConfigError, match="no run file"):
            read_run_file(tmp_path / "x.toml")
        (tmp_path / "x.toml").write_text("a = ")
        with pytest.raises(ConfigError, match="is not TOML"):
            read_run_file(tmp_path / "x.toml")


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            (
                {"targets.items": '["i001", "i0x1"]'},
                DataError,
                "no item 'i0x1' in the catalogue of 60 items; did you mean",
            ),
            ({"attack.share": "0.0"}, ConfigError, "no fraudster"),
            ({"defenses": '["none"]'}, ConfigError, "always there"),
            ({"defenses": '["oracle", "oracle"]'}, ConfigError, "stands twice"),
            ({"data.path": '"nowhere.csv"'}, DataError, "does not exist"),
            ({"split.k_core": "99"}, DataError, "no user is left"),
            ({"training.device": "tpu"}, ConfigError, "no device"),
        ],
    )
    def test_impossible_runs_fail_with_one_message(self, recipe, tmp_path, settings, error, message):
        with pytest.raises(error, match=message):
            run(read_run_file(recipe, settings), tmp_path / "bad")
        assert not (tmp_path / "bad").exists()

    def test_text_items_without_texts(self, recipe, tmp_path):
        config = read_run_file(recipe, {"items": "text", "data": f'{{path = "{recipe.parent}/log.csv"}}'})
        with pytest.raises(DataError, match="no item has a text"):
            run(config, tmp_path / "bad")

    def test_a_folder_of_another_run_or_of_something_else(self, done, recipe, tmp_path):
        with pytest.raises(RunError, match=r"holds a run of other settings \(seed was 3, now 4\)"):
            run(read_run_file(recipe, {"seed": "4"}), done.folder)
        wanted = r"\(training.epochs was \d+, now 77, training.patience was \d+, now 78\)"
        with pytest.raises(RunError, match=wanted):
            run(read_run_file(recipe, {"training.epochs": "77", "training.patience": "78"}), done.folder)
        (tmp_path / "x").write_text("mine")
        with pytest.raises(RunError, match="holds something else"):
            run(read_run_file(recipe), tmp_path)
        with pytest.raises(RunError, match="holds something else"):
            run(read_run_file(recipe), tmp_path / "x")
        with pytest.raises(LorecError, match=r"x/y.*choose another"):
            run(read_run_file(recipe), tmp_path / "x" / "y")

    def test_a_log_that_changed_since(self, recipe, tmp_path):
        log = tmp_path / "log.csv"
        log.write_text((recipe.parent / "log.csv").read_text())
        config = read_run_file(recipe, {"data.path": f'"{log}"', "training.epochs": "1", "defenses": "[]"})
        finished = run(config, tmp_path / "run")
        log.write_text("\n".join(log.read_text().splitlines()[:-40]) + "\n")
        with pytest.raises(RunError, match="the log has changed"):
            run(config, tmp_path / "run")
        with pytest.raises(RunError, match="not the one"):
            reevaluate(finished)

    @pytest.mark.parametrize(
        "name", ["scorecard.json", "lorec/model.safetensors", "catalog.parquet", "poison/poison.json"]
    )
    def test_a_folder_edited_by_hand(self, done, recipe, tmp_path, name):
        import shutil

        shutil.copytree(done.folder, tmp_path / "copy")
        path = tmp_path / "copy" / name
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(RunError, match="is not what the run wrote"):
            reevaluate(open_run(tmp_path / "copy")) if name != "catalog.parquet" else open_run(
                tmp_path / "copy"
            ).catalog()
        with pytest.raises(RunError, match="is not what the run wrote"):
            run(read_run_file(recipe), tmp_path / "copy")

    def test_a_record_edited_by_hand(self, done, recipe, tmp_path):
        import shutil

        shutil.copytree(done.folder, tmp_path / "copy")
        path = tmp_path / "copy" / "run.json"
        path.write_text(path.read_text().replace('"seed": 3', '"seed": 99'))
        with pytest.raises(RunError, match=r"run\.json is not what the run wrote"):
            reevaluate(open_run(tmp_path / "copy"))
        with pytest.raises(RunError, match=r"run\.json is not what the run wrote"):
            run(read_run_file(recipe), tmp_path / "copy")

    @pytest.mark.parametrize(
        "settings",
        [
            {"seed": "-1"}, {"seed": "20000000000000000000000"}, {"split.seed": "-1"}, {"training.threads": "-1"},
            {"training.weight_decay": "-1.0"}, {"training.learning_rate": "inf"}, {"defenses.0.entropy": "nan"},
            {"defenses.0.learning_rate": "-1.0"}, {"encoder": '{name = "hash", dim = 0}'}, {"training.device": "meta"},
            {"backbone.feed_forward": "-4"}, {"defenses.\u00b2.x": "1"}, {"encoder": '{name = "random", dim = -3}'},
            {"targets": '{count = 60, rule = "random"}'}, {"attack.targets_each": "9"},
        ],
    )  # fmt: skip
    def test_values_out_of_range_fail_with_one_message_and_leave_nothing(self, recipe, tmp_path, settings):
        with pytest.raises((ConfigError, DataError)):
            run(read_run_file(recipe, settings), tmp_path / "bad")
        assert not (tmp_path / "bad" / "clean" / "scorecard.json").exists()

    def test_a_defense_that_lacks_texts_is_told_before_anything_trains(self, recipe, tmp_path):
        config = read_run_file(recipe, {"data": f'{{path = "{recipe.parent}/log.csv"}}'})
        with pytest.raises(DataError, match="no item has a text"):
            run(config, tmp_path / "bad")
        assert not (tmp_path / "bad").exists()

    def test_held_out_items_and_titles_belong_to_the_log_too(self, recipe, tmp_path):
        config = {"training.epochs": "1", "defenses": "[]"}
        for name in ("log.csv", "items.csv"):
            (tmp_path / name).write_text((recipe.parent / name).read_text())
            config["data.path" if name == "log.csv" else "data.items"] = f'"{tmp_path / name}"'
        finished = run(read_run_file(recipe, config), tmp_path / "run")
        items = (tmp_path / "items.csv").read_text()
        (tmp_path / "items.csv").write_text(items.replace("thing 7 ", "thing seven "))
        with pytest.raises(RunError, match="not the one"):
            reevaluate(finished)
        (tmp_path / "items.csv").write_text(items)
        log = pl.read_csv(tmp_path / "log.csv")
        newest = pl.col("time") == pl.col("time").max().over("user")
        swapped = pl.when(newest).then(pl.lit("i042")).otherwise(pl.col("item"))
        log.with_columns(item=swapped).write_csv(tmp_path / "log.csv")
        with pytest.raises(RunError, match="not the one"):
            reevaluate(finished)

    def test_links_ways_out_and_missing_files(self, done, tmp_path):
        import shutil

        from lorec.files import inside

        shutil.copytree(done.folder, tmp_path / "copy")
        model = tmp_path / "copy" / "lorec" / "model.safetensors"
        model.unlink()
        with pytest.raises(RunError, match="is missing"):
            open_run(tmp_path / "copy").recommender("lorec")
        model.symlink_to(done.folder / "lorec" / "model.safetensors")
        with pytest.raises(RunError, match="is a link"):
            open_run(tmp_path / "copy").recommender("lorec")
        with pytest.raises(RunError, match="leads out"):
            inside(tmp_path, "../x")
        with pytest.raises(UnknownName, match="did you mean 'lorec'"):
            open_run(done.folder).recommender("loreck")

    def test_no_run_and_a_damaged_one(self, tmp_path):
        with pytest.raises(RunError, match="no run folder"):
            open_run(tmp_path / "x")
        (tmp_path / "run.json").write_text("{")
        with pytest.raises(RunError, match="is damaged"):
            open_run(tmp_path)
        for content in ("{}", "[1]", '{"config": {}, "finished": true}'):
            (tmp_path / "run.json").write_text(content)
            with pytest.raises(RunError, match="not what the run wrote"):
                open_run(tmp_path)


class TestCommandLine:
    def test_run_shows_the_table_and_where_the_files_are(self, recipe, done, monkeypatch, capsys):
        code, out, _ = call(monkeypatch, capsys, "run", recipe, "--out", done.folder)
        assert code == 0
        for part in (
            "popularity",
            "clean",
            "poisoned",
            "+ lorec",
            "+ oracle",
            "HR@10",
            "T-HR@50",
            "AUC users",
            "run.json",
        ):
            assert part in out

    def test_run_prints_the_scorecard_as_json(self, recipe, done, monkeypatch, capsys):
        code, out, _ = call(monkeypatch, capsys, "run", recipe, "--out", done.folder, "--json")
        assert code == 0
        assert json.loads(out) == {"folder": str(done.folder)} | done.scorecard

    def test_recommend_prints_the_table_as_json(self, done, monkeypatch, capsys):
        items = done.catalog().items["item"].to_list()[:2]
        asked = ("recommend", done.folder, "--history", ",".join(items), "--arm", "lorec", "--k", 3)
        found = json.loads(call(monkeypatch, capsys, *asked, "--json")[1])
        assert [list(row) for row in found] == [["user", "rank", "item", "title", "score", "by"]] * 3
        table = call(monkeypatch, capsys, *asked)[1]
        assert all(row["item"] in table and f"{row['score']:.3f}" in table for row in found)
        code, _, err = call(monkeypatch, capsys, *asked, "--json", "--out", done.folder / "x.parquet")
        assert (code, "either --out FILE or --json" in err) == (2, True)

    def test_evaluate(self, done, monkeypatch, capsys):
        code, out, _ = call(monkeypatch, capsys, "evaluate", done.folder, "--arm", "oracle", "--json")
        assert code == 0
        assert json.loads(out)["oracle"]["HR@10"] == pytest.approx(done.arms["oracle"]["HR@10"])
        assert "HR@10" in call(monkeypatch, capsys, "evaluate", done.folder)[1]

    def test_what_is_followed_is_the_metric_of_that_epoch_and_changes_nothing_else(self, done, tmp_path):
        config = dataclasses.replace(done.config, follow=2, defenses=())
        followed = run(config, tmp_path / "followed")
        for arm, metrics in followed.arms.items():
            history = pl.read_ndjson(followed.folder / arm / "history.jsonl", infer_schema_length=None).to_dicts()
            at = {int(row["epoch"]): row["T-HR@50"] for row in history if row["T-HR@50"] is not None}
            assert list(at) == [2, 4]
            best = int(metrics["best epoch"])
            assert best not in at or at[best] == metrics["T-HR@50"]
            assert {key: value for key, value in metrics.items() if key not in COSTS} == {
                key: value for key, value in done.arms[arm].items() if key not in COSTS
            }
        with pytest.raises(ConfigError, match="follow is -1"):
            dataclasses.replace(config, follow=-1)

    def test_recommend_for_a_typed_history_prints_titles_literally(self, done, monkeypatch, capsys):
        monkeypatch.setenv("COLUMNS", "200")
        code, out, _ = call(monkeypatch, capsys, "recommend", done.folder, "--history", "i000, i002", "--k", "60")
        assert code == 0
        assert r"[red]x[/red]\x1b[31m\u202eevil 🎮" in out
        assert "\x1b[31m" not in out
        assert "\u202e" not in out

    def test_recommend_for_a_file(self, done, monkeypatch, capsys, tmp_path):
        (tmp_path / "h.csv").write_text("user,item,time\nnew,i003,2\nnew,i002,1\n=cmd,i001,1\n")
        out = tmp_path / "top.parquet"
        code, _, _ = call(
            monkeypatch, capsys, "recommend", done.folder, "--histories", tmp_path / "h.csv", "--k", 3, "--out", out
        )
        assert code == 0
        assert pl.read_parquet(out).columns == ["user", "rank", "item", "title", "score", "by"]
        assert pl.read_parquet(out)["user"].to_list() == ["=cmd"] * 3 + ["new"] * 3

    def test_recommend_names_strangers_and_falls_back_on_popularity(self, done, monkeypatch, capsys, tmp_path):
        (tmp_path / "h.csv").write_text("user,item\nold,i003\nold,new1\nnew,new1\nnew,new2\x1b[31m\n")
        asked = ("recommend", done.folder, "--histories", tmp_path / "h.csv", "--k", 2)
        code, out, err = call(monkeypatch, capsys, *asked)
        assert code == 0
        assert "2 items are not in the catalogue and were left out of the histories: new1, new2\\x1b[31m" in err
        assert [out.count(by) for by in (" model", " popularity")] == [2, 2]
        assert "gets the most popular ones" in out

    def test_recommend_keeps_to_what_may_be_shown(self, done, monkeypatch, capsys, tmp_path):
        def items(*options):
            out = tmp_path / "top.parquet"
            asked = ("recommend", done.folder, "--history", "i001", "--k", 60, "--out", out, *options)
            assert call(monkeypatch, capsys, *asked)[0] == 0
            return pl.read_parquet(out)["item"].to_list()

        every = items()
        (tmp_path / "blocked.txt").write_text("i004\n\ni005\n")
        kept = items("--without", "i002, i003", "--without-file", tmp_path / "blocked.txt")
        assert kept == [item for item in every if item not in ("i002", "i003", "i004", "i005")]
        title = done.catalog().items.filter(pl.col("title").is_not_null())["title"][0]
        assert items("--where", f"title={title}") == done.catalog().items.filter(title=title)["item"].to_list()
        (tmp_path / "blocked.txt").write_text("i004\nunborn\ni005\n")
        out = tmp_path / "top.parquet"
        asked = ("recommend", done.folder, "--history", "i001", "--k", 60, "--out", out)
        code, _, err = call(monkeypatch, capsys, *asked, "--without-file", tmp_path / "blocked.txt")
        assert code == 0
        assert "1 items are not in the catalogue and need no blocking by" in err
        assert pl.read_parquet(out)["item"].to_list() == [item for item in every if item not in ("i004", "i005")]
        for wrong in (
            ("--where", "colour=red"),
            ("--without", "unborn"),
            ("--where", "title=nothing"),
            ("--without-file", tmp_path / "no.txt"),
        ):
            assert call(monkeypatch, capsys, "recommend", done.folder, "--history", "i001", *wrong)[0] == 2

    def test_recommendations_for_many_go_out_in_blocks(self, done, split, tmp_path):
        made, catalog, log = done.recommender("clean"), done.catalog(), split.train
        users = pl.Series([f"u{n}" for n in range(len(log))])
        with pytest.raises(ConfigError, match=r"call it .*top\.parquet"):
            save_recommendations(tmp_path / "top.csv", made, log, catalog, 4, users=users)
        n = save_recommendations(tmp_path / "top.parquet", made, log, catalog, 4, users=users, block=7)
        whole = made.recommend(log, catalog, 4, users=users)
        pl.testing.assert_frame_equal(pl.read_parquet(tmp_path / "top.parquet"), whole)
        assert n == whole.height

    def test_lists_are_written_over_lists_alone(self, done, split, tmp_path):
        made, catalog, log = done.recommender("clean"), done.catalog(), split.train
        users = pl.Series([f"u{n}" for n in range(len(log))])
        for _ in range(2):
            save_recommendations(tmp_path / "top.parquet", made, log, catalog, 1, users=users)
        log_file = pl.DataFrame({"user": ["a"], "item": ["b"]})
        log_file.write_parquet(tmp_path / "log.parquet")
        (tmp_path / "notes").write_text("mine")
        for name in ("log.parquet", "notes"):
            with pytest.raises(ConfigError, match="holds no recommendations"):
                save_recommendations(tmp_path / name, made, log, catalog, 1, users=users)
        pl.testing.assert_frame_equal(pl.read_parquet(tmp_path / "log.parquet"), log_file)

    def test_an_interrupted_export_leaves_nothing(self, done, split, tmp_path, monkeypatch):
        made, catalog, log = done.recommender("clean"), done.catalog(), split.train
        users = pl.Series([f"u{n}" for n in range(len(log))])
        rows = made.recommend

        def interrupted(some, *rest, **options):
            if len(some) and some[0][0] != log[0][0]:
                raise RuntimeError("interrupted")
            return rows(some, *rest, **options)

        monkeypatch.setattr(made, "recommend", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            save_recommendations(tmp_path / "top.parquet", made, log, catalog, 4, users=users, block=1)
        assert list(tmp_path.iterdir()) == []

    def test_list(self, monkeypatch, capsys):
        code, out, _ = call(monkeypatch, capsys, "list", "attacks")
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()] == sorted(ATTACKS)
        assert all(len(line.split()) > 3 for line in out.splitlines())  # and what each is
        code, _, err = call(monkeypatch, capsys, "list", "atacks")
        assert code == 2
        assert "did you mean 'attacks'" in err

    def test_data_stats_and_check(self, recipe, monkeypatch, capsys):
        log, items = recipe.parent / "log.csv", recipe.parent / "items.csv"
        code, out, _ = call(monkeypatch, capsys, "data", "stats", log, "--items", items)
        assert code == 0
        assert "users                                     80" in out
        assert json.loads(call(monkeypatch, capsys, "data", "stats", log, "--json")[1])["items without text"] == 60
        code, out, _ = call(monkeypatch, capsys, "data", "check", log, "--column", "user=user")
        assert code == 0
        assert "remarks; none of them stops a run" in out

    def test_compile_and_run_on_it(self, recipe, done, monkeypatch, capsys, tmp_path):
        """The same arms as from the log itself."""
        log, items, out = recipe.parent / "log.csv", recipe.parent / "items.csv", tmp_path / "compiled"
        asked = [f"--set={key}={value}" for key, value in done.record["config"]["split"].items()]
        code, said, _ = call(monkeypatch, capsys, "data", "compile", log, out, "--items", items, *asked)
        assert code == 0
        assert "80 users" in said
        settings = {"data": f'{{name = "compiled", path = "{out}"}}', "training.epochs": "1", "defenses": '["oracle"]'}
        found = run(read_run_file(recipe, settings), tmp_path / "run")
        assert found.record["data"]["digest"] == done.record["data"]["digest"]
        assert call(monkeypatch, capsys, "data", "compile", log, out, "--set", "k_cor=5")[0] == 2

    @pytest.mark.parametrize(
        "arguments",
        [
            ("run", "nowhere.toml"),
            ("run", "{recipe}", "--set", "training.epochs"),
            ("evaluate", "nowhere"),
            ("recommend", "{run}"),
            ("recommend", "{run}", "--history", "nothing"),
            ("recommend", "{run}", "--history", "i001", "--without", "nothing"),
            ("recommend", "{run}", "--history", "i001", "--arm", "none"),
            ("data", "stats", "nowhere.csv"),
            ("data", "check", "complete-jorney"),
            ("data", "stats", "complete-journey", "--items", "x.csv"),
        ],
    )
    def test_mistakes_end_with_one_line_and_code_2(self, recipe, done, monkeypatch, capsys, arguments):
        filled = [part.format(recipe=recipe, run=done.folder) for part in arguments]
        code, out, err = call(monkeypatch, capsys, *filled)
        assert code == 2
        assert out == ""
        assert err.startswith("lorec: ")
        assert len(err.splitlines()) == 1

    def test_a_fault_of_ours_has_an_exit_code_of_its_own(self, monkeypatch, capsys):
        monkeypatch.setattr("lorec.registry.describe", lambda table: 1 / 0)
        code, out, err = call(monkeypatch, capsys, "list", "attacks")
        assert (code, out) == (70, "")
        assert "ZeroDivisionError" in err
        assert "please report it" in err

    def test_help_teaches_without_torch(self):
        asked = "import sys; sys.argv = ['lorec', '--help']\nimport lorec.cli\n"
        asked += "try: lorec.cli.main()\nexcept SystemExit: pass\n"
        said = subprocess.run(
            [sys.executable, "-c", asked + "assert 'torch' not in sys.modules and 'polars' not in sys.modules"],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert said.returncode == 0, said.stderr
        assert "recipes/demo.toml" in said.stdout
        assert lorec("--version").stdout.startswith("lorec 0.")

    def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same(self, recipe, done, tmp_path):
        import signal

        command = [sys.executable, "-m", "lorec", "run", str(recipe), "--out", str(tmp_path / "cut")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 300
        while not (tmp_path / "cut" / "poisoned" / "checkpoint.safetensors").exists():
            assert time.monotonic() < deadline, process.stderr.read()
            assert process.poll() is None or (tmp_path / "cut" / "poisoned" / "scorecard.json").exists()
            time.sleep(0.005)
            if (tmp_path / "cut" / "poisoned" / "scorecard.json").exists():
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
        if process.returncode != 0:  # it may have been quicker
            assert process.returncode == 130
            assert "when the same command is given again" in err
            assert "Traceback" not in err
        again = run(read_run_file(recipe), tmp_path / "cut")
        for arm, metrics in done.arms.items():
            for name in ("HR@10", "T-HR@50", "best epoch"):
                assert metrics[name] == again.arms[arm][name]

    @pytest.mark.skipif(not Path("/dev/full").exists() or os.name != "posix", reason="no small disk can be made here")
    def test_a_full_disk(self, recipe, tmp_path, monkeypatch, capsys):
        import lorec.files as files

        def full(source, target):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "replace", full)
        code, _, err = call(monkeypatch, capsys, "run", recipe, "--out", tmp_path / "r")
        assert code == 2
        assert "No space left on device" in err
        assert not any(path.is_file() for path in (tmp_path / "r").rglob("*"))


@pytest.mark.parametrize(("columns", "tables"), [("80", 3), ("40", 9), (None, 1)])
def test_any_number_of_arms_is_shown_whole(monkeypatch, capsys, columns, tables):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    arms = {f"filter-{n}": {"HR@10": n / 100, "precision": 0.5 + n / 1000, "target rank": n} for n in range(14)}
    show_arms(arms)
    said = capsys.readouterr().out
    assert "…" not in said
    assert said.count("HR@10") == said.count("precision") == tables
    for n, figures in enumerate(arms.values()):
        assert f"+ filter-{n}" in said
        assert f"{figures['HR@10']:.4f}" in said
        assert f"{figures['precision']:.3f}" in said


def test_literal_shows_what_a_terminal_would_obey():
    assert literal("a\x1b[2Jb\x07\r\n") == r"a\x1b[2Jb\x07\x0d\x0a"
    assert literal("\u202eevil\u2066") == r"\u202eevil\u2066"
    assert literal("שלום 👩\u200d💻 [bold]") == "שלום 👩\u200d💻 [bold]"
    assert literal("x" * 10_000) == "x" * 119 + "…"


class TestAttack:
    def test_a_stored_poison_is_that_of_the_run(self, done, recipe, tmp_path, monkeypatch, capsys):
        """Made alone, taken up by another run: the same fraudsters, and the same kind is left out of the known ones."""
        code, said, _ = call(monkeypatch, capsys, "attack", recipe, "--out", tmp_path / "poison")
        assert code == 0
        assert said.startswith("random: 8 fraudsters")
        same = ("profiles.parquet", "poison.json")
        assert all((tmp_path / "poison" / n).read_bytes() == (done.folder / "poison" / n).read_bytes() for n in same)
        again = {"attack": f'{{name = "stored", path = "{tmp_path}/poison"}}', "training.epochs": "2"}
        stored = run(read_run_file(recipe, again), tmp_path / "run")
        assert stored.record["data"]["poison"] == done.record["data"]["poison"]
        likely = [pl.read_parquet(one.folder / "lorec" / "interactions.parquet")["suspicion"] for one in (stored, done)]
        assert likely[0].equals(likely[1])

    def test_an_attack_that_was_made_is_not_made_again(self, recipe, tmp_path, monkeypatch):
        """A long attack must not be repeated when a run goes on."""
        config = read_run_file(recipe, {"training.epochs": "1", "defenses": "[]"})
        first = run(config, tmp_path / "run")
        (tmp_path / "run" / "scorecard.json").unlink()
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        record |= {"finished": False, "files": {k: v for k, v in record["files"].items() if k != "scorecard.json"}}
        records.seal(record, tmp_path / "run", [])
        monkeypatch.setattr(experiment, "forged", lambda *_: pytest.fail("forged again"))
        assert run(config, tmp_path / "run").arms == first.arms

    @pytest.mark.parametrize("job", ["run", "attack"])
    def test_goes_on_after_an_interruption(self, recipe, tmp_path, job):
        from lorec.stages import attack

        changes = {"attack": '{name = "rev", epochs = 4, watched = 30, width = 4, share = 0.1}', "defenses": "[]"}
        config = read_run_file(recipe, changes | {"training.epochs": "1"})
        whole = attack(config, tmp_path / "whole")
        told = []

        def watch(event):
            if event.stage == "attack":
                told.append(event.done)
                if told == [1, 2]:
                    raise KeyboardInterrupt

        do, made = (attack, tmp_path / "it") if job == "attack" else (run, tmp_path / "it" / "poison")
        with pytest.raises(KeyboardInterrupt):
            do(config, tmp_path / "it", watch=watch)
        assert (made / "draft.safetensors").exists()
        (made / ".draft.safetensors.1.tmp").write_bytes(b"as a killed process leaves it")
        do(config, tmp_path / "it", watch=watch)
        assert told == [1, 2, 3, 4]
        assert sorted(one.name for one in made.iterdir()) == ["poison.json", "profiles.parquet"]
        again = pl.read_parquet(made / "profiles.parquet")
        assert again.equals(pl.read_parquet(tmp_path / "whole" / "profiles.parquet"))
        assert len(whole.profiles) == again["fraudster"].n_unique()

    def test_refuses_what_it_cannot_do(self, done, recipe, tmp_path, monkeypatch, capsys):
        for arguments, message in (
            (("--form", "pickle"), "no form of a poison called 'pickle'"),
            (("--set", 'attack={name="stored"}'), "needs a path"),
            (("--set", "attack.share=0.7"), "at most 0.5"),
        ):
            code, _, err = call(monkeypatch, capsys, "attack", recipe, "--out", tmp_path / "new", *arguments)
            assert code == 2
            assert message in err
            assert not (tmp_path / "new").exists()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis").touch()
        code, _, err = call(monkeypatch, capsys, "attack", recipe, "--out", tmp_path / "mine")
        assert code == 2
        assert "holds something else" in err


@pytest.mark.parametrize("verb", ["run", "grid", "detect", "attack", "scan"])
def test_where_nothing_can_be_written_is_told_before_anything_is_read(recipe, tmp_path, monkeypatch, capsys, verb):
    (tmp_path / "file").write_text("mine")
    (recipe.parent / "grid.toml").write_text(recipe.read_text() + "\n[grid]\nseed = [3]\n")
    asked = {"grid": recipe.parent / "grid.toml", "scan": recipe.parent / "log.csv"}.get(verb, recipe)
    for module in ("experiment.prepared", "stages.prepared", "scans.whole"):
        monkeypatch.setattr(f"lorec.{module}", None)
    code, _, err = call(monkeypatch, capsys, verb, asked, "--out", tmp_path / "file" / "out")
    assert code == 2
    assert "file/out" in err
    assert "choose another" in err
    assert (tmp_path / "file").read_text() == "mine"


class TestKilledBetweenTwoWrites:
    """Whatever a process leaves that is killed at any write, the same command goes on from."""

    @pytest.mark.parametrize(
        "name", ["run.json", "catalog.parquet", "profiles.parquet", "poison.json", "ranks.parquet"]
    )
    def test_goes_on(self, recipe, tmp_path, monkeypatch, name):
        config = read_run_file(recipe, {"training.epochs": "2", "defenses": '["oracle"]'})
        real = os.replace

        class Killed(BaseException):
            pass

        def dies(source, target):
            if Path(target).name == name:
                (Path(target).parent / f".{name}.1.tmp").write_bytes(b"half")
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(Killed):
            run(config, tmp_path / "one")
        monkeypatch.undo()
        assert run(config, tmp_path / "one").record["finished"]

    def test_goes_on_after_a_failed_arm(self, recipe, tmp_path, monkeypatch):
        config = read_run_file(recipe, {"training.epochs": "2", "defenses": '["oracle", "lorec"]'})
        with monkeypatch.context() as patch:
            patch.setattr("lorec.defenses.LoRec.start", lambda *_, **more: 1 / 0)
            failed = run(config, tmp_path / "one", keep_going=True)
        assert failed.scorecard["failed"] == {"lorec": "ZeroDivisionError: division by zero"}
        assert list(open_run(tmp_path / "one", partial=True).arms) == ["clean", "poisoned", "oracle"]
        with pytest.raises(RunError, match="not a finished run"):
            open_run(tmp_path / "one")
        (tmp_path / "one" / "lorec").mkdir(exist_ok=True)
        seal = records.seal
        with monkeypatch.context() as patch:  # killed after the new scorecard, before the record of it
            patch.setattr(experiment, "seal", lambda *of: 1 / 0 if of[2] == ["scorecard.json"] else seal(*of))
            with pytest.raises(ZeroDivisionError):
                run(config, tmp_path / "one", keep_going=True)
        assert run(config, tmp_path / "one").arms["lorec"]


def test_two_who_write_one_file_take_two_names(tmp_path):
    """Two machines with one folder between them may even have the same process number."""
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        assert one != other


class TestInputs:
    """What a run reads besides its log is as it was when it goes on."""

    @pytest.fixture
    def stored(self, recipe, tmp_path):
        """Makes a poison of a seed in the form of other work, and the run file that names it."""

        def made(seed, form="inject_user"):
            config = read_run_file(recipe, {"seed": str(seed)})
            stages.attack(config, tmp_path / "p.json", form)
            quick = {"attack": f'{{name = "stored", path = "{tmp_path}/p.json"}}', "training.epochs": "2"}
            return read_run_file(recipe, quick | {"defenses": '["oracle"]'})

        return made

    @pytest.mark.parametrize("form", ["inject_user", "fake_users"])
    def test_a_stored_poison_of_other_work_survives_an_interruption(self, stored, form, tmp_path, monkeypatch):
        config = stored(1, form)
        whole = run(config, tmp_path / "whole")
        real, calls = experiment._arm, []

        def killed(job, name, defense):
            calls.append(name)
            return real(job, name, defense) if len(calls) < 3 else 1 / 0

        with monkeypatch.context() as patch:
            patch.setattr(experiment, "_arm", killed)
            with pytest.raises(ZeroDivisionError):
                run(config, tmp_path / "one")
        found = run(config, tmp_path / "one")
        assert found.arms["oracle"]["target rank"] == whole.arms["oracle"]["target rank"]
        assert reevaluate(open_run(tmp_path / "one"))["oracle"]["HR@10"] == found.arms["oracle"]["HR@10"]
        assert report(tmp_path / "one").stat().st_size > 10_000

    def test_another_stored_poison_is_noticed(self, stored, tmp_path):
        config = stored(1)
        run(config, tmp_path / "one")
        stored(2)
        with pytest.raises(RunError, match="a stored poison has changed since"):
            run(config, tmp_path / "one")

    def test_another_encoder_of_the_same_name_is_noticed(self, recipe, tmp_path, monkeypatch):
        config = read_run_file(recipe, {"items": '"text"', "training.epochs": "2", "defenses": '["oracle"]'})
        with monkeypatch.context() as patch:
            with patch.context() as early:
                early.setattr(experiment, "_arm", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    run(config, tmp_path / "one")
            real = Hash.identity
            patch.setattr(Hash, "identity", lambda self: real(self) | {"file": "another"})
            with pytest.raises(RunError, match="what encodes texts has changed since"):
                run(config, tmp_path / "one")
        assert run(config, tmp_path / "one").record["finished"]

    def test_two_at_once_do_not_share_a_folder(self, recipe, tmp_path):
        config = read_run_file(recipe, {"training.epochs": "1", "defenses": '["oracle"]'})
        said = []

        def again(event):
            if event.stage == "poisoned" and not said:
                with pytest.raises(RunError, match="another process is at work on") as error:
                    run(config, tmp_path / "one")
                said.append(error)

        assert run(config, tmp_path / "one", watch=again).record["finished"]
        assert said
        open_run(tmp_path / "one").file("clean/history.jsonl")
        assert not (tmp_path / "one" / ".lock").exists()


def test_the_peak_of_a_process_is_its_own():
    """Linux hands the peak of a parent down to its children; a cell's must not be that of who started it."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    held = bytearray(os.urandom(1)) * 800_000_000
    asked = "from lorec.records import peak_memory; print(peak_memory())"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert 50_000_000 < int(told.stdout) < 750_000_000 < records.peak_memory()
    del held


class TestDetect:
    def test_a_detector_says_what_the_defense_made_of_it_does(self, recipe, done, tmp_path):
        config = read_run_file(recipe, {"detectors": '["lorec", "degree", {name = "llm4dec", view = "pooled"}]'})
        found = stages.detect(config)
        assert list(found.figures) == ["lorec", "degree", "llm4dec"]
        for name, value in done.arms["lorec"].items():
            if name in ("ROC-AUC", "F1", "Brier", "interactions ROC-AUC", "genuine interactions turned down"):
                assert found.figures["lorec"][name] == value
        found.save(tmp_path / "out")
        users = pl.read_parquet(tmp_path / "out" / "users.parquet")
        assert users["injected"].sum() == found.split.fraudsters.sum() == 8
        kept = pl.read_parquet(done.folder / "lorec" / "weights.parquet").select("user", "suspicion")
        both = users.join(kept, on="user", validate="1:1")
        assert both.height == len(users)
        assert (both["lorec"] == both["suspicion"]).all()
        items = pl.read_parquet(tmp_path / "out" / "items.parquet")
        assert items.columns == ["item", "title", "pushed", "lorec", "lorec reasons"]
        assert items["pushed"].sum() == 2
        harm = pl.read_parquet(tmp_path / "out" / "harm.parquet")
        assert harm.group_by("detector", "by").len()["len"].to_list() == [4] * 6
        found.save(tmp_path / "out")  # its own files it replaces
        (tmp_path / "out" / "mine.txt").touch()
        with pytest.raises(RunError, match="something else"):
            found.save(tmp_path / "out")

    def test_from_the_command_line(self, recipe, tmp_path, monkeypatch, capsys):
        asked = ("detect", recipe, "--set", 'detectors=["degree"]')
        code, out, _ = call(monkeypatch, capsys, *asked, "--set", 'known.kinds=["random"]', "--out", tmp_path / "out")
        assert (code, "degree" in out, "worst" in out) == (0, True, True)
        assert "random: 8 fraudsters in small" in out
        assert "The judged kind, random, was among the known fakes" in out
        assert json.loads((tmp_path / "out" / "judged.json").read_text())["detectors"]["degree"]["ROC-AUC"] > 0
        code, out, _ = call(monkeypatch, capsys, *asked, "--json")
        assert json.loads(out)["notes"] == []
        monkeypatch.delenv("COLUMNS", raising=False)  # nothing is broken where there is no edge
        long = '[{name = "fap", rounds = 3}, {name = "fap", share = 0.02, rounds = 2}]'
        _, out, _ = call(monkeypatch, capsys, "detect", recipe, "--set", f"detectors={long}")
        head, *rows = [line.split() for line in out.splitlines() if "AUC" in line or " fap" in line]
        assert {"seconds", "recall"} <= set(head)
        assert [row[0] for row in rows] == ["fap-rounds-3", "fap-rounds-2-share-0.02"]
        for given, said in (
            ('["degre"]', "did you mean 'degree'"), ('["degree", "degree"]', "stands twice"),
            ("[]", "name at least one"),
            ('[{name = "degree", ridge = 0.0}]', "above 0"), ('"degree"', "is a list"),
            ('["zeroshot"]', "a model that writes"),
        ):  # fmt: skip
            code, _, err = call(monkeypatch, capsys, "detect", recipe, "--set", f"detectors={given}")
            assert (code, said in err) == (2, True), err
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").touch()
        monkeypatch.setattr("lorec.stages.forge", lambda *of, **how: pytest.fail("too late"))
        code, _, err = call(monkeypatch, capsys, *asked, "--out", tmp_path / "full")
        assert (code, "something else" in err) == (2, True)


class TestFilter:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ('{name = "filter", detector = {name = "pca", components = 100}}', "100 components of"),
            ('{name = "filter", detector = "audit"}', "a model that writes"),
            ('"pld"', "one at a time"),
        ],
    )
    def test_what_can_not_be_done_is_said_before_anything_is_trained(self, recipe, tmp_path, monkeypatch, asked, said):
        for slow in ("experiment.fit", "stages.forge"):
            monkeypatch.setattr(f"lorec.{slow}", lambda *of, **how: pytest.fail("too late"))
        circular = {"backbone": '{name = "fmlp", circular = true, width = 8, max_length = 10}'}
        config = read_run_file(recipe, circular | {"defenses": f"[{asked}]"})
        with pytest.raises(ConfigError, match=said):
            run(config, tmp_path / "one")
        if "filter" in asked:
            monkeypatch.setattr("lorec.stages.ask", lambda *of, **how: pytest.fail("too late"))
            with pytest.raises(ConfigError, match=said):
                detect(dataclasses.replace(config, detectors=(Degree(), config.defenses[0].detector)))

    def test_any_detector_is_a_defense_by_its_name(self, recipe, tmp_path):
        given = '[{name = "filter", detector = "degree"}, '
        given += '{name = "filter", detector = {name = "llm4dec", view = "pooled"}}]'
        config = read_run_file(recipe, {"defenses": given, "training.epochs": "1"})
        assert resolve(plain(config)) == config
        found = run(config, tmp_path / "one")
        assert list(found.arms) == ["clean", "poisoned", "filter-degree", "filter-llm4dec"]
        assert found.arms["filter-degree"]["ROC-AUC"] > 0
        assert open_run(tmp_path / "one").config == config
        # The defense LoRec is a detector, too; and one detector may stand twice with other settings.
        several = (Filter(detector=LoRec()), Filter(detector=Degree(ridge=3.0)), Filter(detector=Degree()))
        made = dataclasses.replace(config, defenses=several)
        assert list(arms_of(made))[2:] == ["filter-lorec", "filter-degree-ridge-3.0", "filter-degree"]
        assert list(arms_of(resolve(plain(made)))) == list(arms_of(made))
        # What all of them set alike tells none of them apart.
        pooled = [LoRecPaper(view="pooled", enter=6, entropy=entropy) for entropy in (0.5, 0.0, 2.0)]
        names = list(arms_of(dataclasses.replace(config, defenses=tuple(pooled))))[2:]
        assert names == ["lorec-paper", "lorec-paper-entropy-0.0", "lorec-paper-entropy-2.0"]
        with pytest.raises(ConfigError, match="'lorec-paper' stands twice"):
            arms_of(dataclasses.replace(config, defenses=(pooled[0], pooled[0])))
        for given, said in (
            ('[{name = "filter", detector = "zeroshot"}]', "accuses nobody"),
            ('[{name = "filter", detector = "degre"}]', "did you mean 'degree'"),
            ('["filter"]', "defenses: filter. lacks detector"),
            ('[{name = "lorec", detector = "degree"}]', "no key"),
        ):
            with pytest.raises(ConfigError, match=said):
                read_run_file(recipe, {"defenses": given})


class TestSettings:
    def test_another_member_keeps_what_it_knows_of_the_section(self, recipe):
        kept = read_run_file(recipe, {"attack": "segment"}).attack
        assert (type(kept).__name__, kept.share) == ("Segment", 0.1)
        assert read_run_file(recipe, {"data": "complete-journey"}).data == CompleteJourney()

    def test_a_defense_that_begins_too_late_is_told(self, recipe, tmp_path):
        config = read_run_file(recipe, {"defenses": '["trimmed"]', "training.epochs": "2"})
        assert any(
            "trimmed begins after the last epoch" in note for note in run(config, tmp_path / "one").scorecard["notes"]
        )


class TestGivenWeights:
    def test_what_a_run_has_left_is_a_defense_of_the_next(self, recipe, done, tmp_path):
        """LoRec's interactions at weight 0, from the run's own file, train the bit-same recommender."""
        kept = done.folder / "lorec" / "interactions.parquet"
        given = f'[{{name = "weighted", path = "{kept}"}}]'
        found = run(read_run_file(recipe, {"defenses": given}), tmp_path / "one")
        assert found.arms["weighted"]["HR@10"] == done.arms["lorec"]["HR@10"]
        assert found.arms["weighted"]["target rank"] == done.arms["lorec"]["target rank"]
        assert found.arms["weighted"]["lies' weight"] == done.arms["lorec"]["lies' weight"]
        assert (tmp_path / "one" / "weighted" / "interactions.parquet").exists()
        assert any("injected users by number" in note for note in found.scorecard["notes"])

    def test_a_file_that_changes_is_noticed(self, recipe, tmp_path):
        (tmp_path / "w.csv").write_text("user,weight\nu001,0\n")
        given = f'[{{name = "weighted", path = "{tmp_path}/w.csv"}}]'
        config = read_run_file(recipe, {"defenses": given, "training.epochs": "1"})
        run(config, tmp_path / "one")
        (tmp_path / "w.csv").write_text("user,weight\nu002,0\n")
        with pytest.raises(RunError, match="file of weights has changed"):
            run(config, tmp_path / "one")

    def test_a_file_that_is_not_there_is_said_before_anything_is_trained(self, recipe, tmp_path, monkeypatch, capsys):
        asked = ("run", recipe, "--out", tmp_path / "one", "--set", 'defenses=[{name="weighted", path="none.csv"}]')
        code, _, err = call(monkeypatch, capsys, *asked)
        assert (code, "none.csv does not exist" in err) == (2, True)
        assert not (tmp_path / "one" / "clean").exists()


class TestEncode:
    def test_encodes_once_what_runs_then_find(self, recipe, tmp_path, monkeypatch):
        config = read_run_file(recipe)
        told = stages.encode(config, users=True, cache=tmp_path / "vectors")
        assert (told.texts, told.missing) == (60 + 80, 60 + 80)
        assert told.seconds > 0
        again = stages.encode(config, users=True, cache=tmp_path / "vectors")
        assert (again.texts, again.missing, again.tokens) == (140, 0, 0)

        def refuse(self, texts):
            raise AssertionError(f"{len(texts)} texts were encoded again")

        monkeypatch.setattr(Hash, "encode", refuse)
        split = prepared(config.data, config.split)
        text = TextVectors(split.catalog, Hash(), tmp_path / "vectors", config.scenario)
        assert text.items().shape == (61, 256)
        assert text.users(split.train).shape == (80, 256)

    def test_says_before_how_much_it_is_and_keeps_nothing(self, recipe, tmp_path):
        told = stages.encode(read_run_file(recipe), users=True, dry=True, cache=tmp_path / "vectors")
        assert (told.texts, told.missing) == (140, 140)
        assert 0 < told.seconds < 60
        assert told.memory > 1e7
        assert not (tmp_path / "vectors").exists()

    def test_new_users_cost_only_themselves(self, recipe, tmp_path):
        config = read_run_file(recipe)
        stages.encode(config, users=True, cache=tmp_path / "vectors")
        log = pl.read_csv(recipe.parent / "log.csv")
        more = log.filter(pl.col("user") == "u003").with_columns(user=pl.lit("u999"), item=pl.lit("i007"))
        pl.concat([log, more.with_columns(item=pl.Series([f"i{n:03d}" for n in range(len(more))]))]).write_csv(
            tmp_path / "log.csv"
        )
        grown = read_run_file(recipe, {"data.path": f'"{tmp_path}/log.csv"'})
        assert stages.encode(grown, users=True, dry=True, cache=tmp_path / "vectors").missing == 1

    def test_from_the_command_line(self, recipe, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        code, out, _ = call(monkeypatch, capsys, "encode", recipe, "--users", "--dry-run")
        assert (code, "140 of 140 texts to encode; " in out) == (0, True)
        code, out, err = call(monkeypatch, capsys, "encode", recipe, "--users")
        assert (code, "140 of 140 texts encoded" in out) == (0, True)
        assert "140 of 140 texts" in err
        code, _, err = call(monkeypatch, capsys, "encode", recipe, "--set", "encoder=minilmm")
        assert (code, "did you mean 'minilm'" in err) == (2, True)
