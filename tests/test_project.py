"""The project about itself: its names, its README, its tree."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lorec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_public_names_are_complete_sorted_and_documented():
    assert sorted(lorec.__all__) == lorec.__all__
    for name in lorec.__all__:
        assert getattr(lorec, name).__doc__, name


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lorec, lorec.cli; sys.exit('torch' in sys.modules or 'polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


def test_the_readme_tree_is_the_real_tree():
    block = re.search(r"```text\nsrc/lorec/\n(.*?)```", README, re.S)
    assert block
    drawn = {line.split()[0].rstrip("/") for line in block[1].splitlines() if line.startswith("  ")}
    real = {path.name for path in (ROOT / "src" / "lorec").iterdir() if path.suffix != ".py" or path.stem != "__init__"}
    assert drawn == real - {"py.typed", "__pycache__"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "src").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT / "src"))
)
def test_library_code_prints_nothing_and_pickles_nothing(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"torch.save", "torch.load", "pickle.dump", "pickle.load", "eval", "exec"}
    assert path.name in ("cli.py", "terminal.py") or "print" not in called


def test_every_field_of_a_run_file_is_explained():
    """A spec's help is the text under each field."""
    for module in ("runfile", "training", "data", "attacks.heuristics", "models.sasrec", "text.encoders"):
        source = Path(importlib.import_module(f"lorec.{module}").__file__).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ClassDef) or not any("kw_only" in ast.unparse(d) for d in node.decorator_list):
                continue
            for place, part in enumerate(node.body):
                if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part.annotation):
                    after = node.body[place + 1]
                    assert isinstance(after, ast.Expr), f"{module}.{node.name}.{ast.unparse(part.target)}"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_can_be_read(path, monkeypatch, tmp_path):
    """As they are, whether or not their logs are at hand; and their heads say how much they are."""
    from lorec.grids import read_grid_file
    from lorec.runfile import arms_of, read_run_file

    monkeypatch.setenv("LOREC_DATA", str(tmp_path))
    text = path.read_text(encoding="utf-8")
    if "[grid]" not in text:
        config = read_run_file(path)
        assert (config.name, len(arms_of(config)) > 2) == (path.stem, True)
        return
    asked = read_grid_file(path)
    assert asked.name == path.stem
    assert re.search(rf"\b{len(asked.cells)} cells, {asked.arms} recommenders", text)


def test_small_recipes_are_small_and_each_has_a_full_one():
    from lorec.grids import read_grid_file

    for path in (ROOT / "recipes").glob("small-*.toml"):
        assert 0 < read_grid_file(path).arms <= 60, path
    small, full = ({path.stem.partition("-")[2] for path in (ROOT / "recipes").glob(f"{size}-*.toml")}
                   for size in ("small", "full"))  # fmt: skip
    assert full - {"robustness"} == small - {"main", "paper", "backbones"}
