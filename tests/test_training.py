import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from lorec.attacks import Random, forge, known_fakes
from lorec.data import Dataset, Weights, inject, leave_two_out
from lorec.defenses import APR, GraphRfi, Guard, LoRec, LoRecPaper, Oracle, Trimmed, Undefended, Weighted
from lorec.errors import ConfigError, DataError, RunError
from lorec.evaluation import evaluate
from lorec.files import load_state, save_state
from lorec.models import Popularity, SASRec
from lorec.text import Hash, TextVectors
from lorec.training import Training, choose_device, fit

SMALL = SASRec(width=16, max_length=20, blocks=1)
DEFENSES = {
    "none": Undefended(),
    "lorec": LoRec(),
    "lorec-paper": LoRecPaper(view="pooled", update_every=1, enter=3),
}


@pytest.fixture(scope="module")
def bad(split):
    return inject(split, forge(Random(share=0.1), split, 2, seed=1), seed=1)


def train(bad, name="none", epochs=6, **more):
    return fit(
        bad,
        SMALL,
        items="both",
        text=TextVectors(bad.catalog, Hash(dim=16)),
        defense=DEFENSES[name],
        known=known_fakes(bad, share=0.2, seed=2),
        training=Training(epochs=epochs, tokens=256, learning_rate=5e-3, patience=50),
        seed=4,
        **more,
    )


