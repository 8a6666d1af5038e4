"""Run files: TOML, whose sections are specs, and back to plain values.

A run is one log, one attack, one recommender and some defenses. Unknown keys and names are refused, with the nearest
known one.
"""

import copy
import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorec.attacks import ATTACKS, Attack, Bandwagon, Rule, Stored
from lorec.data import Protocol
from lorec.defenses import DEFENSES, Defense, Filter, LoRec, Oracle, Undefended
from lorec.detectors import DETECTORS, Degree, Detector
from lorec.detectors import LoRec as Evidence
from lorec.errors import ConfigError
from lorec.models import BACKBONES, BCE, LOSSES, Backbone, ItemKind, Loss, SASRec
from lorec.registry import build, member, name_of, unknown
from lorec.sources import SOURCES, Compiled, CompleteJourney, Source, located
from lorec.text import ENCODERS, Encoder, MiniLM, Prompts
from lorec.training import Training

__all__ = [
    "FAMILIES", "LISTS", "MEMBERS", "TABLES", "Known", "RunFile", "Targets", "arms_of", "member_of", "named", "plain",
    "protocol_of", "put", "read_document", "read_run_file", "resolve",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Which items the attack pushes."""

    count: int = 5
    """How many are drawn."""
    rule: Rule = "unpopular"
    """From the less popular half of the catalogue, the most popular tenth, or all of it (random)."""
    where: dict[str, str] = field(default_factory=dict)
    """Only items whose catalogue says so, as { category = "Tea" }."""
    items: tuple[str, ...] = ()
    """Raw ids; where given, nothing is drawn."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The fakes that the defender synthesises to learn from."""

    kinds: tuple[str, ...] | None = None
    """Kinds of attack; every kind but the judged one if omitted. A run that knows the judged kind says so."""
    share: float = 0.01
    """Known fakes as a share of users in the first round; the next ones have two, four and half times as many."""
    rounds: int = 16
    """How many poisoned logs the defender imagines; `lorec-paper` learns from the first alone."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.rounds < 1:
            raise ConfigError(f"[known] share is {self.share}, rounds {self.rounds}; a share in (0, 1], and 1 or more")


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """One run: a log, an attack, a recommender, defenses."""

    name: str = "run"
    """What it is called, and its folder's name."""
    seed: int = 0
    """Of everything that is drawn: ties, targets, attack, weights, batches."""
    items: ItemKind = "ids"
    """What an item is to the recommender: its id, its text through a projection, or both."""
    scenario: str = "a shop"
    """What is recommended, for prompts: "video games", "groceries", "news"."""
    data: Source = field(default_factory=CompleteJourney)
    """The log: a source by name, or path and items of one's own."""
    split: Protocol = field(default_factory=Protocol)
    """How the log becomes sequences."""
    encoder: Encoder = field(default_factory=MiniLM)
    """Where text vectors come from."""
    prompts: Prompts = field(default_factory=Prompts)
    """What it reads of items, and is asked about users."""
    backbone: Backbone = field(default_factory=SASRec)
    """The encoder of histories."""
    loss: Loss = field(default_factory=BCE)
    """What the recommender is trained to do."""
    attack: Attack | Stored = field(default_factory=Bandwagon)
    """What the fraudsters do."""
    targets: Targets = field(default_factory=Targets)
    """Which items they push."""
    known: Known = field(default_factory=Known)
    """What the defender learns from."""
    defenses: tuple[Defense, ...] = field(default_factory=lambda: (LoRec(), Oracle()))
    """Who defends, one arm each; the undefended arm is always there."""
    detectors: tuple[Detector, ...] = field(default_factory=lambda: (Degree(), Evidence()))
    """Who is asked by `lorec detect`, which trains no recommender; a run does not ask them."""
    training: Training = field(default_factory=Training)
    """How long, how fast, on what."""
    follow: int = 0
    """Epochs between two looks at T-HR@50 on test items while training, for curves; 0: none. They select nothing."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed}; it is a whole number from 0 to 2^63 - 1")
        if self.follow < 0:
            raise ConfigError(f"follow is {self.follow}; it is a number of epochs, or 0")


FAMILIES: dict[str, dict[str, type]] = {
    "attacks": ATTACKS,
    "backbones": BACKBONES,
    "defenses": DEFENSES,
    "detectors": DETECTORS,
    "encoders": ENCODERS,
    "losses": LOSSES,
    "sources": SOURCES,
}
"""Every family of which a run file may name a member."""
MEMBERS = {"data": "sources", "encoder": "encoders", "backbone": "backbones", "loss": "losses", "attack": "attacks"}
"""The sections that are one member of a family."""
LISTS = ("defenses", "detectors")
"""The keys that are lists of a family's members."""
TABLES: dict[str, type] = {
    "split": Protocol,
    "prompts": Prompts,
    "targets": Targets,
    "known": Known,
    "training": Training,
}
PLAIN = ("name", "seed", "items", "scenario", "follow")


def read_run_file(path: str | Path, settings: Mapping[str, str] | None = None) -> RunFile:
    """Read a run from TOML; `settings` ("training.epochs": "3") overrule it. Raises ConfigError."""
    document = read_document(path, settings)
    if "grid" in document:
        raise ConfigError(f"{path} has a [grid], so it is many runs; give it to lorec grid")
    return settled(document)


def settled(document: Mapping[str, Any]) -> RunFile:
    """As `resolve`, with [split] as a compiled log brings it; ConfigError where the document asks for another."""
    made = resolve(document)
    if isinstance(made.data, Compiled):
        made = dataclasses.replace(made, split=made.data.protocol(_table("split", document.get("split", {}))))
    return made


def read_document(path: str | Path, settings: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The plain values of a run or grid file, settings put in. Raises ConfigError."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the run file itself, as in recipes/demo.toml")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no run file {path}; see recipes/ for some, or lorec run --help") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for key, value in (settings or {}).items():
        _set(document, key, value)
    return document


def member_of(key: str, name: str, settings: Mapping[str, str]) -> Any:
    """The member of a family that a name and settings ("model": "folder") ask for. Raises ConfigError."""
    document: dict[str, Any] = {key: {"name": name}}
    for option, value in settings.items():
        _set(document, f"{key}.{option}", value)
    return _member(key, MEMBERS[key], document[key], strangers=True)


def protocol_of(settings: Mapping[str, str]) -> Protocol:
    """The [split] that settings ("k_core": "5") ask for. Raises ConfigError."""
    document: dict[str, Any] = {}
    for key, value in settings.items():
        _set(document, f"split.{key}", value)
    return resolve(document).split


def resolve(document: Mapping[str, Any], *, strangers: bool = True) -> RunFile:
    """Make a RunFile from plain values: unknown keys and names are refused, the nearest is suggested.

    Without `strangers` no other package's members are loaded, whatever the document names.
    """
    known = [spec_field.name for spec_field in dataclasses.fields(RunFile)]
    for key in document:
        if key not in known:
            raise unknown("key", key, known)
    values = {key: document[key] for key in PLAIN if key in document}
    parts: dict[str, Any] = {}
    for key, family in MEMBERS.items():
        if key in document:
            parts[key] = _member(key, family, _with_default(key, document[key]), strangers)
    for key, spec in TABLES.items():
        if key in document:
            parts[key] = build(spec, _table(key, document[key]), key)
    for key in LISTS:
        if key in document:
            given = document[key]
            if not isinstance(given, list):
                raise ConfigError(f"{key} is a list, as in {key} = ['lorec'] or [[{key}]] tables")
            parts[key] = tuple(_member(key, key, one, strangers) for one in given)
    plain: RunFile = build(RunFile, values, "run")
    made = dataclasses.replace(plain, **parts)
    if not made.name or any(letter in made.name for letter in "/\\\0") or made.name.startswith("."):
        raise ConfigError(f"name is {made.name!r}; it names a folder: letters, digits, - and _")
    if "split" not in document or "seed" not in document["split"]:
        made = dataclasses.replace(made, split=dataclasses.replace(made.split, seed=made.seed))
    return made


def plain(run_file: RunFile) -> dict[str, Any]:
    """The configuration as plain values that `resolve` turns into an equal RunFile."""
    values: dict[str, Any] = {key: getattr(run_file, key) for key in PLAIN}
    for key, family in MEMBERS.items():
        values[key] = _plain_member(family, getattr(run_file, key))
    for key in TABLES:
        values[key] = dataclasses.asdict(getattr(run_file, key))
    for key in LISTS:
        values[key] = [_plain_member(key, one) for one in getattr(run_file, key)]
    return {key: _without_none(value) for key, value in values.items()}


def _plain_member(family: str, spec: Any) -> dict[str, Any]:
    values = {"name": _name(family, spec), **dataclasses.asdict(spec)}
    if isinstance(spec, Filter):
        values["detector"] = _plain_member("detectors", spec.detector)
    return values


def _name(family: str, spec: Any) -> str:
    return name_of(family, FAMILIES[family], spec)


def _without_none(value: Any) -> Any:
    """TOML has no null: a field that is None is left out, and its default puts it back."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list | tuple) else value


def _with_default(key: str, value: Any) -> Any:
    """Settings of a member without its name are the default one's: [backbone] width = 32 is a wide sasrec's."""
    if key == "data" or not isinstance(value, Mapping) or "name" in value:
        return value
    default = next(one for one in dataclasses.fields(RunFile) if one.name == key).default_factory
    assert default is not dataclasses.MISSING
    return {"name": _name(MEMBERS[key], default()), **value}


def _member(key: str, family: str, value: Any, strangers: bool) -> Any:
    values = {"name": value} if isinstance(value, str) else dict(_table(key, value))
    if key == "data" and "name" in values and strangers:
        name = str(values.pop("name"))
        values = located(name, values)
    elif key == "data" and "path" in values:
        values = {"name": "file", **values}
    if key == "defenses" and "detector" in values:
        values["detector"] = _member("detector", "detectors", values["detector"], strangers)
    where = f"{key}: {values['name']}" if key in LISTS and "name" in values else key  # which one of the list
    return member(family, FAMILIES[family], values, where, strangers=strangers)


def _table(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {value!r}; it is a table, as in [{key}]")
    return value


def _set(document: dict[str, Any], key: str, text: str) -> None:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    if key in MEMBERS and isinstance(value, str) and isinstance(document.get(key), Mapping):
        # Another member keeps what the file says of this one, as far as it knows such keys.
        spec = FAMILIES[MEMBERS[key]].get(value)
        known = {field.name for field in dataclasses.fields(spec)} if spec else set()
        value = {name: one for name, one in document[key].items() if name in known} | {"name": value}
    try:
        _put(document, key, value)
    except ConfigError as error:
        raise ConfigError(f"--set {key}: {error}") from None


def put(document: dict[str, Any], key: str, value: Any) -> None:
    """Set a key ("attack.share") of plain values. A name, or a table with one, keeps what else its section says.

    Raises ConfigError for a way that leads nowhere.
    """
    section = document.get(key)
    if key in MEMBERS and isinstance(value, str | Mapping) and section is not None:
        old = {"name": section} if isinstance(section, str) else dict(section)
        new = {"name": value} if isinstance(value, str) else dict(value)
        spec = FAMILIES[MEMBERS[key]].get(str(new.get("name")))
        # One without settings, as no attack has, can't be meant by them; any other says which it does not know.
        value = new if spec is not None and not dataclasses.fields(spec) else old | new
    _put(document, key, copy.deepcopy(value))  # or another key would be put into the caller's


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place: Any = document
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(parent, place)]
            continue
        if isinstance(place.get(parent), str):  # attack = "random" and --set attack.share=.03
            place[parent] = {"name": place[parent]}
        place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"{parent} is {place!r} and has no keys")
    if isinstance(place, list):
        place[_index(last, place)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{place!r} has no keys")


def _index(text: str, place: list[Any]) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) >= len(place):
        raise ConfigError(f"{text!r} is none of the {len(place)} places; count from 0")
    index = int(text)
    if isinstance(place[index], str):
        place[index] = {"name": place[index]}
    return index


def arms_of(config: RunFile) -> dict[str, Defense]:
    """What a run trains, by name: clean, poisoned, and one for each defense. Raises ConfigError for one that is twice.

    The same defense with other settings is called by what is set.
    """
    names = [_arm_of(defense) for defense in config.defenses]
    if "none" in names:
        raise ConfigError("the undefended arm is always there, as 'poisoned'; take 'none' out of defenses")
    return {"clean": Undefended(), "poisoned": Undefended()} | named("defense", names, config.defenses)


def named(family: str, names: Sequence[str], specs: Sequence[Any]) -> dict[str, Any]:
    """Specs by name; of several of one name each is called by what it sets otherwise than another of them.

    Raises ConfigError for one that is there twice.
    """
    found: dict[str, Any] = {}
    inner = [spec.detector if isinstance(spec, Filter) else spec for spec in specs]
    for name, spec, mine in zip(names, specs, inner, strict=True):
        twins = [one for other, one in zip(names, inner, strict=True) if other == name]
        apart = [key for key in _changed(mine) if any(getattr(one, key) != getattr(mine, key) for one in twins)]
        name += "".join(f"-{key}-{_setting(getattr(mine, key))}" for key in apart)
        if name in found:
            raise ConfigError(f"{family.removesuffix('s')} {name!r} stands twice; compare different ones")
        found[name] = spec
    return found


def _arm_of(defense: Defense) -> str:
    """Its name, a filter's with that of its detector."""
    name = _name("defenses", defense)
    return f"{name}-{_name('detectors', defense.detector)}" if isinstance(defense, Filter) else name


def _changed(spec: Any) -> list[str]:
    """The fields of a spec that are not as by default."""

    def default(field: dataclasses.Field[Any]) -> Any:
        made = field.default_factory
        return field.default if made is dataclasses.MISSING else made()

    return [field.name for field in dataclasses.fields(spec) if getattr(spec, field.name) != default(field)]


def _setting(value: Any) -> str:
    parts = value if isinstance(value, tuple) else [value]
    return "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", str(part)) for part in parts)
