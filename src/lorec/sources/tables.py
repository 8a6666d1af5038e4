"""Tables: files (CSV, TSV, Parquet, JSON lines, also as .gz or .zst, streamed by polars) and frames in memory."""

import csv
import gzip
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import polars as pl

from lorec.data import Dataset
from lorec.errors import DataError, first_line
from lorec.registry import unknown

# What people call them, first the names that we write ourselves. Compared in lower case.
GUESSES = {
    "user": ("user", "user_id", "userid", "customer", "customer_id", "household_id", "reviewerid", "uid", "account"),
    "item": ("item", "item_id", "itemid", "product", "product_id", "asin", "parent_asin", "news_id", "sku", "iid"),
    "time": ("time", "timestamp", "unixreviewtime", "date", "datetime", "created_at", "event_time", "ts"),
    "title": ("title", "name", "text", "description", "product_name"),
}


NO_TITLES = pl.DataFrame(schema={"item": pl.String, "title": pl.String})
"""The catalogue of a log that comes without one."""


class Frame(Protocol):
    """A table in memory that speaks Arrow: of polars, pandas, pyarrow, DuckDB."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Table = str | Path | Frame | pl.LazyFrame
"""A file's path, or a frame."""


@dataclass(frozen=True, kw_only=True)
class File:
    """A log of one's own: CSV, TSV, Parquet or JSON lines, plain or as .gz or .zst."""

    path: str
    """The interactions, one a row."""
    items: str | None = None
    """The catalogue, one item a row, with a title; without it items have no text."""
    columns: dict[str, str] = field(default_factory=dict)
    """Which column is what: user, item, time, title, and catalogue_item where the catalogue calls the item otherwise;
    guessed from common names if omitted."""

    def load(self) -> Dataset:
        """Read both files."""
        return read(self.path, items=self.items, columns=self.columns)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder with interactions.parquet and items.parquet, found under `root` or the variable LOREC_DATA."""

    path: str
    """The folder, or its name under the root; - and _ are the same."""
    root: str | None = None
    """Where folders of logs lie; else what LOREC_DATA says, else the current folder."""

    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self._found() is not None

    def load(self) -> Dataset:
        """Read the folder's two files."""
        place = self._found()
        if place is None:
            raise DataError(
                f"no folder {self.path!r} with interactions.parquet in {self.place()}; set LOREC_DATA or root= to the "
                "folder that holds it"
            )
        return read(place / "interactions.parquet", items=place / "items.parquet", name=place.name.replace("_", "-"))

    def place(self) -> Path:
        """Where it is looked for."""
        return Path(self.root or os.environ.get("LOREC_DATA") or ".")

    def _found(self) -> Path | None:
        names = (self.path, self.path.replace("-", "_"), self.path.replace("_", "-"))
        return next(
            (self.place() / one for one in names if (self.place() / one / "interactions.parquet").is_file()), None
        )


