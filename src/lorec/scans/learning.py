"""What each evidence is worth in a log, learned on attacks that are synthesised into it."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorec.attacks import ATTACKS, Attack, forge, known_fakes, pushable
from lorec.data import Floats, Ints, Poison, Sequences, Split, inject, stream
from lorec.detectors import Detector, Suspicion
from lorec.detectors.logistic import fit_logistic, sigmoid
from lorec.errors import ConfigError, DataError, RunError
from lorec.evidence import FEWEST
from lorec.files import load_state, save_state
from lorec.sight import Sight
from lorec.text import TextVectors

SUSPECT = 0.1
"""The likelihood from which on an item or user is told of, and counts as a fake in the models by that likelihood."""
SHARES = (0.005, 0.01, 0.002)
"""Of fraudsters in the trials, in turn."""
TARGETS = 5
"""Items that a trial pushes."""
BURST = 0.02
"""The share of the log's time in which the fraudsters of half of the trials act."""
ADAPTS = 10
"""How often an adaptive attack of a trial mends itself against LoRec's evidence."""
LEAST = 0.003
"""The expected number of pushed items in a history below which it does not matter how few: nobody is the more innocent
for it. With less, titles that go together spoke louder than pushed items."""
RARE = -100.0
"""In place of the log of its holders, of an item that is held by fewer."""
ATTEMPTS = 5
"""Draws of targets for a trial, as the first may be impossible in a small log."""
MOST_USERS = 50_000
"""Trials poison the log of as many users, drawn, where there are more."""
ASIDE = ("bursts", "groups")
"""Evidence that is told and not weighed: times of a trial are made up, and groups of rare items added nothing to the
other evidence on real logs (docs/scan.md)."""

Watch = Callable[[str, int, int], None]
"""Told the stage, how much of it is done, and of how much."""


# ------------------------------------------------------------------------------------------------------- the models


@dataclass(frozen=True)
class Model:
    """How likely what shows so much evidence is a fake: logistic, without a slope below 0."""

    slopes: dict[str, float]
    offset: float

    def __call__(self, evidence: Mapping[str, Floats]) -> Floats:
        """Likelihoods [n]; evidence that the model does not know counts nothing, nor does any that is not there."""
        z = sum((slope * evidence[name] for name, slope in self.slopes.items() if name in evidence), np.zeros(1))
        return sigmoid(z + self.offset)

    @staticmethod
    def fit(
        own: Mapping[str, Floats], fakes: Mapping[str, Floats], weights: Floats, trials: int, worst: int
    ) -> "Model":
        """Tell fakes ([n] each, with weights [n]) from the log's own ([m] each).

        As an attack is as likely as none, the log's own counts twice for every trial. Of those that turn out suspect,
        their likelihood counts as fake; the `worst` of a first fit are left out of the second one.
        """
        names, m = list(own), len(next(iter(own.values())))
        x = np.column_stack([np.concatenate([own[name], own[name], fakes[name]]) for name in names])
        x = np.column_stack([x, np.ones(len(x))])
        doubt: Floats = np.zeros(m)
        fitted: Floats = np.zeros(x.shape[1])
        for number in range(10):
            if number == 1:  # or real fakes among them would pull the first fit down so far that none is doubted
                doubt = (np.argsort(np.argsort(-doubt, kind="stable")) < worst).astype(np.float64)
            suspect = np.where((doubt > SUSPECT) & (number != 1), doubt, 0)
            n = np.concatenate([2 * trials * (1 - doubt), 2 * trials * suspect, weights])
            lies = n * (np.arange(len(n)) >= m)
            fitted = _fitted(x[n > 0], lies[n > 0], n[n > 0])
            doubt = sigmoid(x[:m] @ fitted)
        return Model(dict(zip(names, map(float, fitted[:-1]), strict=True)), float(fitted[-1]))


def _fitted(x: Floats, lies: Floats, n: Floats) -> Floats:
    """Slopes and the offset, the last, without a slope below 0: the worst offender is left out, one after the other."""
    free = np.ones(x.shape[1], dtype=bool)
    while True:
        fitted: Floats = np.zeros(x.shape[1], dtype=np.float64)
        fitted[free] = fit_logistic(x[:, free], lies, n, ridge=0.1)
        if (fitted[:-1] >= 0).all():
            return fitted
        free[int(np.argmin(fitted[:-1]))] = False


# --------------------------------------------------------------------------------------------------------- evidence


def _log_odds(p: Floats) -> Floats:
    p = np.clip(p.astype(np.float64), 1e-5, 1 - 1e-5)
    odds: Floats = np.log(p / (1 - p))
    return odds


LIKELIHOODS = ("degree", "lorec")
"""Evidence that enters the models as log-odds; the rest are normal scores, and enter as far as they are above 0."""


