import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, ndcg_score, precision_score, recall_score, roc_auc_score

from lorec.attacks import Random, forge
from lorec.data import Sequences, inject, leave_two_out, whole
from lorec.errors import DataError
from lorec.evaluation import (
    by_popularity,
    detection,
    evaluate,
    exposure,
    mean_weights,
    overlap,
    quality,
    ranks_of,
    success_removed,
)
from lorec.models import Popularity, Recommender, SASRec


class Fixed:
    """Scores that a test writes down, handed out in chunks."""

    def __init__(self, scores, chunk=2):
        self.scores, self.chunk = torch.tensor(scores, dtype=torch.float32), chunk

    def score(self, log, tokens=0):
        for start in range(0, len(log), self.chunk):
            rows = np.arange(start, min(start + self.chunk, len(log)))
            yield rows, self.scores[rows].clone()


def rank_by_hand(scores, history, goal, seen):
    others = [n for n in range(1, len(scores)) if n != goal and (seen or n not in history)]
    return 1 + sum(scores[n] >= scores[goal] for n in others)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 4))
def test_ranks_equal_brute_force_with_ties(seed, seen, chunk):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(5, 9)).astype(float)  # few values: many ties
    histories = [rng.choice(np.arange(1, 9), rng.integers(0, 5), replace=False).tolist() for _ in range(5)]
    goals = rng.integers(1, 9, size=(5, 3))
    ranks = ranks_of(Fixed(scores, chunk), Sequences.of(histories), goals, seen=seen)
    wanted = [[rank_by_hand(scores[u], histories[u], goal, seen) for goal in goals[u]] for u in range(5)]
    assert ranks.tolist() == wanted


def test_ranks_without_ties_are_places_in_a_full_sort():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((40, 101))
    goals = rng.integers(1, 101, size=(40, 1))
    order = np.argsort(-scores[:, 1:], axis=1) + 1
    wanted = [int(np.flatnonzero(order[u] == goals[u])[0]) + 1 for u in range(40)]
    assert ranks_of(Fixed(scores), Sequences.of([[]] * 40), goals)[:, 0].tolist() == wanted


def test_a_constant_scorer_gets_nothing():
    ranks = ranks_of(Fixed(np.ones((3, 50))), Sequences.of([[1]] * 3), np.full((3, 1), 7))
    assert (ranks == 48 + 0 + 0).all() or (ranks == 49).all()
    assert ranks[0, 0] == 48  # 49 items, one of them seen


