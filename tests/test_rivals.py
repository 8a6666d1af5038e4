"""LoRec's rivals: each loss and gradient against one written out, and what each keeps."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import world
from hypothesis import given
from hypothesis import strategies as st

from lorec.attacks import Random, Replace, forge, known_fakes
from lorec.data import Sequences, Weights, inject, leave_two_out
from lorec.defenses import (
    ADV,
    APR,
    PLD,
    RCE,
    TCE,
    VAT,
    CL4SRec,
    Filter,
    GraphRfi,
    LLM4Dec,
    PamaCF,
    StDenoise,
    Trimmed,
    Undefended,
    Weighted,
)  # fmt: skip
from lorec.defenses.contrastive import nt_xent
from lorec.defenses.graphrfi import Forest
from lorec.detectors import Coherence, Degree, Suspicion
from lorec.errors import ConfigError
from lorec.evaluation import detection, evaluate
from lorec.models import BACKBONES, FMLP, Recommender, SASRec, Softmax
from lorec.models.losses import mean_loss
from lorec.sight import Sight
from lorec.text import Hash, TextVectors
from lorec.training import Training, fit

SMALL = SASRec(width=8, max_length=20, blocks=1, dropout=0.0)
RIVALS = (ADV, APR, CL4SRec, GraphRfi, PLD, PamaCF, RCE, StDenoise, TCE, Trimmed, VAT)


def started(spec, split, backbone=SMALL, items="ids"):
    vectors = None if items == "ids" else TextVectors(split.catalog, Hash(dim=16)).items()
    recommender = Recommender(backbone, items, len(split.catalog), vectors, seed=1)
    known = known_fakes(split, share=0.2, seed=1)
    return recommender, spec.start(recommender, Sight(split.train, recommender.n_items, known=known))


def batch_of(split, recommender):
    return next(recommender.feed(split.train, 256).epoch(np.random.default_rng(0)))


def warm(guard, recommender, epochs=5):
    for epoch in range(1, epochs + 1):
        guard.end_epoch(recommender, epoch)


def gradient(loss, recommender):
    recommender.zero_grad()
    loss.backward()
    return torch.cat([one.grad.flatten() for one in recommender.parameters() if one.grad is not None])


def with_(recommender, name, value):
    """The recommender's plain loss with a weight replaced: another way to push it than the one under test."""
    old = getattr(recommender, name).data.clone()
    getattr(recommender, name).data.copy_(value)
    return old