@dataclass(frozen=True)
class Looked:
    """A log and what every evidence says of it."""

    log: Sequences
    n_items: int
    said: dict[str, Suspicion]

    def items(self) -> dict[str, Floats]:
        """[V + 1] each: what is known of items. Few holders make one harmless; beyond some, more don't matter."""
        few = max(min(SHARES) * len(self.log), FEWEST)
        n = self.log.distinct().counts(self.n_items)
        holders = np.where(n >= FEWEST, np.log(np.clip(n, 1, few) / few), RARE)  # as a share: a trial's log is smaller
        weighed = {name: said.items for name, said in self.said.items() if name not in ASIDE}
        known = {name: _scaled(name, values) for name, values in weighed.items() if values is not None}
        return known | {"holders": holders}

    def users(self, items: Floats) -> dict[str, Floats]:
        """[users] each: what is known of users, given how likely each item is pushed [V + 1]."""
        weighed = {name: said.users for name, said in self.said.items() if name not in ("lorec", *ASIDE)}
        told = {name: _scaled(name, values) for name, values in weighed.items()}
        return told | {"items": np.log(np.maximum(self.pushed(items), LEAST))}

    def pushed(self, items: Floats) -> Floats:
        """[users]: how many pushed items a user holds, as -log of the likelihood that none is."""
        nothing = -np.log1p(-np.minimum(items, 1 - 1e-6))
        log = self.log.distinct()
        held: Floats = np.bincount(log.users(), nothing[log.items], len(log)).astype(np.float64)
        return held


def _scaled(name: str, values: Floats) -> Floats:
    return _log_odds(values) if name in LIKELIHOODS else np.maximum(values, 0).astype(np.float64)


def pushed(model: Model, known: Mapping[str, Floats]) -> Floats:
    """[V + 1]: how likely each item is pushed, by what is known of items; 0 for padding and for rare ones."""
    likely = np.where(known["holders"] > RARE, model(known), 0.0)
    likely[0] = 0.0
    return likely


def campaigns(items: Floats, holders: Ints, users: int) -> Floats:
    """[TARGETS]: sizes of campaigns for one, two, ... items, as shares of users: what is expected to be bought of each.

    The geometric mean of as many of the largest numbers of bought interactions that are expected, (suspicion - what any
    item has) x holders: one odd item makes no campaign for two, odd items that hardly anybody holds make none, nor do
    many that are no odder than usual. `CROWD` users are added: a few interactions more or less are chance in a log of
    any size.
    """
    usual = TARGETS / (TARGETS + 2 * max(int((holders >= FEWEST).sum()), 1))  # as Model.fit counts fakes and honest
    bought = np.zeros(TARGETS)
    most = np.sort(np.maximum(items - usual, 0) * holders)[::-1][:TARGETS]
    bought[: len(most)] = most
    logs = np.log(np.maximum(bought, 1e-3))
    sizes: Floats = np.exp(np.cumsum(logs) / np.arange(1, TARGETS + 1)) / (users + CROWD)
    return sizes


CROWD = 2000
"""Users that are added to a log's."""
HONEST = np.array([-2.18, -2.42, -2.63, -2.84, -3.01])
"""What honest logs have: means of the logarithms of the sizes, in percent, of campaigns for one to five items,"""
SPREAD = np.array([0.79, 0.77, 0.75, 0.72, 0.70])
"""and standard deviations."""
SLOPE, OFFSET = 2.89, -3.97
"""Of the alarm's curve."""


def oddness(sizes: Floats) -> Floats:
    """[TARGETS]: by how many standard deviations campaigns are larger than in honest logs."""
    found: Floats = (np.log(np.maximum(100 * sizes, 1e-6)) - HONEST) / SPREAD
    return found


def alarm(sizes: Floats) -> float:
    """How likely a log with campaigns of these sizes is under an attack that shows, where every second log is.

    Logistic in the largest `oddness`: few items that many bought tell as much as several that some did. Fitted once on
    draws of Amazon Beauty, Amazon Games, MIND and Steam, clean, with a genuine hit, and poisoned (docs/scan.md): no log
    can tell by itself how odd honest ones are. Nearly half of those attacks bought no more than honest logs have, and
    are nowhere on this curve: it was fitted together with their share, so that they don't make nothing look like much.
    """
    return float(sigmoid(np.array(SLOPE * oddness(sizes).max() + OFFSET)))


def resolvable(users: int) -> float:
    """About how many fraudsters with the same five items it takes in a log of so many users to be told from chance.

    Not half of what random attacks buy was seen as bought in draws of few users.
    """
    return 2.5 * math.exp(HONEST[-1] - SPREAD[-1] * OFFSET / SLOPE) / 100 * (users + CROWD)


