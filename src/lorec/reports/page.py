"""A page that opens offline, for readers, printers, keyboards and screen readers; whatever it tells is text.

Strangers name items, users and files, so nothing of them is ever markup: the template escapes all, and the page's own
policy lets a browser run one script and use one style, known by their digests, and load nothing.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

LONGEST = 400
"""Letters of a stranger's text that are shown."""


@dataclass(frozen=True)
class Table:
    """Rows under a head; every column can be sorted by."""

    caption: str
    head: Mapping[str, str]
    """Columns, and how their figures are written (`".3f"`); "" for text."""
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def kinds(self) -> list[str]:
        """Of columns: "n" of figures, "long" of texts that want room, else ""."""
        long = [any(len(str(row[place])) > 30 for row in self.rows) for place in range(len(self.head))]
        return ["n" if form else "long" * wide for form, wide in zip(self.head.values(), long, strict=True)]


@dataclass(frozen=True)
class Chart:
    """A drawing, and what it shows in words."""

    caption: str
    svg: str
    words: str


@dataclass(frozen=True)
class Event:
    """An interaction in a person's history."""

    title: str
    note: str = ""
    marked: bool = False
    """Whether it is what the person is suspected for."""


@dataclass(frozen=True)
class Person:
    """A user, opened by a click: reasons and history."""

    name: str
    about: str
    reasons: Sequence[str]
    events: Sequence[Event]
    left_out: int = 0
    """Events that are not shown."""


@dataclass(frozen=True)
class Pairs:
    """Names and values: what was asked, what it cost."""

    rows: Mapping[str, Any]
    folded: str = ""
    """What a click unfolds them by, where they are many."""


@dataclass(frozen=True)
class Code:
    """Commands to repeat something; whoever makes them quotes what strangers named."""

    lines: Sequence[str]


Block = str | Table | Chart | Pairs | Code | Sequence[Person] | Sequence[str]
"""A paragraph, or what the classes above say; a list of texts is a list."""


@dataclass(frozen=True)
class Section:
    """A part of a page, in the list of contents."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """What a report tells."""

    title: str
    verdict: str
    """In one sentence."""
    grave: bool
    """Whether somebody should look now."""
    sections: Sequence[Section]
    made_by: str
    lead: Sequence[str] = field(default=())


def rendered(page: Page) -> str:
    """The page as HTML."""
    here = files("lorec.reports")
    style, script = (here.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"figure": figure, "key": sort_key, "picture": _picture, "text": text}
    environment.tests |= {name.lower(): _is_a(kind) for name, kind in _BLOCKS.items()}
    template = environment.from_string(here.joinpath("page.html").read_text("utf-8"))
    return template.render(
        page=page,
        style=Markup(style),  # ours, as is the script
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )


_BLOCKS: dict[str, Any] = {"Table": Table, "Chart": Chart, "Pairs": Pairs, "Code": Code, "Text": str}


def _is_a(kind: Any) -> Any:
    return lambda value: isinstance(value, kind)


def _digest(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _picture(svg: str) -> str:
    """As data in an image, where a browser runs nothing."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def text(value: object) -> str:
    """A stranger's text without letters that steer a terminal, a browser or the direction of reading; not too long."""
    shown = re.sub(
        r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]",
        " ",
        str(value),
    )
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def figure(value: Any, form: str) -> str:
    """A cell's text."""
    if value is None:
        return ""
    return text(value) if isinstance(value, str) or not form else format(value, form)


def sort_key(value: Any) -> str:
    """What a column of figures is sorted by; "" stays last."""
    if value is None:
        return ""
    if isinstance(value, str):  # a figure with its bounds
        found = re.match(r"-?[\d,]*\.?\d+", value)
        return found[0].replace(",", "") if found else ""
    return repr(float(value))
