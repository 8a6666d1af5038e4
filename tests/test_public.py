"""Public logs: tiny files in each raw format, broken ones, and files that are brought over a real connection."""

import gzip
import hashlib
import http.server
import io
import json
import shutil
import threading
import zipfile
from typing import ClassVar

import polars as pl
import pytest
from typer.testing import CliRunner

from lorec import cli
from lorec.errors import ConfigError, DataError, UnknownName
from lorec.sources import PUBLIC, Amazon, Folder, Mind, MovieLens, Published, Steam, fetch, load, located
from lorec.sources import public as owners

REVIEWS = [
    {"reviewerID": "A", "asin": "007", "unixReviewTime": 1400000000, "overall": 5.0, "reviewText": 'a "quoted" text'},
    {"reviewerID": "B", "asin": "B1", "unixReviewTime": 1300000000, "style": {"Size:": "L"}},
]
META = [
    {"asin": "007", "title": "Soap &amp; Water", "brand": "Clean", "price": 3.5, "also_buy": ["x"]},
    {"asin": "B1", "title": "var aPageStart = (new Date()).getTime();", "brand": ""},
    {"asin": "NEVER", "title": "nobody took it"},
    {"asin": "007", "title": "a second time"},
]


def written(path, lines, as_gz):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ("\n".join(lines) + "\n").encode()
    if as_gz:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(data)


def as_rows(dataset):
    log = dataset.interactions.rows()
    return log, {item: title for item, title in dataset.items.select("item", "title").iter_rows()}


@pytest.mark.parametrize("as_gz", [False, True])
class TestFormats:
    @pytest.mark.parametrize("edition", ["2014", "2018"])
    def test_amazon(self, tmp_path, as_gz, edition):
        name = "reviews_Beauty_5.json" if edition == "2014" else "Beauty_5.json"
        written(tmp_path / name, map(json.dumps, REVIEWS), as_gz)
        written(tmp_path / "meta_Beauty.json", map(repr if edition == "2014" else json.dumps, META), as_gz)
        made = Amazon(root=str(tmp_path), category="Beauty", edition=edition).load()
        assert as_rows(made) == (
            [("A", "007", 1400000000), ("B", "B1", 1300000000)], {"007": "Soap & Water", "B1": None},
        )  # fmt: skip
        assert made.items["brand"].to_list() == ["Clean", None]
        assert "research" in made.record["licence"]
        assert made.record["citation"] == Amazon.citation[edition]

    def test_amazon_of_2023(self, tmp_path, as_gz):
        lines = ["user_id,parent_asin,rating,timestamp", "A,007,5.0,1600000000123", "B,B1,1.0,1600000000124"]
        written(tmp_path / "All_Beauty.csv", lines, as_gz)
        meta = [{"parent_asin": "B1", "title": "Brush", "store": None}, {"parent_asin": "007", "title": ""}]
        written(tmp_path / "meta_All_Beauty.jsonl", map(json.dumps, meta), as_gz)
        made = load("amazon", tmp_path, category="All_Beauty", edition="2023")
        assert as_rows(made) == (
            [("A", "007", 1600000000123), ("B", "B1", 1600000000124)], {"B1": "Brush", "007": None},
        )  # fmt: skip

    def test_movielens_of_1m_in_latin_letters(self, tmp_path, as_gz):
        written(tmp_path / "ml-1m/ratings.dat", ["1::1193::5::978300760", "2::661::3::978302109"], as_gz)
        films = "661::Misérables, Les (1995)::Drama|Musical\n1193::Nest (1975)::Drama\n".encode("latin-1")
        (tmp_path / "ml-1m/movies.dat").write_bytes(films)
        made = MovieLens(root=str(tmp_path)).load()
        assert as_rows(made) == (
            [("1", "1193", 978300760), ("2", "661", 978302109)],
            {"661": "Misérables, Les (1995)", "1193": "Nest (1975)"},
        )

    def test_movielens_of_100k_and_the_latest(self, tmp_path, as_gz):
        written(tmp_path / "u.data", ["196\t242\t3\t881250949"], as_gz)
        written(tmp_path / "u.item", ["242|Kolya (1996)|24-Jan-1997||http://x|0|1"], as_gz)
        assert as_rows(MovieLens(root=str(tmp_path), edition="100k").load()) == (
            [("196", "242", 881250949)], {"242": "Kolya (1996)"},
        )  # fmt: skip
        written(tmp_path / "ratings.csv", ["userId,movieId,rating,timestamp", "1,10,4.5,964982703"], as_gz)
        written(tmp_path / "movies.csv", ["movieId,title,genres", '10,"Name, The (1994)",Drama'], as_gz)
        assert as_rows(MovieLens(root=str(tmp_path), edition="latest-small").load()) == (
            [("1", "10", 964982703)], {"10": "Name, The (1994)"},
        )  # fmt: skip

    def test_mind(self, tmp_path, as_gz):
        """What was clicked before, then the clicks by the time of their impressions, an afternoon after a morning."""
        lines = [
            "1\tU1\t11/15/2019 1:05:22 PM\tN1 N2\tN4-0 N5-1",
            "2\tU1\t11/15/2019 10:05:22 AM\tN1 N2\tN3-1 N4-0",
            "3\tU2\t11/15/2019 9:00:00 AM\t\tN1-0",
        ]
        written(tmp_path / "behaviors.tsv", lines, as_gz)
        news = [f'N{n}\tnews\tworld\tTitle {n} "said"\tabstract\turl\t[]\t[]' for n in range(1, 7)]
        written(tmp_path / "news.tsv", news, as_gz)
        log, titles = as_rows(Mind(root=str(tmp_path)).load())
        assert log == [("U1", item, place) for place, item in enumerate(["N1", "N2", "N3", "N5"])]
        assert titles == {f"N{n}": f'Title {n} "said"' for n in (1, 2, 3, 5)}

    def test_steam(self, tmp_path, as_gz):
        review = {"username": "Ann", "product_id": "70", "date": "2017-12-17", "text": 'it\'s "good"'}
        written(tmp_path / "steam_reviews.json", [repr(review)], as_gz)
        written(tmp_path / "steam_games.json", ["{u'id': u'70', u'app_name': u'Half-Life', u'price': 9.99}"], as_gz)
        assert as_rows(Steam(root=str(tmp_path)).load()) == ([("Ann", "70", 1513468800)], {"70": "Half-Life"})

    def test_lorec_s_own(self, tmp_path, as_gz):
        written(tmp_path / "user_dict.json", [json.dumps({"0": [5, 7], "1": [7]})], as_gz)
        written(tmp_path / "item_dict.json", [json.dumps({"5": "five", "7": "seven"})], as_gz)
        assert as_rows(Published(root=str(tmp_path)).load()) == (
            [("0", "5", 0), ("0", "7", 1), ("1", "7", 0)], {"5": "five", "7": "seven"},
        )  # fmt: skip


