"""The command line: each verb parses, calls one function of the library, and has `lorec.terminal` show what came.

Nothing heavy is imported before a verb runs, so that --help answers at once.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version as version_of
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorec.figures import title_of, written
from lorec.terminal import (
    DETECTED,
    duration,
    literal,
    readable,
    show_arms,
    show_findings,
    show_rows,
    show_run,
    shown_grid,
    shown_progress,
)  # fmt: skip

if TYPE_CHECKING:
    from lorec.data import Dataset
    from lorec.records import Event
    from lorec.trackers import Tracker

app = typer.Typer(
    help="""Keep sequential recommenders honest: measure poisoning attacks, defend with LoRec, judge what it is worth.

    Start here: lorec run recipes/demo.toml

    Then look at a log of yours: lorec data check purchases.csv --items catalogue.csv

    And run it: lorec run mine.toml, where [data] has path = "purchases.csv" and items = "catalogue.csv".
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at a log before training on it.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A finished run folder.")]
Arm = Annotated[str, typer.Option(help="clean, poisoned, or a defense's name.")]
Plugins = Annotated[
    bool, typer.Option("--plugins", help="Load what the run names of other installed packages, as a backbone of yours.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Track = Annotated[
    list[str] | None, typer.Option("--track", metavar="NAME", help="tensorboard or mlflow, told of every epoch.")
]
Log = Annotated[
    str,
    typer.Argument(metavar="LOG", help="A file (CSV, TSV, Parquet, JSON lines), or the name of a source or folder."),
]
Items = Annotated[str | None, typer.Option(help="The catalogue with titles, where LOG is a file.")]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="ROLE=NAME", help="Which column is user, item, time, title.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="KEY=VALUE", help="An option of the source LOG, as root=raw or category=Beauty."),
]


def main() -> None:
    """Run the command line; an error that a user can mend becomes one line and exit code 2."""
    from lorec.errors import LorecError

    signal.signal(signal.SIGINT, _interrupt)  # the framework would swallow a KeyboardInterrupt
    try:
        app()
    except LorecError as error:
        print(f"lorec: {literal(str(error), 2000)}", file=sys.stderr)
        sys.exit(2)
    except _Interrupted:
        print(
            "\nlorec: interrupted; a run, grid or scan goes on when the same command is given again",
            file=sys.stderr,
        )
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception:  # a pipeline must not take it for the 1 of an alarm
        traceback.print_exc()
        print("lorec: this should not have happened; please report it with the lines above", file=sys.stderr)
        sys.exit(70)