class TestReweighting:
    def test_truncated_cross_entropy(self):
        losses = torch.tensor([[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]])
        scored = losses > 0
        spec = TCE(most=0.4, rise=10)
        assert (spec.weigh(losses, scored, 0, None) == scored.float()).all()
        # At step 5 a fifth of five positives is dropped, from step 10 on two of them.
        assert spec.weigh(losses, scored, 5, None).tolist() == [[0, 1.25, 1.25], [1.25, 1.25, 0]]
        late = spec.weigh(losses, scored, 500, None)
        torch.testing.assert_close(late, torch.tensor([[0, 5 / 3, 5 / 3], [0, 5 / 3, 0]]))
        # So the mean is over those kept.
        assert float((late * losses).sum() / 5) == pytest.approx((3 + 1 + 2) / 3)

    def test_of_equal_losses_no_more_are_dropped_than_asked_for(self):
        """A model that has learned nothing fits all alike."""
        losses = torch.tensor([[0.0, 0.7, 0.7], [0.7, 0.7, 0.7]])
        weights = TCE(most=0.4, rise=1).weigh(losses, losses > 0, 1, None)
        assert ((weights == 0).sum(), weights[0, 0]) == (3, 0)

    def test_what_is_dropped_is_fitted_badly_itself_whatever_its_negatives_are(self, split):
        recommender, guard = started(TCE(most=0.4, rise=1), split)
        guard.step = 1
        batch = batch_of(split, recommender)
        history, positives, negatives = (
            torch.from_numpy(x).long() for x in (batch.history, batch.positives, batch.negatives)
        )
        table = recommender.table()
        states, real = recommender(history, table), positives > 0
        own = -torch.sigmoid((states * table[positives]).sum(2)).log()[real]
        others = -torch.sigmoid(-(states * table[negatives[..., 0]]).sum(2)).log()[real]
        kept = own.argsort()[: len(own) - int(len(own) * 0.4)]
        wanted = (own + others)[kept].mean()
        assert set(kept.tolist()) != set((own + others).argsort()[: len(kept)].tolist())
        torch.testing.assert_close(guard.loss(recommender, batch), wanted)

    def test_a_loss_that_tells_no_parts_is_its_positives_own(self, split):
        recommender, _ = started(TCE(), split)
        recommender.loss = Softmax()
        batch = batch_of(split, recommender)
        losses, own = recommender.parts(batch)
        assert torch.equal(losses, own)
        torch.testing.assert_close(losses, recommender.losses(batch))

    def test_nothing_is_drawn_again_where_a_history_is_learned_a_step_at_a_time(self, split):
        with pytest.raises(ConfigError, match="one at a time"):
            started(PLD(), split, FMLP(width=8, max_length=10, circular=True))
        started(PLD(), split, FMLP(width=8, max_length=10))

    def test_reweighted_cross_entropy_is_by_the_likelihood_of_the_positive(self, split):
        recommender, guard = started(RCE(beta=0.5), split)
        batch = batch_of(split, recommender)
        history, positives, negatives = (
            torch.from_numpy(x).long() for x in (batch.history, batch.positives, batch.negatives)
        )
        table = recommender.table()
        states = recommender(history, table)
        up, down = (states * table[positives]).sum(2), (states * table[negatives[..., 0]]).sum(2)
        real = positives > 0
        likely = torch.sigmoid(up) * torch.sigmoid(-down)
        wanted = (-likely.log() * torch.sigmoid(up).detach().pow(0.5))[real].sum() / real.sum()
        torch.testing.assert_close(guard.loss(recommender, batch), wanted)
        torch.testing.assert_close(
            gradient(guard.loss(recommender, batch), recommender), gradient(wanted, recommender), atol=1e-6, rtol=1e-4
        )

    @given(st.integers(0, 1000))
    def test_drawn_again_every_user_keeps_as_much_weight(self, seed):
        rng = np.random.default_rng(seed)
        scored = torch.from_numpy(rng.random((4, 6)) < 0.6)
        weights = PLD().weigh(torch.from_numpy(rng.random((4, 6)).astype(np.float32)) * scored, scored, 0, rng)
        assert (weights.sum(1) == scored.sum(1)).all()
        assert (weights[~scored] == 0).all()

    def test_what_is_kept_follows_the_softmax(self):
        """Two positives, two candidates: both times the same with chance a half, else the softmax decides."""
        losses, scored = torch.tensor([[0.2, 0.3]]).repeat(20_000, 1), torch.ones(20_000, 2, dtype=torch.bool)
        weights = PLD(candidates=2, temperature=0.1).weigh(losses, scored, 0, np.random.default_rng(0))
        likely = 0.25 + 0.5 / (1 + math.exp(-1))
        assert float(weights[:, 0].mean()) / 2 == pytest.approx(likely, abs=0.01)

    def test_the_worst_fitted_are_trimmed(self, split):
        recommender, guard = started(Trimmed(share=0.1, enter=2), split)
        sums, counts = np.zeros(len(split)), np.zeros(len(split))
        for epoch in (1, 2):
            assert not guard.ready
            for batch in recommender.feed(split.train, 256).epoch(np.random.default_rng(epoch)):
                guard.loss(recommender, batch)
                if epoch == 2:
                    np.add.at(sums, batch.users, recommender.losses(batch).detach().sum(1).numpy())
                    np.add.at(counts, batch.users, (batch.positives > 0).sum(1))
            guard.end_epoch(recommender, epoch)
        np.testing.assert_allclose(guard.suspicion, sums / np.maximum(counts, 1), rtol=1e-5)
        worst = np.argsort(-guard.suspicion, kind="stable")[: int(0.1 * len(split))]
        assert set(np.flatnonzero(guard.weights.users == 0)) == set(worst)


