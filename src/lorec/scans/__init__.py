"""Scan a log in which nobody knows who is honest: which items look pushed, which users look hired, and why.

Several kinds of evidence look at the whole log: LoRec's view of the company that items keep, groups of rare items,
copies of histories, bursts in time, the mix of popularities, the texts of a history. What each of them is worth here is
learned on attacks that are synthesised into this very log (the trials): every cheap kind and an adaptive one, in
several sizes, half of them in a burst; the kind of a trial is never among the known fakes that its evidence learned
from. Two logistic models follow, one of items and one of users. They have a parameter for each evidence, so there is
nothing to learn by heart, and none below 0, so evidence can raise suspicion and never lower it. They assume an attack;
the likelihoods that are reported are theirs times the likelihood that there is one.

Nobody says that the log is clean. Its own items and users count as honest in the models, and less so the more
suspicious they turn out (expectation and maximisation), as real lies among them would teach that lies are honest.
"""

import dataclasses
import hashlib
import hmac
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import binom

from lorec.attacks import KINDS
from lorec.data import Bools, Dataset, Floats, Ints, Split, Weights, whole
from lorec.detectors import Bursts, Coherence, Copies, Degree, Detector, Groups, LoRec, Suspicion
from lorec.errors import ConfigError, DataError, RunError, first_line
from lorec.registry import unknown
from lorec.scans.findings import Findings, grouped, only_a_scan, told_items, told_users, twins
from lorec.scans.learning import (
    SUSPECT,
    Model,
    Scanner,
    Trial,
    Watch,
    alarm,
    campaigns,
    learned,
    oddness,
    pushed,
    resolvable,
    trials_of,
)  # fmt: skip
from lorec.sources import oddities, why_untold
from lorec.text import Encoder, MiniLM, TextVectors

__all__ = ["EVIDENCE", "Findings", "Model", "Watch", "read_verdicts", "scan"]

EVIDENCE: dict[str, Detector] = {
    "bursts": Bursts(), "coherence": Coherence(), "copies": Copies(), "degree": Degree(), "groups": Groups(),
    "lorec": LoRec(),
}  # fmt: skip
FEWEST_USERS, FEWEST_ITEMS = 50, 20
"""Of a log; below, attacks can't be synthesised into it."""
ALIKE = 0.5
"""The share of items of one title from which on titles tell nothing."""
FOREIGN = 0.01
"""The share of letters beyond ASCII's from which on an encoder of English is the wrong one."""
FEW_TRIALS = 8
"""Below, how likely an attack is moves by tenths with the seed."""
SMALL = 0.01
"""The share of users below which an attack should be found, or else the notes say that it can't."""
LONGEST = 1000
"""Items of a history that are looked at, the newest: a longer one is a machine's, and its pairs would be millions."""
MUCH = 0.1
"""The share of all interactions from which on one user's is told of."""
MOST = 0.25
"""The share of all interactions that evidence may turn down; where it would be more, it has lost its footing."""
PUSHED = 0.5
"""The likelihood, if there is an attack, from which on an item's interactions count nothing, whatever LoRec says."""
CHANCE = 0.01
"""How likely it may be that any item at all has so many confirmed holders, were these drawn at random."""
LOST = (
    "What texts tell is lost: coherence, the half of lorec that reads them, and trials of the kind adaptive; the log's "
    "own company is looked at."
)


