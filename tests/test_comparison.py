"""Statistics against scipy and by hand; tables that no stranger's text can break."""

import csv
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lorec.comparison import SHOWN, bootstrap, exposed, holm, interval, laid_out, paired, summary, write_table
from lorec.errors import ConfigError
from lorec.evaluation import exposure


def test_interval_is_students():
    values = np.random.default_rng(0).normal(3, 2, 7)
    mean, low, high = interval(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((values.mean(), wanted.low, wanted.high))
    assert np.isnan(interval([1.0])[1:]).all()


def test_paired_is_the_paired_t_test():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=6), rng.normal(size=6)
    assert paired(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert paired(one, one) == 1.0
    assert paired(one, one + 1) == 0.0
    with pytest.raises(ConfigError, match="two seeds"):
        paired([1.0], [2.0])


def test_holm_by_hand():
    # sorted .005 .01 .03 .04 times 4 3 2 1, then never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_raises_p_and_keeps_their_order(p):
    adjusted = holm(p)
    assert all(one <= value <= min(1.0, len(p) * max(p)) + 1e-12 for one, value in zip(p, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1.0, len(p) * min(p)))  # the least is Bonferroni's
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_bootstrap_against_scipy():
    rng = np.random.default_rng(2)
    users = rng.random((400, 2)) < [0.30, 0.22]
    found = bootstrap(users.astype(float), lambda of: of[:, 0] - of[:, 1])
    apart = users[:, 0].astype(float) - users[:, 1]
    wanted = stats.bootstrap((apart,), np.mean, n_resamples=5000, method="percentile", rng=rng).confidence_interval
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.006)
    assert found.p == pytest.approx(stats.ttest_1samp(apart, 0).pvalue, abs=0.01)
    none = bootstrap(np.ones((50, 2)), lambda of: of[:, 0] - of[:, 1])
    assert (none.low, none.high, none.p) == (0, 0, 1)


def test_bootstrap_keeps_a_users_figures_together():
    """Two arms that hit the same users differ by nothing, whoever is drawn."""
    hits = np.repeat((np.random.default_rng(3).random((200, 1)) < 0.4).astype(float), 2, axis=1)
    found = bootstrap(hits, lambda of: of[:, 0] - of[:, 1])
    assert found.low == pytest.approx(0, abs=1e-12)
    assert found.high == pytest.approx(0, abs=1e-12)


def test_exposed_has_the_metric_as_its_mean():
    rng = np.random.default_rng(4)
    ranks, absent = rng.integers(1, 200, (90, 3)), rng.random((90, 3)) < 0.8
    told = [
        [int(rank) if here else None for rank, here in zip(*row, strict=True)]
        for row in zip(ranks, absent, strict=True)
    ]
    users = pl.DataFrame({"target ranks": told}, schema={"target ranks": pl.Array(pl.Int32, 3)})
    assert exposed(users).mean() == pytest.approx(exposure(ranks, absent, (50,))["T-HR@50"])


def cells(removed: dict[str, list[float | None]], **more) -> pl.DataFrame:
    rows = [
        {"attack": "random", "seed": seed, "run": f"r{seed}", "arm": arm, "error": None, "judged kind is known": False,
         "success removed": value, "HR@10": 0.1 + seed / 100} | more
        for arm, values in removed.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None)


def never(run: str, one: str, other: str) -> float:
    raise AssertionError("several seeds are tested over seeds")


def test_the_best_is_marked_and_who_can_not_be_told_from_it():
    table = summary(
        cells({
            "poisoned": [0.0, 0.0, 0.0], "oracle": [1.0, 1.0, 1.0], "good": [0.93, 0.90, 0.97],
            "close": [0.92, 0.91, 0.94], "bad": [0.11, 0.10, 0.14],
        }),
        ["attack"],
        never,
    )  # fmt: skip
    marks = {row["arm"]: (row["best"], row["tied"]) for row in table.iter_rows(named=True)}
    assert marks == {
        "poisoned": (False, False), "oracle": (False, False), "good": (True, False), "close": (False, True),
        "bad": (False, False),
    }  # fmt: skip
    good = table.row(by_predicate=pl.col("arm") == "good", named=True)
    assert (good["success removed"], good["success removed low"]) == pytest.approx(interval([0.93, 0.90, 0.97])[:2])


