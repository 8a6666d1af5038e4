"""Steps of a run that are also jobs of their own: `encode` its texts, make its `attack`, `detect` without training."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lorec.attacks import Stored, aimed, check_known, forge, known_fakes, open_poison, save_poison
from lorec.attacks.folders import FORMS
from lorec.data import Poison, Split, inject
from lorec.defenses import WeightFile, suits
from lorec.detectors import DETECTORS, Names, Suspicion, fits, harmed, judged
from lorec.detectors import detect as ask
from lorec.errors import ConfigError, RunError
from lorec.files import check_writable, write_json, write_parquet
from lorec.records import DRAFT, Event, Watch, only_a_draft, peak_memory, without_draft
from lorec.registry import name_of, unknown
from lorec.runfile import RunFile, named
from lorec.sight import Sight
from lorec.sources import prepared
from lorec.text import Server, TextVectors
from lorec.text.store import by_length
from lorec.training import choose_device

# ------------------------------------------------------------------------------------------- before anything is trained


def check(config: RunFile, split: Split, text: TextVectors) -> None:
    """Raise now what a run on a log would raise after hours."""
    choose_device(config.training.device)
    if needs_text(config):
        text.check()
    for defense in config.defenses:
        suits(defense, config.backbone)
        fits(defense, Sight(split.train, len(split.catalog), text))
        if isinstance(defense, WeightFile):
            defense.read()  # whom it names, a run knows: there may be injected ones among them
    check_known(config.known.kinds or ())
    if isinstance(config.attack, Stored):
        open_poison(config.attack.path, split)
    else:
        asked = config.targets
        aimed(config.attack, split, list(asked.items) or asked.count, config.seed, asked.rule, asked.where)
    if getattr(config.attack, "box", "grey") == "white":
        raise ConfigError("[attack] box is white, and a run gives an attack no victim; take grey, or lorec.forge")


def needs_text(config: RunFile) -> bool:
    """Whether a run needs texts."""
    return config.items != "ids" or any(one.needs_text for one in (config.attack, *config.defenses))


def text_of(config: RunFile, clean: Split, cache: str | Path | None, watch: Watch) -> TextVectors:
    """The vectors of a run's texts, encoded when first asked for."""

    def encoding(done: int, total: int) -> None:
        now = time.perf_counter()
        if done < first.get("done", done + 1):  # a new bunch of texts
            first.update(done=done, at=now)
        rate = (done - first["done"]) / max(now - first["at"], 1e-9)
        note = f"{done:,} of {total:,} texts" + (f", {rate:,.0f} texts/s" if rate else "")
        watch(Event("encode texts", done, total, note, finished=done == total))

    first: dict[str, float] = {}
    return TextVectors(clean.catalog, config.encoder, cache, config.scenario, config.prompts, encoding)


# --------------------------------------------------------------------------------------------------------------- encode


@dataclass(frozen=True)
class Encoding:
    """What encoding a run's texts takes."""

    texts: int
    """Distinct ones."""
    missing: int
    """Of these, not encoded before."""
    tokens: int | None
    """That the encoder would read of the missing ones; None where that is not known, or nobody asked before."""
    seconds: float
    """For the missing ones: measured, or estimated from a sample."""
    memory: int
    """Peak of this process, in bytes; where it is an estimate, with the vectors to come."""


def encode(
    config: RunFile,
    *,
    users: bool = False,
    dry: bool = False,
    cache: str | Path | None = None,
    watch: Watch | None = None,
) -> Encoding:
    """Encode a run's titles, with `users` also a prompt for each user, so that runs find it done.

    `dry` only says what that would take, from a sample of the missing texts; nothing is kept. Raises DataError where
    no item has a text, and what the encoder does.
    """
    watch = watch or (lambda _: None)
    split = prepared(config.data, config.split)
    text = text_of(config, split, cache, watch)
    every = text.texts(split.train if users else None)
    missing = text.missing(every)
    started = time.perf_counter()
    width = 0
    if dry:
        seconds, width = _sampled(text, missing)
    else:
        text.prepare(missing)
        seconds = time.perf_counter() - started
    tokens = [] if not missing else config.encoder.count(missing) if dry else None
    read = None if tokens is None else sum(tokens)
    return Encoding(len(every), len(missing), read, seconds, peak_memory() + 4 * width * len(missing))


