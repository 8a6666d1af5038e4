"""Write pages of docs/ from the code itself: run files, the command line, Python, figures; and what grids exported.

With --check only say whether they are up to date.
"""

import ast
import dataclasses
import inspect
import itertools
import json
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from typer.main import get_command

import lorec
from lorec.cli import app
from lorec.figures import GROUPS
from lorec.runfile import FAMILIES, LISTS, MEMBERS, TABLES, RunFile

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "benchmarks"))
from kinds import tables  # noqa: E402

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
        shown = "required" if required else "" if default is None or " at 0x" in repr(default) else f"`{default!r}`"
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


def glossary() -> str:
    """The tables of figures from the code; the words after them are typed."""
    parts = [
        "# Glossary",
        "The figures and words of tables, reports and the terminal. The figures are written by `make docs` from the "
        "code, `src/lorec/figures.py`. Arrows say which way is better: for the recommender's owner, not for the "
        "attacker. Files (`scorecard.json`, `cells.csv`) call a figure by its key, where it is not the same.",
    ]
    for group, figures in GROUPS.items():
        rows = [
            f"| {one.title or key} | {f'`{key}`' if one.title else ''} | {one.means} | {one.better} |"
            for key, one in figures.items()
        ]
        parts += [f"## {group[0].upper()}{group[1:]}"]
        parts += ["\n".join(["| figure | key | is | better |", "| --- | --- | --- | --- |", *rows])]
    words = (HERE / "glossary.md").read_text(encoding="utf-8").split("## Words\n")[1]
    return "\n\n".join([*parts, f"## Words\n{words}"])


def verbs() -> dict[str, str]:
    """A page for each verb of the command line, and one of all."""

    def walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk((*words, name), inner)
        if not hasattr(command, "commands"):
            yield words, command

    pages, rows = {}, []
    for words, command in walk((), get_command(app)):
        pages[f"verbs/{'-'.join(words)}.md"] = verb(words, command)
        first = inspect.cleandoc(command.help).split("\n\n")[0]
        rows.append(f"| [`lorec {' '.join(words)}`]({'-'.join(words)}.md) | {' '.join(first.split())} |")
    listed = "\n".join(name.removeprefix("verbs/").removesuffix(".md") for name in pages)
    index = [
        "# Command line",
        "Written by `make docs` from the code. `lorec VERB --help` says the same on a terminal.",
        "\n".join(["| verb | |", "| --- | --- |", *rows]),
        "Exit codes: 0 where all went well, 1 where a scan is above `--fail-above` or cells of a grid failed, 2 for "
        "input that can't be used (one line says what was found, what was wanted and what to do; above it the usage "
        "where an option or argument is wrong), 70 for a fault of lorec's own, 130 after Ctrl-C, 141 where the reader "
        "of a pipe left. "
        "Progress goes to standard error, results to standard output.",
        f"```{{toctree}}\n:hidden:\n\n{listed}\n```",
    ]
    return pages | {"verbs/index.md": "\n\n".join(index) + "\n"}


def verb(words: tuple[str, ...], command: Any) -> str:
    """One verb: what it does, its arguments and its options."""
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    options = [one for one in command.params if one.opts[0].startswith("-") and one.name != "help"]
    usage = ["lorec", *words, *(one.metavar or one.name.upper() for one in arguments)]
    usage = [*usage[:-1], f"[{usage[-1]}]"] if arguments and not arguments[-1].required else usage
    usage += [f"{one.opts[0]} {called(one)}" for one in options if one.required] + ["[OPTIONS]"] * bool(options)
    parts = [f"# lorec {' '.join(words)}", inspect.cleandoc(command.help), f"```text\n{' '.join(usage)}\n```"]
    if arguments:
        head = ["| argument | meaning |", "| --- | --- |"]
        parts.append("\n".join(head + [f"| `{one.metavar or one.name.upper()}` | {one.help} |" for one in arguments]))
    if options:
        head = ["| option | default | meaning |", "| --- | --- | --- |"]
        rows = [f"| `{f'{one.opts[0]} {called(one)}'.strip()}` | {default(one)} | {one.help} |" for one in options]
        parts.append("\n".join(head + rows))
    return "\n\n".join(parts) + "\n"


