"""LoRec where histories are short: evidence about items, calibrated on known fakes, turns down interactions.

The published calibrator (`lorec_paper`) asks whether a user's states look fraudulent. Fraudsters are part of the
training data, so the recommender fits them and their states look well; on short histories nothing is left to see. Ours
asks what does not move when the recommender learns: does an item keep the company that its popularity leads one to
expect, in the log and by what a language model makes of its text (`lorec.evidence`)? Six views answer, `collusion`,
`incoherence`, `contradiction`, `nameless`, `copying` and `surprise`; `camouflage` is there for the asking. Two more ask
about an item's holders: `profile`, whether their histories look made, by the mix of popularities in them;
`association`, whether they are suspects by what they hold besides. Each is calibrated on rounds of known fakes; a
likelihood follows for every item, and so for every interaction and user. Where a view raises the odds of a lie enough,
the item's interactions count nothing as what is to be predicted; they still stand in histories.

Differences from the paper, and why: weights are per interaction (all of an item's alike), because in a copied history
one step alone is the lie; known fakes are measured beside the log, as if they stood in it, so that known and real fakes
stand in the same light (but for `profile`, which found less of segments on long histories that way, docs/log.md); the
calibrator has two parameters a view, because richer ones learned the known kinds and missed the others
(docs/diagnosis.md); weights are there before the first step, so nothing feeds back and no gate can stay shut; a view
that has nothing to say is named (`Suspicion.notes`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lorec.data import Bools, Floats, Ints, Poison, Sequences
from lorec.detectors.clicks import made
from lorec.detectors.logistic import calibrate
from lorec.detectors.reasons import Names, by_items, company, than
from lorec.detectors.suspicion import Suspicion
from lorec.errors import ConfigError, DataError
from lorec.evidence import ASIDE, MEASURES, Evidence, Examiner
from lorec.registry import unknown
from lorec.sight import Sight

Source = Literal["log", "text"]
MOST = 20
"""Interactions of an item that count in the calibration."""
VIEWS = (
    "collusion", "surprise", "incoherence", "copying", "profile", "association", "contradiction", "nameless",
    "camouflage",
)  # fmt: skip
"""In the order in which they are asked."""
LOUDEST = 5.0
"""How many times `profile` may raise the odds of a lie: more honest histories look made than its calibration expects,
and they must not outshout the other views."""


SUSPECT = 0.1
"""The likelihood from which on one of the log's own items counts as a lie, by its likelihood, in the calibration."""