class TestAdversarial:
    def test_every_items_vector_is_pushed_against_the_loss(self, split):
        recommender, guard = started(APR(radius=0.3, weight=2.0), split)
        warm(guard, recommender)
        batch = batch_of(split, recommender)
        plain = mean_loss(recommender.losses(batch), batch)
        recommender.zero_grad()
        plain.backward()
        push = recommender.embedding.grad
        push = 0.3 * push / push.norm(dim=1, keepdim=True).clamp(min=1e-12)
        attacked_gradient, before = None, recommender.embedding.data.clone()
        with_(recommender, "embedding", before + push)
        attacked = mean_loss(recommender.losses(batch), batch)
        attacked_gradient = gradient(attacked, recommender)
        with_(recommender, "embedding", before)
        assert float(attacked.detach()) > float(plain.detach())
        loss = guard.loss(recommender, batch)
        assert float(loss.detach()) == pytest.approx(float(plain.detach()) + 2 * float(attacked.detach()), rel=1e-5)
        plain_gradient = gradient(mean_loss(recommender.losses(batch), batch), recommender)
        found = gradient(guard.loss(recommender, batch), recommender)
        torch.testing.assert_close(found, plain_gradient + 2 * attacked_gradient, atol=1e-5, rtol=1e-3)

    def test_radii_by_user(self):
        losses = torch.tensor([[0.0, 2.0], [4.0, 4.0], [1.0, 1.0]])
        scored = losses > 0
        own, mean = [2.0, 4.0, 1.0], 7 / 3
        wanted = [2 / (1 + math.exp(-(mean / one - 1))) for one in own]
        np.testing.assert_allclose(VAT().radii(losses, losses[..., None], scored), wanted, rtol=1e-6)
        states = torch.tensor([[[9.0, 9.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 2.0]]])
        own = [4.0, 1.0, 3.0]
        wanted = [2 / (1 + math.exp(-(one / np.mean(own) - 1))) for one in own]
        np.testing.assert_allclose(PamaCF().radii(losses, states, scored), wanted, rtol=1e-6)

    @pytest.mark.parametrize("spec", [VAT(), PamaCF()])
    def test_states_are_pushed_as_far_as_their_users_radius(self, spec, split):
        recommender, guard = started(spec, split)
        warm(guard, recommender)
        batch = batch_of(split, recommender)
        pushed, encode = [], recommender.encode

        def spy(vectors, padding):
            if recommender._shift.states is not None:
                pushed.append(recommender._shift.states.detach().clone())
            return encode(vectors, padding)

        recommender.encode = spy
        loss = guard.loss(recommender, batch)
        none, shift = pushed
        assert not none.any()
        real = batch.positives > 0
        lengths = shift.norm(dim=2).numpy()
        losses, scored = recommender.losses(batch).detach(), torch.from_numpy(real)
        with recommender.keeping_states() as kept:
            recommender.losses(batch)
        wanted = spec.radius * spec.radii(losses, kept[0].detach(), scored).numpy()
        np.testing.assert_allclose(lengths[real], np.broadcast_to(wanted[:, None], real.shape)[real], rtol=1e-4)
        assert float(loss.detach()) > 2 * float(mean_loss(losses, batch))

    @pytest.mark.parametrize(("share", "radius"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.3)])
    def test_substitutes_hurt_most_to_first_order(self, split, monkeypatch, share, radius):
        monkeypatch.setattr("lorec.defenses.adversarial.CHUNK", 500)  # in several pieces
        recommender, guard = started(ADV(share=share, radius=radius), split)
        warm(guard, recommender)
        batch = batch_of(split, recommender)
        pushed, encode = [], recommender.encode

        def spy(vectors, padding):
            if recommender._shift.vectors is not None and recommender._shift.vectors.any():
                pushed.append((vectors + recommender._shift.vectors).detach())
            return encode(vectors, padding)

        recommender.encode = spy
        loss = guard.loss(recommender, batch)
        (read,) = pushed
        real = torch.from_numpy(batch.history > 0)
        shift = torch.zeros(*read.shape, requires_grad=True)
        with recommender.shifted(vectors=shift):
            mean_loss(recommender.losses(batch), batch).backward()
        table = recommender.table().detach()
        # A step of 1 ends at the item along which the loss rises most.
        worst = (shift.grad[real] @ table[1:].T).argmax(1) + 1
        mine = table[torch.from_numpy(batch.history).long()[real]]
        wanted = mine + radius * (table[worst] - mine)
        hit = (read[real] - mine).abs().sum(1) > 1e-6
        assert float(hit.float().mean()) == pytest.approx(share, abs=0.06)
        torch.testing.assert_close(read[real][hit], wanted[hit], atol=1e-5, rtol=1e-4)
        assert float(loss.detach()) > 2 * float(mean_loss(recommender.losses(batch), batch).detach())

    @pytest.mark.parametrize("spec", [APR(enter=3), VAT(enter=3), PamaCF(enter=3), ADV(enter=3)])
    def test_enters_when_it_is_said_to(self, spec, split):
        recommender, guard = started(spec, split)
        batch = batch_of(split, recommender)
        plain = float(mean_loss(recommender.losses(batch), batch).detach())
        for epoch in range(1, 5):
            attacked = float(guard.loss(recommender, batch).detach()) > 1.5 * plain
            assert attacked == (epoch >= 3)
            guard.end_epoch(recommender, epoch)
            assert guard.ready == (epoch >= 3)

    def test_a_backbone_is_as_before_afterwards(self, split):
        recommender, guard = started(APR(), split)
        warm(guard, recommender)
        batch = batch_of(split, recommender)
        before = recommender.losses(batch).detach()
        guard.loss(recommender, batch)
        assert (recommender.losses(batch) == before).all()


