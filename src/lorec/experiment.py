"""The main job: a real log in; a poisoned copy; a recommender trained clean, undefended and defended; all judged.

`run` leaves a folder that is the record, as `lorec.records` has it. An arm that is finished is not trained again; one
that was interrupted goes on from its checkpoint.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from polars.io.plugins import register_io_source

from lorec.attacks import Stored, open_poison, save_poison
from lorec.data import Catalog, Ints, Poison, Sequences, Split, inject
from lorec.defenses import Defense, Guard, Oracle, WeightFile
from lorec.detectors import Suspicion, harmed, judged
from lorec.errors import ConfigError, DiskError, RunError
from lorec.evaluation import evaluate, overlap, success_removed
from lorec.files import read_json, replacing, sha256, write_json, write_parquet
from lorec.models import Popularity, Recommender, load_recommender
from lorec.records import (
    Event,
    Run,
    Watch,
    again,
    all_judged,
    alone,
    arm_again,
    begun,
    checked,
    forget_peak,
    key_of,
    once,
    open_run,
    peak_memory,
    seal,
    without_draft,
)  # fmt: skip
from lorec.runfile import RunFile, arms_of, plain
from lorec.sources import prepared
from lorec.stages import check, forged, is_known, known_of, needs_text, said_of, text_of
from lorec.text import TextVectors
from lorec.training import Fit, Follow, Progress, choose_device, fit

_logger = logging.getLogger(__name__)

__all__ = ["CLEAN", "detected", "reevaluate", "run", "save_recommendations"]


CLEAN = ("backbone", "items", "loss", "training", "seed")
"""Keys of a run file that a clean model hangs on, besides the log and its texts."""
ARM_FILES = (
    "model.safetensors", "history.jsonl", "ranks.parquet", "weights.parquet", "interactions.parquet", "harm.parquet",
    "scorecard.json",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- the job


@dataclass(frozen=True)
class _Job:
    """What every arm of a run shares."""

    config: RunFile
    folder: Path
    clean: Split
    bad: Split
    poison: Poison
    known: tuple[Poison, ...]
    text: TextVectors
    shared: Path | None
    watch: Watch


def run(
    config: RunFile,
    folder: str | Path,
    *,
    cache: str | Path | None = None,
    shared: str | Path | None = None,
    keep_going: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Do the whole job and leave its record in `folder`; a folder of the same run is continued.

    Through the folder `shared`, runs side by side make each poison and train each clean model once. With `keep_going`
    a defense that fails does not stop the others: the scorecard says under `failed` what it said, and the run stays
    unfinished, so that the same call tries again.

    Raises ConfigError, DataError or RunError before hours are spent wherever that can be known.
    """
    folder, shared, watch = Path(folder), Path(shared) if shared else None, watch or (lambda _: None)
    arms_of(config)
    choose_device(config.training.device)
    record = begun(config, folder)
    watch(Event("read the log", 0, 1))
    clean = prepared(config.data, config.split)
    watch(Event("read the log", 1, 1, f"{clean.name}: {clean.size()}", finished=True))
    if record.get("data", {"digest": clean.digest()})["digest"] != clean.digest():
        raise RunError(f"the log has changed since {folder} was begun; choose another --out, or delete the folder")
    if record["finished"]:
        _same_inputs(record, _inputs(config, clean), folder)
        opened = open_run(folder, plugins=True)  # the caller has named them
        for event in again(opened):
            watch(event)
        return opened
    text = text_of(config, clean, cache, watch)
    check(config, clean, text)
    inputs = _inputs(config, clean) | {"text": text.identity() if needs_text(config) else None}
    with alone(folder):
        record = begun(config, folder)  # as it stands now that nobody else is at work on it
        _same_inputs(record, inputs, folder)
        return _run(config, folder, clean, text, record, inputs, shared, keep_going, watch)