def called(option: Any) -> str:
    """What an option takes."""
    return "" if option.is_bool_flag else option.metavar or option.name.upper()


def default(option: Any) -> str:
    """Of an option, as it is shown."""
    if option.required:
        return "required"
    if option.multiple:
        return "may be repeated"
    return "" if option.default is None or option.is_bool_flag else f"`{option.default}`"


def library() -> str:
    """The page of all public names."""
    parts = [
        "# Python",
        "Written by `make docs` from the code: what `import lorec` gives. `Ints`, `Floats` and `Bools` are arrays of "
        "numpy, `Tensor` is torch's; frames are polars'. What stands in no list here is no promise.",
    ]
    for name in lorec.__all__:
        one = getattr(lorec, name)
        if inspect.ismodule(one):
            continue
        parts.append(f"## {name}")
        if dataclasses.is_dataclass(one):
            parts.append(inspect.cleandoc(one.__doc__))
            parts += [table(one)] * bool(dataclasses.fields(one))
        elif inspect.isclass(one):
            made = [signature(name, one.__init__)] if "__init__" in vars(one) else []
            parts += [*made, inspect.cleandoc(one.__doc__)]
        else:
            parts += [signature(name, one), inspect.cleandoc(one.__doc__)]
        for key, value in vars(one).items() if inspect.isclass(one) else ():
            if not key.startswith("_") and inspect.isfunction(value) and value.__doc__:
                parts += [f"### {name}.{key}", signature(key, value), inspect.cleandoc(value.__doc__)]
    return "\n\n".join(parts) + "\n"


def signature(name: str, one: Any) -> str:
    """A call as its source has it, without self."""
    made = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
    assert isinstance(made, ast.FunctionDef)
    given = made.args
    without = [None] * (len(given.args) - len(given.defaults))
    asked = [said(*pair) for pair in zip(given.args, [*without, *given.defaults], strict=True)]
    asked += [f"*{said(given.vararg)}"] if given.vararg else ["*"] * bool(given.kwonlyargs)
    asked += [said(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    asked += [f"**{said(given.kwarg)}"] if given.kwarg else []
    asked = asked[1:] if asked and asked[0] in ("self", "cls") else asked
    after = f" -> {ast.unparse(made.returns)}" if made.returns and name == made.name else ""
    line = f"{name}({', '.join(asked)}){after}"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(asked) + f",\n){after}"
    return f"```text\n{line}\n```".replace("'", '"')


def said(one: ast.arg, default: ast.expr | None = None) -> str:
    """A parameter as it is written."""
    return ast.unparse(one) + (f" = {ast.unparse(default)}" if default else "")


SHOWN = (
    "small-main", "small-paper", "small-backbones", "small-detection", "small-ablation", "small-lambdas",
    "small-likelihoods", "small-training", "small-known-fakes", "small-encoders", "rivals", "rivals-detectors",
    "rivals-seeds",
)  # fmt: skip
"""The recipes whose tables are shown, in this order."""


def results() -> str:
    """The page of what the small recipes gave, as `make results` leaves it; nothing of it is typed."""
    parts = [
        "# Results",
        "Written by `make docs` from the tables that `lorec grid` exported (`make results` runs the recipes anew, "
        "about eight hours on two cores). How to read a table: [grids](../grids.md). What single benchmarks "
        "measured, on more logs and with more seeds: [the other pages](index.md).",
        "All tables but those of `small-main`, `rivals-seeds`, `rivals-detectors` and, for `lorec` itself, `rivals` "
        "were made before it knew `evenness` and `intruders` ([log](../log.md), 2026-11-28), before it had the view "
        "`contradiction` and before some rivals were mended (2026-11-27).",
        paper_recipes(),
    ]
    for name in SHOWN:
        kept = MEASURED / name
        if not kept.is_dir():
            continue
        cells = pl.read_csv(kept / "cells.csv", infer_schema_length=None)
        each = cells.unique("run")["cell seconds"].drop_nulls()
        took = f"{len(each)} cells took {each.sum() / 60:.0f} minutes together, those side by side counted one by one."
        parts += [f"## {name}", f"{head_of(name)} `lorec grid recipes/{name}.toml`: {took}"]
        if (kept / "table.md").exists():
            parts.append((kept / "table.md").read_text(encoding="utf-8").strip())
        asked = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))["grid"]
        for axis in ("attack", "items"):
            if left := [one for one in asked.get(axis, ()) if isinstance(one, str) and one not in set(cells[axis])]:
                parts.append(f"Not run yet: {axis} = {', '.join(left)}.")
        if name == "small-likelihoods":
            parts.append(deciles(cells))
        if name == "rivals":
            parts.append(
                "`lorec`'s row under `adaptive` met a crowd that knows more than that of the other rows (undefended "
                "T-HR@50 .0301 and HR@10 .0412 there): [why](lorec.md#lorec-beside-its-rivals)."
            )
        if name in ("rivals", "rivals-detectors"):
            parts.append(side_by_side(cells, "success removed", "Attack success removed"))
            parts.append(side_by_side(cells, "T-HR@50", "T-HR@50"))
            parts.append(side_by_side(cells, "HR@10", "HR@10; under `none`, of a clean log, the price of each defense"))
            parts.append(side_by_side(cells, "ROC-AUC", "ROC-AUC of users"))
            parts.append(side_by_side(cells, "seconds an epoch", "Seconds an epoch, one thread, another cell beside"))
        if (kept / "curves.csv").exists():
            parts.append(curves(pl.read_csv(kept / "curves.csv", infer_schema_length=None)))
    return "\n\n".join(parts) + "\n"


