"""Write docs/configuration.md and docs/cli.md from the code itself, and docs/results.md from what grids exported.

With --check only say whether they are up to date.
"""

import ast
import dataclasses
import inspect
import itertools
import os
import subprocess
import sys
from pathlib import Path

import polars as pl

from lorec.runfile import FAMILIES, LISTS, MEMBERS, TABLES, RunFile

HERE = Path(__file__).parent
MEASURED, RECIPES = HERE.parent / "benchmarks" / "measured", HERE.parent / "recipes"


def explained(spec: type) -> dict[str, str]:
    """The text under each field of a dataclass, its parents' first."""
    found: dict[str, str] = {}
    for kind in reversed(spec.__mro__[:-1]):
        if not dataclasses.is_dataclass(kind):
            continue
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for part, after in itertools.pairwise(body):
            if isinstance(part, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(part.target)] = " ".join(ast.literal_eval(after.value).split())
    return found


def table(spec: type) -> str:
    """Key, default, meaning."""
    about = explained(spec)
    rows = ["| key | default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(spec):
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        shown = "required" if required else "" if default is None else f"`{default!r}`"
        kind = str(field.type).replace("typing.", "")
        choices = f" One of {kind.removeprefix('Literal[').removesuffix(']')}." if kind.startswith("Literal[") else ""
        rows.append(f"| `{field.name}` | {shown} | {about.get(field.name, '')}{choices} |".replace(" | None", ""))
    return "\n".join(rows)


def configuration() -> str:
    """The page of all keys."""
    parts = [
        "# Run files",
        "Written by `make docs` from the code. A run file is TOML; each key may be overruled by `--set a.b=c`. Unknown "
        'keys and names are refused, with the nearest known one. Where a family is asked for, `attack = "random"` is '
        'short for a table `[attack]` with `name = "random"`.',
        "A grid file has one table more: `[grid]` gives keys lists of values, and every combination of them is a run "
        "([an example](grids.md)).",
        "## Top level",
        "\n".join(
            ["| key | meaning |", "| --- | --- |"]
            + [f"| `{name}` | {about} |" for name, about in explained(RunFile).items()]
        ),
    ]
    for key, spec in TABLES.items():
        parts += [f"## [{key}]", spec.__doc__.strip().splitlines()[0], table(spec)]
    families = {key: FAMILIES[family] for key, family in MEMBERS.items()} | {key: FAMILIES[key] for key in LISTS}
    for key, family in families.items():
        parts.append(f"## [[{key}]]" if key in LISTS else f"## [{key}]")
        if key == "data":
            parts.append(
                "A table with `path` and no name is a file; a name that no source has is a folder under LOREC_DATA. "
                "Relative paths start at the current folder."
            )
        for name, spec in sorted(family.items()):
            parts += [f'### name = "{name}"', inspect.cleandoc(spec.__doc__)]
            if dataclasses.fields(spec):
                parts.append(table(spec))
    return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """The page of all verbs."""
    parts = ["# Command line", "Written by `make docs` from the code."]
    for verbs in (
        (),
        ("run",),
        ("grid",),
        ("attack",),
        ("detect",),
        ("encode",),
        ("evaluate",),
        ("recommend",),
        ("list",),
        ("data",),
        ("data", "stats"),
        ("data", "check"),
        ("data", "compile"),
    ):
        said = subprocess.run(
            [sys.executable, "-m", "lorec.cli", *verbs, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
        )
        text = said.stdout.replace("python -m lorec.cli", "lorec").strip()
        parts += [f"## {' '.join(('lorec', *verbs))}", f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def results() -> str:
    """The page of what the small recipes gave, as `make results` leaves it; nothing of it is typed."""
    parts = [
        "# Results",
        "Written by `make docs` from the tables that `lorec grid` exported (`make results` runs the recipes anew, "
        "about two hours on two cores). How to read a table: [grids](grids.md). What single benchmarks measured, on "
        "more logs and with more seeds: [measurements](measurements.md).",
    ]
    for name in ("small-main", "small-paper", "small-backbones"):
        kept = MEASURED / name
        if not kept.is_dir():
            continue
        lines = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
        head = list(itertools.takewhile(lambda line: line.startswith("# "), lines))
        cells = pl.read_csv(kept / "cells.csv", infer_schema_length=None)
        each = cells.unique("run")["cell seconds"]
        took = f"{len(each)} cells took {each.sum() / 60:.0f} minutes together, those side by side counted one by one."
        told = " ".join(line.removeprefix("# ").strip() for line in head)
        table = (kept / "table.md").read_text(encoding="utf-8").strip()
        parts += [f"## {name}", f"{told} `lorec grid recipes/{name}.toml`: {took}", table]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write, or check, all pages."""
    stale = []
    for name, text in (("configuration.md", configuration()), ("cli.md", command_line()), ("results.md", results())):
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run make docs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
