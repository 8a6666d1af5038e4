"""What the clicks of a user alone tell, without texts: detectors from before language models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import LinearOperator, svds

from lorec.data import Bools, Floats, Poison, Sequences
from lorec.detectors.logistic import fit_logistic, sigmoid, squared
from lorec.detectors.reasons import Names, by_items, many, than
from lorec.detectors.suspicion import Suspicion, worst
from lorec.errors import ConfigError, DataError
from lorec.evidence import bursts, by_rank, doubles, shapes
from lorec.sight import Sight
from lorec.sources import moment

BLOCK = 8_192
"""Users or items whose pairs are in memory at once."""
LONGEST = 1_000
"""Rare items of a history whose pairs are counted: more are a machine's, alone they make no group, and they are many.
"""


@dataclass(frozen=True, kw_only=True)
class Degree:
    """A classifier on the popularities of a user's items (after DegreeSAD, Li et al. 2016): the best cheap baseline.

    It learns from all rounds of known fakes beside the log, whose users count as genuine, each side with half of the
    weight, and accuses from a likelihood of .5. A round's own clicks make its targets popular, the more the larger it
    is, and nobody knows how large the log's campaigns are: so it sees every round twice, without these clicks and with
    them. Theirs is an ensemble of trees on ratings; ours is logistic, quadratic in `evidence.shapes`: the log's own
    fraudsters count as genuine, and a richer model learns that by heart.
    """

    ridge: float = 1.0
    """Half of it times the squared coefficients is added to the loss."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.ridge < np.inf:
            raise ConfigError(f"degree: ridge is {self.ridge}; it is above 0 and finite")

    def detect(self, sight: Sight) -> Suspicion:
        """Likelihoods of users [users]."""
        log, counts = sight.log, sight.log.counts(sight.n_items)
        users = made(log, sight.n_items, sight.rounds(), ridge=self.ridge, balanced=True, beside=True)[0]
        middle = np.median(counts[log.items])

        def why(user: int, names: Names) -> str:
            taken = counts[log[user]]
            return (
                f"the {len(taken)} items were taken {taken.min():,} to {taken.max():,} times, {np.median(taken):,.0f} "
                f"in the middle (of all that was taken: {middle:,.0f}); made with likelihood "
                f"{users[user]:.2f} ({than(users, user, 'users')})"
            )

        return Suspicion(users=users, flagged=users >= 0.5, why=why)


@dataclass(frozen=True, kw_only=True)
class PCA:
    """Whose clicks explain least of what all users have in common (PCA VarSelect, Mehta, Nejdl 2009).

    Users' vectors are standardised over items, and of the first components of the users' covariance those with the
    smallest squared loadings are suspicious: fraudsters covary with one another and hardly with anybody else. By sparse
    singular vectors; it never asks how many fraudsters there are, so it accuses a share.
    """

    components: int = 3
    """That count, from the largest on."""
    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.components < 1 or not 0 < self.share < 1:
            raise ConfigError(
                f"pca: components is {self.components}, share {self.share}; they are 1 or more, and in (0, 1)"
            )

    def detect(self, sight: Sight) -> Suspicion:
        """Minus the sum of squared loadings [users]. Raises ConfigError as `fits` does."""
        self.fits(sight)
        n_items, taken = sight.n_items, _taken(sight.log, sight.n_items)
        mean = taken.sum(1) / n_items
        scale = 1 / np.sqrt(np.maximum(mean * (1 - mean), 1e-12))
        ones = np.ones(n_items)
        standardised = LinearOperator(
            taken.shape,
            matvec=lambda x: scale * (taken @ x.ravel() - mean * x.sum()),
            rmatvec=lambda y: taken.T @ (scale * y.ravel()) - (mean * scale) @ y.ravel() * ones,
            dtype=np.float64,
        )
        loadings, _, _ = svds(standardised, k=self.components, rng=sight.rng)
        users: Floats = -np.square(loadings).sum(1)
        usual = -np.median(users)

        def why(user: int, names: Names) -> str:
            return (
                f"explains {-users[user]:.2g} of what users have in common, where {usual:.2g} is usual "
                f"(as little: {than(users, user, 'users')})"
            )

        return Suspicion(users=users, flagged=worst(users, self.share), why=why)

    def fits(self, sight: Sight) -> None:
        """Raise ConfigError where there are too few users or items, or all users are alike."""
        n_users, n_items = len(sight.log), sight.n_items
        if self.components >= min(n_users, n_items):
            raise ConfigError(f"pca: {self.components} components of {n_users} users and {n_items} items; take fewer")
        holders = sight.log.distinct().counts(n_items)[1:]
        if ((holders == 0) | (holders == n_users)).all():
            raise ConfigError("pca: all users took the same items, so there is nothing that they have in common or not")