def _run(
    config: RunFile,
    folder: Path,
    clean: Split,
    text: TextVectors,
    record: dict[str, Any],
    inputs: Mapping[str, Any],
    shared: Path | None,
    keep_going: bool,
    watch: Watch,
) -> Run:
    job = _prepared(config, folder, clean, text, shared, watch)
    seal(record, folder, [])  # before any other file: whatever a killed run leaves is known to be a run's
    record["inputs"] = json.loads(json.dumps(inputs))
    data = {"digest": clean.digest(), "poison": job.poison.profiles.digest(), **clean.record}
    record["data"] = json.loads(json.dumps(data))
    clean.catalog.save(folder / "catalog.parquet")
    save_poison(job.poison, clean.catalog, folder / "poison")
    without_draft(folder / "poison")
    seal(record, folder, ["catalog.parquet", "poison/profiles.parquet", "poison/poison.json"])

    done, said, failed = _arms(job, arms_of(config), record, keep_going)
    arms = _compared(folder, done, len(clean.catalog))
    works = success_removed(arms["clean"], arms["poisoned"], arms["poisoned"], 50, len(clean.catalog)) is not None
    kinds = job.known[0].provenance["kinds"]
    floor = Popularity(clean.train.counts(len(clean.catalog)))
    scorecard = {
        "arms": arms,
        "failed": failed,
        "popularity": evaluate(floor, clean, targets=job.poison.targets).metrics,
        "chance T-HR@50": min(1.0, 50 / len(clean.catalog)),
        "attack works": works,
        "known kinds": kinds,
        "judged kind is known": is_known(job.poison.provenance, kinds),
        "notes": [*_notes(job, arms, works), *said],
    }
    if record["files"].pop("scorecard.json", None):  # of a try where an arm failed
        seal(record, folder, [])
    write_json(folder / "scorecard.json", scorecard)
    record["finished"] = not failed
    watch(dataclasses.replace(all_judged(arms), finished=True, again=False))
    seal(record, folder, ["scorecard.json"])
    return Run(folder, config, record, scorecard, plugins=True)


def _prepared(
    config: RunFile, folder: Path, clean: Split, text: TextVectors, shared: Path | None, watch: Watch
) -> _Job:
    poison = _poison(config, folder / "poison", clean, text, shared, watch)
    bad = inject(clean, poison, config.seed)
    for defense in config.defenses:
        _told(defense, bad)  # a file of weights that does not fit is said now
    known = known_of(config, bad, poison.provenance["attack"])
    return _Job(config, folder, clean, bad, poison, known, text, shared, watch)


def _poison(config: RunFile, made: Path, clean: Split, text: TextVectors, shared: Path | None, watch: Watch) -> Poison:
    """The run's poison: what an interrupted run has made already is checked, and is taken as it is."""
    if (made / "poison.json").exists():
        return open_poison(made, clean)
    if shared is None or isinstance(config.attack, Stored):
        return forged(config, clean, text, made, watch)
    read = text.identity() if config.attack.needs_text else None
    values = {key: plain(config)[key] for key in ("attack", "targets", "seed")}
    kept = shared / "poisons" / key_of(values | {"log": clean.digest(), "text": read})

    def make() -> list[str]:
        save_poison(forged(config, clean, text, kept, watch), clean.catalog, kept)
        without_draft(kept)
        return ["profiles.parquet", "poison.json"]

    once(kept, make)
    return open_poison(kept, clean)


def _inputs(config: RunFile, clean: Split) -> dict[str, Any]:
    """Digests of what a run reads besides its log: files of weights, a stored poison."""
    weights = {one.path: sha256(Path(one.path)) for one in config.defenses if isinstance(one, WeightFile)}
    stored = open_poison(config.attack.path, clean) if isinstance(config.attack, Stored) else None
    told = None if stored is None else [stored.profiles.digest(), clean.catalog.ids(stored.targets)]
    return {"file of weights": weights, "stored poison": told}


def _same_inputs(record: Mapping[str, Any], inputs: Mapping[str, Any], folder: Path) -> None:
    """Raise RunError where a run reads something else now than when it was begun."""
    before = record.get("inputs", {})
    for name, value in json.loads(json.dumps(inputs)).items():
        if before.get(name, value) != value:
            what = "what encodes texts" if name == "text" else f"a {name}"
            raise RunError(f"{what} has changed since {folder} was begun; choose another --out, or delete the folder")


