"""Public logs of research, from the files that their owners publish: Amazon, MovieLens, MIND, Steam, LoRec's own.

A source looks for its files in a folder, plain or as .gz, under the names that they have where they come from; `lorec
data fetch` brings them where their owners let everybody have them. None is ours to pass on, and each says its licence
and whom to cite. Texts are kept as they are but for HTML entities, and items without one have none.
"""

import ast
import gzip
import html
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from lorec.data import Dataset
from lorec.errors import ConfigError, DataError, first_line

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data"
STEAM = "https://cseweb.ucsd.edu/~wckang"
LOG = pl.Schema({"user": pl.String(), "item": pl.String(), "time": pl.Int64()})


@dataclass(frozen=True, kw_only=True)
class Amazon:
    """Amazon's product reviews, a category at a time, with titles (McAuley et al.; 2014, 2018 and 2023).

    2014 and 2018 are the dense files of users and items with five reviews or more; their metadata of 2014 are Python's
    literals, not JSON. Times are whole days in 2014 and 2018, milliseconds in 2023. Titles that hold a page's script
    instead of a name, as some of 2018 do, count as missing.
    """

    root: str
    """The folder with the files."""
    category: str
    """As in the names of the files: Beauty (2014), Video_Games (2018), All_Beauty (2023)."""
    edition: Literal["2014", "2018", "2023"] = "2018"

    licence: ClassVar[str] = "for research; the reviews are their authors' and Amazon's"
    citation: ClassVar[dict[str, str]] = {
        "2014": "R. He, J. McAuley: Ups and Downs: Modeling the Visual Evolution of Fashion Trends with One-Class "
        "Collaborative Filtering, WWW 2016",
        "2018": "J. Ni, J. Li, J. McAuley: Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained "
        "Aspects, EMNLP 2019",
        "2023": "Y. Hou et al.: Bridging Language and Items for Retrieval and Recommendation, arXiv 2403.03952",
    }

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.category):
            raise ConfigError(f"category is {self.category!r}; write it as the files' names do, as Video_Games")

    def files(self) -> dict[str, str]:
        """Names of its files, reviews first, and where they come from."""
        one = self.category
        if self.edition == "2014":
            base = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
            return {f"reviews_{one}_5.json.gz": f"{base}/reviews_{one}_5.json.gz",
                    f"meta_{one}.json.gz": f"{base}/meta_{one}.json.gz"}  # fmt: skip
        if self.edition == "2018":
            return {f"{one}_5.json.gz": f"{AMAZON}/amazon_v2/categoryFilesSmall/{one}_5.json.gz",
                    f"meta_{one}.json.gz": f"{AMAZON}/amazon_v2/metaFiles2/meta_{one}.json.gz"}  # fmt: skip
        return {f"{one}.csv.gz": f"{AMAZON}/amazon_2023/benchmark/5core/rating_only/{one}.csv.gz",
                f"meta_{one}.jsonl.gz": f"{AMAZON}/amazon_2023/raw/meta_categories/meta_{one}.jsonl.gz"}  # fmt: skip

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and, with the line, for one that can't be read."""
        reviews, meta = _found(self)
        if self.edition == "2023":
            names = {"user_id": "user", "parent_asin": "item", "timestamp": "time"}
            rows, item, brand = _csv(reviews, names), "parent_asin", "store"
        else:
            names = {"reviewerID": "user", "asin": "item", "unixReviewTime": "time"}
            rows, item, brand = _objects(reviews), "asin", "brand"
        log = _log(reviews, rows, names)
        told = _literals(meta) if self.edition == "2014" else _objects(meta)
        items = _items(told, {item: "item", "title": "title", brand: "brand"}, log)
        scripts = pl.col("title").str.contains("getTime|function\\(")
        items = items.with_columns(pl.when(~scripts).then(pl.col("title")).alias("title"))
        return _dataset(f"amazon-{self.category.lower().replace('_', '-')}-{self.edition}", log, items, self)


