"""The pages: what they show runs, in a reader's own folder; they are built without a warning; links lead somewhere."""

import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import world

import lorec
from lorec.attacks import Random, forge
from lorec.cli import main
from lorec.data import leave_two_out
from lorec.evaluation import evaluate
from lorec.evidence import shapes
from lorec.experiment import run
from lorec.files import read_json
from lorec.grids import Cell, Grid, grid, read_grid_file
from lorec.models import Recommender
from lorec.runfile import plain, resolve
from lorec.text import TextVectors
from lorec.training import Training, fit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
"""Not those of `measured/`, whose commands take hours and need real data."""
NOT_OURS = ("make", "pip", "tensorboard", "mlflow")
"""What a page's commands may begin with besides lorec; such lines set up or look, and are not run here."""
ELSEWHERE = ("lorec data fetch amazon", "lorec data stats amazon", "lorec data compile amazon", "recipes/demo.toml")
"""Needs what is not at hand in a test: an owner's server, raw files, minutes."""
QUICK = {
    "run": ["--set", "training.epochs=1", "--set", "encoder=hash"],
    "grid": ["--set", "training.epochs=1", "--set", "encoder=hash", "--dry-run"],
    "scan": ["--encoder", "hash", "--trials", "2"],
    "detect": ["--set", "encoder=hash"],
    "attack": ["--set", "encoder=hash"],
    "encode": ["--set", "encoder=hash"],
}
"""What makes a verb quick."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M)
    assert all(language in ("sh", "toml", "python", "text") for language, _ in found), page
    return found


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A reader's folder: a log, a catalogue, nothing else."""
    tiny = world(users=150)
    tiny.interactions.rename({"user": "customer"}).with_columns(
        item=pl.col("item").str.replace("i0*", "sku").str.replace("^sku$", "sku0")
    ).write_csv(tmp_path / "purchases.csv")
    tiny.items.with_columns(
        item=pl.col("item").str.replace("i0*", "sku").str.replace("^sku$", "sku0"), brand=pl.lit("Acme")
    ).write_csv(tmp_path / "catalogue.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOREC_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


@pytest.mark.parametrize("page", [one for one in PAGES if blocks(one)], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the trackers' libraries
def test_every_block_of_a_page_runs(page, shop, monkeypatch, capsys):
    """In order, as a reader would: files are saved, commands typed, Python run; a piece of a run file fits in one."""
    for language, text in blocks(page):
        if language == "toml":
            named = re.match(r"# (\S+\.toml)\n", text)
            if named:
                (shop / named[1]).write_text(quick_run_file(text), encoding="utf-8")
            elif "entry-points" not in text:
                resolve(tomllib.loads(text))
            else:
                assert tomllib.loads(text)
        elif language == "python":
            quick = re.sub(r"epochs=\d+", "epochs=1", text).replace("lorec.scan(shop, ", "lorec.scan(shop, trials=2, ")
            exec(compile(quick, f"{page.name}, a block", "exec"), {"__name__": "block"})
        elif language == "sh":
            for line in text.splitlines():
                words = words_of(line)
                if not words or words[0] in NOT_OURS or any(one in line for one in ELSEWHERE):
                    continue
                assert words[0] == "lorec", line
                needs_run_file(shop)
                monkeypatch.setattr("sys.argv", [*words, *QUICK.get(words[1], [])])
                with pytest.raises(SystemExit) as end:
                    main()
                assert end.value.code == 0, (line, capsys.readouterr().err[-2000:])


@pytest.mark.parametrize("first", ["lorec.attacks", "lorec.data", "lorec.errors", "lorec.models"])
def test_names_within_modules_are_there_for_whoever_imports_lorec_alone(first):
    """In an interpreter of their own: in ours every module has been loaded."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "python.md")
    named = sorted(set(re.findall(rf"{first}\.[A-Za-z_]+", text)))
    assert named
    code = f"import lorec; {'; '.join(named)}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300).stderr == b""


def quick_run_file(text: str) -> str:
    """With one epoch, without a language model; a grid with one value on each axis but the attack's, the largest."""
    text = re.sub(r"^(epochs|patience) = \d+", r"\1 = 1", text, flags=re.M)
    text = re.sub(r"^(seed|.attack.share.) = \[[^\]]*?([\d.]+)\]", r"\1 = [\2]", text, flags=re.M)
    text = text.replace("[0.01]", "[0.04]")  # of a hundred and fifty people
    return text if "encoder" in text else 'encoder = "hash"\n' + text


def needs_run_file(shop: Path) -> None:
    """mine.toml, of the README, and what it leaves, where a page takes them for granted."""
    if not (shop / "mine.toml").exists():
        text = next(text for language, text in blocks(ROOT / "README.md") if language == "toml")
        (shop / "mine.toml").write_text(quick_run_file(text), encoding="utf-8")


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    asked = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for page in DOCS.rglob("*.md"):
        html = (tmp_path / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', html)
        assert not loaded, "a page of ours loads nothing from elsewhere"


def test_links_of_the_readme_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), link


def test_every_verb_has_a_page():
    listed = subprocess.run([sys.executable, "-m", "lorec", "--help"], capture_output=True, text=True).stdout
    verbs = set(re.findall(r"^  ([a-z]+) {2,}\S", listed, re.M)) - {"data"}
    assert len(verbs) > 8
    assert verbs <= {path.stem for path in (DOCS / "verbs").glob("*.md")}


class TestPlugins:
    """The seven examples of the page on plugins, as a package that declares them."""

    @pytest.fixture
    def declared(self, tmp_path, monkeypatch):
        page = DOCS / "extending.md"
        modules = {
            re.search(r"^class ([A-Z]\w+)", text, re.M)[1].lower(): text
            for language, text in blocks(page)
            if language == "python" and "\nclass " in text
        }
        (points,) = (tomllib.loads(text) for language, text in blocks(page) if language == "toml")
        groups = points["project"]["entry-points"]
        folder = tmp_path / "plugins"
        (folder / "plugins-1.dist-info").mkdir(parents=True)
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        (folder / "plugins-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1\n")
        lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in one.items()) for group, one in groups.items()]
        (folder / "plugins-1.dist-info" / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder)
        assert {group.removeprefix("lorec.") for group in groups} == set(lorec.runfile.FAMILIES)
        assert set(modules) == {value.partition(":")[0] for one in groups.values() for value in one.values()}
        yield
        for name in modules:
            sys.modules.pop(name, None)

    @pytest.fixture
    def document(self, tmp_path):
        """A run file that names all of them."""
        songs = tmp_path / "songs"
        songs.mkdir()
        for (user,), mine in world().interactions.group_by("user", maintain_order=True):
            (songs / f"{user}.txt").write_text("\n".join(mine["item"]), encoding="utf-8")
        return {
            "items": "both",
            "data": {"name": "playlists", "root": str(songs)},
            "encoder": {"name": "words", "dim": 32},
            "backbone": {"name": "fading", "width": 8, "fade": 0.5},
            "loss": {"name": "bpr", "negatives": 2},
            "attack": {"name": "trend", "share": 0.1, "newest": 0.2},
            "defenses": ["newcomers", {"name": "filter", "detector": "rare"}],
            "training": {"epochs": 2, "tokens": 512},
        }

    def test_all_families_work_in_one_run(self, declared, document, tmp_path):
        config = resolve(document)
        assert resolve(plain(config)) == config
        done = run(config, tmp_path / "run")
        assert list(done.arms) == ["clean", "poisoned", "newcomers", "filter-rare"]
        assert read_json(done.folder / "poison" / "poison.json")["attack"] == "trend"
        weights = pl.read_parquet(done.folder / "newcomers" / "weights.parquet")
        assert weights["weight"].is_between(0, 1).all()
        assert weights["weight"].n_unique() > 2
        assert done.scorecard["arms"]["newcomers"]["HR@10"] > 0

    def test_a_grid_a_report_and_recommendations_of_it(self, declared, document, tmp_path, monkeypatch, capsys):
        def called(*words):
            monkeypatch.setattr("sys.argv", ["lorec", *map(str, words)])
            with pytest.raises(SystemExit) as end:
                main()
            return end.value.code, "".join(capsys.readouterr())

        asked = [resolve(document | {"seed": seed}) for seed in (1, 2)]
        cells = tuple(Cell(f"seed{one.seed}", one, {"backbone": "fading"}) for one in asked)
        table = grid(Grid("plugged", ("backbone",), cells), tmp_path / "grid", map=map)
        assert table["error"].null_count() == len(table)
        folder = tmp_path / "grid" / "runs" / "seed1"
        for words in (
            ("recommend", folder, "--arm", "newcomers", "--history", "i001"),
            ("evaluate", folder, "--arm", "newcomers"),
            ("report", folder),
        ):
            code, said = called(*words)
            assert code == 2, words
            assert "loaded with --plugins alone" in said
            code, said = called(*words, "--plugins")
            assert code == 0, said

    def test_a_plugin_that_is_broken_is_named(self, declared, document, tmp_path):
        for text, said in (
            ("import nothere\n", "ModuleNotFoundError: No module named 'nothere'"),
            ("x = 1 /", "Syntax"),
        ):
            (tmp_path / "plugins" / "fading.py").write_text(text)
            sys.modules.pop("fading", None)
            with pytest.raises(lorec.errors.ConfigError, match=f"'fading', which plugins declares .*{said}"):
                resolve(document)

    def test_what_a_plugin_gets_wrong_is_said_as_of_our_own(self, declared, document):
        with pytest.raises(lorec.errors.UnknownName, match="did you mean 'newest'"):
            resolve(document | {"attack": {"name": "trend", "newst": 0.2}})
        with pytest.raises(lorec.errors.ConfigError, match="full is 'ten'"):
            resolve(document | {"defenses": [{"name": "newcomers", "full": "ten"}]})

    def test_the_attack_takes_what_is_new(self, declared):
        from trend import Trend

        log = leave_two_out(world())
        newest = set(log.train.items[np.argsort(log.train.times, kind="stable")][-int(0.2 * len(log.train.items)) :])
        view = lorec.attacks.View(log.train, len(log.catalog))
        poison = Trend(share=0.1, newest=0.2).forge(view, np.array([1, 2]), 8, np.random.default_rng(0))
        assert set(poison.items) <= newest | {1, 2}

    def test_the_backbone_is_causal_and_learns(self, declared):
        from fading import Fading

        split = leave_two_out(world())
        fitted = fit(split, Fading(width=16), training=Training(epochs=30, tokens=512, learning_rate=1e-2))
        assert evaluate(fitted.recommender, split).metrics["HR@10"] > 3 * 10 / len(split.catalog) / 2
        model = Recommender(Fading(width=16), "ids", 20, seed=1).eval()
        import torch

        table = model.table()
        short, long = (torch.tensor([row]) for row in ([0, 3, 5], [3, 5, 9]))
        torch.testing.assert_close(model(short, table)[0, 2], model(long, table)[0, 1])

    def test_the_loss_is_the_written_out_one(self, declared):
        import torch
        from bpr import BPR

        split = leave_two_out(world())
        model = Recommender(lorec.SASRec(width=8, blocks=1), "ids", len(split.catalog), loss=BPR(negatives=2)).eval()
        batch = next(iter(model.feed(split.train, 256).epoch(np.random.default_rng(0))))
        found = model.losses(batch)
        states = model(torch.from_numpy(batch.history), model.table())
        for row, place in np.argwhere(batch.positives > 0)[:20]:
            scores = model.table() @ states[row, place]
            gaps = [scores[batch.positives[row, place]] - scores[one] for one in batch.negatives[row, place]]
            wanted = sum(-torch.log(torch.sigmoid(gap)) for gap in gaps) / 2
            torch.testing.assert_close(found[row, place], wanted, atol=1e-5, rtol=1e-4)

    def test_the_encoder_counts_words_and_is_found_on_disk(self, declared, tmp_path):
        from words import Words

        catalog = leave_two_out(world()).catalog
        vectors = TextVectors(catalog, Words(dim=64), tmp_path)
        first = vectors.items()
        assert (TextVectors(catalog, Words(dim=64), tmp_path).items() == first).all()
        assert Words().identity() != dataclasses.replace(Words(), dim=8).identity()

    def test_the_detector_accuses_as_many_as_it_says(self, declared, town):
        from rare import Rare

        assert lorec.detect(Rare(share=0.05), town).flagged.mean() == pytest.approx(0.05, abs=0.01)


def test_the_documented_detector_attacked_sees_less(town):
    text = next(text for _, text in blocks(DOCS / "extending.md") if "def attacked" in text)
    made: dict = {}
    exec(compile(text, "extending.md", "exec"), made)
    poison = made["attacked"](town)
    counts = town.train.counts(len(town.catalog))
    usual = shapes(town.train, counts).mean(axis=0)
    plainly = forge(Random(share=0.02, targets_each=1), town, 3)
    far, near = (np.abs(shapes(one.profiles, counts).mean(axis=0) - usual).sum() for one in (plainly, poison))
    assert near < far


def test_the_grid_of_the_page_has_as_many_cells_as_it_says(shop):
    text = next(text for language, text in blocks(DOCS / "grids.md") if language == "toml")
    (shop / "strength.toml").write_text(text, encoding="utf-8")
    asked = read_grid_file("strength.toml")
    assert f"# {len(asked.cells)} cells" in (DOCS / "grids.md").read_text(encoding="utf-8")
    assert "random_share0.003_seed1" in {cell.name for cell in asked.cells}
