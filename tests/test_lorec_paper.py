"""LoRec as published: calibrator, weights and schedule against references, and where its effect is visible."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import world
from hypothesis import given, settings
from hypothesis import strategies as st

from lorec.attacks import Random, forge, known_fakes
from lorec.data import Poison, Sequences, inject, leave_two_out
from lorec.defenses import Guard, LoRecPaper, Undefended
from lorec.defenses.lorec_paper import Calibrator, compensate, weights_of
from lorec.detectors.language import calibration_loss
from lorec.errors import ConfigError, DataError
from lorec.evaluation import detection, evaluate, mean_weights
from lorec.files import load_state, save_state
from lorec.models import Recommender, SASRec
from lorec.sight import Sight
from lorec.text import Hash, TextVectors
from lorec.training import Training, fit

SMALL = SASRec(width=16, max_length=20, blocks=1)


def start(spec, split, seed=0, known=None):
    recommender = Recommender(SMALL, "ids", len(split.catalog), seed=seed)
    text = TextVectors(split.catalog, Hash(dim=32))
    known = known if known is not None else known_fakes(split, share=0.2, seed=1)
    sight = Sight(split.train, recommender.n_items, text, known, np.random.default_rng(seed))
    return recommender, spec.start(recommender, sight)


class TestCompensation:
    @settings(max_examples=200)
    @given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), st.integers(0, 5))
    def test_conserves_the_sum(self, likelihoods, rounds):
        states = np.full(len(likelihoods), 3.0)
        for _ in range(rounds):
            states, _ = compensate(states, np.array(likelihoods))
        assert states.sum() == pytest.approx(3.0 * len(likelihoods))

    def test_suspects_lose_one_and_the_others_share_it(self):
        states, opened = compensate(np.full(8, 3.0), np.array([0.9, 0.8] + [0.1] * 6))
        assert opened
        np.testing.assert_allclose(states, [2, 2] + [3 + 2 / 6] * 6)

    def test_the_gate_stays_shut_from_a_third_on(self):
        before = np.full(6, 3.0)
        states, opened = compensate(before, np.array([0.9, 0.8, 0.1, 0.1, 0.1, 0.1]))
        assert not opened
        assert (states == before).all()

    def test_weights_are_those_of_the_paper(self):
        squash = lambda s: 1 / (1 + math.exp(-s))  # noqa: E731
        states = np.array([3.0, 2.0, 0.5, 0.0, -1.0, -2.0, -3.0, 9.0])
        raw = np.array([squash(s) / squash(3) for s in states])
        wanted = np.where((raw > 0.5) & (raw < 1), 1, raw)
        np.testing.assert_allclose(weights_of(states), wanted, rtol=1e-6)
        assert weights_of(np.array([-1.0]))[0] == pytest.approx(0.28, abs=0.005)
        assert weights_of(np.array([50.0]))[0] < 1.05


class TestCalibrationLoss:
    def test_value_and_gradient_against_a_written_out_reference(self):
        rng = np.random.default_rng(0)
        logits = torch.tensor(rng.standard_normal(7), requires_grad=True)
        cosines = torch.tensor(rng.uniform(-1, 1, 7), requires_grad=True)
        fake = torch.tensor([True, False, False, True, False, False, False])
        loss = calibration_loss(logits, fake, cosines, 0.5, 2.0)

        def by_hand(logit, cosine):
            p = [1 / (1 + math.exp(-x)) for x in logit]
            bce = -sum(math.log(p[i] if fake[i] else 1 - p[i]) for i in range(7)) / 7
            entropy = sum(-p[i] * math.log(p[i]) - (1 - p[i]) * math.log(1 - p[i]) for i in range(7) if not fake[i]) / 7
            return bce + 0.5 * entropy - 2.0 * sum(cosine) / 7

        x, c = logits.tolist(), cosines.tolist()
        assert loss.item() == pytest.approx(by_hand(x, c), rel=1e-6)
        loss.backward()
        for i in range(7):
            up, down = ([*x[:i], x[i] + s, *x[i + 1 :]] for s in (1e-5, -1e-5))
            assert float(logits.grad[i]) == pytest.approx((by_hand(up, c) - by_hand(down, c)) / 2e-5, abs=1e-6)
            assert float(cosines.grad[i]) == pytest.approx(-2.0 / 7)

    def test_without_a_language_model_the_term_is_gone(self):
        logits, fake = torch.zeros(4), torch.tensor([True, False, False, False])
        assert float(calibration_loss(logits, fake, None, 0.0, 1.0)) == pytest.approx(math.log(2))


class TestCalibrator:
    def test_padding_changes_nothing(self):
        made = Calibrator(8, 0).eval()
        steps = torch.randn(2, 5, 8)
        alone = made.summary(steps[:1, 2:], torch.zeros(1, 3, dtype=torch.bool))
        padding = torch.zeros(2, 5, dtype=torch.bool)
        padding[0, :2] = True
        torch.testing.assert_close(made.summary(steps, padding)[:1], alone, atol=1e-5, rtol=1e-4)

    def test_the_summary_is_a_full_encoders_output_at_the_token(self):
        """The last block asks for the token alone; computing every position must give the same."""
        made = Calibrator(8, 0).eval()
        steps = torch.randn(3, 4, 8)
        short = made.summary(steps, torch.zeros(3, 4, dtype=torch.bool))
        rows = []
        place = torch.arange(3, -1, -1)[:, None]
        rate = torch.exp(torch.arange(0, 8, 2) * (-math.log(10000) / 8))
        sinusoids = torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=2).flatten(1)
        for user in range(3):
            x = torch.cat([made.token, steps[user] + sinusoids])[None]
            x = made.first(x, x, None)
            rows.append(made.last(x, x, None)[0, 0])
        torch.testing.assert_close(short, torch.stack(rows), atol=1e-5, rtol=1e-4)

    def test_a_block_against_a_written_out_reference(self):
        block = Calibrator(8, 0).eval().first
        x = torch.randn(1, 4, 8)
        n = torch.nn.functional.layer_norm(x, (8,), block.norm_attention.weight, block.norm_attention.bias)[0]
        k, v = (n @ block.key_value.weight.T + block.key_value.bias).split(8, dim=1)
        q = n @ block.query.weight.T + block.query.bias
        heads = [torch.softmax(q[:, h] @ k[:, h].T / 2, 1) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
        y = x[0] + block.out(torch.cat(heads, 1))
        y = y + block.down(torch.nn.functional.gelu(block.up(block.norm_feed(y))))
        torch.testing.assert_close(block(x, x, None)[0], y, atol=1e-5, rtol=1e-4)

    def test_the_language_models_view_is_mapped_by_one_layer(self):
        """cos(z_u, g_u), g_u = GELU(W o_u + b)."""
        made = Calibrator(8, 4).eval()
        torch.nn.init.normal_(made.view.bias)
        steps, padding, views = torch.randn(5, 3, 8), torch.zeros(5, 3, dtype=torch.bool), torch.randn(5, 4)
        z, linear = made.summary(steps, padding), views @ made.view.weight.T + made.view.bias
        g = linear * (1 + torch.erf(linear / math.sqrt(2))) / 2
        wanted = (z * g).sum(1) / (z.norm(dim=1) * g.norm(dim=1))
        torch.testing.assert_close(made(steps, padding, views)[1], wanted, atol=1e-5, rtol=1e-4)

    def test_a_batch_of_one_user_does_not_break(self):
        made = Calibrator(8, 4).train()
        logits, alignment = made(torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool), torch.randn(1, 4))
        (logits.sum() + alignment.sum()).backward()
        assert torch.isfinite(logits).all()


class TestSchedule:
    def test_updates_every_five_epochs_then_every_ten_and_weights_enter_at_thirty(self, split, monkeypatch):
        import lorec.defenses.lorec_paper as module

        recommender, guard = start(LoRecPaper(view="pooled"), split)
        asked = []
        monkeypatch.setattr(guard, "_learn", lambda recommender: 0.0)
        monkeypatch.setattr(guard, "likelihoods", lambda recommender: np.eye(1, len(split))[0])
        monkeypatch.setattr(module, "compensate", lambda s, p: (asked.append(guard.epoch), compensate(s, p))[1])
        entered = []
        for epoch in range(1, 61):
            guard.end_epoch(recommender, epoch)
            entered.append(float(guard.weights.users.min()) < 1)
            assert guard.ready == (epoch >= 30)
        assert asked == [5, 10, 15, 20, 25, 30, 40, 50, 60]
        assert entered.index(True) == 28  # set after epoch 29, so that epoch 30 is the first to feel it
        assert guard.states[0] == 3.0 - 9

    def test_a_shut_gate_is_tried_again_next_epoch(self, split, monkeypatch):
        recommender, guard = start(LoRecPaper(view="pooled"), split)
        asked = []
        monkeypatch.setattr(guard, "_learn", lambda recommender: 0.0)
        half = np.arange(len(split)) % 2.0
        monkeypatch.setattr(guard, "likelihoods", lambda recommender: (asked.append(1), half)[1])
        for epoch in range(1, 9):
            figures = guard.end_epoch(recommender, epoch)
        assert len(asked) == 4  # 5, 6, 7, 8
        assert figures["gate"] == 0.0

    def test_a_gate_that_opens_after_all_waits_for_the_next_date(self, split, monkeypatch):
        recommender, guard = start(LoRecPaper(view="pooled"), split)
        asked, half, few = [], np.arange(len(split)) % 2.0, np.eye(1, len(split))[0]
        monkeypatch.setattr(guard, "_learn", lambda recommender: 0.0)
        monkeypatch.setattr(
            guard, "likelihoods", lambda recommender: (asked.append(guard.epoch), half if len(asked) < 3 else few)[1]
        )
        gates = [guard.end_epoch(recommender, epoch).get("gate") for epoch in range(1, 16)]
        assert asked == [5, 6, 7, 10, 15]
        assert [gate for gate in gates if gate is not None] == [0.0, 0.0, 1.0, 1.0, 1.0]
        assert guard.notes == ("its gate was shut at 2 of 5 updates, so nothing followed from them",)
        _, other = start(LoRecPaper(view="pooled"), split)
        assert other.notes == ()
        other.restore(guard.state())
        assert other.notes == guard.notes

    def test_without_compensation_whoever_is_likely_at_the_last_update_counts_nothing(self, split, monkeypatch):
        recommender, guard = start(LoRecPaper(view="pooled", reweighting="threshold", enter=10), split)
        monkeypatch.setattr(guard, "_learn", lambda recommender: 0.0)
        said = np.full(len(split), 0.6, dtype=np.float32)
        said[:3] = 0.1, 0.5, 0.49
        monkeypatch.setattr(guard, "likelihoods", lambda recommender: said)
        for epoch in range(1, 9):
            assert guard.likelihood is None or epoch > 5  # until somebody has been judged
            guard.end_epoch(recommender, epoch)
        assert (guard.weights.users == 1).all()  # they enter at epoch 10, as the states would
        guard.end_epoch(recommender, 9)
        assert guard.weights.users.tolist() == [1, 0, 1] + [0] * (len(split) - 3)
        assert (guard.likelihood == said).all()
        assert (guard.suspicion == said).all()


class TestGuard:
    def test_gradients_of_the_calibrator_never_reach_the_recommender(self, split):
        recommender, guard = start(LoRecPaper(view="pooled"), split)
        before = [value.clone() for value in recommender.parameters()]
        guard.end_epoch(recommender, 1)
        assert all(value.grad is None for value in recommender.parameters())
        assert all(torch.equal(one, other) for one, other in zip(before, recommender.parameters(), strict=True))

    def test_learns_to_tell_known_fakes_from_users(self, split):
        recommender, guard = start(LoRecPaper(view="pooled", entropy=0.0), split)
        first = guard.end_epoch(recommender, 1)["calibrator"]
        for epoch in range(2, 8):
            last = guard.end_epoch(recommender, epoch)["calibrator"]
        assert last < first - 0.3

    def test_two_starts_share_nothing(self, split):
        spec = LoRecPaper(view="pooled")
        recommender, one = start(spec, split)
        _, other = start(spec, split)
        for epoch in range(1, 6):
            one.end_epoch(recommender, epoch)
        assert other.epoch == 0
        assert (other.states == 3.0).all()

    def test_state_and_restore_go_on_to_the_same_bits(self, split, tmp_path):
        recommender, one = start(LoRecPaper(view="pooled", update_every=1, enter=2), split)
        _, other = start(LoRecPaper(view="pooled", update_every=1, enter=2), split, seed=9)
        one.end_epoch(recommender, 1)
        save_state(tmp_path / "guard.safetensors", one.state())
        other.restore(load_state(tmp_path / "guard.safetensors"))
        for guard in (one, other):
            torch.manual_seed(4)
            guard.end_epoch(recommender, 2)
        assert (one.likelihoods(recommender) == other.likelihoods(recommender)).all()
        assert (one.states == other.states).all()
        assert (one.weights.users == other.weights.users).all()
        assert (one.likelihood == other.likelihood).all()

    def test_nothing_is_gained_from_the_order_of_rows(self, split):
        """Permuting the rows permutes the likelihoods, whatever the calibrator learned before."""
        recommender, guard = start(LoRecPaper(view="pooled"), split)
        guard.end_epoch(recommender, 1)
        order = np.random.default_rng(0).permutation(len(split))
        _, moved = start(LoRecPaper(view="pooled"), split)
        moved.calibrator.load_state_dict(guard.calibrator.state_dict())
        moved.everyone = split.train.take(order)
        np.testing.assert_allclose(moved.likelihoods(recommender), guard.likelihoods(recommender)[order], atol=1e-5)

    def test_it_says_what_it_lacks(self, split):
        recommender = Recommender(SMALL, "ids", len(split.catalog))
        some = [Poison(Sequences.of([[1]]), np.array([1]), {})]
        sight = Sight(split.train, recommender.n_items, known=some)
        with pytest.raises(DataError, match="known fakes"):
            LoRecPaper().start(recommender, replace(sight, known=()))
        with pytest.raises(ConfigError, match="alignment = 0"):
            LoRecPaper().start(recommender, sight)
        assert isinstance(LoRecPaper(alignment=0).start(recommender, sight), Guard)
        with pytest.raises(ConfigError, match="1 or more"):
            LoRecPaper(passes=0)


def test_lorec_beats_undefended_where_histories_are_long():
    """A world where the calibrator can learn: random profiles push five items; weights part the two kinds.

    Its steps come closer together than the paper's, and weights enter early: later, genuine ones come out between .91
    and .97, by the rounding of a machine.
    """
    split = leave_two_out(world(users=400, items=300, length=50, groups=5, seed=1), last=50)
    poison = forge(Random(share=0.05), split, 5, seed=3)
    bad = inject(split, poison, seed=3)
    known = known_fakes(bad, kinds=["random"], share=0.1, seed=3)
    text = TextVectors(split.catalog, Hash(dim=64))
    training = Training(epochs=24, patience=24, tokens=1024, learning_rate=2e-3)
    exposed, fits = {}, {}
    paper = LoRecPaper(view="pooled", tokens=1024, passes=1, update_every=1, enter=6)
    for name, defense in (("none", Undefended()), ("lorec", paper)):
        fits[name] = fit(bad, SASRec(width=32), defense=defense, known=known, text=text, training=training, seed=3)
        exposed[name] = evaluate(fits[name].recommender, bad, targets=poison.targets).metrics
    guard = fits["lorec"].guard
    found = detection(guard.suspicion, guard.flagged, bad.fraudsters)
    parted = mean_weights(guard.weights.users, guard.flagged, bad.fraudsters)
    assert found["ROC-AUC"] > 0.95
    assert found["recall"] > 0.9
    assert parted["weight fraudsters"] < 0.1 < 0.95 < parted["weight genuine"]
    assert exposed["lorec"]["T-HR@50"] < 0.75 * exposed["none"]["T-HR@50"]
    assert exposed["lorec"]["HR@10"] > 0.9 * exposed["none"]["HR@10"]