class TestBroken:
    @pytest.fixture
    def amazon(self, tmp_path):
        written(tmp_path / "Beauty_5.json", map(json.dumps, REVIEWS), False)
        written(tmp_path / "meta_Beauty.json", map(json.dumps, META), False)
        return tmp_path

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("{", "line 3: no table as JSON"),
            ("[1]", "line 3: no table as JSON"),
            ("[" * 100_000, "line 3: no table as JSON"),
            ('{"asin": "x", "unixReviewTime": 1}', "line 3: there is no 'reviewerID'"),
            ('{"reviewerID": "", "asin": "x", "unixReviewTime": 1}', "line 3: there is no 'reviewerID'"),
            ('{"reviewerID": ["a"], "asin": "x", "unixReviewTime": 1}', "line 3: .* is no id"),
            ('{"reviewerID": true, "asin": "x", "unixReviewTime": 1}', "line 3: 'True' is no id"),
            ('{"reviewerID": "a", "asin": "x", "unixReviewTime": Infinity}', "line 3: 'inf' is no time"),
            ('{"reviewerID": "a", "asin": "x", "unixReviewTime": 1' + "0" * 40 + "}", "line 3: '1000.* is no time"),
            ('\n\n{"asin": "x"}', "line 5: there is no 'reviewerID'"),
            ('{"reviewerID": "a", "asin": "x", "unixReviewTime": "soon"}', "line 3: 'soon' is no time"),
        ],
    )
    def test_a_line_is_named(self, amazon, line, said):
        with (amazon / "Beauty_5.json").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(DataError, match=said):
            Amazon(root=str(amazon), category="Beauty").load()

    def test_nothing_in_a_literal_is_run(self, tmp_path):
        written(
            tmp_path / "steam_reviews.json", [f"__import__('pathlib').Path({str(tmp_path / 'x')!r}).touch()"], False
        )
        written(tmp_path / "steam_games.json", ["{}"], False)
        with pytest.raises(DataError, match="line 1: no table as a Python literal"):
            Steam(root=str(tmp_path)).load()
        assert not (tmp_path / "x").exists()

    def test_a_file_that_was_cut_off(self, amazon):
        packed = gzip.compress((amazon / "Beauty_5.json").read_bytes())
        (amazon / "Beauty_5.json").unlink()
        (amazon / "Beauty_5.json.gz").write_bytes(packed[:-10])
        with pytest.raises(DataError, match=r"Beauty_5\.json\.gz, after line \d+: can't be read"):
            Amazon(root=str(amazon), category="Beauty").load()

    def test_a_missing_file_says_where_it_comes_from(self, amazon):
        (amazon / "meta_Beauty.json").unlink()
        with pytest.raises(
            DataError,
            match=r"no Beauty_5\.json\.gz and meta_Beauty\.json\.gz in .*lorec data fetch brings them from https://",
        ):
            Amazon(root=str(amazon), category="Beauty").load()

    def test_other_tables(self, tmp_path):
        written(tmp_path / "ratings.csv", ["user,movie", "1,2"], False)
        written(tmp_path / "movies.csv", ["movieId,title,genres"], False)
        with pytest.raises(DataError, match="has no column 'userId'"):
            MovieLens(root=str(tmp_path), edition="latest").load()
        written(tmp_path / "ratings.dat", ["1::2::3"], False)
        written(tmp_path / "movies.dat", ["1::a::b"], False)
        with pytest.raises(DataError, match="line 1: 3 fields where 4 were wanted"):
            MovieLens(root=str(tmp_path)).load()
        written(tmp_path / "behaviors.tsv", ["1\tU\tyesterday\tN1\tN2-1"], False)
        written(tmp_path / "news.tsv", ["N1\ta\tb\tc"], False)
        with pytest.raises(DataError, match="line 1: 'yesterday' is no time"):
            Mind(root=str(tmp_path)).load()

    @pytest.mark.parametrize("content", ["[]", '{"1": 2}', '{"1": "a"}', "{", ""])
    def test_what_is_no_table_of_the_authors(self, tmp_path, content):
        written(tmp_path / "item_dict.json", ["{}"], False)
        (tmp_path / "user_dict.json").write_text(content)
        with pytest.raises(DataError, match="user_dict"):
            Published(root=str(tmp_path)).load()

    def test_a_log_of_nothing(self, tmp_path):
        written(tmp_path / "item_dict.json", ["{}"], False)
        written(tmp_path / "user_dict.json", ["{}"], False)
        with pytest.raises(DataError, match="no interactions"):
            Published(root=str(tmp_path)).load()

    def test_editions_are_not_taken_for_one_another(self, tmp_path):
        for name, item in (("ml-latest", 1), ("ml-latest-small", 2), ("mine", 3)):
            written(tmp_path / name / "ratings.csv", ["userId,movieId,rating,timestamp", f"7,{item},1,5"], False)
            written(tmp_path / name / "movies.csv", ["movieId,title,genres", f"{item},Film,"], False)
        taken = [
            MovieLens(root=str(tmp_path), edition=one).load().interactions["item"].item()
            for one in ("latest", "latest-small")
        ]
        assert taken == ["1", "2"]
        assert MovieLens(root=str(tmp_path / "mine"), edition="latest").load().interactions["item"].item() == "3"
        shutil.rmtree(tmp_path / "ml-latest")
        with pytest.raises(DataError, match="may both be meant"):
            MovieLens(root=str(tmp_path), edition="latest").load()

    def test_what_catalogues_hold_besides_titles(self, tmp_path):
        """A byte order mark, rows without ids, half letters, titles that are none, a better one later."""
        rows = [
            {"title": "nobody's"}, {"asin": "007", "title": None}, {"asin": "B1", "title": ["a", "list"]},
            {"asin": "007", "title": "half \ud83d"},
        ]  # fmt: skip
        written(tmp_path / "Beauty_5.json", ["\ufeff" + json.dumps(REVIEWS[0]), json.dumps(REVIEWS[1])], False)
        written(tmp_path / "meta_Beauty.json", map(json.dumps, rows), False)
        assert as_rows(Amazon(root=str(tmp_path), category="Beauty").load())[1] == {"007": "half ?", "B1": None}

    @pytest.mark.parametrize("category", ["/etc", "*", "../x", "", "All Beauty"])
    def test_a_category_is_a_word(self, tmp_path, category):
        with pytest.raises(ConfigError, match="category is"):
            Amazon(root=str(tmp_path), category=category)

    def test_options(self, tmp_path):
        with pytest.raises(ConfigError, match="edition is '2020'"):
            load("amazon", tmp_path, category="Beauty", edition="2020")
        with pytest.raises(ConfigError, match="lacks category"):
            load("amazon", tmp_path)
        with pytest.raises(UnknownName, match="clas"):
            load("amazon", tmp_path, clas="Beauty")