def scan(
    dataset: Dataset,
    *,
    encoder: Encoder | None = None,
    scenario: str = "a shop",
    evidence: Sequence[str] = tuple(EVIDENCE),
    kinds: Sequence[str] = (*KINDS, "adaptive"),
    trials: int = 12,
    verdicts: Mapping[str, bool] | None = None,
    like: str | Path | None = None,
    folder: str | Path | None = None,
    cache: str | Path | None = None,
    key: bytes | None = None,
    seed: int = 0,
    watch: Watch = lambda stage, done, total: None,
) -> Findings:
    """Look for fraud in a log; no recommender is trained, and no label is needed.

    `encoder` reads the items' titles (MiniLM if omitted; without titles the evidence of texts is lost, and the
    notes say so). `evidence` names those of `EVIDENCE` that are asked, lorec always among them. `trials` attacks of
    these `kinds` are synthesised to learn what each is worth, or else the trials of an earlier scan are taken (`like`,
    its folder). `verdicts` are an analyst's, by user: True fraud, False genuine. With `folder` the findings are saved
    there, and an interrupted scan goes on from the trials that it finds; `cache` is where text vectors are kept. With a
    `key`, users' ids become their HMAC-SHA256 in everything that comes out.

    Raises ConfigError for an evidence or kind that does not exist, too few of them, and verdicts none of which is about
    a user of the log; DataError for a log that is too small or leaves no room for an attack; RunError for a folder that
    holds something else.
    """
    started = time.perf_counter()
    if encoder is not None and (isinstance(encoder, type) or not hasattr(encoder, "identity")):
        raise ConfigError(f"encoder is {encoder!r}; give one, as lorec.MiniLM() or lorec.Hash()")
    _checked(evidence, kinds, trials)
    folder = None if folder is None else Path(folder)
    if folder is not None:
        only_a_scan(folder)
    earlier = None if like is None else trials_of(Path(like))
    log = whole(dataset, seed)
    if len(log) < FEWEST_USERS or len(log.catalog) < FEWEST_ITEMS:
        raise DataError(
            f"{dataset.name} has {len(log):,} users and {len(log.catalog):,} items; a scan asks what is usual, "
            f"and needs {FEWEST_USERS} users and {FEWEST_ITEMS} items at the least"
        )
    names = log.users.cast(pl.String)
    if key is not None:
        log = dataclasses.replace(log, users=_hashed(log.users, key))
    notes = ["Nobody has checked this log: what is found is to be looked at, and what is not found may still be there."]
    judged = _verdicts(verdicts or {}, names, log.users, notes)
    notes += oddities(dataset)
    if (fewest := resolvable(len(log))) > SMALL * len(log):
        notes.append(
            f"{len(log):,} users are few: an attack by less than about {fewest:.0f} accounts can't be told from chance "
            "here, whatever else is found."
        )
    looked_at = _shortened(log, notes)
    text = _text(log, dataset, encoder, scenario, cache, watch, notes)
    kinds = tuple(one for one in kinds if one != "adaptive" or text is not None)
    scanner = Scanner(_asked(evidence, text is not None, log, notes), kinds, text, seed)
    steps = len(scanner.evidence)
    base = scanner.look(looked_at, scanner.known(looked_at), lambda done, name: watch(f"look at {name}", done, steps))
    if earlier is None:
        models = learned(base, scanner.trials(looked_at, trials, None if folder is None else folder / "trials", watch))
    else:
        _same_asked(scanner, earlier, like)
        models, trials = learned(base, earlier), len(earlier)
        notes.append(f"The trials are those of an earlier scan, {like}; none was made in this log.")
    if trials < FEW_TRIALS:
        notes.append(f"{trials} trials are few: another seed may say another likelihood by some tenths; 12 are usual.")
    known = pushed(models[0], base.items())
    off = _turned_down(base.said["lorec"], known, looked_at)
    why_not = _why_untold(off, models[0], looked_at)
    can_tell = not why_not
    notes += why_not
    if not can_tell:
        known, off = 0 * known, off & False
    pushing, cleared = _of_holders(judged, looked_at)
    if_attacked = _with_verdicts(known, pushing, cleared)
    sizes = campaigns(if_attacked, looked_at.train.distinct().counts(len(log.catalog)), len(log))
    largest = int(oddness(sizes).argmax())
    off = off | (if_attacked >= PUSHED)
    weights = _weights(off, judged, log)
    # The models take an attack for as likely as none. How likely it is in this log, its worst items say together.
    sure, confirmed = alarm(sizes) if can_tell else 0.0, bool(pushing.any())
    items = _with_verdicts(np.where(pushing > 0, 1.0, sure) * known, pushing, cleared)
    ring = np.zeros(len(log), dtype=bool)  # an analyst's word is about those who push what the confirmed push
    ring[log.train.users()[pushing[log.train.items] > 0]] = True
    users = np.where(ring, 1.0, sure) * models[1](base.users(if_attacked))
    users[judged == 0], users[judged == 1] = 0.0, 1.0
    if (judged == 1).any() and not confirmed:
        notes.append(
            f"{int((judged == 1).sum()):,} users are confirmed; what they push is known once three of them have one "
            "item far more often than others do, and than chance would have it in so many items."
        )
    off[np.setdiff1d(log.train.items, log.train.items[weights.of_events(log.train) == 0])] = False  # cleared by all
    groups, of_items, of_users = grouped(items, off, log)
    notes += _twins(items, log, text)
    found = Findings(
        log=log,
        alarm=1.0 if confirmed else sure,
        users=told_users(log, base, users, items, weights, of_users, groups, judged),
        items=told_items(log, base, items, weights, of_items, groups, judged),
        groups=groups,
        weights=weights,
        judged=judged,
        models=models,
        notes=notes,
        asked={
            "evidence": list(scanner.evidence), "kinds": list(kinds), "seed": seed,
            "encoder": None if text is None else text.identity(), "scenario": scenario,
            "like": None if like is None else str(like), "verdicts": int((judged >= 0).sum()),
        },
        figures={
            "users": len(log), "items": len(log.catalog), "interactions": len(log.train.items),
            "items that look pushed": int((items >= SUSPECT).sum()),
            "users that look hired": int((users >= SUSPECT).sum()),
            "items of a campaign": largest + 1,
            "size of a campaign": float(sizes[largest]),
            "interactions turned down": float((weights.of_events(log.train) < 1).mean()),
            "trials": trials,
            "seconds": time.perf_counter() - started,
        },
        can_tell=can_tell or confirmed,
    )  # fmt: skip
    if key is not None:
        found = found.sorted()
    if folder is not None:
        if like is not None and folder.resolve() != Path(like).resolve():
            shutil.rmtree(folder / "trials", ignore_errors=True)  # of another scan: these findings have none of them
        found.save(folder)
    return found