class TestContrast:
    def test_against_a_written_out_reference(self):
        one, other = torch.randn(3, 4), torch.randn(3, 4)
        views, total = torch.cat([one, other]), 0.0
        for i in range(6):
            others = [j for j in range(6) if j != i]
            scores = {j: float(views[i] @ views[j]) / 0.5 for j in others}
            total -= scores[(i + 3) % 6] - math.log(sum(math.exp(score) for score in scores.values()))
        assert float(nt_xent(one, other, 0.5)) == pytest.approx(total / 6, rel=1e-5)

    def test_many_are_contrasted_in_blocks(self, monkeypatch):
        monkeypatch.setattr("lorec.defenses.contrastive.MOST", 4)
        one, other = torch.randn(6, 3), torch.randn(6, 3)
        wanted = (4 * nt_xent(one[:4], other[:4], 1.0) + 2 * nt_xent(one[4:], other[4:], 1.0)) / 6
        torch.testing.assert_close(nt_xent(one, other, 1.0), wanted)

    @given(st.integers(1, 12), st.integers(0, 1000))
    def test_views_hold_what_the_history_held(self, length, seed):
        rng = np.random.default_rng(seed)
        history = np.zeros((3, 12), dtype=np.int32)
        for row in range(3):
            history[row, -length:] = rng.permutation(50)[:length] + 1
        for view in CL4SRec().views(history, rng):
            assert (view[:, -1] > 0).all()
            for row in range(3):
                kept = view[row][view[row] > 0]
                assert set(kept) <= set(history[row])
                assert len(kept) == len(set(kept)) >= max(1, min(int(0.6 * length), length - int(0.3 * length)))
                assert (view[row][-len(kept) :] == kept).all()  # no hole that a backbone might take for padding
            assert (view[:, : 12 - length] == 0).all()

    def test_a_crop_and_a_shuffled_piece_lie_anywhere(self):
        items, spec = np.arange(1, 11, dtype=np.int32), CL4SRec(crop=0.6, reorder=0.4)
        rng, begins, pieces = np.random.default_rng(0), set(), set()
        for _ in range(200):
            kept = spec._cropped(items, rng)
            assert kept.tolist() == list(range(kept[0], kept[0] + 6))
            begins.add(int(kept[0]))
            mixed = spec._reordered(items, rng)
            assert sorted(mixed) == items.tolist()
            changed = np.flatnonzero(mixed != items)
            if len(changed):
                assert changed[-1] - changed[0] < 4
                pieces.add(int(changed[0]))
        assert begins == {1, 2, 3, 4, 5}
        assert {0, 3, 6} <= pieces

    def test_two_operators_that_differ(self):
        """Where a crop keeps all and a mask hides all but one, the two views tell which operators they had."""
        history = np.arange(1, 11, dtype=np.int32)[None].repeat(60, 0)
        spec = CL4SRec(crop=1.0, mask=1.0, reorder=1.0)
        one, other = spec.views(history, np.random.default_rng(0))

        def kind(view):
            return np.where((view > 0).sum(1) == 1, 1, np.where((view == history).all(1), 0, 2))

        assert (kind(one) != kind(other)).all()
        assert set(kind(one)) == {0, 1, 2}

    def test_last_states_of_two_views_are_contrasted(self, split):
        recommender, guard = started(CL4SRec(weight=0.3, temperature=0.7), split)
        batch, table = batch_of(split, recommender), recommender.table()
        views = guard.spec.views(batch.history, np.random.default_rng(0))
        one, other = (recommender(torch.from_numpy(view), table)[:, -1] for view in views)
        wanted = mean_loss(recommender.losses(batch), batch) + 0.3 * nt_xent(one, other, 0.7)
        torch.testing.assert_close(guard.loss(recommender, batch), wanted)

    def test_what_was_read_is_contrasted_with_a_small_perturbation_of_it(self, split):
        """Each vector is moved by a share of its length, in a random direction."""
        recommender, guard = started(StDenoise(weight=0.3, temperature=0.7, noise=0.2), split)
        batch, table = batch_of(split, recommender), recommender.table()
        history = torch.from_numpy(batch.history)
        plain = started(StDenoise(weight=0.0), split)[1].loss(recommender, batch)
        read = table[history.long()]
        drawn = np.random.default_rng(0).standard_normal(read.shape, dtype=np.float32)
        drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
        moved = read + 0.2 * read.norm(dim=2, keepdim=True) * torch.from_numpy(drawn)
        states, others = (recommender.encode(some, history == 0)[:, -1] for some in (read, moved))
        wanted = plain + 0.3 * nt_xent(states, others, 0.7)
        torch.testing.assert_close(guard.loss(recommender, batch), wanted)

    def test_a_step_that_fits_counts_more(self, split):
        recommender, guard = started(StDenoise(weight=0.0), split)
        batch = batch_of(split, recommender)
        history, positives = torch.from_numpy(batch.history), torch.from_numpy(batch.positives).long()
        table = recommender.table()
        with torch.no_grad():
            cos = torch.nn.functional.cosine_similarity(recommender(history, table), table[positives], dim=2)
        wanted = mean_loss(recommender.losses(batch), batch, 1 / (1 + (-cos).exp()))
        found = guard.loss(recommender, batch)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(gradient(found, recommender), gradient(wanted, recommender), atol=1e-6, rtol=1e-4)