@dataclass(frozen=True, kw_only=True)
class FAP:
    """Suspicion spreads from known fakes over the graph of users and items (fraud action propagation, Zhang 2015).

    In turns an item is as suspicious as its users on average, and a user as the items, a click counting 1 / log(1 +
    how often the item was taken) as there are no ratings; known fakes stay at 1.
    """

    rounds: int = 10
    """There and back."""
    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.share < 1:
            raise ConfigError(f"fap: rounds is {self.rounds}, share {self.share}; they are 1 or more, and in (0, 1)")

    def detect(self, sight: Sight) -> Suspicion:
        """[users] and [V + 1], in [0, 1]; the seeds are the first round of known fakes."""
        n_users, taken = len(sight.log), _taken(sight.log.extended(sight.fakes()), sight.n_items)
        weighted = taken @ diags_array(1 / np.log1p(np.maximum(taken.sum(0), 1)))
        by_user = diags_array(1 / np.maximum(weighted.sum(1), 1e-12)) @ weighted
        by_item = diags_array(1 / np.maximum(weighted.sum(0), 1e-12)) @ weighted.T
        seeds = np.arange(taken.shape[0]) >= n_users
        users = seeds.astype(np.float64)
        items = np.zeros(sight.n_items)
        for _ in range(self.rounds):
            items = by_item @ users
            users = np.where(seeds, 1.0, by_user @ items)
        users, items = users[:n_users], np.append(0.0, items)
        holders, fakes = taken.sum(0), taken[n_users:].sum(0)

        def why_item(item: int, names: Names) -> str:
            return (
                f"of {many(holders[item - 1], 'holder')} of {names.item(item)} {fakes[item - 1]:,.0f} are known fakes, "
                f"the others hold what these do: suspicion {items[item]:.3f}, {than(items[1:], item - 1, 'items')}"
            )

        return Suspicion(
            users=users, flagged=worst(users, self.share), items=items,
            why=by_items(sight.log, items, why_item), why_item=why_item,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Users who took the same rare items together more often than chance has it.

    Of each pair of items the log-likelihood ratio of how often they stand in one history, against independence
    (Poisson); a user's suspicion is the sum over the pairs of that history, an item's over its pairs. Histories of more
    than a thousand rare items don't count, and are not suspected.
    """

    rare: float = 0.9
    """Only the less popular share of items counts: popular ones stand together anyway, and are many pairs."""
    least: int = 3
    """Histories that hold both, at least."""
    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.rare <= 1 or self.least < 2 or not 0 < self.share < 1:
            raise ConfigError("groups: rare lies in (0, 1], least is 2 or more, share lies in (0, 1)")

    def detect(self, sight: Sight) -> Suspicion:
        """Log-likelihood ratios, summed: [users] and [V + 1]."""
        log, n_users, taken = sight.log, len(sight.log), _taken(sight.log, sight.n_items)
        counts = taken.sum(0)
        kept = np.flatnonzero((counts >= self.least) & (counts <= np.quantile(counts, self.rare)))
        few = taken[:, kept]
        few = diags_array((few.sum(1) <= LONGEST).astype(np.float64)) @ few
        few.eliminate_zeros()
        parts = []
        for start in range(0, len(kept), BLOCK):  # most pairs are rare ones, and are not kept
            block = coo_array(few[:, start : start + BLOCK].T @ few)
            often = (block.data >= self.least) & (block.coords[0] + start < block.coords[1])
            parts.append(np.stack([block.coords[0][often] + start, block.coords[1][often], block.data[often]]))
        row, column, together = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0))
        row, column = row.astype(np.int64), column.astype(np.int64)
        expected = counts[kept][row] * counts[kept][column] / n_users
        ratio = np.where(together > expected, together * np.log(together / expected) - (together - expected), 0)
        scores = csr_array((ratio, (row, column)), shape=(len(kept), len(kept)))
        users = np.concatenate([
            (few[start : start + BLOCK] @ scores).multiply(few[start : start + BLOCK]).sum(1)
            for start in range(0, n_users, BLOCK)
        ])  # fmt: skip
        items = np.zeros(sight.n_items + 1)
        items[kept + 1] = scores.sum(0) + scores.sum(1)
        first, second = kept[row] + 1, kept[column] + 1

        def pairs(some: Bools, names: Names) -> str:
            these = np.flatnonzero(some & (ratio > 0))
            worst_ones = these[np.argsort(-ratio[these], kind="stable")][:2]
            return "; ".join(
                f"{names.item(first[pair])} and {names.item(second[pair])} stand together in "
                f"{together[pair]:,.0f} histories, where {expected[pair]:,.2g} would by chance"
                for pair in worst_ones
            )

        return Suspicion(
            users=users, flagged=worst(users, self.share), items=items,
            why=lambda user, names: pairs(np.isin(first, log[user]) & np.isin(second, log[user]), names),
            why_item=lambda item, names: pairs((first == item) | (second == item), names),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Users whose history is nearly another one's: the share of it that its double holds, among those as long."""

    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError("copies: share lies in (0, 1)")

    def detect(self, sight: Sight) -> Suspicion:
        """Normal scores [users]; 0 for a history of fewer than three items."""
        log = sight.log.distinct()
        users, told = np.zeros(len(log)), log.lengths > 2
        double, share = doubles(log, sight.n_items + 1)
        users[told] = by_rank(share[told], log.lengths[told])

        def why(user: int, names: Names) -> str:
            if double[user] < 0:
                return ""
            return (
                f"{share[user]:.0%} of the {log.lengths[user]} items are also in the history of "
                f"{names.user(double[user])} ({than(users, user, 'users')}, for how long their histories are)"
            )

        return Suspicion(users=users, flagged=worst(users, self.share), why=why)


@dataclass(frozen=True, kw_only=True)
class Bursts:
    """Items that half of their holders took within a short time, among items of like popularity, and who came then.

    For logs whose times are real; the times of a synthetic attack are made up, so its figures there mean little.
    """

    share: float = 0.01
    """Of users, that it accuses."""

    needs_text: ClassVar[bool] = False
    needs_known: ClassVar[bool] = False
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError("bursts: share lies in (0, 1)")

    def detect(self, sight: Sight) -> Suspicion:
        """Normal scores: of items, of interactions in an item's burst, of users. Raises DataError without times."""
        self.fits(sight)
        log, n_items = sight.log, sight.n_items
        shares, when = bursts(log, n_items)
        counts = log.counts(n_items)
        items, told = np.zeros(n_items + 1), counts > 2
        items[told] = by_rank(-np.log(shares[told]), counts[told])
        assert log.times is not None
        inside = (log.times >= when[log.items, 0]) & (log.times <= when[log.items, 1])
        single = np.where(inside, np.maximum(items[log.items], 0), 0)
        worst_of = np.zeros(len(log))
        np.maximum.at(worst_of, log.users(), single)
        users, some = np.zeros(len(log)), log.lengths > 0
        users[some] = by_rank(worst_of[some], log.lengths[some])

        def why_item(item: int, names: Names) -> str:
            first, last = (moment(int(one)) for one in when[item])
            return (
                f"half of {many(counts[item], 'interaction')} with {names.item(item)} came between {first} and {last}, "
                f"a time with {shares[item]:.2%} of all ({than(items[1:], item - 1, 'items')}, for how popular)"
            )

        def why(user: int, names: Names) -> str:
            mine = np.arange(log.starts[user], log.starts[user + 1])
            best = mine[np.argsort(-single[mine], kind="stable")][:2]
            return "; ".join(f"took part when {why_item(int(log.items[at]), names)}" for at in best if single[at] > 0)

        return Suspicion(
            users=users, flagged=worst(users, self.share), interactions=single, items=items, why=why, why_item=why_item
        )

    def fits(self, sight: Sight) -> None:
        """Raise DataError for a log without times."""
        if sight.log.times is None:
            raise DataError("bursts: the log has no times, so there are none; leave this detector out")


def _taken(log: Sequences, n_items: int) -> csr_array:
    """[users, V]: 1 where a user took an item."""
    log = log.distinct()
    ones = np.ones(len(log.items))
    return csr_array((ones, (log.users(), log.items - 1)), shape=(len(log), n_items))


def made(
    log: Sequences, n_items: int, known: Sequence[Poison], *, ridge: float, balanced: bool = False, beside: bool = False
) -> list[Floats]:
    """How made each history looks, by the mix of popularities in it: likelihoods for the log, then for every round.

    A classifier tells the known fakes from the log; `balanced`: both count alike, however few there are; `beside`: it
    also sees them with their round's own clicks counted beside the log's, as those of the log's fraudsters are.
    """
    counts = log.counts(n_items)
    told = [shapes(log, counts), *(shapes(one.profiles, counts) for one in known)]
    if beside:
        told += [shapes(one.profiles, counts + one.profiles.counts(n_items)) for one in known]
    x = squared(np.concatenate(told))
    fake = (np.arange(len(x)) >= len(told[0])).astype(np.float64)
    share = fake.mean()
    n = np.where(fake == 1, 0.5 / share, 0.5 / (1 - share)) if balanced else np.ones(len(x))
    likely = sigmoid(x @ fit_logistic(x, fake * n, n, ridge=ridge))
    return np.split(likely, np.cumsum([len(one) for one in told])[:-1])