class _Interrupted(BaseException):
    """Ctrl-C."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lorec {version_of('lorec')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    run_file: Annotated[
        Path, typer.Argument(metavar="RUN.toml", help="What to do; see recipes/, docs/configuration.md.")
    ],
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME if omitted.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Override a setting, as in --set training.epochs=3."),
    ] = None,
    track: Track = None,
    as_json: AsJson = False,
) -> None:
    """Train clean, poisoned and defended recommenders on one log, judge them, and leave a run folder.

    The same command again continues an interrupted run and only shows a finished one.
    """
    from lorec.experiment import run as do
    from lorec.runfile import plain, read_run_file

    config = read_run_file(run_file, dict(_pair("--set", one) for one in settings or []))
    folder = out or Path("runs") / config.name
    with shown_progress() as shown, _trackers(track, config.name, folder, {"": plain(config)}) as tracked:

        def watch(event: "Event") -> None:
            if not event.again:
                shown(event)
            for one in tracked:
                one(event)

        done = do(config, folder, cache=_cache(), watch=watch)
    if as_json:
        print(json.dumps({"folder": str(done.folder)} | done.scorecard, indent=2))
        return
    show_run(done)


@app.command()
def grid(
    grid_file: Annotated[
        Path, typer.Argument(metavar="GRID.toml", help="A run file whose [grid] gives keys lists of values.")
    ],
    out: Annotated[Path | None, typer.Option(help="The grid's folder; runs/NAME if omitted.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting that all cells share.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Cells side by side; one for each processor.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each cell.")] = None,
    memory: Annotated[float | None, typer.Option(min=0.1, help="GB that cells may take together.")] = None,
    shard: Annotated[str, typer.Option(help="A part of the grid: 2/4 on the second of four machines.")] = "1/1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many cells, and how long.")] = False,
    track: Track = None,
) -> None:
    """Run every combination that [grid] names, side by side; leave tables with means, intervals and tests.

    The same command again goes on where an interrupted grid was, and tries again what failed. Exit code 1 where cells
    failed.
    """
    from lorec.comparison import laid_out
    from lorec.grids import NOT_YET, estimate, read_grid_file
    from lorec.grids import grid as do
    from lorec.runfile import arms_of, plain

    asked = read_grid_file(grid_file, dict(_pair("--set", one) for one in settings or []))
    folder, part = out or Path("runs") / asked.name, _shard(shard)
    _check_trackers(track)
    if dry_run:
        with shown_progress() as seen:
            told = estimate(
                asked, folder, workers=workers, threads=threads, shard=part, cache=_cache(),
                watch=lambda cell, event: None if event.again else seen(event),
            )  # fmt: skip
        rates = ([*row[:-2], f"{row[-2]:.1f}", f"{row[-1]:.2f}"] for row in told.rates.iter_rows())
        show_rows(told.rates.columns, rates)
        print(f"{told.cells} cells, {told.left} to do: {told.arms} recommenders, about {duration(told.seconds)}")
        print("- side by side, if no arm stops early; forging the poisons comes on top")
        return
    arms = {cell.name: len(arms_of(cell.config)) for cell in asked.cells}
    about = {cell.name: plain(cell.config) for cell in asked.cells}
    with shown_grid(arms, part[1]) as shown, _trackers(track, asked.name, folder, about) as tracked:

        def watch(cell: str, event: "Event") -> None:
            if not event.again:
                shown(cell, event)
            for one in tracked:
                one(event, cell)

        table = do(
            asked, folder, workers=workers, threads=threads, memory=memory and memory * 1e9, shard=part, cache=_cache(),
            watch=watch,
        )  # fmt: skip
    head, rows, notes = laid_out(table, asked.axes)
    show_rows(head, iter(rows))
    for note in notes:
        print(f"- {literal(note, 500)}")
    print(f"\nTables are in {folder}: table.md, table.tex, table.csv, table.parquet; every cell in cells.csv.")
    if any(one != NOT_YET for text in table["error"].drop_nulls() for one in _said(text)):
        raise typer.Exit(1)


def _said(errors: str) -> list[str]:
    """The errors of a row of the table, which names the seed of each."""
    return [one.partition(": ")[2] for one in errors.split("; ")]


def _shard(text: str) -> tuple[int, int]:
    from lorec.errors import ConfigError

    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ConfigError(f"--shard {text!r} is no part; write 2/4 for the second of four")
    return int(number), int(of)


@app.command()
def attack(
    run_file: Annotated[
        Path, typer.Argument(metavar="RUN.toml", help="Whose log, targets and attack; see docs/configuration.md.")
    ],
    out: Annotated[Path, typer.Option(help="The poison's folder, or the file where --form is not folder.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting, as in --set attack=dp.")
    ] = None,
    form: Annotated[
        str, typer.Option(help="folder, for runs to come; inject_user or fake_users, JSON as other work has it.")
    ] = "folder",
) -> None:
    """Make a run's poison alone, for runs to share ([attack] name = "stored") or for other work; nothing is trained."""
    from lorec.runfile import read_run_file
    from lorec.stages import attack as do

    with shown_progress() as watch:
        config = read_run_file(run_file, dict(_pair("--set", one) for one in settings or []))
        made = do(config, out, form, cache=_cache(), watch=watch)
    told = made.provenance
    print(
        f"{told['attack']}: {len(made.profiles):,} fraudsters with {len(made.profiles.items):,} interactions in {out}"
    )
    print(f"they push {len(made.targets)} items: {literal(', '.join(told['targets']))}")