def _checked(evidence: Sequence[str], kinds: Sequence[str], trials: int) -> None:
    for what, names, table in (("evidence", evidence, EVIDENCE), ("kind of attack", kinds, (*KINDS, "adaptive"))):
        if strangers := [one for one in names if one not in table]:
            raise unknown(what, strangers[0], table)
    if "lorec" not in evidence:
        raise ConfigError("evidence is without lorec, which the others only add to; name it, too")
    if len(set(kinds) & set(KINDS)) < 2:
        raise ConfigError(f"kinds is {list(kinds)}; give two or more of {', '.join(KINDS)}: one is tried, others known")
    if trials < 2:
        raise ConfigError(f"{trials} trials wanted; give 2 or more, so that evidence can be weighed")


def _same_asked(scanner: Scanner, earlier: Sequence[Trial], like: str | Path | None) -> None:
    for name, value in scanner.asked().items():
        if any(one.asked.get(name) != value for one in earlier):
            raise RunError(f"{name} is not that of the trials of {like}; scan as that scan did, or make trials anew")


def _why_untold(off: Bools, items: Model, log: Split) -> list[str]:
    """Why nothing can be said of a log: evidence that lost its footing, or one that learned nothing; mostly empty."""
    why = []
    if (share := float(off[log.train.items].mean())) > MOST:
        why.append(
            f"The evidence would turn down {share:.0%} of the interactions, and no attack makes so many: this log is "
            "too small or too regular for it."
        )
    if not any(slope for name, slope in items.slopes.items() if name != "holders"):
        why.append("Evidence was no different for what the trials pushed and for honest items: nothing was learned.")
    return why


def _asked(evidence: Sequence[str], texts: bool, log: Split, notes: list[str]) -> dict[str, Detector]:
    """The evidence that this log allows; what is lost is noted."""
    asked = {name: one for name, one in EVIDENCE.items() if name in evidence}
    if not texts:
        asked["lorec"] = LoRec(sources=("log",))
        asked.pop("coherence", None)
    times = log.train.times
    if "bursts" in asked and (times is None or times.min() == times.max()):
        del asked["bursts"]
        notes.append(
            "There is no time: bursts can't be seen, and the order of the file is taken for that of events."
            if times is None
            else "All times are one: bursts can't be seen, and the order of events within a history is drawn."
        )
    return asked