def _sampled(text: TextVectors, missing: list[str], group: int = 64, groups: int = 4) -> tuple[float, int]:
    """Seconds that the missing texts would take, and the length of a vector."""
    if not missing:
        return 0.0, 0
    ordered = [missing[place] for place in by_length(text.encoder, missing)]  # as they would be
    middles = (np.arange(groups) + 0.5) / groups * len(missing)
    starts = np.unique(np.clip(middles - group / 2, 0, max(len(missing) - group, 0)).astype(int))
    some = list(dict.fromkeys(one for start in starts for one in ordered[start : start + group]))

    def timed(texts: list[str]) -> tuple[float, int]:
        started = time.perf_counter()
        width = max(part.shape[1] for part in text.encoder.encode(texts))
        return time.perf_counter() - started, width

    seconds, width = timed(some)
    if isinstance(text.encoder, Server):  # which loads nothing, and answers several requests at once
        return seconds * math.ceil(len(missing) / len(some)), width
    loading = min(timed(some[:1])[0], seconds)
    return loading + (seconds - loading) / len(some) * len(missing), width


# --------------------------------------------------------------------------------------------------------------- attack


def attack(
    config: RunFile, path: Path, form: str = "folder", *, cache: str | Path | None = None, watch: Watch | None = None
) -> Poison:
    """Make the poison of a run alone and save it in one of `FORMS`; nothing is trained.

    Raises ConfigError for a form that does not exist and RunError for a folder that holds something else.
    """
    if form not in FORMS:
        raise unknown("form of a poison", form, FORMS)
    if form == "folder" and path.exists() and not (path / "poison.json").is_file() and not only_a_draft(path):
        raise RunError(f"{path} holds something else; choose another --out")
    check_writable(path if form == "folder" else path.parent)
    watch = watch or (lambda _: None)
    split = prepared(config.data, config.split)
    text = text_of(config, split, cache, watch)
    poison = forged(config, split, text, path if form == "folder" else None, watch)
    save_poison(poison, split.catalog, path, form)
    if form == "folder":
        without_draft(path)
    return poison


def forged(config: RunFile, clean: Split, text: TextVectors, folder: Path | None, watch: Watch) -> Poison:
    """Make the poison, in a folder so that it may be interrupted."""

    def told(done: int, total: int) -> None:
        watch(Event("attack", done, total, f"{done:,} of {total:,}", finished=done == total))

    targets = list(config.targets.items) or config.targets.count
    rule, where = config.targets.rule, config.targets.where
    draft = folder and folder / DRAFT
    return forge(config.attack, clean, targets, config.seed, rule, where, watch=told, draft=draft, text=text)


# --------------------------------------------------------------------------------------------------------------- detect