def read(
    log: Table,
    *,
    items: Table | None = None,
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Dataset:
    """Read a log and, where there is one, its catalogue: each a file, or a frame of polars, pandas or pyarrow.

    `columns` maps user, item, time and title to the tables' own names (and catalogue_item, where the catalogue calls
    the item otherwise than the log); what it leaves out is guessed from common ones.
    Time may be a number (any one unit), a date, or text in ISO form. Without time the order of the rows is the order.
    Raises DataError, with file and row, for a missing file or column, null ids and unreadable times.
    """
    mapping = _mapping(columns)
    if items is None and (idle := [role for role in ("title", "catalogue_item") if role in mapping]):
        raise DataError(
            f"column {idle[0]} = {mapping[idle[0]]} is of a catalogue, and none is given; name its file as items, too"
        )
    interactions, chosen, place = _log(log, mapping)
    catalogue, titles, theirs = (NO_TITLES, {}, None) if items is None else _catalogue(items, mapping)
    record = {"source": place.name, "items": theirs and theirs.name, "columns": chosen | titles}
    return Dataset(name or place.name.split(".")[0], interactions, catalogue, record)


def _mapping(columns: Mapping[str, str] | None) -> dict[str, str]:
    for role in columns or {}:
        if role not in (roles := (*GUESSES, "catalogue_item")):
            raise unknown("column role", role, roles)
    return dict(columns or {})


def _opened(table: Table, name: str) -> tuple[Path, pl.LazyFrame]:
    """Any table, lazily, and what messages call it: the file's path, or else the name."""
    if isinstance(table, str | Path):
        return Path(table), _scan(Path(table))
    if isinstance(table, pl.LazyFrame):
        return Path(name), table
    if not hasattr(table, "__arrow_c_stream__"):
        raise DataError(
            f"the {name} is a {type(table).__name__}; give a file's path, or a frame of polars, pandas or pyarrow"
        )
    try:
        return Path(name), pl.DataFrame(table).lazy()
    except Exception as error:  # whatever a library other than ours says of its own frame
        raise DataError(f"the {name} can't be read: {first_line(error)}; give columns of one type each") from None


def _scan(path: Path) -> pl.LazyFrame:
    """Open any file lazily, its ids as text."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}; give a CSV, TSV, Parquet or JSON lines file")
    kind = path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty: not even a header; nothing to read")
    with path.open("rb") as file:
        if kind not in ("parquet", "pq") and file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path} is UTF-16; save the file as UTF-8, as iconv -f utf-16 -t utf-8 does")
    if kind in ("csv", "tsv", "txt"):
        separator = _separator(path) if kind == "csv" else "\t"
        # As text all through: ids like 007 must survive, and a bad number must be told with its row.
        # A tab-separated file has no quotes: a title like 12" ruler is just that.
        return pl.scan_csv(path, separator=separator, infer_schema=False, quote_char='"' if kind == "csv" else None)
    if kind in ("parquet", "pq"):
        return pl.scan_parquet(path)
    if kind in ("jsonl", "ndjson", "json"):
        return pl.scan_ndjson(path, infer_schema_length=1000)
    raise DataError(f"{path} ends in .{kind}; a log is .csv, .tsv, .parquet or .jsonl, also with .gz or .zst")


def _separator(path: Path) -> str:
    """What parts the columns of a .csv: a comma, or what its header has more of, as exports of other languages do."""
    if path.suffix.lower() == ".zst":
        return ","
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        try:
            header = file.readline(1_000_000)
        except (OSError, EOFError):  # whoever reads it whole says what is wrong
            return ","
    return max(",;\t|", key=lambda mark: header.count(mark.encode()))


def _collect(path: Path, frame: pl.LazyFrame) -> pl.DataFrame:
    try:
        return frame.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None


def _names(path: Path, frame: pl.LazyFrame) -> list[str]:
    try:
        return frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    said = str(error).strip() or type(error).__name__
    if "utf-8" in said.lower() and path.suffix in (".gz", ".zst"):
        return DataError(f"{path} is not UTF-8; save the file as UTF-8, as iconv -f latin1 -t utf-8 does")
    if "utf-8" in said.lower() and (odd := _no_utf8(path)):
        return DataError(f"{path}, line {odd}, is not UTF-8; save the file as UTF-8, as iconv -f latin1 -t utf-8 does")
    line = _odd_line(path)
    where = f"{path}, line {line}," if line else path
    return DataError(f"{where} can't be read: {first_line(error)}; check that it is what its name says")


def _no_utf8(path: Path) -> int | None:
    """The first line of a plain file that is in another encoding."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return None


def _odd_line(path: Path) -> int | None:
    """The first line of a plain text file that is unlike the others; the reader itself does not tell."""
    try:
        separator = _separator(path) if path.suffix == ".csv" else {".tsv": "\t", ".txt": "\t"}.get(path.suffix)
        with path.open(newline="", encoding="utf-8") as file:
            if separator:
                quoted = csv.reader(file, delimiter=separator)
                rows = (
                    quoted if path.suffix == ".csv" else csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE)
                )
                width = len(next(rows))
                return next((rows.line_num for row in rows if len(row) > width), None)
            if path.suffix in (".jsonl", ".ndjson", ".json"):
                return next((number for number, line in enumerate(file, start=1) if not _is_object(line)), None)
    except (OSError, UnicodeDecodeError, StopIteration, csv.Error):
        pass
    return None


def _is_object(line: str) -> bool:
    try:
        return not line.strip() or isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _column(path: Path, names: list[str], mapping: dict[str, str], role: str) -> str | None:
    if role in mapping:
        if mapping[role] not in names:
            found = unknown("column", mapping[role], names)
            raise DataError(f"{path}: {found}; name the column of each {role}")
        return mapping[role]
    lower = {one.strip().lower(): one for one in reversed(names)}
    return next((lower[guess] for guess in GUESSES[role] if guess in lower), None)


def _needed(path: Path, names: list[str], mapping: dict[str, str], role: str, option: str | None = None) -> str:
    found = _column(path, names, mapping, role)
    if found is None:
        raise DataError(
            f"{path} has no column that looks like the {role} (it has: {', '.join(names)}); say which one it is, "
            f"as in --column {option or role}=NAME, or columns = {{{option or role} = 'NAME'}}"
        )
    return found


def _log(table: Table, mapping: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], Path]:
    path, frame = _opened(table, "log")
    names = _names(path, frame)
    chosen = {role: _needed(path, names, mapping, role) for role in ("user", "item")}
    time = _column(path, names, mapping, "time")
    if time is not None:
        chosen["time"] = time
    for (one, mine), (other, theirs) in itertools.combinations(chosen.items(), 2):
        if mine == theirs:
            raise DataError(
                f"{path}: column {mine!r} is taken for the {one} and for the {other}; give each its own, as in "
                f"--column {one}=NAME"
            )
    log = _collect(path, frame.select(pl.col(theirs).alias(role) for role, theirs in chosen.items()))
    if log.is_empty():
        raise DataError(f"{path} has a header but no rows; nothing to read")
    for role in ("user", "item"):
        log = log.with_columns(_ids(path, log[role], chosen[role]))
    if time is not None:
        log = log.with_columns(_times(path, log["time"], time))
    return log, chosen, path