@dataclass(frozen=True, kw_only=True)
class LoRec:
    """Evidence from the log and from texts, calibrated on known fakes, finds interactions that look bought."""

    sources: tuple[Source, ...] = ("log", "text")
    """What evidence is made of: the log's own co-occurrence, a language model's vectors of the items' texts."""
    without: tuple[str, ...] = ()
    """Measures that no view asks, by their names in `lorec.evidence.MEASURES`; `twins` where two items that read the
    same and are held together, as listings of one product are, are to count as any other two."""
    collusion: float = 10.0
    """An interaction counts 0 where this view raises the odds of a lie so many times (a Bayes factor); 0: off.

    Honest items that fail this view are close-knit, and a recommender predicts them well: high, since they are missed.
    """
    surprise: float = 15.0
    """The same for this view; 0: off."""
    incoherence: float = 5.0
    """The same for this view; low, since nobody can predict a crowd's random choices anyway; 0: off."""
    copying: float = 5.0
    """The same for items whose holders are doubles of people who lack them; low, since hardly an honest one is; 0: off.
    """
    profile: float = 3.0
    """The same for items whose holders' histories look made; low, since it speaks only where few honest items fail it,
    on long histories; 0: off.
    """
    association: float = 15.0
    """The same for items whose holders are suspects by what else they hold, according to the views above; 0: off."""
    contradiction: float = 15.0
    """The same for the sum of `collusion`, `incoherence` and how little the texts of holders' other items go together.
    In honest items much of the first goes with little of the others; who hides from each is seen by all. 0: off.
    """
    nameless: float = 60.0
    """The same for contradiction by the log alone, where texts are asked, too: titles may accuse and don't acquit, as
    whoever pushes items may have named them alike, or all of them are one maker's. High, so that it costs hardly
    anything where titles are honest: crowds that it is for are far above, but in a small log. 0: off.
    """
    camouflage: float = 0.0
    """The same for items whose holders have what reads alike, which nobody else takes together. 0, the default: off.

    With 5 it sees a crowd that hides among the titles nearest to its target, which no other view sees on short
    histories, for .001 to .003 more of the genuine interactions (docs/limits.md).
    """
    budget: float = 0.006
    """The share of all interactions that incoherence alone may turn down, the likeliest first.

    But for camouflage the other views have none, as a large attack with targets in common makes more lies than any
    budget that spares.
    """
    intruders: float = 0.001
    """The share that incoherence may turn down besides, first items whose holders are each of one piece and have
    nothing in common (`Evidence.intrusion`); 0: off.
    """
    disguises: float = 0.003
    """The share that camouflage alone may turn down: honest shelves of like titles are many, campaigns few."""
    silence: float = 0.01
    """Where profile would turn down more than this share of all interactions, it says nothing.

    Then honest histories look made, too, as short ones do: it would find no more than chance and cost hits.
    """
    threshold: float = 0.05
    """The likelihood from which on a user with a turned-down interaction is flagged.

    Where one lie in an honest history is all that a fraudster tells, hardly anybody gets there: the interaction counts
    nothing, and nobody is accused.
    """

    needs_known: ClassVar[bool] = True
    decides: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not {"log", "text"}.issuperset(self.sources):
            raise ConfigError(f"LoRec's sources are {self.sources!r}; they are log, text or both")
        if not self.sources or not self.factors().keys() - {"association"}:
            raise ConfigError("LoRec needs at least one source, and a view besides association whose factor is not 0")
        if strangers := [name for name in self.without if name not in (*MEASURES, "twins")]:
            raise unknown("measure to go without", strangers[0], (*MEASURES, "twins"))
        if not {name for name, made_of in MEASURES.items() if made_of in self.sources} - {*self.without, *ASIDE}:
            raise ConfigError(f"LoRec goes without all that its sources measure ({', '.join(self.without)}); keep one")
        if not all(1 <= factor < math.inf for factor in self.factors().values()):
            raise ConfigError(f"LoRec's factors ({', '.join(VIEWS)}) are 1 or more, or 0 for off")
        if not all(0 < share <= 1 for share in (self.budget, self.disguises, self.silence)):
            raise ConfigError("LoRec's budget, disguises and silence are shares of interactions in (0, 1]")
        if not 0 <= self.threshold <= 1:
            raise ConfigError("LoRec's threshold is a likelihood in [0, 1]; 1 flags nobody whose lies are in doubt")
        if not 0 <= self.intruders <= 1:
            raise ConfigError("LoRec's intruders is a share of interactions in [0, 1]; 0 is off")

    def factors(self) -> dict[str, float]:
        """The views that are asked, each with its Bayes factor. Of one source alone `nameless` knows nothing more."""
        factors = {view: getattr(self, view) for view in VIEWS if view != "nameless" or len({*self.sources}) > 1}
        return {view: factor for view, factor in factors.items() if factor}

    @property
    def needs_text(self) -> bool:
        """Whether it asks a language model."""
        return "text" in self.sources

    def detect(self, sight: Sight) -> Suspicion:
        """Likelihoods that interactions with each item are bought; raises DataError for known fakes without targets."""
        vectors = sight.texts(self).items() if self.needs_text else None
        log = sight.log.distinct()  # who takes an item again is no more suspect for it
        likely, off, views, silent = self._judged(log, sight.n_items, vectors, sight.known, sight.rng)
        users, single, lies = log.users(), likely[log.items].astype(np.float64), off[log.items]
        # How likely it is that one of a user's turned-down interactions is bought, or else the likeliest.
        worst = np.zeros(len(log))
        np.maximum.at(worst, users, single)
        spared = np.bincount(users, np.log1p(-np.minimum(single, 0.999999)) * lies, len(log))
        suspicion = np.round(np.maximum(worst, -np.expm1(spared)), 12)  # whose items are alike, whatever their order
        flagged = (np.bincount(users, lies, len(log)) > 0) & (suspicion >= self.threshold)
        every, beside = sight.log.items, company(log, sight.n_items)

        def why_item(item: int, names: Names) -> str:
            said = {view: float(odds[item]) for view, odds in views.items()}
            loud = [view for view in sorted(said, key=lambda one: -said[one]) if said[view] > 2][:2]
            found = ", ".join(
                f"{view} raises the odds {said[view]:,.0f} times ({than(views[view][1:], item - 1, 'items')})"
                for view in loud
            )
            return (
                f"{names.item(item)} looks pushed with likelihood {likely[item]:.2f}"
                f"{' and counts nothing' if off[item] else ''}: {found or 'no view alone'}; " + beside(item, names)
            )

        # What counts nothing comes first, then what is likeliest.
        why = by_items(log, likely + off, why_item, most=3, least=SUSPECT)
        return Suspicion(
            users=suspicion, flagged=flagged, interactions=likely[every], lies=off[every], items=likely, views=views,
            why=why, why_item=why_item, notes=silent,
        )  # fmt: skip

    def _judged(
        self, log: Sequences, n_items: int, vectors: Floats | None, known: Sequence[Poison], rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], Bools, dict[str, Floats], tuple[str, ...]]:
        """[V + 1] each: how likely interactions with an item are lies, whether they count nothing, and every view.

        A view says how many times it raises the odds of a lie. Last which views say nothing, and why.
        """
        examiner = Examiner(log, n_items, vectors, rng, counted="log" in self.sources, without=self.without)
        trials = [_Scene.of(one, examiner, log, n_items) for one in known]
        if not any(trial.lies.any() for trial in trials):
            raise DataError("no known fake takes a target of its round; give rounds as known_fakes(...) makes them")
        holders, everything = log.counts(n_items), np.arange(n_items + 1)
        scenes = [_Scene((log,), everything, examiner.evidence, 0 * holders, holders), *trials]
        lies, honest = (np.concatenate([getattr(scene, name) for scene in scenes]) for name in ("lies", "honest"))
        # Real lies count as honest, and all of an attack's on few items: so an item counts as at most so many.
        share = np.minimum(1, MOST / np.maximum(lies + honest, 1))
        lies, honest = lies * share, honest * share
        honest[: len(everything)] *= len(trials)  # the log's own items are the same in every round
        odds = lies.sum() / max(honest.sum(), 1)
        likely, off = [np.zeros(len(scene.items)) for scene in scenes], np.zeros(len(everything), dtype=bool)
        views: dict[str, Floats] = {}
        silent: list[str] = []
        rooms = {"incoherence": self.budget * len(log.items), "camouflage": self.disguises * len(log.items)}
        for view, factor in self.factors().items():
            if view == "profile":
                seen = self._profiled(scenes, log, n_items, known)
            elif view == "association":
                seen = [scene.associated(likely[0], p, odds) for scene, p in zip(scenes, likely, strict=True)]
            else:
                seen = [getattr(scene.evidence, view) for scene in scenes]
            fitted = calibrate(np.concatenate(seen), lies, honest)
            if not fitted.slope:
                silent.append(f"the view {view} says nothing: known fakes do not stand out by it")
            found = [fitted(some) for some in seen]
            against = found[0] > factor * odds * (1 - found[0])
            if view == "profile":
                if (much := holders[against].sum() / len(log.items)) > self.silence:
                    silent.append(
                        f"the view {view} says nothing: honest histories look made to it, too, as it would turn down "
                        f"{much:.1%} of all interactions (more than silence, {self.silence:.1%})"
                    )
                    continue
                found = [np.minimum(some, LOUDEST * odds / (1 + LOUDEST * odds)) for some in found]
            if fitted.slope:  # else it is the same for all items, and rounding could turn all of them down
                off |= _within(found[0], against & ~off, holders, rooms.get(view, math.inf))
                if view == "incoherence" and self.intruders:
                    room = self.intruders * len(log.items)
                    off |= _within(scenes[0].evidence.intrusion, against & ~off, holders, room)
            views[view] = found[0] / (1 - found[0]) / odds
            likely = [np.maximum(*both) for both in zip(likely, found, strict=True)]
        # Each view alone knows some kinds of lies only and is too timid, the likeliest of several is too bold: so once
        # more. (Where all views that are asked keep silent, all likelihoods are 0.)
        best = np.concatenate([np.log(np.maximum(one, 1e-14) / (1 - one)) for one in likely])
        p = _doubted(best, lies, honest, len(everything))
        p[0] = off[0] = 0
        return p.astype(np.float32), off, views, tuple(silent)

    def _profiled(
        self, scenes: Sequence["_Scene"], log: Sequences, n_items: int, known: Sequence[Poison]
    ) -> list[Floats]:
        """For each scene [n]: how made the histories of an item's holders look, in standard errors above the usual.

        Which histories look made, a classifier has learned on the known fakes' beside the log's: quadratic in `shapes`,
        which tell little, so that there is little to learn by heart. Never below 0: to look genuine is easy.
        """
        if "log" not in self.sources:
            return [np.zeros(len(scene.items)) for scene in scenes]
        looks = made(log, n_items, known, ridge=1.0)
        usual, spread = float(looks[0].mean()), max(float(looks[0].std()), 1e-9)
        total, n = _over_holders(log, looks[0], n_items)
        beside = [(0 * total, 0 * n)]
        beside += [_over_holders(one.profiles, p, n_items) for one, p in zip(known, looks[1:], strict=True)]
        found = []
        for scene, (more, others) in zip(scenes, beside, strict=True):
            holders = np.maximum((n + others)[scene.items], 1)
            mean = (total + more)[scene.items] / holders
            found.append(np.maximum((mean - usual) / spread * np.sqrt(holders), 0))
        return found


