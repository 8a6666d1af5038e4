"""Public logs of research, from the files that their owners publish: Amazon, MovieLens, MIND, Steam, LoRec's own.

A source looks for its files in a folder, plain or as .gz, under the names that they have where they come from; `lorec
data fetch` brings them where their owners let everybody have them. None is ours to pass on, and each says its licence
and whom to cite. Texts are kept as they are but for HTML entities, and items without one have none.
"""

import ast
import gzip
import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import polars as pl

from lorec.data import Dataset
from lorec.errors import DataError

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data"
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
        reviews, meta = _found(self.root, self.files())
        if self.edition == "2023":
            names = {"user_id": "user", "parent_asin": "item", "timestamp": "time"}
            log, item, brand = _csv(reviews, ",", names), "parent_asin", "store"
        else:
            names = {"reviewerID": "user", "asin": "item", "unixReviewTime": "time"}
            log, item, brand = _rows(reviews, _objects(reviews), names), "asin", "brand"
        told = _literals(meta) if self.edition == "2014" else _objects(meta)
        items = _items(meta, told, {item: "item", "title": "title", brand: "brand"}, log)
        scripts = pl.col("title").str.contains("getTime|function\\(")
        items = items.with_columns(pl.when(~scripts).then(pl.col("title")).alias("title"))
        return _dataset(f"amazon-{self.category.lower().replace('_', '-')}-{self.edition}", log, items, self)


@dataclass(frozen=True, kw_only=True)
class MovieLens:
    """MovieLens: people rate films on a site of the University of Minnesota (GroupLens); a rating is an interaction."""

    root: str
    """The folder with the files, unpacked."""
    edition: Literal["100k", "1m", "latest-small", "latest"] = "1m"

    licence: ClassVar[str] = "for research, not to be redistributed or sold (the README inside says more)"
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
        ratings, films = _found(self.root, self.files())
        if self.edition in ("100k", "1m"):
            between, bar = ("\t", "|") if self.edition == "100k" else ("::", "::")
            rows = ({"user": row[0], "item": row[1], "time": row[3]} for row in _fields(ratings, between, 4))
            log = _rows(ratings, rows, {name: name for name in LOG})
            told = ({"item": row[0], "title": row[1]} for row in _fields(films, bar, 3))
            items = _items(films, told, {"item": "item", "title": "title"}, log)
        else:
            log = _csv(ratings, ",", {"userId": "user", "movieId": "item", "timestamp": "time"})
            names = {"movieId": "item", "title": "title", "genres": "category"}
            items = _csv(films, ",", names)
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
        behaviors, news = _found(self.root, self.files())
        shown: dict[str, list[tuple[str, list[str]]]] = {}
        before: dict[str, list[str]] = {}
        for line, row in enumerate(_fields(behaviors, "\t", 5), start=1):
            clicked = [one.removesuffix("-1") for one in row[4].split() if one.endswith("-1")]
            shown.setdefault(row[1], []).append((_moment(behaviors, line, row[2]), clicked))
            if len(history := row[3].split()) > len(before.get(row[1], [])):
                before[row[1]] = history
        rows = []
        for user, impressions in shown.items():
            after = [one for _, some in sorted(impressions, key=lambda one: one[0]) for one in some]
            rows += [(user, item, place) for place, item in enumerate([*before.get(user, []), *after])]
        log = pl.DataFrame(rows, LOG, orient="row")
        told = ({"item": row[0], "category": row[1], "title": row[3]} for row in _fields(news, "\t", 4))
        items = _items(news, told, {"item": "item", "title": "title", "category": "category"}, log)
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
        base = "https://cseweb.ucsd.edu/~wckang"
        return {name: f"{base}/{name}" for name in ("steam_reviews.json.gz", "steam_games.json.gz")}

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and, with the line, for one that can't be read."""
        reviews, games = _found(self.root, self.files())
        log = _rows(reviews, _literals(reviews), {"username": "user", "product_id": "item", "date": "time"})
        items = _items(games, _literals(games), {"id": "item", "app_name": "title"}, log)
        return _dataset("steam", log, items, self)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A log as LoRec's authors publish theirs: item_dict.json and user_dict.json (items by user, the oldest first)."""

    root: str
    """The folder with the files; fake_user_dict.json and inject_user_*.json are not the log's."""

    licence: ClassVar[str] = "that of the log which was prepared"
    citation: ClassVar[dict[str, str]] = {
        "": "K. Zhang et al.: LoRec: Combating Poisons with Large Language Model for Robust Sequential Recommendation, "
        "SIGIR 2024"
    }

    def files(self) -> dict[str, str]:
        """Names of its files; they come inside the authors' repository."""
        return {"user_dict.json": "", "item_dict.json": ""}

    def load(self) -> Dataset:
        """Read both files. Raises DataError for a missing one, and for one that is something else."""
        users, items = (_json(path) for path in _found(self.root, self.files()))
        for name, one, kind in (("user_dict.json", users, list), ("item_dict.json", items, str)):
            if not isinstance(one, dict) or not all(isinstance(value, kind) for value in one.values()):
                wanted = "lists of items by user" if kind is list else "titles by item"
                raise DataError(f"{Path(self.root) / name} is no table of {wanted}; give what the authors' code reads")
        rows = [(user, str(item), place) for user, taken in users.items() for place, item in enumerate(taken)]
        catalogue = pl.DataFrame(
            {"item": list(items), "title": list(items.values())}, {"item": pl.String, "title": pl.String}
        )
        return _dataset("lorec", pl.DataFrame(rows, LOG, orient="row"), catalogue, self)