def _arms(
    job: _Job, wanted: Mapping[str, Defense], record: dict[str, Any], keep_going: bool
) -> tuple[dict[str, dict[str, float]], list[str], dict[str, str]]:
    """Train and judge every arm; each arm's metrics, notes of all, and what those said that failed."""
    done: dict[str, dict[str, float]] = {}
    notes: dict[str, list[str]] = {}
    failed: dict[str, str] = {}
    for name in sorted(wanted, key=lambda name: name == "clean" and _is_made_elsewhere(job)):
        try:
            done[name], notes[name] = _arm(job, name, wanted[name])
        except Exception as error:
            if not keep_going or name in ("clean", "poisoned") or isinstance(error, DiskError):
                raise
            _logger.exception("%s failed", name)
            failed[name] = f"{type(error).__name__}: {error}"
            job.watch(Event(name, 1, 1, f"failed: {failed[name]}", finished=True, of="arm"))
            continue
        seal(record, job.folder, [f"{name}/{file}" for file in ARM_FILES if (job.folder / name / file).exists()])
    told = [f"{name}: {note}." for name in wanted for note in notes.get(name, ())]
    return {name: done[name] for name in wanted if name in done}, told, failed


def _compared(folder: Path, arms: Mapping[str, dict[str, float]], n_items: int) -> dict[str, dict[str, float]]:
    """Each arm's metrics with what it takes other arms to say: attack success removed, overlap with the clean lists."""
    lists = {name: pl.read_parquet(folder / name / "ranks.parquet", columns=["user", "top"]) for name in arms}
    found = {}
    for name, metrics in arms.items():
        more: dict[str, float] = {} if name == "clean" else {"overlap@10": overlap(lists[name], lists["clean"])}
        removed = success_removed(arms["clean"], arms["poisoned"], metrics, 50, n_items)
        if name not in ("clean", "poisoned") and removed is not None:
            more["success removed"] = removed
        found[name] = metrics | more
    return found


def _notes(job: _Job, arms: Mapping[str, Mapping[str, float]], attack_works: bool) -> list[str]:
    """What a reader of the figures must know."""
    notes = [
        "Epochs were selected on genuine users' validation items; knowing who is genuine is a concession.",
        f"One seed ({job.config.seed}): differences between arms may be chance.",
        *said_of(job.poison, job.known),
    ]
    untold = job.clean.record["items without text"]
    if untold:
        notes.append(f"{untold} of {len(job.clean.catalog)} items have no text; their text vectors are zero.")
    if not len(job.poison.profiles):
        notes.append("Nobody attacks: arms show what defenses cost a clean log; clean and poisoned differ by chance.")
    elif not attack_works:
        notes.append(
            f"The attack did not work on the undefended model (T-HR@50 {arms['poisoned']['T-HR@50']:.4f}; it should be "
            "at least five times the clean model's and above chance): attack success removed has no meaning here."
        )
    notes += [told for one in job.config.defenses if isinstance(one, WeightFile) for told in one.remarks(job.bad.users)]
    for name, metrics in arms.items():
        if "never in force" in metrics:
            notes.append(f"{name} begins after the last epoch of this training: its arm is undefended.")
        untouched = metrics.get("genuine interactions turned down") == 0 and metrics.get("lies' weight", 1) >= 1
        if name not in ("clean", "poisoned", "oracle") and untouched:
            notes.append(f"{name} never turned anybody down.")
        elif metrics.get("ROC-AUC", 1.0) < 0.6:
            notes.append(
                f"{name} does not tell fraudsters from genuine users (ROC-AUC {metrics['ROC-AUC']:.2f}); whatever its "
                "arm does differently has another cause, such as longer training."
            )
    return notes


# --------------------------------------------------------------------------------------------------------------- an arm