@dataclass(frozen=True)
class _Scene:
    """Items in a log: all of the log's own, or the targets of a round of known fakes that stands beside it."""

    histories: tuple[Sequences, ...]
    """The log, and the known fakes beside it."""
    items: NDArray[np.int64]
    """[n], sorted."""
    evidence: Evidence
    lies: NDArray[np.int64]
    """[n]: the known fakes' interactions with the item."""
    honest: NDArray[np.int64]
    """[n]: the log's own."""

    @staticmethod
    def of(known: Poison, examiner: Examiner, log: Sequences, n_items: int) -> "_Scene":
        items = np.unique(known.targets).astype(np.int64)
        lies, honest = known.profiles.counts(n_items)[items], log.counts(n_items)[items]
        return _Scene((log, known.profiles), items, examiner.beside(known.profiles, items), lies, honest)

    def associated(self, likely: Floats, p: Floats, odds: float) -> Floats:
        """[n]: guilt by association, the log-odds of the holders' mean suspicion.

        A holder is as suspicious as the likeliest of their other items: `likely` [V + 1] in the log, `p` [n] for the
        items of this scene. One more holder, of usual suspicion (`odds`), keeps what few holders say in bounds.
        """
        p = np.concatenate([likely, p])
        at = np.arange(len(likely))
        at[self.items] = len(likely) + np.arange(len(self.items))
        mine = np.zeros(len(likely), dtype=bool)
        mine[self.items] = True
        holders = Sequences.of([])
        for some in self.histories:
            holders = holders.extended(some.take(np.unique(some.users()[mine[some.items]])).distinct())
        users, suspicion = holders.users(), p[at[holders.items]]
        ranked = np.lexsort((-suspicion, users))
        nth = np.empty(len(ranked), dtype=np.int64)
        nth[ranked] = np.arange(len(ranked))
        first = holders.starts[:-1][users]
        second = np.where(holders.lengths[users] > 1, suspicion[ranked[np.minimum(first + 1, len(users) - 1)]], 0)
        others = np.where(nth == first, second, suspicion[ranked[first]])
        n, total = (np.bincount(holders.items, w, minlength=len(likely))[self.items] for w in (None, others))
        mean = (total + odds / (1 + odds)) / (n + 1)
        guilt: Floats = np.log(mean / (1 - mean))
        return guilt