def test_a_prepared_folder_comes_before_raw_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LOREC_DATA", str(tmp_path))
    assert located("steam", {"root": "raw"}) == {"name": "steam", "root": "raw"}
    (tmp_path / "steam").mkdir()
    pl.DataFrame({"user_id": ["a"], "item_id": ["b"]}).write_parquet(tmp_path / "steam/interactions.parquet")
    pl.DataFrame({"item_id": ["b"], "title": ["t"]}).write_parquet(tmp_path / "steam/items.parquet")
    assert located("steam", {}) == {"name": "folder", "path": "steam"}
    assert load("steam").interactions.rows() == [("a", "b")] == Folder(path="steam").load().interactions.rows()
    assert located("amazon", {"root": str(tmp_path), "category": "x"})["name"] == "amazon"


class Served(http.server.BaseHTTPRequestHandler):
    """Files by their names, also from a byte on; `cut` of them break off once."""

    files: ClassVar[dict[str, bytes]] = {}
    cut: ClassVar[dict[str, int]] = {}
    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self):
        name, begin = self.path.rpartition("/")[2], self.headers.get("Range")
        self.asked.append((name, begin))
        if name not in self.files:
            self.send_error(404)
            return
        data, start = self.files[name], int(begin.removeprefix("bytes=").removesuffix("-")) if begin else 0
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : self.cut.pop(name, len(data))])

    def log_message(self, *_):
        pass