def test_a_score_that_is_no_number_is_an_error():
    scores = np.ones((2, 5))
    scores[1, 3] = np.nan
    with pytest.raises(DataError, match="diverged"):
        ranks_of(Fixed(scores), Sequences.of([[], []]), np.array([[1], [1]]))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_quality_against_sklearn(ranks):
    truth, scores = np.zeros((len(ranks), 30)), np.tile(np.arange(30, 0, -1.0), (len(ranks), 1))
    truth[np.arange(len(ranks)), np.array(ranks) - 1] = 1
    metrics = quality(np.array(ranks), (10,))
    assert metrics["NDCG@10"] == pytest.approx(ndcg_score(truth, scores, k=10))
    assert metrics["HR@10"] == pytest.approx(np.mean([rank <= 10 for rank in ranks]))
    assert metrics["MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_exposure_counts_only_those_who_lack_the_target():
    ranks = np.array([[1, 60], [3, 40], [70, 2]])
    absent = np.array([[True, True], [False, True], [True, False]])
    metrics = exposure(ranks, absent, (50,))
    assert metrics["T-HR@50"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert metrics["T-NDCG@50"] == pytest.approx(((1 / np.log2(2)) / 2 + (1 / np.log2(41)) / 2) / 2)
    assert metrics["target rank"] == pytest.approx(((1 + 70) / 2 + (60 + 40) / 2) / 2)


@given(st.integers(0, 10**6))
def test_detection_against_sklearn_with_ties(seed):
    rng = np.random.default_rng(seed)
    bad = rng.random(60) < 0.3
    bad[:2] = True, False
    suspicion = rng.integers(0, 8, 60).astype(float)
    flagged = suspicion > 4
    found = detection(suspicion, flagged, bad)
    assert found["ROC-AUC"] == pytest.approx(roc_auc_score(bad, suspicion))
    assert found["PR-AUC"] == pytest.approx(average_precision_score(bad, suspicion))
    assert found["precision"] == pytest.approx(precision_score(bad, flagged, zero_division=0))
    assert found["recall"] == pytest.approx(recall_score(bad, flagged))
    assert found["F1"] == pytest.approx(f1_score(bad, flagged, zero_division=0))
    m = int(bad.sum())
    places = [(m - (suspicion > one).sum()) / (suspicion == one).sum() for one in suspicion[bad]]  # of ties a share
    assert found["recall@m"] == pytest.approx(np.clip(places, 0, 1).mean())


def test_recall_in_the_worst_percent():
    bad = np.arange(1000) < 20
    perfect, constant = -np.arange(1000.0), np.zeros(1000)
    assert detection(perfect, bad, bad)["recall@1%"] == pytest.approx(0.5)  # 10 of 20 fit into 1 %
    assert detection(constant, bad, bad)["recall@1%"] == pytest.approx(0.01)  # chance


def test_detection_needs_both_kinds():
    with pytest.raises(DataError, match="0 fraudsters among 3 users"):
        detection(np.zeros(3), np.zeros(3, bool), np.zeros(3, bool))


def test_by_popularity_against_a_full_sort(split):
    scorer = Recommender(SASRec(width=8, max_length=20, blocks=1), "ids", len(split.catalog), seed=3)
    card = evaluate(scorer, split, top=5)
    found = by_popularity(card.users, split, parts=4)
    counts = split.train.counts(len(split.catalog))[1:]
    part = {item + 1: place * 4 // len(counts) for place, item in enumerate(np.argsort(counts, kind="stable"))}
    slots, hits, held, shown = np.zeros(4), np.zeros(4), np.zeros(4), set()
    log = split.histories(split.genuine())
    for rows, scores in scorer.score(log):
        for user, row in zip(rows, scores.clone(), strict=True):
            ranked = [i for i in torch.argsort(-row).tolist() if i > 0 and i not in set(log[user])][:5]
            slots += np.bincount([part[i] for i in ranked], minlength=4)
            shown |= set(ranked)
            test = int(split.test[split.genuine()[user]])
            held[part[test]] += 1
            hits[part[test]] += test in ranked
    np.testing.assert_allclose(found["slots"], slots / slots.sum())
    assert found["hits"].to_list() == hits.tolist()
    assert found["held out"].to_list() == held.tolist()
    assert found["shown"].to_list() == np.bincount([part[i] for i in shown], minlength=4).tolist()


def test_mean_weights():
    weights, flagged = np.array([1, 0.5, 0.1, 0.3], dtype=np.float32), np.array([False, True, True, True])
    found = mean_weights(weights, flagged, np.array([False, False, True, True]))
    assert found == pytest.approx({"weight genuine": 0.75, "weight fraudsters": 0.2, "genuine turned down": 0.5})


def test_success_removed_has_a_meaning_only_where_the_attack_works():
    clean, undefended, defended = {"T-HR@50": 0.01}, {"T-HR@50": 0.21}, {"T-HR@50": 0.06}
    assert success_removed(clean, undefended, defended, 50, 1000) == pytest.approx(0.75)
    assert success_removed(clean, {"T-HR@50": 0.04}, defended, 50, 1000) is None  # below five times clean
    assert success_removed({"T-HR@50": 0.0}, {"T-HR@50": 0.04}, defended, 50, 1000) is None  # below chance


def test_items_older_than_the_training_history_are_seen_all_the_same(tiny):
    whole, cut = leave_two_out(tiny, last=0), leave_two_out(tiny, last=3)
    counts = whole.train.counts(len(whole.catalog))
    targets = np.arange(1, 9, dtype=np.int32)
    full, short = (evaluate(Popularity(counts), one, targets=targets) for one in (whole, cut))
    assert full.metrics == short.metrics
    assert len(cut.older.items) + len(cut.train.items) == len(whole.train.items)


def test_fraudsters_are_never_judged(split):
    bad = inject(split, forge(Random(share=0.2), split, 2, seed=1), seed=1)
    floor = Popularity(bad.train.counts(len(bad.catalog)))
    judged = set(evaluate(floor, bad).users["user"])
    assert judged == set(split.users)
    assert evaluate(floor, bad, rows=~bad.fraudsters).users.equals(evaluate(floor, bad).users)  # a mask will do
    for rows in (np.flatnonzero(bad.fraudsters)[:1], np.arange(len(bad))):
        with pytest.raises(DataError, match="at least one, and genuine"):
            evaluate(floor, bad, rows=rows)


def test_who_has_nothing_held_out_is_not_judged(split, tiny):
    floor = Popularity(split.train.counts(len(split.catalog)))
    with pytest.raises(DataError, match="nothing held out"):
        evaluate(floor, whole(tiny))
    with pytest.raises(DataError, match="a target lies outside"):
        evaluate(floor, split, targets=np.array([1, len(split.catalog) + 1]))


def test_hits_by_popularity_are_those_of_the_ranks(split):
    """Where scores are equal a list shows somebody, and the rank is the worst that it may be."""
    card = evaluate(Popularity(np.ones(len(split.catalog) + 1)), split, top=10)
    told = by_popularity(card.users, split)
    assert told["hits"].sum() == round(card.metrics["HR@10"] * len(split))
    longer = evaluate(Popularity(np.ones(len(split.catalog) + 1)), split, top=20)
    assert (longer.users["top"].to_numpy()[:, :10] == card.users["top"].to_numpy()).all()


def test_popularity_is_evaluated_on_genuine_users_only(split):
    counts = split.train.counts(len(split.catalog))
    some = np.array([7, 3])
    part = evaluate(Popularity(counts), split, rows=some)
    whole = evaluate(Popularity(counts), split).users
    assert part.users["rank"].to_list() == whole["rank"].to_numpy()[some].tolist()
    assert part.metrics["MRR"] == pytest.approx((1 / part.users["rank"]).mean())
    with pytest.raises(DataError, match="at least one"):
        evaluate(Popularity(counts), split, rows=some[:0])
    card = evaluate(Popularity(counts), split, targets=np.array([1, 2], dtype=np.int32))
    assert card.users.height == len(split)
    assert {"HR@10", "NDCG@10", "MRR", "T-HR@50", "T-NDCG@50", "target rank"} == set(card.metrics)
    assert all(0 <= card.metrics[name] <= 1 for name in ("HR@10", "NDCG@10", "MRR", "T-HR@50"))
    by_hand = []
    for row in range(len(split)):
        history = [*split.train[row].tolist(), int(split.valid[row])]
        by_hand.append(rank_by_hand(counts, history, int(split.test[row]), False))
    assert card.users["rank"].to_list() == by_hand


def test_a_scorecard_keeps_target_ranks_and_first_places(tiny):
    split = leave_two_out(tiny, last=3)
    counts = split.train.counts(len(split.catalog))
    targets = np.array([1, 2, 40], dtype=np.int32)
    card = evaluate(Popularity(counts), split, targets=targets, top=7)
    assert card.users.columns == ["user", "rank", "target ranks", "top"]
    for user, told, top in zip(*card.users.drop("rank").iter_columns(), strict=True):
        row = split.users.to_list().index(user)
        history = [*split.older[row].tolist(), *split.train[row].tolist(), int(split.valid[row])]
        assert [one is None for one in told] == [int(target) in history for target in targets]
        unseen = [rank_by_hand(counts, history, item, False) for item in top]
        assert unseen == sorted(unseen)
        assert not set(history) & set(top.to_list())
    of_target = [
        [one for one in column if one is not None] for column in zip(*card.users["target ranks"].to_list(), strict=True)
    ]
    assert card.metrics["T-HR@50"] == pytest.approx(np.mean([np.mean(np.array(one) <= 50) for one in of_target]))


def test_overlap_of_lists(split):
    counts = split.train.counts(len(split.catalog))
    one = evaluate(Popularity(counts), split, top=5).users
    other = evaluate(Popularity(counts[::-1].copy()), split, top=5).users
    assert overlap(one, one) == 1.0
    by_hand = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(one["top"], other["top"], strict=True)])
    assert overlap(one, other.sample(fraction=1, shuffle=True, seed=1)) == pytest.approx(by_hand)
    with pytest.raises(DataError, match="different users"):
        overlap(one, other.head(3))
    with pytest.raises(DataError, match="top=10"):
        by_popularity(one.drop("top"), split)