def _doubted(seen: Floats, lies: Floats, honest: Floats, own: int) -> Floats:
    """[own]: the calibrated likelihoods of the log's own items, the first of [n], where real lies stand as honest.

    So each of these counts less as honest by how likely it is, and where it is suspect at all, as a lie (expectation
    and maximisation, eight times). Were the many that hardly are to count as lies, too, they would lift one another.
    """
    doubted, trusted = lies.copy(), honest.copy()
    for _ in range(8):
        p = calibrate(seen, doubted, trusted)(seen[:own])
        doubted[:own], trusted[:own] = honest[:own] * np.where(p > SUSPECT, p, 0), honest[:own] * (1 - p)
    return p


def _over_holders(log: Sequences, values: Floats, n_items: int) -> tuple[Floats, Floats]:
    """[V + 1] each: the sum over every item's holders of what is said of users [users], and how many holders it has."""
    log = log.distinct()
    total = np.bincount(log.items, values[log.users()], n_items + 1).astype(np.float64)
    return total, log.counts(n_items).astype(np.float64)


def _within(p: Floats, candidates: NDArray[np.bool_], costs: Ints | Floats, room: float) -> NDArray[np.bool_]:
    """Of the candidates the likeliest, as long as there is room for their costs; those of one likelihood together."""
    order = np.flatnonzero(candidates)
    order = order[np.argsort(-p[order], kind="stable")]
    spent = np.cumsum(costs[order])
    last_of_its_kind = np.append(p[order][1:] != p[order][:-1], True)[: len(order)]
    n = np.flatnonzero(last_of_its_kind & (spent <= room))
    chosen = np.zeros(len(p), dtype=bool)
    chosen[order[: n[-1] + 1] if len(n) else order[:0]] = True
    return chosen