def test_one_seed_is_tested_over_users():
    asked = []

    def apart(run: str, one: str, other: str) -> float:
        asked.append((run, one, other))
        return 0.3 if other == "close" else 0.001

    table = summary(
        cells({"good": [0.9], "close": [0.8], "bad": [0.7]}, **{"HR@10 low": 0.05, "HR@10 high": 0.2}),
        ["attack"],
        apart,
    )
    assert asked == [("r0", "good", "close"), ("r0", "good", "bad")]
    assert dict(table.select("arm", "tied").iter_rows()) == {"good": False, "close": True, "bad": False}
    assert table["HR@10 low"].to_list() == [0.05] * 3


def test_only_those_with_every_run_compete():
    table = summary(
        cells({"lucky": [0.95, None, None], "good": [0.96, 0.70, 0.72], "bad": [0.5, 0.2, 0.3]}), ["attack"], never
    )
    marks = {row["arm"]: (row["best"], row["tested"]) for row in table.iter_rows(named=True)}
    assert marks == {"lucky": (False, None), "good": (True, "seeds"), "bad": (False, "seeds")}
    text = laid_out(table, ["attack"])[1]
    assert text[0][3] == "0.950?"  # one run of three says nothing


def test_bounds_come_from_the_run_that_has_the_figure():
    frame = cells({"good": [None, 0.9, None]}).with_columns(
        pl.Series("success removed low", [None, 0.8, None]), pl.Series("success removed high", [None, 0.95, None])
    )
    table = summary(frame, ["attack"], never)
    told = table.select("success removed", "success removed low", "success removed high", "success removed runs")
    assert told.row(0) == (0.9, 0.8, 0.95, 1)


def test_where_the_attack_did_nothing_nobody_is_best():
    table = summary(cells({"good": [None, None], "bad": [None, None]}), ["attack"], never)
    assert not table["best"].any()
    assert table["success removed"].null_count() == 2


def test_failed_arms_are_told():
    frame = cells({"good": [0.9, 0.8]}).with_columns(error=pl.Series([None, "out of luck"]))
    table = summary(frame, ["attack"], never)
    assert table["seeds"].to_list() == [1]
    assert table["error"].to_list() == ["seed 1: out of luck"]
    assert laid_out(table, ["attack"])[0][-1] == "failed"


NASTY = [
    "=cmd()",
    "+1",
    "-2",
    "@x",
    "a|b",
    "a_b$",
    "<script>",
    "100 %",
    "back\\slash",
    "two\nlines",
    "{brace}~^&#",
    "[x](y)",
]


@pytest.fixture(scope="module")
def nasty() -> pl.DataFrame:
    rows = [
        {"attack": text, "arm": text, "seeds": 2, "judged kind is known": text == "+1", "error": text, "best": True,
         "tied": False, "tested": "seeds"}
        | {f"{name}{bound}": 0.5 for name in SHOWN for bound in ("", " low", " high")}
        | {f"{name} runs": 2 for name in SHOWN}
        for text in NASTY
    ]  # fmt: skip
    return pl.DataFrame(rows)


def test_spreadsheets_get_text_not_formulas(nasty, tmp_path):
    write_table(nasty, tmp_path / "t.csv", ["attack"])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["attack"].removeprefix("'") for row in rows] == NASTY
    assert not any(re.match(r"[=+\-@]", row[name]) for row in rows for name in ("attack", "arm", "error"))
    assert all(float(row["HR@10"]) == 0.5 for row in rows)


def test_markdown_cells_stay_cells(nasty, tmp_path):
    write_table(nasty, tmp_path / "t.md", ["attack"], ["a note of <b>"])
    text = (tmp_path / "t.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(NASTY)
    assert len({len(re.findall(r"(?<!\\)\|", line.replace(r"\\", ""))) for line in lines}) == 1
    assert "<script" not in text.replace(r"\<", "")
    assert "(known)" in text
    assert r"a note of \<b\>" in text


def test_latex_has_no_free_specials(nasty, tmp_path):
    write_table(nasty, tmp_path / "t.tex", ["attack"])
    lines = (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(NASTY)
    for line in body:
        bare = re.sub(r"\$(\\pm|=)\$|\\[a-zA-Z]+|\\[&%$#_{}]|\\\\$", "", line)
        assert not re.search(r"[%$#_~^\\<>]", bare), line
        assert bare.count("&") == lines[lines.index(r"\toprule") + 1].replace(r"\&", "").count("&")
    assert lines[-1].startswith("%") or r"\end{tabular}" in lines


def test_parquet_keeps_everything(nasty, tmp_path):
    write_table(nasty, tmp_path / "t.parquet", ["attack"])
    assert pl.read_parquet(tmp_path / "t.parquet").equals(nasty)
    with pytest.raises(ConfigError, match="xlsx"):
        write_table(nasty, tmp_path / "t.xlsx", ["attack"])
