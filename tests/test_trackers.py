"""Trackers: what another program is told is what the run has put down, once, and never at the training's cost."""

import dataclasses
import json
import logging
import math
import time

import pytest
from conftest import world

from lorec.cli import main
from lorec.data import leave_two_out
from lorec.errors import ConfigError, RunError
from lorec.experiment import run
from lorec.grids import grid, read_grid_file
from lorec.models import SASRec
from lorec.records import Event, open_run
from lorec.runfile import plain, read_run_file
from lorec.trackers import PATIENCE, MLflow, TensorBoard, Tracker, _told, tracker
from lorec.training import Training, fit

TOML = """
name = "followed"
seed = 3
follow = 2
encoder = "hash"
defenses = ["oracle"]

[data]
path = "{folder}/log.csv"
items = "{folder}/items.csv"

[backbone]
name = "sasrec"
width = 8
blocks = 1

[attack]
name = "random"
share = 0.1

[targets]
count = 2

[training]
epochs = 3
tokens = 512
"""

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # the libraries' own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("followed log")
    tiny = world()
    tiny.interactions.write_csv(folder / "log.csv")
    tiny.items.write_csv(folder / "items.csv")
    (folder / "run.toml").write_text(TOML.format(folder=folder), "utf-8")
    (folder / "grid.toml").write_text(TOML.format(folder=folder) + "\n[grid]\nseed = [1, 2]\n", "utf-8")
    return folder


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def scalars(folder):
    """Of one series: name -> [(step, value)]."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reading.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def history(folder, arm):
    return [json.loads(line) for line in (folder / arm / "history.jsonl").read_text("utf-8").splitlines()]


class TestTensorBoard:
    def test_curves_are_the_history_and_the_end_is_the_scorecard(self, files, tmp_path):
        config = read_run_file(files / "run.toml")
        with TensorBoard(tmp_path / "board", {"": plain(config)}) as board:
            done = run(config, tmp_path / "run", watch=board)
        for arm in ("clean", "poisoned", "oracle"):
            told, written = scalars(tmp_path / "board" / arm), history(tmp_path / "run", arm)
            for figure, tag in (("loss", "loss"), ("valid HR@10", "valid_HR_at_10"), ("T-HR@50", "T-HR_at_50")):
                wanted = [(row["epoch"], row[figure]) for row in written if figure in row]
                assert [(step, pytest.approx(value, rel=1e-5)) for step, value in wanted] == told[f"epoch/{tag}"]
            assert told["test/HR_at_10"] == [(0, pytest.approx(done.arms[arm]["HR@10"], rel=1e-5))]
        assert [step for step, _ in scalars(tmp_path / "board" / "oracle")["epoch/T-HR_at_50"]] == [2]

    def test_every_cell_has_the_curve_of_a_clean_model_that_they_share(self, files, tmp_path):
        text = (files / "grid.toml").read_text("utf-8").replace("follow = 2", "").replace("seed = [1, 2]", "seed = [1]")
        (files / "shared.toml").write_text(text + 'attack = ["random", "bandwagon"]\n', "utf-8")
        asked = read_grid_file(files / "shared.toml")
        for _ in range(2):
            with TensorBoard(tmp_path / "board") as board:
                grid(asked, tmp_path / "grid", workers=1, watch=lambda cell, event: board(event, cell))
        assert len(list((tmp_path / "grid" / "shared" / "clean").glob("*/model.safetensors"))) == 1
        for cell in asked.cells:
            wanted = [row["epoch"] for row in history(tmp_path / "grid" / "runs" / cell.name, "clean")]
            told = scalars(tmp_path / "board" / cell.name / "clean")
            assert [step for step, _ in told["epoch/loss"]] == wanted
            assert len(told["test/HR_at_10"]) == 1

    def test_a_fit_by_itself_is_one_series(self, tmp_path):
        with TensorBoard(tmp_path) as board:
            fitted = fit(
                leave_two_out(world()), SASRec(width=8, blocks=1), training=Training(epochs=2, tokens=512), watch=board
            )
        told = scalars(tmp_path / "fit")["epoch/loss"]
        assert [value for _, value in told] == pytest.approx([row["loss"] for row in fitted.history], rel=1e-5)


@pytest.mark.usefixtures("mlflow")
class TestMLflow:
    def test_each_arm_of_a_grid_is_a_run_and_a_grid_that_goes_on_finds_them(self, files, tmp_path):
        import mlflow

        asked = read_grid_file(files / "grid.toml")
        about = {cell.name: plain(cell.config) for cell in asked.cells}
        for _ in range(2):  # the second time everything is done, and was told, before
            with MLflow("mine", tmp_path / "grid", about) as told:
                grid(asked, tmp_path / "grid", workers=1, watch=lambda cell, event: told(event, cell))
                told(Event("oracle", 1, 1, epoch=1, figures={"loss": math.nan, "late": 2.0}), asked.cells[0].name)
        assert str(tmp_path) not in str([one.data for one in mlflow.MlflowClient().search_runs(["1"])])
        client = mlflow.MlflowClient()
        found = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        assert {one.info.run_name for one in found} == {
            f"{cell.name}/{arm}" for cell in asked.cells for arm in ("clean", "poisoned", "oracle")
        }
        assert {one.info.status for one in found} == {"FINISHED"}
        by_name = {one.info.run_name: one for one in found}
        for cell in asked.cells:
            done = open_run(tmp_path / "grid" / "runs" / cell.name)
            one = by_name[f"{cell.name}/oracle"]
            assert one.data.metrics["test/HR_at_10"] == pytest.approx(done.arms["oracle"]["HR@10"])
            assert one.data.params["training.epochs"] == "3"
            losses = client.get_metric_history(one.info.run_id, "epoch/loss")
            assert [point.step for point in losses] == [1, 2, 3]
        assert by_name[f"{asked.cells[0].name}/oracle"].data.metrics["epoch/late"] == 2.0

    def test_what_was_done_untold_is_told_and_another_run_in_the_same_place_is_another(self, files, tmp_path):
        import shutil

        import mlflow

        config = read_run_file(files / "run.toml")
        client = mlflow.MlflowClient()

        def told(config):
            with MLflow("mine", tmp_path / "run", {"": plain(config)}) as tracked:
                return run(config, tmp_path / "run", watch=tracked)

        def losses(name):
            runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
            return [
                [point.value for point in client.get_metric_history(one.info.run_id, "epoch/loss")]
                for one in runs
                if one.info.run_name == name
            ]

        run(config, tmp_path / "run")  # nobody watches
        for _ in range(2):
            done = told(config)
            assert losses("poisoned") == [[row["loss"] for row in history(done.folder, "poisoned")]]
        shutil.rmtree(tmp_path / "run")
        other = dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=1))
        told(other)
        assert sorted(map(len, losses("poisoned"))) == [1, 3]

    def test_a_killed_run_says_so(self, tmp_path):
        import mlflow

        def stopped():
            with MLflow("mine", tmp_path / "run") as told:
                told(Event("lorec", 1, 1, epoch=1, figures={"loss": 1.0}))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stopped()
        client = mlflow.MlflowClient()
        (one,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        assert one.info.status == "KILLED"


class TestTrouble:
    def test_a_tracker_that_breaks_is_left_alone_and_the_training_goes_on(self, files, tmp_path, caplog):
        class Broken(Tracker):
            calls = 0

            def tell(self, series, cell, epoch, figures):
                Broken.calls += 1
                raise OSError("the server has gone away")

            def close(self, finished):
                raise AssertionError("it was broken before")

        with caplog.at_level(logging.WARNING, logger="lorec"), Broken() as told:
            done = run(read_run_file(files / "run.toml"), tmp_path / "run", watch=told)
        assert done.record["finished"]
        assert Broken.calls == 1
        assert [one.getMessage() for one in caplog.records] == [
            "Broken is told no more: OSError: the server has gone away"
        ]

    def test_a_name_that_is_none(self, tmp_path):
        with pytest.raises(ConfigError, match="no tracker 'tensorbord'; take one of tensorboard, mlflow"):
            tracker("tensorbord", "mine", tmp_path, {})

    @pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
    def test_who_does_not_answer_is_asked_once(self, failure):
        calls = []

        class Silent(Tracker):
            def tell(self, series, cell, epoch, figures):
                calls.append("tell")
                raise failure

            def close(self, finished):
                calls.append("close")

        def watched():
            with Silent() as told:
                for epoch in range(3):
                    told(Event("lorec", 1, 1, epoch=epoch, figures={"loss": 1.0}))

        if failure is KeyboardInterrupt:
            with pytest.raises(KeyboardInterrupt):
                watched()
        else:
            watched()
        assert calls == ["tell"]

    def test_a_server_that_is_down_is_said_soon(self, tmp_path, monkeypatch):
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        for name in PATIENCE:
            monkeypatch.delenv(name, raising=False)
        started = time.monotonic()
        with pytest.raises(RunError, match="MLflow can't be told anything"):
            MLflow("mine", tmp_path)
        assert time.monotonic() - started < 60
        assert not list(tmp_path.iterdir())

    def test_a_store_that_is_not_there_is_said_before_anything_is_trained(self, files, tmp_path, monkeypatch):
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://x")
        with pytest.raises(RunError, match=r"MLflow can't be told anything .* see that what MLFLOW_TRACKING_URI names"):
            MLflow("mine", tmp_path)

    def test_passwords_are_not_told(self, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
        said = _told(OSError("no http://alice:s3cret@127.0.0.1:9/api?a=t0ken, and ftp://a@b\nmore"))
        assert said == "no http://127.0.0.1:9/api?a=..., and ftp://b"

    def test_from_the_command_line(self, files, tmp_path, monkeypatch, capsys):
        pytest.importorskip("tensorboard")
        argv = ["lorec", "run", str(files / "run.toml"), "--out", str(tmp_path / "run"), "--track", "tensorboard"]
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        assert "epoch/loss" in scalars(tmp_path / "run" / "tensorboard" / "poisoned")
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", [*argv[:-1], "wandb"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        assert "no tracker 'wandb'" in capsys.readouterr().err