def _text(
    log: Split,
    dataset: Dataset,
    encoder: Encoder | None,
    scenario: str,
    cache: str | Path | None,
    watch: Watch,
    notes: list[str],
) -> TextVectors | None:
    """The items' texts, encoded; None without any."""
    titles = log.catalog.titles()
    said = pl.Series([one for title in titles if (one := title.strip())], dtype=pl.String)
    told = len(said)
    if not told:
        notes.append(f"{why_untold(dataset) if dataset.items.height else 'There are no titles.'} {LOST}")
        return None
    if told < len(log.catalog):
        notes.append(f"{len(log.catalog) - told:,} of {len(log.catalog):,} items have no title.")
    title, often = said.value_counts(sort=True).row(0)
    if often > ALIKE * len(log.catalog):
        notes.append(
            f"{often:,} of {len(log.catalog):,} items are called {title[:60]!r}: is that column a title? {LOST}"
        )
        return None
    if isinstance(encoder or MiniLM(), MiniLM) and (foreign := _foreign(titles)) > FOREIGN:
        notes.append(
            f"{foreign:.0%} of the letters in titles are not English ones, and English is all that minilm knows; name "
            "an encoder of the catalogue's language, or hash, which reads letters."
        )
    text = TextVectors(
        log.catalog, encoder or MiniLM(), cache, scenario, on_progress=lambda done, of: watch("encode", done, of)
    )
    text.items()
    return text


def _foreign(titles: Sequence[str]) -> float:
    """The share of letters that are not ASCII's."""
    text = "".join(titles)
    letters = sum(map(str.isalpha, text))
    return 1 - sum(map(str.isalpha, text.encode("ascii", "ignore").decode())) / max(letters, 1)


def _twins(items: Floats, log: Split, text: TextVectors | None) -> list[str]:
    """A note on suspect items that may be one product with two numbers: so a catalogue looks like a campaign."""
    if text is None or not len(pairs := twins(items, log.train, text.items())):
        return []
    one, other, both, either = map(int, pairs[0])
    ids, titles = log.catalog.items["item"].cast(pl.String), log.catalog.titles()
    more = f" {len(pairs) - 1:,} more pairs are like that." if len(pairs) > 1 else ""
    return [
        f"Items {ids[one - 1]!r} and {ids[other - 1]!r} ({titles[one - 1][:60]!r}) have {both:,} of their {either:,} "
        f"holders in common and titles alike.{more} Where they are one product listed twice, give it one id and scan "
        "again: nothing else may be odd here. A ring that pushes several items of a kind looks the same."
    ]


def _shortened(log: Split, notes: list[str]) -> Split:
    """The log without the older part of histories that are too long to be a person's."""
    histories = log.train
    kept = np.minimum(histories.lengths, LONGEST)
    longest = int(np.argmax(histories.lengths))
    share = histories.lengths[longest] / len(histories.items)
    most = f"{log.users.cast(pl.String)[longest]!r} with {share:.1%} of all interactions"
    if not (cut := int((kept < histories.lengths).sum())):
        if share > MUCH:
            notes.append(f"One user is much of the log, as machines and shared accounts are: {most}.")
        return log
    notes.append(
        f"{cut:,} users have more than {LONGEST:,} interactions, as machines and shared accounts do; only the newest "
        f"are looked at. The longest is {most}."
    )
    return dataclasses.replace(log, train=histories.slices(histories.starts[1:] - kept, kept))


def _turned_down(lorec: Suspicion, items: Floats, looked_at: Split) -> Bools:
    """[V + 1]: which items LoRec or the models turn down."""
    off: Bools = items >= PUSHED
    assert lorec.lies is not None
    off[np.unique(looked_at.train.items[lorec.lies])] = True
    return off


def _weights(off: Bools, judged: Ints, log: Split) -> Weights:
    """0 for items that are turned down [V + 1] and for confirmed users; 1 for the rest and for cleared ones."""
    users = log.train.users()
    kept = ~off[log.train.items] & (judged[users] != 1) | (judged[users] == 0)
    return Weights(events=kept.astype(np.float32))