# ----------------------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Trial:
    """An attack that was synthesised into the log, and what the evidence says of it."""

    targets: Ints
    """The items that it pushes."""
    items: dict[str, Floats]
    """[V + 1] each: what is known of the attacked log's items, as `Looked.items` has it."""
    users: dict[str, Floats]
    """[fraudsters] each: what is known of them, but for what follows from the items."""
    histories: Sequences
    """Of the fraudsters."""
    asked: dict[str, str]
    """As `Scanner.asked` has it."""
    identity: str
    """A digest of the log, the titles, the seed, the kinds and what was asked; a colon; the number of the trial."""

    def save(self, place: Path) -> None:
        """Keep it."""
        log = self.histories
        state: dict[str, Any] = {
            "targets": torch.from_numpy(self.targets),
            "items": {name: torch.from_numpy(values) for name, values in self.items.items()},
            "users": {name: torch.from_numpy(values) for name, values in self.users.items()},
            "histories": [torch.from_numpy(log.items), torch.from_numpy(log.starts)],
        }
        save_state(place, state | {"identity": self.identity, "asked": self.asked})

    @staticmethod
    def open(place: Path, identity: str | None = None) -> "Trial | None":
        """A trial that was kept; None for something else, and where it is not the one that is wanted.

        Raises RunError where the file is damaged.
        """
        state = load_state(place)
        names = {field.name for field in dataclasses.fields(Trial)}
        if not state.keys() >= names or identity not in (None, state["identity"]):
            return None
        items, users = ({name: one.numpy() for name, one in state[what].items()} for what in ("items", "users"))
        log = Sequences(*(one.numpy() for one in state["histories"]))
        return Trial(state["targets"].numpy(), items, users, log, state["asked"], state["identity"])