@dataclass(frozen=True, kw_only=True)
class MovieLens:
    """MovieLens: people rate films on a site of the University of Minnesota (GroupLens); a rating is an interaction."""

    root: str
    """The folder with the files, unpacked."""
    edition: Literal["100k", "1m", "latest-small", "latest"] = "1m"

    licence: ClassVar[str] = "for research; the README inside says what else is allowed"
    citation: ClassVar[dict[str, str]] = dict.fromkeys(
        ("100k", "1m", "latest-small", "latest"),
        "F. M. Harper, J. A. Konstan: The MovieLens Datasets: History and Context, TiiS 5(4), 2015",
    )

    def files(self) -> dict[str, str]:
        """Names of its files, ratings first, and the archive that they come in."""
        names = {"100k": ("u.data", "u.item"), "1m": ("ratings.dat", "movies.dat")}
        archive = f"{GROUPLENS}/ml-{self.edition}.zip"
        return dict.fromkeys(names.get(self.edition, ("ratings.csv", "movies.csv")), archive)

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and, with the line, for one that can't be read."""
        ratings, films = _found(self)
        if self.edition in ("100k", "1m"):
            between, bar = ("\t", "|") if self.edition == "100k" else ("::", "::")
            rows = _fields(ratings, between, {"userId": 0, "movieId": 1, "timestamp": 3})
            told = _fields(films, bar, {"movieId": 0, "title": 1})
        else:
            rows, told = _csv(ratings, ("userId", "movieId", "timestamp")), _csv(films, ("movieId", "title"))
        log = _log(ratings, rows, {"userId": "user", "movieId": "item", "timestamp": "time"})
        items = _items(told, {"movieId": "item", "title": "title"}, log)
        return _dataset(f"movielens-{self.edition}", log, items, self)


@dataclass(frozen=True, kw_only=True)
class Mind:
    """MIND: clicks on news of Microsoft's, with titles (Wu et al., ACL 2020).

    A user is what was clicked before, in order, then what was clicked among what was shown, by the time of the
    impression. The first have no times, so time is a position in this order.
    """

    root: str
    """The folder with behaviors.tsv and news.tsv."""

    licence: ClassVar[str] = (
        "Microsoft Research License: for research, to be accepted at https://msnews.github.io first"
    )
    citation: ClassVar[dict[str, str]] = {
        "": "F. Wu et al.: MIND: A Large-scale Dataset for News Recommendation, ACL 2020"
    }

    def files(self) -> dict[str, str]:
        """Names of its files; there is no address, as each has to accept the licence."""
        return {"behaviors.tsv": "", "news.tsv": ""}

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and, with the line, for one that can't be read."""
        behaviors, news = _found(self)
        shown: dict[str, list[tuple[str, list[str]]]] = {}
        before: dict[str, list[str]] = {}
        for line, row in _fields(behaviors, "\t", {"user": 1, "time": 2, "history": 3, "shown": 4}):
            clicked = [one.removesuffix("-1") for one in row["shown"].split() if one.endswith("-1")]
            shown.setdefault(row["user"], []).append((_moment(behaviors, line, row["time"]), clicked))
            if len(history := row["history"].split()) > len(before.get(row["user"], [])):
                before[row["user"]] = history
        rows = []
        for user, impressions in shown.items():
            after = [one for _, some in sorted(impressions, key=lambda one: one[0]) for one in some]
            rows += [(user, item, place) for place, item in enumerate([*before.get(user, []), *after])]
        log = pl.DataFrame(rows, LOG, orient="row")
        names = {"item": 0, "category": 1, "title": 3}
        items = _items(_fields(news, "\t", names), {name: name for name in ("item", "title", "category")}, log)
        return _dataset("mind", log, items, self)