def _arm(job: _Job, name: str, defense: Defense) -> tuple[dict[str, float], list[str]]:
    """Train and judge one arm, unless that is done; its folder is complete once scorecard.json is there.

    Its metrics, and what a reader of them must know.
    """
    folder = job.folder / name
    if (folder / "scorecard.json").exists():
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        for event in arm_again(name, folder / "history.jsonl"):
            job.watch(event)
        job.watch(Event(name, 1, 1, "done before", finished=True, of="arm", resumed=True))
        kept = read_json(folder / "scorecard.json")
        return kept, kept.pop("notes", [])
    split = job.clean if name == "clean" else job.bad
    started, counted = time.perf_counter(), forget_peak()
    shared = _clean_folder(job) if name == "clean" else None
    trained = _fitted(job, name, defense, folder) if shared is None else _shared(job, name, defense, shared)
    card = evaluate(trained.recommender, split, targets=job.poison.targets, top=10)
    metrics = card.metrics | (detected(trained.guard, split, job.poison.targets) if name != "clean" else {})
    metrics |= {"best epoch": trained.best_epoch, "epochs": len(trained.history)}
    if not trained.guard.ready:
        metrics["never in force"] = 1.0
    metrics["seconds an epoch"] = float(np.median([row["seconds"] for row in trained.history]))
    metrics["training seconds"] = trained.seconds
    if counted and shared is None:  # a shared model may be another process's
        metrics["peak MB"] = peak_memory() / 1e6
    trained.recommender.save(folder / "model.safetensors")
    _save_history(folder / "history.jsonl", trained.history)
    write_parquet(folder / "ranks.parquet", card.users)
    if trained.guard.suspicion is not None:
        _save_weights(folder / "weights.parquet", split, trained)
        write_parquet(folder / "harm.parquet", harmed(trained.weights, split, trained.guard.flagged))
    if trained.guard.interactions is not None:
        _save_interactions(folder / "interactions.parquet", split, trained)
    notes = list(trained.guard.notes)
    write_json(folder / "scorecard.json", metrics | {"notes": notes} if notes else metrics)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    summary = f"HR@10 {metrics['HR@10']:.4f} in {time.perf_counter() - started:.0f} s"
    job.watch(Event(name, 1, 1, summary, finished=True, of="arm"))
    return metrics, notes


def _fitted(job: _Job, name: str, defense: Defense, folder: Path) -> Fit:
    """Train an arm, with its checkpoint in a folder."""
    split, config = job.clean if name == "clean" else job.bad, job.config
    return fit(
        split,
        config.backbone,
        items=config.items,
        text=job.text,
        loss=config.loss,
        defense=_told(defense, split),
        known=None if name == "clean" else job.known,
        training=config.training,
        seed=config.seed,
        checkpoint=folder / "checkpoint.safetensors",
        watch=lambda progress: job.watch(_event(name, progress)),
        follow=_follow(job, split),
    )


def _event(name: str, progress: Progress) -> Event:
    note = f"epoch {progress.epoch}/{progress.epochs} loss {progress.loss:.4f}"
    if "valid NDCG@10" in progress.figures:
        note += f" valid NDCG@10 {progress.figures['valid NDCG@10']:.4f}"
    done = (progress.epoch - 1) * progress.steps + progress.step
    return Event(
        name, done, progress.epochs * progress.steps, note, epoch=progress.epoch, figures=progress.figures, of="arm"
    )


def _follow(job: _Job, split: Split) -> Follow | None:
    """Looks at the targets' exposure every few epochs, where that is asked for."""
    if not job.config.follow:
        return None

    def look(recommender: Recommender, epoch: int) -> dict[str, float]:
        if epoch % job.config.follow:
            return {}
        found = evaluate(recommender, split, targets=job.poison.targets).metrics
        return {name: found[name] for name in ("T-HR@50", "HR@10")}

    return look


def _told(defense: Defense, split: Split) -> Defense:
    """With what only the experiment knows: who the fraudsters are, and who is who."""
    if isinstance(defense, Oracle):
        return defense.reveal(split.fraudsters)
    return (
        defense.of(split.users, split.train, split.catalog.ids(np.arange(1, len(split.catalog) + 1)))
        if isinstance(defense, WeightFile)
        else defense
    )


def detected(guard: Guard, split: Split, targets: Ints) -> dict[str, float]:
    """How well a guard tells fraudsters and their lies from the rest, and whom it turns down; {} without an opinion.

    As `judged` has it.
    """
    if guard.suspicion is None or guard.flagged is None:
        return {}
    found = Suspicion(users=guard.suspicion, flagged=guard.flagged, interactions=guard.interactions, items=guard.items)
    return judged(found, split, targets, guard.weights)


