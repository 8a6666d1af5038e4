"""From names and tables of plain values to specs: `find` a family's member, `build` a dataclass, and suggest.

A spec is a frozen dataclass, and its fields are its configuration. Keys are compared here, before pydantic checks the
types, because pydantic drops the unknown keys of a plain dataclass without a word.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, get_args, get_type_hints

import pydantic

from lorec.errors import ConfigError, UnknownName

REFUSED = {
    "attacks": {
        "average": "an average attack rates its fillers as others rate them on average; without ratings it equals the "
        'random attack, so write "random"'
    }
}
"""Members of the literature that people will look for, and why there are none, by family."""


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """Word the error for a name that nobody knows, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownName(f"no {what} called {name!r}{hint} (known: {', '.join(names) or 'none'})")


def find(family: str, table: Mapping[str, type], name: str, *, strangers: bool = True) -> type:
    """The member of a family by its name: a built-in, or one that a package registers as `lorec.<family>`.

    A strange package is imported only when it is named here, and never where `strangers` is off, as when a folder of
    somebody else's is opened. Raises UnknownName.
    """
    if name in table:
        return table[name]
    points = {point.name: point for point in entry_points(group=f"lorec.{family}")} if strangers else {}
    if name in points:  # an entry point's name can't smuggle in a module: the package itself declared it
        try:
            found: type = points[name].load()
        except Exception as error:
            declared = points[name].dist
            package = "a package" if declared is None else declared.name
            raise ConfigError(
                f"{name!r}, which {package} declares under lorec.{family}, can't be loaded "
                f"({type(error).__name__}: {error}); mend that package, or take another name"
            ) from error
        return found
    if name in REFUSED.get(family, {}):
        raise UnknownName(f"there is no {name}: {REFUSED[family][name]}")
    raise unknown("loss" if family == "losses" else family.removesuffix("s"), name, [*table, *points])


def one_of(what: str, value: Any, kind: Any) -> Any:
    """A value of a Literal, for whoever sets it from Python. Raises ConfigError for any other."""
    if value not in get_args(kind):
        raise ConfigError(f"{what} is {value!r}; it is one of {', '.join(map(str, get_args(kind)))}")
    return value


def build(spec: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a spec from plain values, strictly typed. Raises UnknownName for a key and ConfigError for a value."""
    fields = {field.name: field for field in dataclasses.fields(spec) if field.init}
    types = get_type_hints(spec)
    for key in values:
        if key not in fields:
            raise unknown(f"key in [{where}]", key, fields)
    needed = [name for name, one in fields.items() if one.default is one.default_factory is dataclasses.MISSING]
    if lacking := [name for name in needed if name not in values]:
        has = "which has" if len(lacking) == 1 else "which have"
        raise ConfigError(f"[{where}] lacks {' and '.join(lacking)}, {has} no default")
    return spec(**{key: _checked(types[key], value, f"[{where}] {key}") for key, value in values.items()})


def member(
    family: str, table: Mapping[str, type], values: Mapping[str, Any], where: str, *, strangers: bool = True
) -> Any:
    """Make the family's member that `name` names from the other values."""
    if "name" not in values:
        raise ConfigError(f"[{where}] has no name; give one of: {', '.join(sorted(table))}")
    chosen = find(family, table, str(values["name"]), strangers=strangers)
    return build(chosen, {key: value for key, value in values.items() if key != "name"}, where)


def describe(table: Mapping[str, type]) -> list[tuple[str, str]]:
    """Each name with the first line of its docstring, sorted."""
    return sorted((name, (spec.__doc__ or "").strip().splitlines()[0]) for name, spec in table.items())


def name_of(family: str, table: Mapping[str, type], spec: object) -> str:
    """The name by which `find` finds a spec's class; its class name where nothing does."""
    kind = type(spec)
    for name, known in table.items():
        if kind is known:
            return name
    declared = f"{kind.__module__}:{kind.__qualname__}"
    for point in entry_points(group=f"lorec.{family}"):  # before what it may be derived from
        if point.value == declared:
            return point.name
    # A defense that is a detector, among detectors.
    return next((name for name, known in table.items() if isinstance(spec, known)), kind.__name__)


def _checked(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):  # a spec in a spec, made already
        return value
    if isinstance(value, list):  # TOML has lists only, a frozen dataclass wants tuples
        value = tuple(value)
    some = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(one, float) and not math.isfinite(one) for one in some):
        raise ConfigError(f"{where} is {value!r}: give a number that is finite")
    try:
        return pydantic.TypeAdapter(kind).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        wanted = error.errors()[0]["msg"]
        raise ConfigError(f"{where} is {value!r}: {wanted[0].lower()}{wanted[1:]}") from None