def _ids(path: Path, values: pl.Series, column: str) -> pl.Series:
    """Ids as text or whole numbers, none missing."""
    if values.dtype in (pl.Categorical, pl.Enum, pl.Date, pl.UInt64):
        values = values.cast(pl.String)
    if values.dtype.is_float():
        raise DataError(f"{path}: column {column!r} holds fractions; an id is text or a whole number")
    if values.dtype != pl.String and not values.dtype.is_integer():
        raise DataError(f"{path}: column {column!r} holds {values.dtype}; an id is text or a whole number")
    _refuse_nulls(path, values, column)
    return values


def _refuse_nulls(path: Path, values: pl.Series, column: str) -> None:
    blank = values.is_null()
    if values.dtype == pl.String:
        blank = blank | (values == "")
    if blank.any():
        row = blank.arg_max()
        assert row is not None
        raise DataError(
            f"{_where(path, row)}: {column!r} is empty ({blank.sum()} such rows); drop them or fill them in"
        )


def _times(path: Path, values: pl.Series, column: str) -> pl.Series:
    """Whole numbers that grow with time: as they are, or microseconds for dates."""
    _refuse_nulls(path, values, column)
    if values.dtype.is_integer():
        parsed = values.cast(pl.Int64, strict=False)
    elif values.dtype.is_float():
        parsed = _whole(values)
    elif values.dtype in (pl.Date, pl.Datetime):
        parsed = values.cast(pl.Datetime("us")).to_physical()
    elif values.dtype not in (pl.String, pl.Categorical, pl.Enum):
        raise DataError(f"{path}: column {column!r} holds {values.dtype}; a time is a whole number or an ISO date")
    else:
        text = values.cast(pl.String)
        parsed = text.cast(pl.Int64, strict=False)
        if parsed.is_null().any():
            parsed = _whole(text.cast(pl.Float64, strict=False))
        if parsed.is_null().all():  # a mixture of numbers and dates has no order
            parsed = _dates(text)
    parsed = parsed.set(~parsed.is_between(-LATEST, LATEST), None)
    bad = parsed.is_null()
    if bad.any():
        row = bad.arg_max()
        assert row is not None
        zoned = values.cast(pl.String).str.contains(ZONE)
        raise DataError(
            f"{_where(path, row)}: can't read {column!r} = {str(values[row])[:40]!r} as a time ({bad.sum()} such); "
            + (
                f"{int(zoned.sum()):,} of {len(zoned):,} rows name a time zone: give one to all of them, or to none"
                if zoned.any() and not zoned.all()
                else "give whole numbers or ISO dates like 2024-05-17T12:30:00"
            )
        )
    return parsed


ZONE = r"^\d{4}-\d{2}-\d{2}.*(Z|[+-]\d{2}:?\d{2})$"
"""An ISO date that names its time zone."""
LATEST = 2**61
"""No time lies further from 0: neither microseconds nor nanoseconds of any log do."""


def _whole(values: pl.Series) -> pl.Series:
    """Numbers as whole ones: seconds with fractions become milliseconds. Null where there is none."""
    fine = bool((values != values.floor()).any())
    return (values.cast(pl.Float64) * (1000 if fine else 1)).round(0).cast(pl.Int64, strict=False)


def _dates(text: pl.Series) -> pl.Series:
    """Microseconds, null where a text is no ISO date; polars raises where it can't make out a format at all."""
    text = text.set(~text.str.contains(r"^\d{4}-\d{2}-\d{2}"), None)
    try:
        return text.str.to_datetime(time_unit="us", time_zone="UTC", strict=False).to_physical()
    except pl.exceptions.PolarsError:
        return pl.Series(text.name, [None] * len(text), dtype=pl.Int64)


def _catalogue(table: Table, mapping: dict[str, str]) -> tuple[pl.DataFrame, dict[str, str], Path]:
    path, frame = _opened(table, "catalogue")
    names = _names(path, frame)
    theirs = mapping.get("catalogue_item") or (mapping["item"] if mapping.get("item") in names else None)
    item = _needed(path, names, {"item": theirs} if theirs else {}, "item", "catalogue_item")
    title = _column(path, names, mapping, "title")
    others = [name for name in names if name not in (item, title, "item", "title")]
    text = pl.lit(None, pl.String) if title is None else pl.col(title).cast(pl.String)
    items = _collect(path, frame.select(pl.col(item).alias("item"), text.alias("title"), *others))
    items = items.with_columns(_ids(path, items["item"], item))
    twice = items["item"].is_duplicated()
    if twice.any():
        row = twice.arg_max()
        assert row is not None
        raise DataError(
            f"{_where(path, row)}: item {str(items['item'][row])[:40]!r} stands there twice; keep one row an item (a "
            "log of interactions is no catalogue)"
        )
    return items, {} if title is None else {"title": title}, path


def _where(path: Path, row: int) -> str:
    """The row as an editor counts it, where the file has lines."""
    kinds = {suffix.lower() for suffix in path.suffixes}
    if kinds & {".csv", ".tsv", ".txt"}:
        return f"{path}, line {row + 2}"
    return f"{path}, line {row + 1}" if kinds & {".jsonl", ".ndjson", ".json"} else f"{path}, row {row + 1}"