def weights(fitted):
    return {name: value.clone() for name, value in fitted.recommender.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Killed(Exception):
    pass


@pytest.mark.parametrize("name", sorted(DEFENSES))
class TestResume:
    def test_a_killed_run_ends_at_the_same_bits(self, bad, name, tmp_path):
        whole = train(bad, name)

        def kill(progress):
            if progress.epoch == 5 and progress.step == 2:
                raise Killed

        with pytest.raises(Killed):
            train(bad, name, checkpoint=tmp_path / "c.safetensors", watch=kill)
        epochs = []
        resumed = train(bad, name, checkpoint=tmp_path / "c.safetensors", watch=lambda p: epochs.append(p.epoch))
        assert min(epochs) == 5  # at most one epoch is lost
        assert same(weights(whole), weights(resumed))
        assert (whole.weights.users is None) == (resumed.weights.users is None)
        if whole.weights.users is not None:
            assert (whole.weights.users == resumed.weights.users).all()
        for one, other in zip(whole.history, resumed.history, strict=True):
            assert {k: v for k, v in one.items() if "seconds" not in k} == {
                k: v for k, v in other.items() if "seconds" not in k
            }

    def test_the_same_seed_ends_at_the_same_bits_whatever_torch_drew_before(self, bad, name):
        one = train(bad, name, epochs=4)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        other = train(bad, name, epochs=4)
        assert same(weights(one), weights(other))
        assert torch.equal(before, torch.get_rng_state())  # and it moves nothing outside


class TestStopping:
    def test_waits_for_the_guard_and_starts_afresh(self, bad):
        fitted = fit(
            bad, SMALL, defense=LoRecPaper(view="pooled", alignment=0, enter=6, update_every=1),
            known=known_fakes(bad, share=0.2), training=Training(epochs=30, patience=2, tokens=256), seed=0,
        )  # fmt: skip
        assert fitted.best_epoch >= 6
        assert len(fitted.history) == 30 or len(fitted.history) == fitted.best_epoch + 2

    def test_an_epoch_in_force_is_better_than_any_before(self, bad):
        """Even where it is worse: this one unlearns from the epoch on at which it is in force."""

        class Unlearning(Guard):
            epoch = 0

            @property
            def ready(self):
                return self.epoch > 3

            def loss(self, recommender, batch):
                return super().loss(recommender, batch) * (1 if self.epoch < 3 else -3)

            def end_epoch(self, recommender, epoch):
                self.epoch = epoch
                return {}

        class Spec(Undefended):
            def start(self, *of, **how):
                return Unlearning()

        training = Training(epochs=8, patience=2, tokens=256, learning_rate=1e-2)
        fitted = fit(bad, SMALL, defense=Spec(), training=training, seed=1)
        told = [row["valid NDCG@10"] for row in fitted.history]
        assert max(told[:3]) > max(told[3:])
        assert fitted.best_epoch == 4 + int(np.argmax(told[3:]))
        assert len(told) == fitted.best_epoch + 2

    @pytest.mark.parametrize(
        "defense", [Trimmed(share=0.1, enter=4), GraphRfi(), APR(enter=5), LoRecPaper(alignment=0, enter=9)]
    )
    def test_a_defense_that_never_was_in_force_is_undefended(self, bad, defense):
        """Chosen as the undefended model is: by its best epoch, not its last; and it says that it is not ready."""
        epochs = 1 if isinstance(defense, GraphRfi) else 4
        training = Training(epochs=epochs, patience=9, tokens=256, learning_rate=0.1)
        known = known_fakes(bad, share=0.2)
        fitted = fit(bad, SMALL, defense=defense, known=known, training=training, seed=2)
        plain = fit(bad, SMALL, training=training, seed=2)
        assert not fitted.guard.ready
        assert fitted.best_epoch == plain.best_epoch
        assert epochs == 1 or plain.best_epoch < epochs  # or its last epoch would do
        for mine, theirs in zip(fitted.recommender.parameters(), plain.recommender.parameters(), strict=True):
            assert torch.equal(mine, theirs)

    def test_keeps_the_weights_of_the_best_epoch(self, bad):
        fitted = fit(bad, SMALL, training=Training(epochs=8, tokens=256, learning_rate=1e-2), seed=1)
        best = max(fitted.history, key=lambda row: row["valid NDCG@10"])
        assert best["epoch"] == fitted.best_epoch
        again = evaluate(fitted.recommender, bad, on="valid").metrics
        assert again["NDCG@10"] == pytest.approx(best["valid NDCG@10"])


class TestValidUsers:
    def judged(self, log, monkeypatch, **options):
        """The people whom an epoch's figures rest on, and the figures of the model that training left."""
        asked = []
        monkeypatch.setattr("lorec.training.evaluate", lambda *a, **k: asked.append(k["rows"]) or evaluate(*a, **k))
        fitted = fit(log, SMALL, training=Training(epochs=2, tokens=256, **options), seed=3)
        assert all((rows == asked[0]).all() for rows in asked)  # epochs are compared on the same people
        best = fitted.history[fitted.best_epoch - 1]["valid NDCG@10"]
        assert evaluate(fitted.recommender, log, on="valid", rows=asked[0]).metrics["NDCG@10"] == pytest.approx(best)
        return set(log.users.gather(asked[0]))

    def test_are_the_same_genuine_people_in_a_clean_log_and_in_a_poisoned_one(self, split, bad, monkeypatch):
        clean, poisoned = (self.judged(log, monkeypatch, valid_users=30) for log in (split, bad))
        assert clean == poisoned
        assert len(clean) == 30
        assert clean <= set(split.users)

    def test_are_all_where_there_are_no_more(self, split, bad, monkeypatch):
        assert self.judged(bad, monkeypatch, valid_users=len(split) + 1) == set(split.users)
        assert self.judged(bad, monkeypatch) == set(split.users)

    def test_are_at_least_one(self):
        with pytest.raises(ConfigError, match="valid_users is 0"):
            Training(valid_users=0)


def test_learns_more_than_popularity(split):
    fitted = fit(split, SASRec(width=32, max_length=20), training=Training(epochs=40, tokens=256, learning_rate=3e-3))
    learned = evaluate(fitted.recommender, split).metrics["NDCG@10"]
    floor = evaluate(Popularity(split.train.counts(len(split.catalog))), split).metrics["NDCG@10"]
    assert learned > 2 * floor


def test_a_log_in_which_nothing_follows_anything():
    rows = [(f"u{user}", f"i{item}", item) for user in range(4) for item in range(3)]  # one item to train on
    log = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    short = leave_two_out(Dataset("short", log, pl.DataFrame({"item": ["i0"], "title": ["a"]})))
    with pytest.raises(DataError, match="nobody has two items to train on"):
        fit(short, SMALL, training=Training(epochs=2))


def test_what_a_defense_turned_down_is_not_popular(bad):
    """Or the list for people without a history would be where an attack passes every defense."""
    poisoned, defended, clean = (
        fit(bad, SMALL, defense=defense, training=Training(epochs=1, tokens=256)).recommender.popularity
        for defense in (Undefended(), Oracle().reveal(bad.fraudsters), Weighted(Weights()))
    )
    honest = bad.train.take(bad.genuine()).counts(len(bad.catalog))
    assert (poisoned == bad.train.counts(len(bad.catalog))).all()
    assert (clean == poisoned).all()
    assert (defended == honest).all()
    assert (poisoned != honest).any()


def test_a_defense_gains_nothing_from_row_order(split):
    """The rows of a poisoned log are shuffled: where fraudsters lie is as good as chance."""
    places = []
    for seed in range(40):
        bad = inject(split, forge(Random(share=0.1), split, 2, seed=seed), seed=seed)
        places.extend(np.flatnonzero(bad.fraudsters) / (len(bad) - 1))
    assert abs(np.mean(places) - 0.5) < 0.06
    assert abs(np.std(places) - 1 / np.sqrt(12)) < 0.04


class TestCheckpoints:
    def test_states_survive_the_disk(self, tmp_path):
        state = {"a": torch.arange(3), "b": {1: [1.5, None, "x", torch.ones(2, 2)], "t": True}, "big": 2**100}
        save_state(tmp_path / "s", state)
        again = load_state(tmp_path / "s")
        assert torch.equal(again["a"], state["a"])
        assert again["b"][1][:3] == [1.5, None, "x"]
        assert torch.equal(again["b"][1][3], torch.ones(2, 2))
        assert again["big"] == 2**100

    @pytest.mark.parametrize("keep", [0, 4, 100, -5])
    def test_a_truncated_one_is_named(self, tmp_path, keep):
        save_state(tmp_path / "s", {"a": torch.arange(300)})
        (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:keep])
        with pytest.raises(RunError, match="damaged checkpoint"):
            load_state(tmp_path / "s")

    def test_a_foreign_one_is_refused(self, bad, tmp_path):
        train(bad, epochs=1, checkpoint=tmp_path / "c")
        with pytest.raises(RunError, match="another training"):
            train(bad, "lorec", epochs=1, checkpoint=tmp_path / "c")

    def test_so_is_one_of_other_options_fakes_or_weights(self, bad, tmp_path):
        def go(name, defense, known=None):
            known = known if known is not None else known_fakes(bad, share=0.2, seed=2)
            fit(bad, SMALL, defense=defense, known=known, training=Training(epochs=1), checkpoint=tmp_path / name)

        ones = Weights(users=np.ones(len(bad), dtype=np.float32))
        go("l", LoRecPaper(alignment=0))
        go("w", Weighted(ones))
        for name, defense, known in (
            ("l", LoRecPaper(alignment=0, entropy=0.1), None),
            ("l", LoRecPaper(alignment=0), known_fakes(bad, share=0.2, seed=3)),
            ("w", Weighted(Weights(users=ones.users * 0)), None),
        ):
            with pytest.raises(RunError, match="another training"):
                go(name, defense, known)

    def test_one_in_bfloat16_goes_on_in_bfloat16_alone(self, bad, tmp_path):
        def go(epochs, precision, checkpoint=None):
            training = Training(epochs=epochs, tokens=256, precision=precision)
            return fit(bad, SMALL, training=training, checkpoint=checkpoint)

        whole, exact = go(3, "bfloat16"), go(3, "float32")
        assert not same(weights(whole), weights(exact))
        go(2, "bfloat16", tmp_path / "c")
        with pytest.raises(RunError, match="another training"):
            go(3, "float32", tmp_path / "c")
        assert same(weights(whole), weights(go(3, "bfloat16", tmp_path / "c")))

    def test_one_of_more_epochs_than_are_wanted(self, bad, tmp_path):
        fit(bad, SMALL, training=Training(epochs=3, tokens=256), checkpoint=tmp_path / "c")
        with pytest.raises(RunError, match="has 3 epochs and 2 are wanted"):
            fit(bad, SMALL, training=Training(epochs=2, tokens=256), checkpoint=tmp_path / "c")

    def test_a_full_disk_leaves_nothing_half_written(self, tmp_path, monkeypatch):
        import lorec.files as module

        def full(tensors, path, header):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "save_file", full)
        with pytest.raises(RunError, match=r"No space left on device; nothing was half-written"):
            save_state(tmp_path / "s", {})
        assert list(tmp_path.iterdir()) == []