def _hashed(users: pl.Series, key: bytes) -> pl.Series:
    names = users.cast(pl.String).to_list()
    return pl.Series([hmac.new(key, one.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest() for one in names])


# --------------------------------------------------------------------------------------------------------- verdicts


def read_verdicts(path: Path) -> dict[str, bool]:
    """An analyst's verdicts: a CSV with columns user (or user_id) and verdict, fraud or genuine; True is fraud.

    Raises DataError, with the line, for anything else and for a user who is judged both ways.
    """
    try:
        frame = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        first = first_line(error)
        raise DataError(f"{path} can't be read as verdicts ({first}); give a CSV with columns user, verdict") from None
    named = {name.strip().lower(): name for name in frame.columns}
    users, verdicts = named.get("user", named.get("user_id")), named.get("verdict")
    if users is None or verdicts is None:
        raise DataError(f"{path} has columns {', '.join(frame.columns)}; name them user and verdict")
    found: dict[str, bool] = {}
    for line, (user, verdict) in enumerate(frame.select(users, verdicts).iter_rows(), start=2):
        if not user:
            raise DataError(f"{path}, line {line}: {verdict!r} is said of nobody; name the user, or drop the line")
        if verdict not in ("fraud", "genuine"):
            raise DataError(f"{path}, line {line}: {user!r} is {verdict!r}; a verdict is fraud or genuine")
        if found.setdefault(user, verdict == "fraud") != (verdict == "fraud"):
            raise DataError(f"{path}, line {line}: {user!r} is judged both ways; keep one verdict")
    return found


def _verdicts(verdicts: Mapping[str, bool], users: pl.Series, told: pl.Series, notes: list[str]) -> NDArray[np.int64]:
    """[users]: 1 confirmed, 0 cleared, -1 not judged; by the log's ids, or those under which users were `told`.

    Who has left the log is noted, and not by name, which may be one that nobody is to read.
    """
    judged = np.full(len(users), -1)
    if not verdicts:
        return judged
    both = [pl.DataFrame({"user": one.cast(pl.String), "row": np.arange(len(users))}) for one in (users, told)]
    mine = pl.concat(both).unique("user", keep="first", maintain_order=True)
    given = pl.DataFrame({"user": list(verdicts), "fraud": list(verdicts.values())})
    rows = given.join(mine, on="user", how="inner", maintain_order="left")
    if not rows.height:
        raise ConfigError(
            f"none of the {len(given):,} users of the verdicts is in the log, as {given['user'][0]!r}; its ids are "
            f"like {users[0]!r}, and are compared exactly"
        )
    if gone := len(given) - rows.height:
        notes.append(
            f"{gone:,} of {len(given):,} verdicts are about users who are not in this log, and count nothing; ids are "
            "compared exactly."
        )
    judged[rows["row"].to_numpy()] = rows["fraud"].to_numpy()
    return judged


def _of_holders(judged: Ints, log: Split) -> tuple[Floats, Floats]:
    """[V + 1] each: the shares of an item's holders who are confirmed and who are cleared.

    The confirmed count for items that they hold far more often than others do, and than chance would have it in any of
    so many items: by their share of the users, or of what is taken, where they take more than others.
    """
    n, histories = len(log.catalog), log.train.distinct()
    everyone, fraud = histories.counts(n), np.flatnonzero(judged == 1)
    confirmed, cleared = (histories.take(np.flatnonzero(judged == one)).counts(n) for one in (1, 0))
    share = max(len(fraud) / len(log), confirmed.sum() / len(histories.items))
    by_chance = binom.sf(confirmed - 1, everyone, share)
    often = (confirmed >= 3) & (confirmed > 5 * share * everyone) & (by_chance * n < CHANCE)
    holders = np.maximum(everyone, 1)
    return often * confirmed / holders, cleared / holders


def _with_verdicts(items: Floats, pushing: Floats, cleared: Floats) -> Floats:
    """[V + 1]: the likelier pushed as more holders are confirmed fraudsters, the less likely as more are cleared.

    As likely as its holders are confirmed ones, besides what was known. (As known fakes of LoRec's, confirmed users
    taught less: their targets look like themselves, and like many an honest item.)
    """
    likelier: Floats = 1 - (1 - items * (1 - cleared)) * (1 - pushing)
    return likelier