@pytest.fixture
def served(monkeypatch):
    """A server in the place of the owners'."""
    Served.files, Served.cut, Served.asked = {}, {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(owners, "AMAZON", address)
    monkeypatch.setattr(owners, "GROUPLENS", address)
    yield Served
    server.shutdown()
    server.server_close()


class TestFetch:
    def packed(self, rows):
        return gzip.compress("\n".join(map(json.dumps, rows)).encode())

    def test_brings_what_is_missing_and_reads_it(self, served, tmp_path):
        served.files = {"Beauty_5.json.gz": self.packed(REVIEWS), "meta_Beauty.json.gz": self.packed(META)}
        amazon, seen = Amazon(root=str(tmp_path / "raw"), category="Beauty"), []
        came = fetch(amazon, lambda *told: seen.append(told))
        assert [path.name for path in came] == list(served.files)
        assert len(amazon.load().interactions) == 2
        assert seen[-1] == (
            "meta_Beauty.json.gz",
            len(served.files["meta_Beauty.json.gz"]),
            len(served.files["meta_Beauty.json.gz"]),
        )
        served.asked.clear()
        assert fetch(amazon) == []
        assert served.asked == []

    def test_goes_on_where_it_broke_off(self, served, tmp_path):
        whole = self.packed(REVIEWS * 50)
        served.files = {"Beauty_5.json.gz": whole, "meta_Beauty.json.gz": self.packed(META)}
        served.cut = {"Beauty_5.json.gz": 100}
        amazon = Amazon(root=str(tmp_path), category="Beauty")
        with pytest.raises(DataError, match="try again"):
            fetch(amazon)
        place = tmp_path / "amazon-2018"
        assert not (place / "Beauty_5.json.gz").exists()
        fetch(amazon)
        assert ("Beauty_5.json.gz", "bytes=100-") in served.asked
        assert (place / "Beauty_5.json.gz").read_bytes() == whole
        assert not list(tmp_path.rglob("*.part"))

    @pytest.mark.parametrize("place", [-6, 10, 25])
    def test_throws_damaged_files_away_and_brings_them_anew(self, served, tmp_path, place):
        whole = self.packed(REVIEWS * 9)
        damaged = bytearray(whole)
        damaged[place] ^= 255
        served.files = {"Beauty_5.json.gz": bytes(damaged), "meta_Beauty.json.gz": self.packed(META)}
        amazon = Amazon(root=str(tmp_path), category="Beauty")
        with pytest.raises(DataError, match="came damaged"):
            fetch(amazon)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        (tmp_path / "Beauty_5.json.gz").write_bytes(damaged)
        (tmp_path / "meta_Beauty.json.gz").write_bytes(served.files["meta_Beauty.json.gz"])
        with pytest.raises(DataError, match=r"bring (it|the file) again"):
            amazon.load()
        (tmp_path / "Beauty_5.json.gz").unlink()
        served.files["Beauty_5.json.gz"] = whole
        fetch(amazon)
        assert amazon.load().interactions.height == 18

    def test_nothing_is_no_file(self, served, tmp_path):
        served.files = {"Beauty_5.json.gz": b""}
        with pytest.raises(DataError, match=r"Beauty_5\.json\.gz"):
            fetch(Amazon(root=str(tmp_path), category="Beauty"))
        assert not (tmp_path / "amazon-2018/Beauty_5.json.gz").exists()
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="can't be made"):
            fetch(Amazon(root=str(tmp_path / "file"), category="Beauty"))

    def test_unpacks_archives_whose_sum_is_right_and_nothing_beside_the_folder(self, served, tmp_path):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("ml-1m/ratings.dat", "1::2::3::4\n")
            archive.writestr("../../movies.dat", "2::Film (1999)::Drama\n")
            archive.writestr("ml-1m/evil.sh", "echo")
        served.files = {"ml-1m.zip": file.getvalue(), "ml-1m.zip.md5": b"MD5 (ml-1m.zip) = " + b"0" * 32}
        films = MovieLens(root=str(tmp_path / "a/b"))
        with pytest.raises(DataError, match="isn't what its owner says"):
            fetch(films)
        sum_of = hashlib.md5(file.getvalue(), usedforsecurity=False).hexdigest()
        served.files["ml-1m.zip.md5"] = f"MD5 (ml-1m.zip) = {sum_of}".encode()
        fetch(films)
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
            "ml-1m.zip",
            "movies.dat",
            "ratings.dat",
        ]
        assert as_rows(films.load()) == ([("1", "2", 4)], {"2": "Film (1999)"})

    def test_what_is_not_there_or_not_to_be_had(self, served, tmp_path):
        with pytest.raises(DataError, match="answers 404"):
            fetch(Amazon(root=str(tmp_path), category="Nothing"))
        with pytest.raises(DataError, match="to be accepted at https://msnews"):
            fetch(Mind(root=str(tmp_path)))


