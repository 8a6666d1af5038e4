"""Attacks, to measure defenses on data of one's own: a View goes in, a Poison comes out.

An Attack is a spec with one verb, `forge(view, targets, fraudsters, rng) -> Sequences`, and the knowledge level that it
declares.
`forge` below is what people call: it makes the view, draws the targets and records how the poison was made.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from lorec.attacks.adaptive import Adaptive
from lorec.attacks.folders import Draft, Stored, open_poison, save_poison
from lorec.attacks.heuristics import Bandwagon, CoVisit, NoAttack, Profiles, Random, Replace, Segment
from lorec.attacks.language import LLM
from lorec.attacks.optimised import DP, Rev
from lorec.attacks.sequential import Gradient
from lorec.data import Floats, Ints, Poison, Sequences, Split, stream
from lorec.errors import ConfigError
from lorec.evaluation import quality, ranks_of
from lorec.models import Recommender, Scorer
from lorec.registry import find, name_of, unknown
from lorec.text import TextVectors

__all__ = [
    "ATTACKS",
    "DP",
    "LLM",
    "Adaptive",
    "Attack",
    "Bandwagon",
    "CoVisit",
    "Gradient",
    "NoAttack",
    "Random",
    "Replace",
    "Rev",
    "Segment",
    "Stored",
    "View",
    "aimed",
    "check_known",
    "choose_targets",
    "forge",
    "known_fakes",
    "open_poison",
    "pushable",
    "save_poison",
]

ATTACKS: dict[str, type] = {
    "adaptive": Adaptive, "bandwagon": Bandwagon, "covisit": CoVisit, "dp": DP, "gradient": Gradient, "llm": LLM,
    "none": NoAttack, "random": Random, "replace": Replace, "rev": Rev, "segment": Segment, "stored": Stored,
}  # fmt: skip
KINDS = ("bandwagon", "covisit", "random", "replace", "segment")
"""Those that a defender knows by default: cheap enough to be made in many rounds."""

Rule = Literal["unpopular", "random", "popular"]
Surrogate = TypeVar("Surrogate", bound=Scorer)


@dataclass(frozen=True)
class View:
    """What an attacker may know: the public log, and so popularity. No held-out items, no model, no labels.

    That is all for black and grey boxes alike: what a grey one knows besides, it learns from a surrogate of its own.
    """

    log: Sequences
    n_items: int
    watch: Callable[[int, int], None] = lambda done, total: None
    """Told how far an attack is that takes long."""
    draft: Draft = field(default_factory=Draft)
    """Where such an attack keeps what it has done, and finds it again."""
    text: Floats | None = None
    """[V + 1, dim]: vectors of the items' texts, which are public, too; for those attacks that read."""
    victim: Recommender | None = None
    """The model that is attacked; for those attacks that say so (`knowledge` white)."""
    detector: Callable[[Sequences], Floats | float] | None = None
    """How suspicious each of a crowd's profiles looks; for the same: white is who knows the model or the defense."""
    note: Callable[[str, float | str], None] | None = None
    """Puts something into the poison's record, where there is one."""

    def judged(self, learn: Callable[[Sequences], Surrogate], rng: np.random.Generator, most: int = 2000) -> Surrogate:
        """What `learn` makes of the log without the last item of a tenth of its users, at most so many.

        How often that item is among the surrogate's first ten goes into the record.
        """
        able = np.flatnonzero(self.log.lengths > 1)
        some = np.sort(rng.choice(able, min(most, math.ceil(len(able) / 10)), replace=False))
        shorter = self.log.lengths
        shorter[some] -= 1
        log = self.log.slices(self.log.starts[:-1], shorter)
        surrogate = learn(log)
        if self.note is not None and len(some):
            last = self.log.items[self.log.starts[1:][some] - 1]
            ranks = ranks_of(surrogate, log.take(some), last[:, None])
            self.note("surrogate HR@10", quality(ranks[:, 0], (10,))["HR@10"])
        return surrogate

    def text_of(self, attack: object) -> Floats:
        """The texts. Raises ConfigError where there are none."""
        if self.text is None:
            raise ConfigError(f"the attack {_named(attack)} reads titles; give forge text vectors")
        return self.text

    def victim_of(self, attack: object) -> Recommender:
        """The victim. Raises ConfigError where there is none."""
        if self.victim is None:
            raise ConfigError(f"the attack {_named(attack)} sees its victim; give forge a trained one, or box = 'grey'")
        return self.victim


class Attack(Protocol):
    """The spec of an attack."""

    needs_text: ClassVar[bool]
    """Whether it reads titles."""

    @property
    def knowledge(self) -> Literal["black", "grey", "white"]:
        """What it must know: the log; a surrogate besides, trained on it; or the victim or the defense itself."""
        ...

    @property
    def share(self) -> float:
        """Fraudsters as a share of genuine users."""
        ...

    def forge(self, view: View, targets: Ints, fraudsters: int, rng: np.random.Generator) -> Sequences:
        """The fraudsters' histories; together they hold every target."""
        ...