def _save_history(path: Path, history: list[dict[str, float]]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")


def _save_weights(path: Path, split: Split, trained: Fit) -> None:
    """Every user's weight, worst first; `injected` is what only the experiment knows."""
    weights, suspicion = trained.weights.of_users(split.train), trained.guard.suspicion
    columns = {"user": split.users, "weight": weights, "suspicion": suspicion, "injected": split.fraudsters}
    if trained.guard.likelihood is not None:
        columns["likelihood"] = trained.guard.likelihood
    write_parquet(path, pl.DataFrame(columns).sort("suspicion", "user", descending=[True, False]))


def _save_interactions(path: Path, split: Split, trained: Fit) -> None:
    """Every training interaction's weight and likelihood, in order of users and positions."""
    frame = pl.DataFrame(
        {
            "user": split.users.gather(split.train.users()),
            "position": split.train.positions(),
            "item": split.catalog.ids(split.train.items),
            "weight": trained.weights.of_events(split.train),
            "suspicion": trained.guard.interactions,
        }
    )
    write_parquet(path, frame)


# -------------------------------------------------------------------------------------- the clean model that runs share


def _clean_folder(job: _Job) -> Path | None:
    """Where runs share the clean model of this log, recommender, training and seed, which no attack touches."""
    if job.shared is None:
        return None
    config = plain(job.config)
    values = {key: config[key] for key in CLEAN}
    read = job.text.identity() if job.config.items != "ids" else None
    followed = [job.config.follow, job.poison.targets.tolist()] if job.config.follow else None
    return job.shared / "clean" / key_of(values | {"log": job.clean.digest(), "text": read, "followed": followed})


def _is_made_elsewhere(job: _Job) -> bool:
    """Whether another process trains the clean model right now, so that the other arms are better done first."""
    folder = _clean_folder(job)
    if folder is None or (folder / "made.json").exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", blocking=False):
            return False
    except Timeout:
        return True


def _shared(job: _Job, name: str, defense: Defense, folder: Path) -> Fit:
    """A fit that the first of many runs makes and the others take up. It has no opinion of its own on anybody."""
    mine = []

    def make() -> list[str]:
        mine.append(name)
        trained = _fitted(job, name, defense, folder)
        trained.recommender.save(folder / "model.safetensors")
        _save_history(folder / "history.jsonl", trained.history)
        write_json(folder / "fit.json", {"best epoch": trained.best_epoch})
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        return ["model.safetensors", "history.jsonl", "fit.json"]

    once(folder, make)
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    for event in () if mine else arm_again(name, folder / "history.jsonl"):
        job.watch(event)
    model = load_recommender(folder / "model.safetensors", plugins=True).to(choose_device(job.config.training.device))
    return Fit(model, Guard(), [json.loads(line) for line in lines], read_json(folder / "fit.json")["best epoch"])


# ---------------------------------------------------------------------------------------------------- from saved models


def save_recommendations(
    path: Path,
    recommender: Recommender,
    log: Sequences,
    catalog: Catalog,
    k: int = 10,
    *,
    users: pl.Series,
    seen: bool = False,
    without: Ints | None = None,
    block: int = 20_000,
) -> int:
    """Write the top k of every history as Parquet, `block` users at a time, so that memory stays flat; its rows.

    The columns are those of `Recommender.recommend`. Raises what that does, and ConfigError for a name that says that
    the file is something else, and for a file that is something else.
    """
    if path.suffix.lower() not in ("", ".parquet", ".pq"):
        raise ConfigError(f"{path} would hold Parquet, whatever its name says; call it {path.with_suffix('.parquet')}")
    schema = recommender.recommend(log.take(np.arange(0)), catalog, k, users=users[:0]).schema
    if path.exists() and _columns(path) != list(schema):
        raise ConfigError(f"{path} is there and holds no recommendations; choose another name, or remove it first")
    rows = 0

    def blocks(*_: object) -> Iterator[pl.DataFrame]:
        nonlocal rows
        for start in range(0, len(log), block):
            some = np.arange(start, min(start + block, len(log)))
            found = recommender.recommend(
                log.take(some), catalog, k, users=users[start : start + block], seen=seen, without=without
            )
            rows += found.height
            yield found

    with replacing(path) as temporary:
        register_io_source(blocks, schema=schema).sink_parquet(temporary)
    return rows


def _columns(path: Path) -> list[str]:
    """Of a Parquet file; none where it is something else."""
    try:
        return list(pl.read_parquet_schema(path))
    except (OSError, pl.exceptions.PolarsError):
        return []


def reevaluate(opened: Run, arms: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Judge saved models again on the log as the configuration reads it. Raises RunError where the log has changed."""
    split = prepared(opened.config.data, opened.config.split)
    if split.digest() != opened.record["data"]["digest"]:
        raise RunError(f"the log is not the one that {opened.folder} was trained on; put it back, or run again")
    provenance = read_json(checked(opened.folder, "poison/poison.json", opened.record))
    targets = split.catalog.numbers(provenance["targets"])
    return {
        arm: evaluate(opened.recommender(arm), split, targets=targets).metrics for arm in (arms or list(opened.arms))
    }