@app.command()
def detect(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="Whose log, attack and detectors.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Override a setting, as in --set 'detectors=[\"degree\"]'."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for what is said of every user and item.")] = None,
    as_json: AsJson = False,
) -> None:
    """Poison a run's log and judge what its detectors say of it; no recommender is trained."""
    from lorec.runfile import read_run_file
    from lorec.stages import Detection
    from lorec.stages import detect as do

    config = read_run_file(run_file, dict(_pair("--set", one) for one in settings or []))
    if out is not None:
        Detection.check(out)
    with shown_progress() as watch:
        found = do(config, cache=_cache(), watch=watch)
    if out is not None:
        found.save(out)
    if as_json:
        print(json.dumps({"detectors": found.figures, "notes": found.notes}, indent=2))
        return
    print(f"{found.poison.provenance['attack']}: {len(found.poison.profiles):,} fraudsters in {literal(config.name)}")
    rows = ([name, *(written(key, figures.get(key)) for key in DETECTED)] for name, figures in found.figures.items())
    show_rows(["", *map(title_of, DETECTED)], rows)
    for note in [f"One seed ({config.seed}): differences may be chance.", *found.notes]:
        print(f"- {literal(note, 500)}")
    if out is not None:
        print(f"\nWhat they say and why is in {out}: users.parquet, items.parquet, harm.parquet, judged.json.")
        print("lorec report makes a page of it.")


@app.command()
def scan(
    log: Log,
    out: Annotated[Path, typer.Option(help="Where the findings go.")],
    items: Items = None,
    column: Columns = None,
    source: Options = None,
    encoder: Annotated[str, typer.Option(help="What reads titles; see lorec list encoders.")] = "minilm",
    encoder_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the encoder, as model=FOLDER; may repeat."),
    ] = None,
    scenario: Annotated[str, typer.Option(help='What is sold or read, as "video games".')] = "a shop",
    evidence: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Use only this evidence; lorec is always one of it.")
    ] = None,
    kinds: Annotated[str | None, typer.Option(metavar="NAME,...", help="Synthesise only these attacks.")] = None,
    trials: Annotated[
        int | None,
        typer.Option(min=2, help="How many attacks are synthesised to learn what evidence is worth; 12 if omitted."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="An earlier scan's folder: its trials are taken, and none is made.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="A CSV of user (or user_id), verdict: fraud or genuine.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Its content turns users' ids into hashes (HMAC-SHA256).")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit code 1 from this likelihood on, 3 where nothing can be told."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Look for fraud in a log of your own, without labels: pushed items, hired users, and weights to train with.

    Nothing leaves this machine unless an encoder on a server is named. Interrupted, the same command resumes.
    """
    from lorec.errors import ConfigError
    from lorec.runfile import member_of
    from lorec.scans import EVIDENCE, read_verdicts
    from lorec.scans import scan as do

    if trials is not None and like is not None:
        raise ConfigError("--like takes the trials of an earlier scan and makes none; leave --trials out")
    reader = member_of("encoder", encoder, dict(_pair("--encoder-option", one) for one in encoder_option or []))
    dataset = _dataset(log, items, column, source)
    columns = dataset.record.get("columns", {})
    print(f"columns: {literal(', '.join(f'{role} = {name}' for role, name in columns.items()), 300)}", file=sys.stderr)
    if items is None and not dataset.items.height:
        print("there is no catalogue: --items FILE gives titles, which evidence is made of, too", file=sys.stderr)
    before = _last_scan(out)
    options: dict[str, Any] = {} if kinds is None else {"kinds": _ids(kinds)}
    options |= {} if trials is None else {"trials": trials}
    with shown_progress() as seen:
        found = do(
            dataset, encoder=reader, scenario=scenario,
            evidence=list(EVIDENCE) if evidence is None else _ids(evidence), like=like, folder=out,
            verdicts=None if verdicts is None else read_verdicts(verdicts), cache=_cache(), key=_key(key_file),
            seed=seed, watch=_stages(seen), **options,
        )  # fmt: skip
    page, now = _reported(out), _last_scan(out)
    if changed := [name for name in before if before[name] != now.get(name)]:
        print(f"lorec: this replaced a scan in {literal(str(out))} with another {', '.join(changed)}", file=sys.stderr)
    if as_json:
        about = {"verdict": found.verdict(), "alarm": found.alarm, "can tell": found.can_tell}
        about |= {"figures": found.figures, "notes": found.notes}
        print(json.dumps(about, indent=2, ensure_ascii=False))
    else:
        show_findings(found)
        print(f"\nEverything is in {out}: users, items, groups, weights (Parquet), findings.json{page}.")
    if fail_above is not None and (found.alarm >= fail_above or not found.can_tell):
        raise typer.Exit(1 if found.alarm >= fail_above else 3)


def _last_scan(folder: Path) -> dict[str, Any]:
    """What the scan was of that a folder holds, and how it was asked; nothing where there is none."""
    from lorec.errors import RunError
    from lorec.files import read_json

    try:
        found = read_json(folder / "findings.json")
        asked = {name: value for name, value in found["asked"].items() if name not in ("like", "verdicts")}
        return {"log": found["log"]["dataset"]["source"], "trials": found["figures"]["trials"], **asked}
    except (OSError, RunError, KeyError, TypeError, AttributeError):
        return {}


def _reported(folder: Path) -> str:
    """A scan's page beside its findings, where charts can be drawn: what to call it in a list of files."""
    from lorec.errors import LorecError
    from lorec.reports import can_draw
    from lorec.reports import report as do

    if not can_draw():
        return "; lorec report makes a page of them, with pip install 'lorec[report]'"
    try:
        return f" and {do(folder).name}"
    except LorecError as error:  # the findings are there, and whoever waits for the exit code gets it
        return f"; without a page: {literal(str(error), 500)}"


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What lorec run, grid, scan or detect left.")],
    out: Annotated[Path | None, typer.Option(help="The file; report.html in FOLDER if omitted.")] = None,
    plugins: Plugins = False,
) -> None:
    """Show a run, grid, scan or detection on one HTML page that opens offline, prints, and can be sent to others."""
    from lorec.reports import report as do

    print(do(folder, out, plugins))


def _stages(seen: Callable[["Event"], None]) -> Callable[[str, int, int], None]:
    from lorec.records import Event

    def watch(stage: str, done: int, total: int) -> None:
        seen(Event(stage, done, total, f"{done:,} of {total:,}", finished=done == total))

    return watch


def _key(path: Path | None) -> bytes | None:
    from lorec.errors import ConfigError

    if path is None:
        return None
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path} can't be read as a key: {error.strerror}; give a file with a secret in it") from None
    if len(key) < 16:
        raise ConfigError(f"{path} holds {len(key)} bytes; a key has 16 or more, or ids can be guessed from hashes")
    return key