Public = Amazon | MovieLens | Mind | Steam | Published


def _dataset(name: str, log: pl.DataFrame, items: pl.DataFrame, source: Public) -> Dataset:
    if log.is_empty():
        raise DataError(f"{next(iter(source.files()))} in {source.root} has no interactions; nothing to read")
    record = {
        "source": name, "licence": source.licence, "citation": source.citation[getattr(source, "edition", "")],
    }  # fmt: skip
    return Dataset(name, log, items, record)


# ------------------------------------------------------------------------------------------------------------- files


def _found(root: str, files: Mapping[str, str]) -> list[Path]:
    """The files in the folder or below it, each plain or packed. Raises DataError for one that is missing."""
    place, found = Path(root), []
    for name, address in files.items():
        names = (name, name.removesuffix(".gz"), name + ".gz")
        paths = sorted(path for one in names for path in [*place.glob(one), *place.glob(f"*/{one}")])
        if not paths:
            where = f" lorec data fetch brings it from {address}, or" if address else ""
            raise DataError(f"no {name} in {place};{where} set root to the folder that holds it")
        found.append(paths[0])
    return found


def _lines(path: Path) -> Iterator[str]:
    """Lines without their ends; old files of MovieLens are in Latin-1, all others in UTF-8."""
    opened = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opened(path, "rb") as file:
            for line, raw in enumerate(file, start=1):  # noqa: B007 (told in errors)
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError:
                    text = raw.decode("latin-1")
                yield text.rstrip("\r\n")
    except (OSError, EOFError) as error:
        raise DataError(f"{path}, after line {line}: can't be read ({error}); bring it again") from None


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """JSON lines."""
    return _parsed(path, json.loads, "JSON")


def _literals(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of Python's literals; nothing in them is run."""
    return _parsed(path, ast.literal_eval, "a Python literal")


def _parsed(path: Path, parse: Any, kind: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = parse(line)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: no table as {kind}: {line[:60]!r}; bring the file again")
        yield row


def _fields(path: Path, between: str, least: int) -> Iterator[list[str]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line:
            continue
        row = line.split(between)
        if len(row) < least:
            raise DataError(f"{path}, line {number}: {len(row)} fields where {least} were wanted; bring the file again")
        yield row


def _csv(path: Path, separator: str, names: Mapping[str, str]) -> pl.DataFrame:
    """Some columns of a CSV, renamed."""
    try:
        told = pl.read_csv(path, separator=separator, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"{path} can't be read ({first}); bring it again") from None
    if lacking := [name for name in names if name not in told.columns]:
        raise DataError(
            f"{path} has no column {lacking[0]!r} (it has: {', '.join(told.columns)}); is it another edition?"
        )
    frame = told.select(pl.col(theirs).alias(mine) for theirs, mine in names.items())
    return (
        _rows(path, frame.iter_rows(named=True), {name: name for name in names.values()}, 2)
        if "time" in frame
        else frame
    )


def _rows(path: Path, rows: Iterator[dict[str, Any]], names: Mapping[str, str], first: int = 1) -> pl.DataFrame:
    """user, item and time of every row: a whole number, or a date of a day."""
    columns: dict[str, list[Any]] = {mine: [] for mine in names.values()}
    for number, row in enumerate(rows, start=first):
        for theirs, mine in names.items():
            value = row.get(theirs)
            if value is None or value == "":
                raise DataError(
                    f"{path}, row {number}: there is no {theirs!r}; drop such rows, or bring the file again"
                )
            columns[mine].append(_time(path, number, value) if mine == "time" else str(value))
    return pl.DataFrame(columns, LOG)


def _time(path: Path, number: int, value: Any) -> int:
    try:
        return int(value)
    except (ValueError, TypeError):
        pass
    try:
        return int(datetime.fromisoformat(str(value)).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise DataError(f"{path}, row {number}: {str(value)[:40]!r} is no time; bring the file again") from None


def _moment(path: Path, line: int, value: str) -> str:
    """MIND's times, as 11/15/2019 8:55:22 AM, in a form that can be sorted."""
    try:
        return datetime.strptime(value, "%m/%d/%Y %I:%M:%S %p").isoformat()
    except ValueError:
        raise DataError(f"{path}, line {line}: {value[:40]!r} is no time like 11/15/2019 8:55:22 AM") from None


def _items(path: Path, rows: Iterator[dict[str, Any]], names: Mapping[str, str], log: pl.DataFrame) -> pl.DataFrame:
    """The catalogue's items that somebody took, each once; a text that is missing or empty is none."""
    taken, found = set(log["item"]), dict[str, dict[str, str | None]]()
    for number, row in enumerate(rows, start=1):
        told = {mine: row.get(theirs) for theirs, mine in names.items()}
        if told["item"] is None:
            raise DataError(f"{path}, row {number}: an item without an id; bring the file again")
        item = str(told["item"])
        if item in taken and item not in found:
            found[item] = {
                name: html.unescape(str(value)).strip() or None if value else None for name, value in told.items()
            }
    return pl.DataFrame(list(found.values()), {name: pl.String for name in names.values()})


def _json(path: Path) -> Any:
    try:
        return json.loads("\n".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no JSON ({error.msg}); bring the file again") from None