def kinds() -> str:
    """The page of what LoRec is worth against every kind on every log, from the rows that `kinds.py` left."""
    rows = [json.loads(line) for line in (MEASURED / "kinds.jsonl").read_text(encoding="utf-8").splitlines()]
    head = [
        "# Kinds, log by log",
        "Written by `make docs` from the rows in `benchmarks/measured/kinds.jsonl`, which `benchmarks/kinds.py` made; "
        "what they say, and the commands: "
        "[what LoRec is worth](lorec.md#lorec-on-evidence-on-kinds-that-it-never-knew).",
        "First of each log what was trained and judged: every arm as long, the best epoch by validation; means over "
        "seeds with 95 % intervals, where there is one seed **nothing is resolved**; figures are in the "
        "[glossary](../glossary.md). Success removed is the mean over the seeds on which the attack works. Then "
        "hits of LoRec against other arms of the same seed and kind (over all kinds: a mean for each seed first), and "
        "who is shown and hit, in tenths of the catalogue, 10 the most popular; new hits "
        "are the items that were first taken when four fifths of the log were over and yet are in its most popular "
        "tenth (Beauty has 79, Games 74, MovieLens-1M and the groceries none). Then what LoRec sees, without training, "
        "when a part of it is taken out or asked for besides, when texts are vectors of another encoder, and on the "
        "log without fraudsters. Rows of `lorec` without a part or with `camouflage`, and MovieLens-1M's by text, are "
        "of before the view `nameless`: compare those that were not trained with *without nameless*, of as many seeds "
        "(those without a measure are of seed 11 alone but on "
        "Beauty). Last whether its likelihoods are right, kind by kind. "
        '`disguise` is `segment` with `by = "text"`, `segment = 200`, `stray = 0`, and `segment` is not among what '
        "is known there.",
    ]
    return "\n\n".join([*head, tables(rows)])


def head_of(name: str) -> str:
    """What a recipe says of itself."""
    lines = (RECIPES / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line.removeprefix("# ").strip() for line in head)