@dataclass(frozen=True)
class Detection:
    """What detectors say of a poisoned log, by name, and how right they are."""

    split: Split
    """The poisoned log, whose rows are shuffled."""
    poison: Poison
    said: dict[str, Suspicion]
    figures: dict[str, dict[str, float]]
    """As `judged` has them, and seconds."""
    notes: list[str]

    @staticmethod
    def check(folder: Path) -> None:
        """Raise RunError for a folder that holds something else than what `save` writes, or can't be written to."""
        names = ("users.parquet", "items.parquet", "harm.parquet", "judged.json", "report.html")
        if folder.exists() and not (folder.is_dir() and all(one.name in names for one in folder.iterdir())):
            raise RunError(f"{folder} holds something else; choose another --out")
        check_writable(folder)

    def save(self, folder: Path) -> None:
        """users.parquet and items.parquet, a column for each detector and its reasons against those whom it suspects
        most; harm.parquet, as `harmed` has it; judged.json.

        Raises RunError for a folder that holds something else.
        """
        Detection.check(folder)
        columns: dict[str, Any] = {"user": self.split.users, "injected": self.split.fraudsters}
        names = Names(self.split.users.cast(pl.String).to_list(), self.split.catalog.titles())
        items = self.split.catalog.items
        goals = np.isin(np.arange(1, len(items) + 1), self.poison.targets)
        about: dict[str, Any] = {"pushed": goals}
        for name, found in self.said.items():
            columns[name] = found.users
            if found.flagged is not None:
                columns[f"{name} accuses"] = found.flagged
            columns[f"{name} reasons"] = found.reasons(names)
            if found.items is not None:
                about[name] = found.items[1:]
                about[f"{name} reasons"] = found.item_reasons(names)
        told = items.select(pl.col("item"), *(pl.col(one) for one in ("title",) if one in items.columns))
        frames = {"users.parquet": pl.DataFrame(columns), "items.parquet": told.with_columns(**about)}
        harm = [harmed(found.weights(), self.split, found.flagged).select(pl.lit(name).alias("detector"), pl.all())
                for name, found in self.said.items() if found.flagged is not None]  # fmt: skip
        if harm:
            frames["harm.parquet"] = pl.concat(harm)
        for file, frame in frames.items():
            write_parquet(folder / file, frame)
        write_json(folder / "judged.json", {"detectors": self.figures, "notes": self.notes})


def detect(config: RunFile, *, cache: str | Path | None = None, watch: Watch | None = None) -> Detection:
    """Poison a run's log and ask its detectors; no recommender is trained. Raises what `run` does."""
    watch = watch or (lambda _: None)
    asked = named("detectors", [name_of("detectors", DETECTORS, one) for one in config.detectors], config.detectors)
    if not asked:
        raise ConfigError("detectors is empty; name at least one, as in detectors = ['lorec']")
    clean = prepared(config.data, config.split)
    text = text_of(config, clean, cache, watch)
    if any(one.needs_text for one in (config.attack, *asked.values())):
        text.check()
    for one in asked.values():
        fits(one, Sight(clean.train, len(clean.catalog), text))
    poison = forged(config, clean, text, None, watch)
    bad = inject(clean, poison, config.seed)
    known = known_of(config, bad, poison.provenance["attack"])
    said, figures = {}, {}
    for place, (name, one) in enumerate(asked.items()):
        watch(Event("detect", place, len(asked), name))
        started = time.perf_counter()
        said[name] = ask(one, bad, text=text, known=known, seed=config.seed)
        figures[name] = judged(said[name], bad, poison.targets)
        figures[name]["seconds"] = time.perf_counter() - started
        watch(Event(name, 1, 1, f"{figures[name]['seconds']:.1f} s", finished=True))
    notes = [f"{name}: {note}." for name, found in said.items() for note in found.notes]
    return Detection(bad, poison, said, figures, [*said_of(poison, known), *notes])


def known_of(config: RunFile, log: Split, judged: str) -> tuple[Poison, ...]:
    """What the defender learns from: known fakes without the judged kind, but where they are asked for by name."""
    known = config.known
    return known_fakes(log, without=judged, kinds=known.kinds, share=known.share, rounds=known.rounds, seed=config.seed)


def said_of(poison: Poison, known: Sequence[Poison]) -> list[str]:
    """Whether the judged kind was among the known fakes, where that is to be minded."""
    kind, kinds = poison.provenance["attack"], known[0].provenance["kinds"]
    learned = is_known(poison.provenance, kinds)
    if learned:
        which = kind if kind in kinds else f"or kinds that {kind} is mixed of"
        return [f"The judged kind, {which}, was among the known fakes: detection is easier than in life."]
    if learned is None:
        return ["Nobody knows the kind of the stored poison; it may be among the known fakes."]
    return []


def is_known(provenance: Mapping[str, Any], kinds: list[str]) -> bool | None:
    """Whether the defense learned from the judged kind, or from one that it is mixed of; None where nobody knows."""
    judged = {provenance["attack"], *provenance.get("kinds", ())}
    return None if judged == {"stored"} else not judged.isdisjoint(kinds)