class TestOptions:
    def test_devices(self):
        assert choose_device("cpu").type == "cpu"
        assert choose_device("auto").type in ("cpu", "cuda")
        for name in ("gpu", "cuda:99"):
            with pytest.raises(ConfigError, match=f"no device '{name}'"):
                choose_device(name)

    def test_refuses_what_makes_no_sense(self):
        for wrong in (
            {"epochs": 0},
            {"tokens": 0},
            {"learning_rate": 0.0},
            {"precision": "float16"},
            {"epochs": 2.5},
            {"patience": None},
            {"device": None},
        ):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                Training(**wrong)

    def test_trains_on_a_gpu_where_there_is_one(self, bad):
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
        training = Training(epochs=1, device="cuda")
        assert fit(bad, SMALL, training=training).recommender.device.type == "cuda"

    def test_threads_are_chosen_once(self, bad):
        before = torch.get_num_threads()
        try:
            fit(bad, SMALL, training=Training(epochs=1, threads=1))
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)

    def test_numbers_too_small_count_as_nothing_while_it_trains_and_only_then(self, bad):
        def flushed():
            return bool((torch.full((1,), 1e-40) * 1 == 0).all())

        before, seen = flushed(), []
        fit(bad, SMALL, training=Training(epochs=1), watch=lambda _: seen.append(flushed()))
        assert all(seen)
        assert flushed() == before

    def test_options_are_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            Training().epochs = 3