class TestGraphRfi:
    def test_a_forest_against_a_written_out_reference(self):
        forest = Forest(3, trees=2, depth=2)
        x = torch.randn(5, 3)
        with torch.no_grad():
            left = torch.sigmoid(forest.nodes(x)).view(5, 2, 3)
            wanted = torch.zeros(5, 2)
            for tree in range(2):
                root, first, second = left[:, tree].T
                reached = (root * first, root * (1 - first), (1 - root) * second, (1 - root) * (1 - second))
                for leaf, part in enumerate(reached):
                    wanted += part[:, None] * forest.leaves[tree, leaf].softmax(0) / 2
            torch.testing.assert_close(forest(x).exp(), wanted)

    def test_the_likelihood_of_being_genuine_weighs(self, split):
        recommender, guard = started(GraphRfi(), split)
        batch = batch_of(split, recommender)
        before = guard.loss(recommender, batch)
        torch.testing.assert_close(before, mean_loss(recommender.losses(batch), batch))
        guard.end_epoch(recommender, 1)
        recommender.train()
        genuine = torch.from_numpy(1 - guard.suspicion).float()[torch.from_numpy(batch.users)]
        wanted = mean_loss(recommender.losses(batch) * genuine[:, None], batch)
        torch.testing.assert_close(guard.loss(recommender, batch), wanted)
        assert (guard.flagged == (guard.suspicion >= 0.5)).all()

    def test_a_forest_sees_states_and_losses_of_all_alike(self, split):
        """Without dropout, of users and of known fakes: each column standardised, the last the mean loss."""
        recommender, guard = started(GraphRfi(), split, replace(SMALL, dropout=0.5))
        recommender.train()
        seen = guard._features(recommender)
        recommender.eval()
        everyone = guard.everyone
        assert len(everyone) == len(split) + len(known_fakes(split, share=0.2, seed=1)[0].profiles)
        table, states, errors = recommender.table(), [], []
        for history in everyone:
            read = np.zeros((1, 20), dtype=np.int32)
            read[0, -len(history[-20:]) :] = history[-20:]
            states.append(recommender(torch.from_numpy(read), table)[0, -1].detach())
        sums, counts = np.zeros(len(everyone)), np.zeros(len(everyone))
        for batch in recommender.feed(everyone, 16_384).epoch(np.random.default_rng(0)):
            np.add.at(sums, batch.users, recommender.losses(batch).detach().sum(1).numpy())
            np.add.at(counts, batch.users, (batch.positives > 0).sum(1))
        errors = torch.from_numpy(sums / counts).float()

        def scaled(values):
            return (values - values.mean(0)) / values.std(0)

        torch.testing.assert_close(seen[:, :-1], scaled(torch.stack(states)), atol=1e-3, rtol=1e-3)
        # Negatives are drawn anew, so losses are alike and not the same.
        assert float(torch.corrcoef(torch.stack([seen[:, -1], scaled(errors)]))[0, 1]) > 0.7

    def test_a_history_without_a_loss_is_as_usual(self, split):
        log = Sequences.of([[1], *(split.train[user] for user in range(len(split)))])
        recommender = Recommender(SMALL, "ids", len(split.catalog), seed=1)
        known = known_fakes(split, share=0.2, seed=1)
        guard = GraphRfi().start(recommender, Sight(log, recommender.n_items, known=known))
        errors = guard._features(recommender)[: len(log), -1]
        assert abs(float(errors[0])) < 0.5 < float(errors[1:].abs().max())


