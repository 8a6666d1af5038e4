"""What a language model reads of an item, and is asked about a user (the LLM-enhanced view of Zhang et al. 2024).

Texts of the catalogue are written by strangers. They go into a template as one line of plain words, between quotation
marks that none of them holds, so that none can end its place and pretend to be the question.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from lorec.data import Catalog, Sequences
from lorec.errors import ConfigError
from lorec.registry import unknown

FIELD = re.compile(r"\{([^{}]*)\}")
OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
WORDS, LETTERS = 24, 200
"""Of a title in a question about a user; longer ones are cut."""
BETWEEN = '"; "'
"""Two titles in a question; no title holds it."""


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Templates of what a language model reads."""

    item: str = "{title}"
    """Of an item, from columns of the catalogue; what stands in [ ] goes where one of its columns is empty, as in
    "{title}[ by {brand}][ ({category})]"."""
    opening: str = "These are, oldest first, the items that one account chose in {scenario}:"
    """Before a user's titles."""
    question: str = "How likely is it that this account is a fraudster?"
    """After them."""

    def __post_init__(self) -> None:
        for name, text in (("opening", self.opening), ("question", self.question)):
            if not text.strip() or (odd := [one for one in FIELD.findall(text) if one != "scenario"]):
                told = f"{{{odd[0]}}} is not known there" if text.strip() else "it is empty"
                raise ConfigError(f"[prompts] {name} is {text!r}: {told}; {{scenario}} alone may stand in it")
        if not FIELD.search(self.item):
            raise ConfigError(f"[prompts] item is {self.item!r}; it names a column of the catalogue, as {{title}}")
        if re.search(r"[{}\[\]]", OPTIONAL.sub("", FIELD.sub("", self.item))):
            raise ConfigError(f"[prompts] item is {self.item!r}; a bracket in it is not closed, or stands in another")


def item_texts(catalog: Catalog, prompts: Prompts) -> list[str]:
    """Every item's text in order of its number, "" where the catalogue has nothing for it.

    Raises UnknownName for a column that is not there.
    """
    if prompts.item == "{title}":
        return catalog.titles()
    columns = {}
    for name in FIELD.findall(prompts.item):
        if name not in catalog.items.columns:
            raise unknown("column of the catalogue", name, catalog.items.columns)
        column = catalog.items[name]
        if isinstance(column.dtype, pl.List):
            column = column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
        columns[name] = column.cast(pl.String, strict=False).fill_null("").to_list()
    return [
        _filled(prompts.item, {name: plain(values[row], 400, 4000) for name, values in columns.items()})
        for row in range(len(catalog))
    ]


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its values; "" where all of them are empty."""
    if not any(values.values()):
        return ""
    kept = OPTIONAL.sub(lambda part: part[1] if all(values[name] for name in FIELD.findall(part[1])) else "", template)
    return " ".join(FIELD.sub(lambda place: values[place[1]], kept).split())


def user_prompts(
    log: Sequences, titles: Sequence[str], scenario: str, budget: int, prompts: Prompts | None = None
) -> list[str]:
    """One question for each user, the titles of their history in order, within a budget of words.

    Where the budget is short the oldest titles go, never the question. Raises ConfigError for one that has no room.
    """
    prompts = prompts or Prompts()
    where = plain(scenario, 40, LETTERS)
    opening, question = (text.replace("{scenario}", where) for text in (prompts.opening, prompts.question))
    room = budget - len(opening.split()) - len(question.split())
    if room < 3:
        raise ConfigError(
            f"the encoder reads about {budget} words, too few for the question about a user and a title; raise "
            "[encoder] max_tokens, or shorten [prompts]"
        )
    short = [plain(title, min(WORDS, room), LETTERS) or "(no title)" for title in titles]
    # Not every language has spaces between words: six bytes are a word at most.
    words = [max(len(title.split()), -(-len(title.encode()) // 6)) + 1 for title in short]
    made = []
    for user in range(len(log)):
        chosen: list[str] = []
        left = room
        for number in log[user][::-1]:
            left -= words[number - 1]
            if left < 0 and chosen:
                break
            chosen.append(short[number - 1])
        made.append(f'{opening} "{BETWEEN.join(reversed(chosen))}". {question}')
    return made


def plain(text: str, words: int, letters: int) -> str:
    """A stranger's text as one line of at most so many words and letters, without quotation marks of any width."""
    folded = unicodedata.normalize("NFKC", text[:letters])  # as tokenizers do: a wide mark becomes a plain one
    return " ".join(re.sub(r"[\s\x00-\x1f\x7f\"]+", " ", folded).split()[:words])


def without_oldest(text: str) -> str:
    """A question without the oldest of its titles; as it is where one is left, or where it is none."""
    first, between = text.find('"'), text.find(BETWEEN)
    return text if between < 0 else text[: first + 1] + text[between + len(BETWEEN) :]