@dataclass(frozen=True, kw_only=True)
class Steam:
    """Reviews of games on Steam, with the games' names (Kang and McAuley, ICDM 2018); files of Python's literals."""

    root: str
    """The folder with steam_reviews.json.gz and steam_games.json.gz."""

    licence: ClassVar[str] = "for research; the reviews are their authors' and Valve's"
    citation: ClassVar[dict[str, str]] = {
        "": "W.-C. Kang, J. McAuley: Self-Attentive Sequential Recommendation, ICDM 2018"
    }

    def files(self) -> dict[str, str]:
        """Names of its files, reviews first, and where they come from."""
        return {name: f"{STEAM}/{name}" for name in ("steam_reviews.json.gz", "steam_games.json.gz")}

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and, with the line, for one that can't be read."""
        reviews, games = _found(self)
        log = _log(reviews, _literals(reviews), {"username": "user", "product_id": "item", "date": "time"})
        items = _items(_literals(games), {"id": "item", "app_name": "title"}, log)
        return _dataset("steam", log, items, self)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A log as LoRec's authors publish theirs: item_dict.json and user_dict.json (items by user, the oldest first)."""

    root: str
    """The folder with the files; fake_user_dict.json and inject_user_*.json are not the log's."""

    licence: ClassVar[str] = "that of the log it was made of; its files are inside the authors' repository"
    citation: ClassVar[dict[str, str]] = {
        "": "K. Zhang et al.: LoRec: Combating Poisons with Large Language Model for Robust Sequential Recommendation, "
        "SIGIR 2024"
    }

    def files(self) -> dict[str, str]:
        """Names of its files; they come inside the authors' repository."""
        return {"user_dict.json": "", "item_dict.json": ""}

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and for one that is something else."""
        user_file, item_file = _found(self)
        users = _json(user_file, list, "lists of items by user")
        titles = _json(item_file, str, "titles by item")
        taken = (
            (0, {"user": user, "item": item, "time": place})
            for user, items in users.items()
            for place, item in enumerate(items)
        )
        log = _log(user_file, taken, {name: name for name in LOG})
        told = ((0, {"item": item, "title": title}) for item, title in titles.items())
        return _dataset("lorec", log, _items(told, {"item": "item", "title": "title"}, log), self)


Public = Amazon | MovieLens | Mind | Steam | Published


def _dataset(name: str, log: pl.DataFrame, items: pl.DataFrame, source: Public) -> Dataset:
    if log.is_empty():
        raise DataError(f"{next(iter(source.files()))} in {source.root} has no interactions; nothing to read")
    record = {
        "source": name, "licence": source.licence, "citation": source.citation[getattr(source, "edition", "")],
    }  # fmt: skip
    return Dataset(name, log, items, record)


# ------------------------------------------------------------------------------------------------------------- files

Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""Rows of a file, each with its line."""


def home(source: Public) -> Path:
    """The folder of its edition in the root, as its files are called like another's; else the root."""
    if isinstance(source, Amazon | MovieLens):
        return Path(source.root) / f"{'ml' if isinstance(source, MovieLens) else 'amazon'}-{source.edition}"
    return Path(source.root)


def here(source: Public) -> list[Path] | None:
    """Where a log's files are, plain or packed, in the folder of its edition, its root, or one folder of the root.

    None where not all of them are in one place. Raises DataError where several folders of the root have them, as
    editions have files of the same names.
    """
    root = Path(source.root)
    for places in ([home(source)], [root], _folders(root)):
        found = [paths for place in places if (paths := _all_of(place, source.files()))]
        if len(found) > 1:
            raise DataError(f"{found[0][0]} and {found[1][0]} may both be meant; set root to the folder of one")
        if found:
            return found[0]
    return None


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(one for one in root.iterdir() if one.is_dir())
    except OSError:
        return []


def _all_of(place: Path, names: Mapping[str, str]) -> list[Path] | None:
    found = []
    for name in names:
        ways = (place / one for one in (name, name.removesuffix(".gz"), name + ".gz"))
        if (path := next((one for one in ways if one.is_file()), None)) is None:
            return None
        found.append(path)
    return found


def _found(source: Public) -> list[Path]:
    """The files. Raises DataError where they are not there."""
    if found := here(source):
        return found
    names, address = " and ".join(source.files()), next(iter(source.files().values()))
    where = f" lorec data fetch brings them from {address}, or" if address else ""
    raise DataError(f"no {names} in {source.root};{where} set root to the folder that holds them")


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; old files of MovieLens are in Latin-1, all others in UTF-8."""
    opened = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opened(path, "rb") as file:
            for line, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
                except UnicodeDecodeError:
                    text = raw.decode("latin-1")
                yield text.rstrip("\r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}, after line {line}: can't be read ({error}); bring it again") from None


def _objects(path: Path) -> Rows:
    """JSON lines."""
    return _parsed(path, json.loads, "JSON")


def _literals(path: Path) -> Rows:
    """Lines of Python's literals; nothing in them is run."""
    return _parsed(path, ast.literal_eval, "a Python literal")