class TestCommandLine:
    def test_fetch_stats_and_check(self, served, tmp_path):
        pack = TestFetch().packed
        some = [one | {"asin": f"B{n}"} for one in REVIEWS for n in range(4)]
        served.files = {"Beauty_5.json.gz": pack(some), "meta_Beauty.json.gz": pack(META)}
        options = ["--source", f"root={tmp_path}", "--source", "category=Beauty"]
        said = CliRunner().invoke(cli.app, ["data", "fetch", "amazon", *options])
        assert said.exit_code == 0
        assert "for research" in said.stderr
        assert "EMNLP 2019" in said.stderr
        assert str(tmp_path / "amazon-2018/Beauty_5.json.gz") in said.stdout
        said = CliRunner().invoke(cli.app, ["data", "stats", "amazon", *options])
        assert "licence" in said.stdout
        assert CliRunner().invoke(cli.app, ["data", "check", "amazon", *options]).exit_code == 0

    def test_what_is_no_public_log(self):
        said = CliRunner().invoke(cli.app, ["data", "fetch", "file"])
        assert isinstance(said.exception, ConfigError)

    @pytest.mark.parametrize("kind", PUBLIC)
    def test_every_public_log_says_its_licence_and_whom_to_cite(self, kind):
        assert kind.licence
        assert kind.citation