@dataclass(frozen=True)
class Nobody:
    """A detector that accuses nobody."""

    needs_text = needs_known = False
    decides = True

    def detect(self, sight):
        nobody = np.zeros(len(sight.log), dtype=bool)
        return Suspicion(users=nobody * 1.0, flagged=nobody)


@dataclass(frozen=True, kw_only=True)
class Believing(StDenoise):
    """Believes every step alike, where cosines give .26 to .74."""

    def believed(self, states, following):
        return torch.ones(states.shape[:2])


class Trusting(GraphRfi):
    """A forest that is told to find nobody."""

    def start(self, recommender, sight):
        guard = super().start(recommender, sight)
        set_ = guard._set
        guard._set = lambda likely: set_(likely * 0)
        return guard


@pytest.mark.parametrize(
    "spec",
    [TCE(most=0.0), RCE(beta=0.0), Trimmed(share=0.0), APR(weight=0.0), VAT(weight=0.0),
     PamaCF(weight=0.0), ADV(weight=0.0), CL4SRec(weight=0.0), Believing(weight=0.0), Trusting(), Weighted(Weights()),
     Filter(detector=Nobody())],
)  # fmt: skip
def test_equals_undefended_where_all_weights_are_1(spec, split):
    training, known = Training(epochs=7, patience=7, tokens=256), known_fakes(split, share=0.2, seed=1)
    plain, same = (
        fit(split, SASRec(width=8, max_length=20, blocks=1), defense=one, known=known, training=training, seed=2)
        for one in (Undefended(), spec)
    )
    assert [row["loss"] for row in plain.history] == [row["loss"] for row in same.history]
    ready = min(
        getattr(spec, "enter", 2 if isinstance(spec, Trusting) else 1), 7
    )  # of the epochs before, none is taken
    if plain.best_epoch >= ready:
        assert same.best_epoch == plain.best_epoch
        for one, other in zip(plain.recommender.parameters(), same.recommender.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("spec", RIVALS)
@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("items", ["ids", "text", "both"])
def test_works_with_every_backbone_and_kind_of_items(spec, backbone, items, split):
    recommender, guard = started(spec(), split, BACKBONES[backbone](width=8, max_length=20), items)
    warm(guard, recommender)
    recommender.train()
    loss = guard.loss(recommender, batch_of(split, recommender))
    assert torch.isfinite(gradient(loss, recommender)).all()
    assert gradient(guard.loss(recommender, batch_of(split, recommender)), recommender).abs().sum() > 0


TRAINING = Training(epochs=30, patience=30, tokens=1024, learning_rate=3e-3)


@pytest.fixture(scope="module")
def honest():
    return leave_two_out(world(users=400, items=300, length=20, groups=5, seed=1))


@pytest.fixture(scope="module")
def attacked(honest):
    """By kind of attack: the log with 20 fraudsters of it, their targets, and what a defense learns from."""

    def crowd(attack, learned):
        poison = forge(attack, honest, 5, seed=4)
        bad = inject(honest, poison, seed=4)
        return bad, poison.targets, learned(bad, honest.catalog.ids(poison.targets))

    def others(bad, targets):
        return known_fakes(bad, kinds=["random"], share=0.1, seed=4)

    def campaign(bad, targets):
        """Many, of the very targets: as where moderators named most of a crowd."""
        return [forge(Random(share=0.5), honest, targets, seed=9)]

    return {
        "random": crowd(Random(share=0.05), others),
        "copied": crowd(Replace(share=0.05), others),
        "known": crowd(Random(share=0.05), campaign),
    }


def shown(attacked, kind, spec):
    """T-HR@50 under a defense, and the fit."""
    bad, targets, known = attacked[kind]
    text = TextVectors(bad.catalog, Hash()) if spec.needs_text else None
    made = fit(bad, SASRec(width=32, max_length=20), defense=spec, known=known, text=text, training=TRAINING, seed=3)
    return evaluate(made.recommender, bad, targets=targets).metrics["T-HR@50"], made


@pytest.fixture(scope="module")
def undefended(attacked):
    alone = {kind: shown(attacked, kind, Undefended())[0] for kind in ("random", "copied")}
    return alone | {"known": alone["random"]}  # the same log


def polluted(recommender, split, target, most=10):
    """Which users see a target among so many, and once each history had one item exchanged: the one, of all other
    items, that raises its score most, to first order (what Yue et al. 2022 defend against)."""
    recommender.eval()
    table = recommender.table().detach()

    def sees(history):
        scores = recommender(history, table)[:, -1] @ table[1:].T
        return (scores > scores[:, target - 1, None]).sum(1) < most

    ((_, history),) = recommender.histories(split.train, 16_384)
    history = torch.from_numpy(history).long()
    shift = torch.zeros(*history.shape, recommender.spec.width, requires_grad=True)
    with recommender.shifted(vectors=shift):
        (slope,) = torch.autograd.grad((recommender(history, table)[:, -1] @ table[target]).sum(), shift)
    with torch.no_grad():
        gain = slope @ table.T - (slope * table[history]).sum(2, keepdim=True)
        gain[..., [0, target]] = gain[history == 0] = -math.inf  # who has the target needs no other to be shown it
        best = gain.flatten(1).argmax(1)
        place, item = best // len(table), best % len(table)
        changed = history.clone()
        changed[torch.arange(len(changed)), place] = item
        return float(sees(history).float().mean()), float(sees(changed).float().mean())


class TestEffect:
    """A world that can be learned; each defense where its own assumption holds.

    Undefended .66 of genuine users are shown a target of `random`, whose fraudsters take what nobody else does
    together, and .42 of `copied`. A defense that does nothing but draw other dropout has .80 to .98 of that.
    """

    @pytest.mark.parametrize(
        ("kind", "spec"),
        [("random", Trimmed(share=0.05)), ("random", StDenoise()), ("random", CL4SRec()), ("random", APR(radius=0.5)),
         ("random", VAT(radius=10.0)), ("random", PamaCF(radius=10.0)), ("random", Filter(detector=Degree())),
         ("random", Filter(detector=Coherence(share=0.05))), ("copied", TCE(most=0.3, rise=100)),
         ("copied", RCE(beta=2.0)), ("copied", PLD()), ("known", LLM4Dec(view="pooled"))],
    )  # fmt: skip
    def test_targets_are_shown_less(self, kind, spec, attacked, undefended):
        assert shown(attacked, kind, spec)[0] < 0.7 * undefended[kind]

    def test_of_a_crowd_mostly_known_a_forest_lets_less_through(self, attacked, undefended):
        exposed, made = shown(attacked, "known", GraphRfi())
        assert detection(made.guard.suspicion, made.guard.flagged, attacked["known"][0].fraudsters)["ROC-AUC"] > 0.9
        assert exposed < 0.8 * undefended["known"]

    def test_substitutions_promote_less(self, honest):
        """What adversarial substitution is made against: what it learned from is honest, what it reads is not."""

        def risen(spec):
            made = fit(honest, SASRec(width=32, max_length=20), defense=spec, training=TRAINING, seed=3)
            before, after = zip(
                *(polluted(made.recommender, honest, target) for target in range(7, 300, 40)), strict=True
            )
            return sum(after) - sum(before)

        assert 0 < risen(ADV(radius=1.0, share=0.5)) < 0.4 * risen(Undefended())

    def test_trimming_finds_the_fraudsters(self, attacked):
        _, made = shown(attacked, "random", Trimmed(share=0.05))
        fraudsters = attacked["random"][0].fraudsters
        assert detection(made.guard.suspicion, made.guard.flagged, fraudsters)["recall"] > 0.5


@pytest.mark.parametrize("spec", RIVALS)
def test_an_interrupted_fit_goes_on_to_the_same_end(spec, split, tmp_path):
    known = known_fakes(split, share=0.2, seed=1)

    def fitted(epochs, checkpoint):
        training = Training(epochs=epochs, patience=9, tokens=256)
        defense = TCE(rise=5) if spec is TCE else spec()  # as only what it has dropped shows what it forgot
        return fit(split, SMALL, defense=defense, known=known, training=training, seed=2, checkpoint=checkpoint)

    whole = fitted(7, tmp_path / "whole")
    fitted(4, tmp_path / "cut")
    rest = fitted(7, tmp_path / "cut")
    assert [row["loss"] for row in rest.history] == [row["loss"] for row in whole.history]
    for name, value in whole.recommender.state_dict().items():
        assert torch.equal(value, rest.recommender.state_dict()[name])
    one, other = whole.guard.suspicion, rest.guard.suspicion
    assert (one is None) == (other is None)
    assert one is None or (one == other).all()


@pytest.mark.parametrize(
    "make",
    [lambda: TCE(most=1.0), lambda: RCE(beta=-1.0), lambda: PLD(candidates=0), lambda: PLD(temperature=0.0),
     lambda: Trimmed(share=1.0), lambda: APR(radius=0.0), lambda: VAT(enter=0), lambda: ADV(share=0.0),
     lambda: ADV(radius=2.0), lambda: CL4SRec(crop=0.0), lambda: StDenoise(noise=0.0), lambda: GraphRfi(trees=0),
     lambda: CL4SRec(temperature=math.nan)],
)  # fmt: skip
def test_refuses_what_makes_no_sense(make):
    with pytest.raises(ConfigError):
        make()