@app.command()
def encode(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="Whose log, scenario and encoder.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting, as in --set encoder=minilm.")
    ] = None,
    users: Annotated[bool, typer.Option(help="Also a prompt for each user, for view = prompt.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much, from 256 of the texts.")] = False,
) -> None:
    """Encode a log's texts once; every run takes them from there. Interrupted, the same command resumes."""
    from lorec.runfile import read_run_file
    from lorec.stages import encode as do

    with shown_progress() as watch:
        config = read_run_file(run_file, dict(_pair("--set", one) for one in settings or []))
        told = do(config, users=users, dry=dry_run, cache=_cache(), watch=watch)
    done, about = ("to encode", "about ") if dry_run else ("encoded", "")
    tokens = "" if told.tokens is None else f", {told.tokens:,} tokens"
    print(f"{told.missing:,} of {told.texts:,} texts {done}{tokens}; the others were there before")
    print(f"{about}{duration(told.seconds)}, {about}{told.memory / 1e9:.1f} GB of memory")


@app.command()
def evaluate(
    folder: Folder,
    arm: Annotated[list[str] | None, typer.Option(help="An arm; all of them if omitted.")] = None,
    as_json: AsJson = False,
    plugins: Plugins = False,
) -> None:
    """Judge a run's saved models again, on the log as its configuration reads it."""
    from lorec.experiment import reevaluate
    from lorec.records import open_run

    found = reevaluate(open_run(folder, plugins=plugins), arm)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        show_arms(found)
        print("- Judged on genuine users only; their models' epochs were selected on genuine users' validation items.")