def _parsed(path: Path, parse: Callable[[str], Any], kind: str) -> Rows:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no table as {kind}: {line[:60]!r}; bring the file again")
        yield number, row


def _fields(path: Path, between: str, names: Mapping[str, int]) -> Rows:
    """Lines of fields; `names` says which is what."""
    least = max(names.values()) + 1
    for number, line in enumerate(_lines(path), start=1):
        if not line:
            continue
        row = line.split(between)
        if len(row) < least:
            raise DataError(f"{path}, line {number}: {len(row)} fields where {least} were wanted; bring the file again")
        yield number, {name: row[place] for name, place in names.items()}


def _csv(path: Path, names: Collection[str]) -> Rows:
    """Some columns of a CSV."""
    try:
        told = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); bring it again") from None
    if lacking := [name for name in names if name not in told.columns]:
        has = ", ".join(told.columns)
        raise DataError(f"{path} has no column {lacking[0]!r} (it has: {has}); is it another edition?")
    return enumerate(told.select(list(names)).iter_rows(named=True), start=2)


def _log(path: Path, rows: Rows, names: Mapping[str, str]) -> pl.DataFrame:
    """user, item and time of every row: a whole number, or a date of a day."""
    columns: dict[str, list[Any]] = {mine: [] for mine in LOG}
    for number, row in rows:
        for theirs, mine in names.items():
            value = row.get(theirs)
            if value is None or value == "":
                raise DataError(
                    f"{path}, line {number}: there is no {theirs!r}; drop such lines, or bring the file again"
                )
            columns[mine].append(_time(path, number, value) if mine == "time" else _id(path, number, value))
    return pl.DataFrame(columns, LOG)


def _id(path: Path, number: int, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{path}, line {number}: {str(value)[:40]!r} is no id; bring the file again")
    return _clean(str(value))


def _clean(text: str) -> str:
    """Without halves of letters, which JSON may hold and no file can."""
    return text.encode("utf-8", "replace").decode()


def _time(path: Path, number: int, value: Any) -> int:
    try:
        try:
            time = int(value)
        except (ValueError, TypeError):
            time = int(datetime.fromisoformat(str(value)).replace(tzinfo=UTC).timestamp())
        if abs(time) < 2**61:
            return time
    except (ValueError, OverflowError):
        pass
    raise DataError(f"{path}, line {number}: {str(value)[:40]!r} is no time; bring the file again")


def _moment(path: Path, line: int, value: str) -> str:
    """MIND's times, as 11/15/2019 8:55:22 AM, in a form that can be sorted."""
    try:
        return datetime.strptime(value, "%m/%d/%Y %I:%M:%S %p").isoformat()
    except ValueError:
        raise DataError(f"{path}, line {line}: {value[:40]!r} is no time like 11/15/2019 8:55:22 AM") from None


def _items(rows: Rows, names: Mapping[str, str], log: pl.DataFrame) -> pl.DataFrame:
    """The catalogue's items that somebody took, each once; what is no text, or an empty one, is none.

    Rows without an id, as Steam's catalogue has them, can be nobody's.
    """
    taken, found = set(log["item"]), dict[str, dict[str, Any]]()
    for _, row in rows:
        told = {mine: row.get(theirs) for theirs, mine in names.items()}
        item = _clean(str(told.pop("item")))
        if item in taken and not found.get(item, {}).get("title"):
            texts = (
                (name, _clean(html.unescape(one)).strip() if isinstance(one, str) else "") for name, one in told.items()
            )
            found[item] = {"item": item, **{name: words or None for name, words in texts}}
    return pl.DataFrame(list(found.values()), {name: pl.String for name in names.values()})


def _json(path: Path, kind: type, wanted: str) -> dict[str, Any]:
    """A table of JSON whose values are of a kind."""
    try:
        found = json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON ({error.msg}); bring the file again") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({str(error)[:80]}); bring the file again") from None
    if not isinstance(found, dict) or not all(isinstance(value, kind) for value in found.values()):
        raise DataError(f"{path} is no table of {wanted}; give what the authors' code reads")
    return found