@dataclass(frozen=True)
class Scanner:
    """What looks at logs."""

    evidence: Mapping[str, Detector]
    kinds: tuple[str, ...]
    """Of the attacks that are synthesised."""
    text: TextVectors | None
    seed: int

    def known(self, split: Split, without: str | None = None) -> tuple[Poison, ...]:
        """Known fakes of the kinds that are cheap enough to be made in many rounds; DataError where none can be."""
        kinds = [one for one in self.kinds if one not in ("adaptive", without)]
        try:
            return known_fakes(split, kinds=kinds, seed=self.seed)
        except ConfigError as error:
            raise _no_room(str(error)) from None

    def look(
        self, split: Split, known: Sequence[Poison], watch: Callable[[int, str], None] = lambda done, name: None
    ) -> Looked:
        """Ask every evidence; `watch` is told which one is next."""
        said: dict[str, Suspicion] = {}
        for place, (name, one) in enumerate(self.evidence.items()):
            watch(place, name)
            rng = stream(self.seed, f"scan {name}")
            said[name] = one.detect(Sight(split.train, len(split.catalog), self.text, known, rng))
        return Looked(split.train, len(split.catalog), said)

    def trials(self, split: Split, count: int, folder: Path | None, watch: Watch) -> list[Trial]:
        """What the evidence says of `count` attacks, one log each; those of an interrupted scan from the folder."""
        split = self._some_users(split)
        weighed = {name: one for name, one in self.evidence.items() if name not in ASIDE}
        able = dataclasses.replace(self, evidence=weighed)
        asked = self.asked()
        titles = None if self.text is None else split.catalog.titles()
        about = [split.train.digest(), split.catalog.items["item"].to_list(), titles, self.seed, self.kinds, asked]
        of = hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()
        known: dict[str, Sequence[Poison]] = {}
        found = []
        for number in range(count):
            watch("trials", number, count)
            place = None if folder is None else folder / _file(number)
            identity = f"{of}:{number}"
            kept = _kept(place, identity)
            if kept is None:
                kind = self.kinds[number % len(self.kinds)]
                if kind not in known:
                    known[kind] = self.known(split, without=kind)
                kept = able._tried(split, number, known[kind], asked, identity)
                if place is not None:
                    kept.save(place)
            found.append(kept)
        mine = {_file(number) for number in range(count)}
        for place in folder.glob("*.safetensors") if folder is not None else ():
            if place.name not in mine:
                place.unlink()  # of an earlier scan that made more: `like` would take them for this one's
        watch("trials", count, count)
        return found

    def asked(self) -> dict[str, str]:
        """What trials and a log must have in common for one to judge the other: evidence, encoder, version."""
        weighed = {name: repr(one) for name, one in self.evidence.items() if name not in ASIDE}
        text = json.dumps(None if self.text is None else self.text.identity(), sort_keys=True, default=str)
        return weighed | {"the encoder": text, "the version of lorec": version("lorec")}

    def _some_users(self, split: Split) -> Split:
        if len(split) <= MOST_USERS:
            return split
        some = np.sort(stream(self.seed, "scan users").choice(len(split), MOST_USERS, replace=False))
        return split.take(some)

    def _tried(self, split: Split, number: int, known: Sequence[Poison], asked: dict[str, str], identity: str) -> Trial:
        """An attack in the log, and what the evidence says of its targets and fraudsters.

        Every kind comes in other sizes, and as often in a burst as not, the next time it is tried.
        """
        nth, place = divmod(number, len(self.kinds))
        kind, share = self.kinds[place], SHARES[(place + nth) % len(SHARES)]
        options: dict[str, Any] = {"tries": ADAPTS} if kind == "adaptive" else {}
        if split.train.times is not None and (place // len(SHARES) + nth) % 2 == 1:
            options["burst"] = BURST
        able = pushable(split)
        targets = min(TARGETS, len(able))
        attack: Attack = ATTACKS[kind](share=min(0.5, max(share, targets / len(split))), **options)
        poison = self._forged(attack, split, able, targets, number)
        bad = inject(split, poison, self.seed + number)
        looked, fakes = self.look(bad, known), np.flatnonzero(bad.fraudsters)
        theirs, users = bad.train.take(fakes), looked.users(np.zeros(looked.n_items + 1))
        return Trial(
            poison.targets.astype(np.int64),
            {name: values.astype(np.float32) for name, values in looked.items().items()},
            {name: values[fakes] for name, values in users.items() if name != "items"},
            theirs,
            asked,
            identity,
        )

    def _forged(self, attack: Attack, split: Split, able: Ints, targets: int, number: int) -> Poison:
        """A trial's poison. Raises DataError where no draw of targets can be pushed."""
        rng, said = stream(self.seed, f"scan targets {number}"), ""
        for _ in range(ATTEMPTS):
            chosen = split.catalog.ids(np.sort(rng.choice(able, targets, replace=False)))
            try:
                return forge(attack, split, chosen, self.seed + number, text=self.text)
            except ConfigError as error:
                said = str(error)
        raise _no_room(said)


def _no_room(said: str) -> DataError:
    return DataError(
        f"no attack can be synthesised into this log ({said.partition(';')[0]}); a scan needs users who have two "
        "items or more, and not all of them"
    )


def _file(number: int) -> str:
    return f"{number:02d}.safetensors"


def _kept(place: Path | None, identity: str) -> Trial | None:
    """A trial that was done before; None where there is none, or one of something else."""
    if place is None or not place.is_file():
        return None
    try:
        return Trial.open(place, identity)
    except RunError:
        return None  # what is damaged is done again


def trials_of(folder: Path) -> list[Trial]:
    """The trials of an earlier scan.

    Raises RunError for a folder that holds none, one alone or other things, and for trials of several scans, as one
    that was interrupted leaves them where another had been.
    """
    places = [place for place in sorted((folder / "trials").glob("*.safetensors")) if not place.is_symlink()]
    found = [trial for place in places if (trial := Trial.open(place)) is not None]
    if len(found) < 2 or len(found) < len(places):
        why = f"only {len(found)}" if found else "no"
        raise RunError(
            f"{folder} holds {why} trials of a scan; give a folder where lorec scan of this version made some: a "
            "scan with --like made none, and names the one that did in findings.json"
        )
    if len({trial.identity.partition(":")[0] for trial in found}) > 1:
        raise RunError(
            f"the trials of {folder} are of several scans, one of which was interrupted; let it finish, or give another"
        )
    return found


def learned(base: Looked, trials: Sequence[Trial]) -> tuple[Model, Model]:
    """The models of items and of users: trials' targets and fraudsters against the log's own."""
    items, own = [_double(trial.items) for trial in trials], base.items()
    some = [trial.targets for trial in trials]
    fakes = {name: np.concatenate([one[name][at] for one, at in zip(items, some, strict=True)]) for name in own}
    told = base.log.distinct().counts(base.n_items) >= FEWEST
    honest = {name: values[told] for name, values in own.items()}
    of_items = Model.fit(honest, fakes, np.ones(sum(map(len, some))), len(trials), 2 * TARGETS)

    users = []
    for trial, known in zip(trials, items, strict=True):
        theirs = Looked(trial.histories, base.n_items, {})
        users.append(_double(trial.users) | theirs.users(pushed(of_items, known)))
    mine, n = base.users(pushed(of_items, own)), np.array([len(one["items"]) for one in users])
    weights = np.repeat(n.mean() / n, n)  # a small attack teaches as much as a large one
    hired = {name: np.concatenate([one[name] for one in users]) for name in mine}
    return of_items, Model.fit(mine, hired, weights, len(trials), int(0.02 * len(base.log)))


def _double(values: Mapping[str, Floats]) -> dict[str, Floats]:
    return {name: one.astype(np.float64) for name, one in values.items()}