@app.command()
def recommend(
    folder: Folder,
    history: Annotated[
        list[str] | None, typer.Option(help="A history typed: item ids, oldest first, with commas between; may repeat.")
    ] = None,
    histories: Annotated[Path | None, typer.Option(help="Histories from a log file: user, item, maybe time.")] = None,
    column: Columns = None,
    arm: Arm = "lorec",
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    seen: Annotated[bool, typer.Option(help="Recommend also what the history holds.")] = False,
    without: Annotated[
        list[str] | None, typer.Option(metavar="ITEM,...", help="Never recommend these items; may repeat.")
    ] = None,
    without_file: Annotated[Path | None, typer.Option(help="Nor those of a text file, an item id a line.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=VALUE", help="Only items whose catalogue says so, as category=Tea; may repeat."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write Parquet, user by user, instead of showing a table.")] = None,
    as_json: AsJson = False,
    plugins: Plugins = False,
) -> None:
    """The top items for histories that are typed or come from a file; they need not have been in training.

    Items of a file that the catalogue does not have are named and left out, one that is typed is refused; a history
    without any gets the most popular items, which `by` says. A file that holds something else is not written over.
    """
    import polars as pl

    from lorec.data import Sequences, whole_histories
    from lorec.errors import ConfigError
    from lorec.experiment import save_recommendations
    from lorec.records import open_run
    from lorec.sources import read

    if (history is None) == (histories is None):
        raise ConfigError("give either --history ITEM,ITEM,... or --histories FILE")
    if out is not None and as_json:
        raise ConfigError("give either --out FILE or --json")
    opened = open_run(folder, plugins=plugins)
    catalog, repeats = opened.catalog(), opened.config.split.repeats
    if histories is not None:
        users, log, strangers = whole_histories(read(histories, columns=_columns(column)), catalog, repeats)
        _left_out(strangers, "and were left out of the histories")
    else:
        typed = [_ids(one) for one in history or []]
        typed = [list(dict.fromkeys(one)) for one in typed] if repeats == "first" else typed
        users = pl.Series([f"history {n}" for n in range(1, len(typed) + 1)], dtype=pl.String)
        log = Sequences.of(catalog.numbers(one) for one in typed)
    listed = pl.Series(_lines(without_file), dtype=pl.String)
    here = catalog.known(listed) > 0
    _left_out(listed.filter(~here).to_list(), f"and need no blocking by {without_file}")
    blocked = [item for one in without or [] for item in _ids(one)] + listed.filter(here).to_list()
    hidden = catalog.hidden(blocked, dict(_pair("--where", one) for one in where or []))
    recommender = opened.recommender(arm)
    if out is not None:
        n = save_recommendations(out, recommender, log, catalog, k, users=users, seen=seen, without=hidden)
        print(f"{n:,} rows in {out}")
        return
    found = recommender.recommend(log, catalog, k, users=users, seen=seen, without=hidden)
    if as_json:
        print(json.dumps(found.to_dicts(), indent=2))
        return
    rows = ([*row[:4], f"{row[4]:.3f}", row[5]] for row in found.iter_rows())
    show_rows(["user", "rank", "item", "title", "score", "by"], rows)
    if (log.lengths == 0).any():
        print(
            "- A history without any known item gets the most popular ones; the score is how often training had each."
        )


def _left_out(strangers: list[str], what: str) -> None:
    """Name the first of a file's items that the model doesn't know."""
    if strangers:
        named = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        told = f"{len(strangers):,} items are not in the catalogue {what}: {named}"
        print(f"lorec: {literal(told, 500)}", file=sys.stderr)


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _lines(path: Path | None) -> list[str]:
    from lorec.errors import DataError

    try:
        lines = [] if path is None else path.read_text("utf-8-sig").splitlines()
        return [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as text: {error}; give a file with an item id a line") from None


@app.command(name="list")
def list_(
    family: Annotated[
        str,
        typer.Argument(metavar="FAMILY", help="attacks, backbones, defenses, detectors, encoders, losses or sources."),
    ],
) -> None:
    """List the names that a run file may use, one per line."""
    from lorec.registry import describe, unknown
    from lorec.runfile import FAMILIES

    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    rows = describe(FAMILIES[family])
    for name, about in rows:
        print(f"{name:<{max(len(row[0]) for row in rows) + 2}}{about}")


@data_app.command()
def stats(
    log: Log,
    items: Items = None,
    column: Columns = None,
    source: Options = None,
    as_json: AsJson = False,
) -> None:
    """Counts, lengths, ties, repeats, missing texts and the span of time."""
    from lorec.sources import statistics

    found = statistics(_dataset(log, items, column, source))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max(len(name) for name in found)
    for name, value in found.items():
        print(f"{name:<{width + 2}}{literal(readable(value))}")


@data_app.command()
def check(log: Log, items: Items = None, column: Columns = None, source: Options = None) -> None:
    """Warn of what may surprise in training; exit code 2 where the log can't be used."""
    from lorec.sources import warnings_of

    found = warnings_of(_dataset(log, items, column, source))
    for one in found:
        print(f"- {literal(one, 500)}")
    remarks = "1 remark; it does not stop" if len(found) == 1 else f"{len(found)} remarks; none of them stops"
    print(f"{remarks} a run" if found else "no problems found")


@data_app.command(name="compile")
def compile_(
    log: Log,
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the compiled log goes.")],
    items: Items = None,
    column: Columns = None,
    source: Options = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A key of [split], as k_core=5.")
    ] = None,
) -> None:
    """Prepare a log once: split, numbered and sorted, to be opened at once as [data] name = "compiled"."""
    from lorec.data import leave_two_out
    from lorec.runfile import protocol_of
    from lorec.sources import save_split

    protocol = protocol_of(dict(_pair("--set", one) for one in settings or []))
    split = leave_two_out(_dataset(log, items, column, source), protocol)
    save_split(split, out)
    print(f"{split.size()} in {out}")


@data_app.command()
def fetch(
    name: Annotated[str, typer.Argument(metavar="SOURCE", help="A public log: amazon, movielens, steam.")],
    source: Options = None,
) -> None:
    """Download a public log's files from their owner into its folder (--source root=FOLDER), those that are missing.

    Interrupted, the same command resumes.
    """
    from lorec.errors import ConfigError
    from lorec.registry import build
    from lorec.sources import PUBLIC, SOURCES
    from lorec.sources import fetch as do

    if SOURCES.get(name) not in PUBLIC:
        public = ("amazon", "movielens", "steam")
        raise ConfigError(f"{name!r} is no public log that could be brought; give one of {', '.join(public)}")
    asked = build(SOURCES[name], dict(_pair("--source", one) for one in source or []), f"source {name}")
    print(f"{asked.licence}\ncite: {asked.citation[getattr(asked, 'edition', '')]}", file=sys.stderr)
    with shown_progress() as seen:
        came = do(asked, _stages(seen))
    for path in came:
        print(path)
    if not came:
        print(f"everything is in {asked.root}")


def _dataset(log: str, items: str | None, columns: list[str] | None, source: list[str] | None) -> "Dataset":
    from lorec.errors import ConfigError
    from lorec.sources import load, read

    mapping = _columns(columns)
    if Path(log).is_file() or Path(log).suffix:
        if source:
            raise ConfigError(f"--source goes with a source by name; {log!r} is a file")
        return read(log, items=items, columns=mapping)
    if items or mapping:
        raise ConfigError(f"--items and --column go with a file; {log!r} is none")
    return load(log, **dict(_pair("--source", one) for one in source or []))


def _columns(given: list[str] | None) -> dict[str, str]:
    return dict(_pair("--column", one) for one in given or [])


def _pair(option: str, text: str) -> tuple[str, str]:
    from lorec.errors import ConfigError

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{option} {text!r} has no '='; write {option} a.b=c")
    return key, value


def _check_trackers(names: list[str] | None) -> None:
    if names:
        from lorec.trackers import check

        for name in names:
            check(name)


@contextmanager
def _trackers(
    names: list[str] | None, experiment: str, folder: Path, about: Mapping[str, Mapping[str, Any]]
) -> Iterator[list["Tracker"]]:
    if not names:
        yield []
        return
    from lorec.trackers import tracker

    with ExitStack() as stack:
        yield [stack.enter_context(tracker(name, experiment, folder, about)) for name in dict.fromkeys(names)]


def _cache() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("lorec")) / "vectors"