def budget(attack: Attack, users: int) -> int:
    """m = ceil(share x users). Raises ConfigError for a budget below one fraudster or above all users."""
    if isinstance(attack, NoAttack):
        return 0
    if not 0 < attack.share <= 1:
        raise ConfigError(f"a share of {attack.share} gives no fraudster; give a share in (0, 1], as 0.01 for 1 %")
    return math.ceil(round(attack.share * users, 9))


def choose_targets(
    split: Split, count: int = 5, rule: Rule = "unpopular", seed: int = 0, where: Mapping[str, str] | None = None
) -> NDArray[np.int32]:
    """Draw the items to be pushed: from the less popular half of the catalogue, the top tenth, or all of it.

    `where` keeps those whose catalogue says so, as {"category": "Tea"}. Raises ConfigError where there are fewer, and
    DataError for a column that is not there.
    """
    counts = split.train.counts(len(split.catalog))[1:]
    by_popularity = np.argsort(counts, kind="stable") + 1
    n = len(by_popularity)
    pool = {"unpopular": by_popularity[: n // 2], "popular": by_popularity[n - n // 10 :], "random": by_popularity}[
        rule
    ]
    if where:
        pool = pool[split.catalog.where(where)[pool - 1]]
    if where and not len(pool):
        asked = ", ".join(f"{key} is {value!r}" for key, value in where.items())
        raise ConfigError(f"[targets] where {asked}: no {rule} item says so; choose another value, or another rule")
    if not 0 < count <= len(pool):
        kind = rule if not where else f"{rule}, where {', '.join(f'{key} is {value}' for key, value in where.items())},"
        raise ConfigError(f"{count} targets wanted from {len(pool)} {kind} items; choose between 1 and {len(pool)}")
    return np.sort(stream(seed, "targets").choice(pool, count, replace=False)).astype(np.int32)


def forge(
    attack: Attack | Stored,
    split: Split,
    targets: int | Sequence[str] = 5,
    seed: int = 0,
    rule: Rule = "unpopular",
    where: Mapping[str, str] | None = None,
    *,
    watch: Callable[[int, int], None] = lambda done, total: None,
    draft: str | Path | None = None,
    text: TextVectors | None = None,
    victim: Recommender | None = None,
    detector: Callable[[Sequences], Floats | float] | None = None,
) -> Poison:
    """Make a poison against a split's training log: as many targets by a rule, or items by their raw ids.

    A stored one is read, and has its own targets.

    `watch(done, total)` is told how far an attack is that takes long; with `draft`, a file, dp and rev go on after an
    interruption where they were, to the same poison (the file is of no use once that is safe). `text` reaches only an
    attack that declares that it reads titles; `victim`, and `detector`, which says of profiles how suspicious each
    looks, only one whose knowledge is white.

    Raises DataError for a target that is not in the catalogue, ConfigError for one that everybody has, and for
    a budget of nobody or more than half.
    """
    if isinstance(attack, Stored):
        return open_poison(attack.path, split)
    how: str = rule if isinstance(targets, int) else "given"
    chosen, m = aimed(attack, split, targets, seed, rule, where)
    provenance = {
        "attack": _named(attack),
        "share": attack.share,
        **_plain(attack),
        "knowledge": attack.knowledge,
        "seed": int(seed),
        "targets": split.catalog.ids(chosen),
        "target rule": how,
        "target where": dict(where or {}),
        "fraudsters": m,
        "log": split.train.digest(),
        "versions": {name: version(name) for name in ("lorec", "torch", "numpy")},
    }
    noted: dict[str, float | str] = {}
    white = attack.knowledge == "white"
    view = View(
        split.train,
        len(split.catalog),
        watch=watch,
        draft=Draft() if draft is None else Draft.of(Path(draft), provenance | {"items": len(split.catalog)}),
        text=text.items() if text is not None and attack.needs_text else None,
        victim=victim if white else None,
        detector=detector if white else None,
        note=noted.__setitem__,
    )
    profiles = attack.forge(view, chosen, m, stream(seed, "attack"))
    return Poison(profiles, chosen, provenance | noted)


def aimed(
    attack: Attack,
    split: Split,
    targets: int | Sequence[str] = 5,
    seed: int = 0,
    rule: Rule = "unpopular",
    where: Mapping[str, str] | None = None,
) -> tuple[NDArray[np.int32], int]:
    """The targets and the number of fraudsters that `forge` would take; nothing is forged. Raises what it does."""
    if isinstance(targets, int):
        chosen = choose_targets(split, targets, rule, seed, where)
    else:
        chosen = np.unique(split.catalog.numbers(targets))
    everywhere = split.train.distinct().counts(len(split.catalog))[chosen] >= len(split.train)
    if everywhere.any():
        raise ConfigError(f"everybody has {split.catalog.ids(chosen[everywhere])[0]!r} already; choose another target")
    if attack.share > 0.5:
        raise ConfigError(f"a share of {attack.share} makes a crowd of fraudsters; give at most 0.5, as 0.01 for 1 %")
    m = budget(attack, len(split.genuine()))
    if isinstance(attack, Profiles):
        attack.check(len(split.catalog), chosen, m)
    return chosen, m


def _plain(attack: object) -> dict[str, object]:
    """Its parameters as JSON has them."""
    values = dataclasses.asdict(attack)  # type: ignore[call-overload]
    of_numpy = {name: value.item() for name, value in values.items() if isinstance(value, np.generic)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()} | of_numpy


def _named(attack: object) -> str:
    return name_of("attacks", ATTACKS, attack)


SIZES = (1.0, 2.0, 4.0, 0.5)
"""Of rounds of known fakes, in turn, as multiples of the share that was asked for."""


def known_fakes(
    split: Split,
    *,
    without: str | None = None,
    kinds: Sequence[str] | None = None,
    share: float = 0.01,
    rounds: int = 16,
    seed: int = 0,
) -> tuple[Poison, ...]:
    """Fakes that a defender synthesises to learn from: rounds of campaigns of the kinds of attack that it knows.

    A round is what one poisoned log would hold: a campaign of each kind, each with five targets of its own from the
    whole catalogue, one, two or all of them in a profile, lengths as genuine users have them. Together they are `share`
    of the users in the first round, and two, four and half times as many in the next ones, as attacks come in all
    sizes. By default `KINDS` are known, all but the judged one (`without`). The defender makes them from the log that
    it has, poisoned as it may be. Raises ConfigError where no kind is left and UnknownName for a misspelt one.
    """
    if without is not None and without not in ATTACKS and difflib.get_close_matches(without, ATTACKS, cutoff=0.8):
        raise unknown("attack", without, ATTACKS)  # or it would be among the known kinds, and nobody would see
    names = list(kinds) if kinds is not None else [name for name in KINDS if name != without]
    if not names:
        raise ConfigError("no kind is left for known fakes; name one under [known] kinds")
    check_known(names)
    if rounds < 1:
        raise ConfigError(f"{rounds} rounds of known fakes wanted; give 1 or more")
    shares = [min(1.0, share * SIZES[number % len(SIZES)]) for number in range(rounds)]
    return tuple(_round(split, names, one, number, seed) for number, one in enumerate(shares))


def check_known(kinds: Sequence[str]) -> None:
    """Raise UnknownName for a kind that there is not, and ConfigError for one that can't be among the known."""
    for name in kinds:
        spec = find("attacks", ATTACKS, name)
        able = {"share", "targets_each"} <= {field.name for field in dataclasses.fields(spec)}
        if not able or spec().needs_text:
            why = "reads texts" if able else "takes no share and no number of targets"
            raise ConfigError(f"{name} can't be among the known kinds: it {why}; known are {', '.join(KINDS)}")


def pushable(split: Split) -> NDArray[np.int64]:
    """The items that half of the users or more do not have yet; all of them where that is none."""
    held = split.train.distinct().counts(len(split.catalog))[1:]
    few: NDArray[np.int64] = 1 + np.flatnonzero(2 * held <= len(split))
    return few if len(few) else np.arange(1, len(held) + 1)


def _round(split: Split, names: Sequence[str], share: float, number: int, seed: int) -> Poison:
    everything = pushable(split)
    profiles, pushed = Sequences.of([]), []
    for name in names:
        rng = stream(seed, f"known {name} {number}")
        m = budget(find("attacks", ATTACKS, name)(share=share / len(names)), len(split))
        targets = np.sort(rng.choice(everything, min(5, m, len(everything)), replace=False))
        together = int(rng.choice([1, 2, len(targets)]))
        profiles = profiles.extended(_campaign(name, min(together, len(targets)), split, targets, m, rng))
        pushed.append(targets)
    return Poison(
        profiles,
        np.unique(np.concatenate(pushed)).astype(np.int32),
        {"kinds": list(names), "share": share, "round": number, "seed": seed},
    )


def _campaign(
    name: str, together: int, split: Split, targets: Ints, fraudsters: int, rng: np.random.Generator
) -> Sequences:
    """Profiles with so many targets each, or one where histories are too short for more."""
    view, spec = View(split.train, len(split.catalog)), find("attacks", ATTACKS, name)
    try:
        return cast(Sequences, spec(targets_each=together).forge(view, targets, fraudsters, rng))
    except ConfigError:
        if together == 1:
            raise
        return cast(Sequences, spec(targets_each=1).forge(view, targets, fraudsters, rng))