def paper_recipes() -> str:
    """Which recipe is which table or figure of the paper."""
    shown = {
        "robustness, recommendation quality": ("small-main", "full-robustness"),
        "the published method beside ours": ("small-paper", "full-robustness"),
        "other backbones, items by text": ("small-backbones", "full-robustness"),
        "detection by a language model's view (LLM4Dec)": ("small-detection", "full-detection"),
        "ablation": ("small-ablation", "full-ablation"),
        "both lambdas": ("small-lambdas", "full-lambdas"),
        "distributions of p_u": ("small-likelihoods", "full-likelihoods"),
        "T-HR@50 over training": ("small-training", "full-training"),
        "kind and number of known fakes": ("small-known-fakes", "full-known-fakes"),
        "size of the encoder": ("small-encoders", "full-encoders"),
    }
    rows = [
        f"| {what} | {f'[{small}](#{small})' if (MEASURED / small).is_dir() else small} | `recipes/{full}.toml` |"
        for what, (small, full) in shown.items()
    ]
    return "\n".join([
        "The tables and figures of the paper (Zhang et al. 2024) are recipes: `small` in a quarter of an hour to one "
        "and a half on two cores, `full` after the paper's logs, sizes and language model (their heads say what is not "
        "known or not the same). None of the full ones was run here. In all tables HR@10 and T-HR@50 are those of "
        "the epoch that validation selected, weights and detection those of the last.\n",
        "| the paper's table or figure | small | full |", "| --- | --- | --- |", *rows,
    ])  # fmt: skip


def deciles(cells: pl.DataFrame) -> str:
    """How p_u is spread: a row for each arm that says one."""
    names = [f"p {who}, {share} %" for who in ("genuine", "fraudsters") for share in (10, 50, 90)]
    told = cells.filter(pl.col("arm").str.starts_with("lorec-paper"))
    rows = [
        f"| {row['attack']} | {row['arm']} | " + " | ".join(f"{row[name]:.4f}" for name in names) + " |"
        for row in told.iter_rows(named=True)
    ]
    head = ["attack", "arm", *names]
    said = "p_u at the last update: a tenth, half and nine tenths of the users lie below."
    return "\n".join([f"{said}\n", f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * len(names), *rows])


def side_by_side(cells: pl.DataFrame, figure: str, what: str) -> str:
    """One figure of every arm against every attack."""
    kinds, told = list(dict.fromkeys(cells["attack"])), {}
    for row in cells.iter_rows(named=True):
        told.setdefault(row["arm"], {})[row["attack"]] = row[figure]
    rows = [
        f"| {arm} | " + " | ".join("" if by.get(kind) is None else f"{by[kind]:.4f}" for kind in kinds) + " |"
        for arm, by in told.items()
        if any(value is not None for value in by.values())
    ]
    return "\n".join([f"{what}:\n", f"| arm | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds), *rows])


def curves(told: pl.DataFrame) -> str:
    """T-HR@50 on test items after each epoch."""
    wide = told.with_columns(pl.col("epoch").cast(pl.Int64)).pivot("epoch", index=["attack", "arm"], values="T-HR@50")
    epochs = wide.columns[2:]
    rows = [
        f"| {row[0]} | {row[1]} | " + " | ".join("" if one is None else f"{one:.4f}" for one in row[2:]) + " |"
        for row in wide.iter_rows()
    ]
    head = f"| attack | arm | {' | '.join(epochs)} |"
    return "\n".join(["T-HR@50 after each epoch:\n", head, "| --- | --- |" + " ---: |" * len(epochs), *rows])


def main() -> int:
    """Write, or check, all pages."""
    pages = {"configuration.md": configuration(), "python.md": library(), "measured/results.md": results()}
    pages |= {"measured/kinds.md": kinds()}
    pages |= {"glossary.md": glossary()} | verbs()
    stale = [
        name
        for name, text in pages.items()
        if not (HERE / name).exists() or (HERE / name).read_text(encoding="utf-8") != text
    ]
    left = [path for path in (HERE / "verbs").glob("*.md") if f"verbs/{path.name}" not in pages]
    if "--check" in sys.argv:
        if stale or left:
            print(f"stale: {', '.join([*stale, *map(str, left)])}; run make docs")
        return int(bool(stale or left))
    (HERE / "verbs").mkdir(exist_ok=True)
    for path in left:
        path.unlink()
    for name in stale:
        (HERE / name).write_text(pages[name], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
