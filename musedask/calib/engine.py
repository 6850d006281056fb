"""Recipes on either engine: one call for each IFU, all of them tried, whole products or none.

A call runs in a folder of its own and in any process; what it made gets its final name by a rename when the call is
over.  Each call leaves its log and a record (see `musedask.calib.provenance`) beside the products.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import compute
from ..errors import InputError, MusedaskError, OutputExistsError, PlanError, RecipeError
from ..instrument import N_IFUS
from ..io.sof import Frame, known_frames, read_sof
from ..recipe import Recipe
from ..recipes import NATIVE, get_recipe
from . import esorex as drs
from .frames import check_frames, ifus_of
from .names import may_be_made
from .provenance import CallRecord, FileRecord, native_environment, package_versions, write_record
from .registry import has_native, native_recipes
from .task import Task

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

Engine = Literal["auto", "esorex", "native"]
PathLike = str | os.PathLike[str]
#: what can be given as frames
Frames = PathLike | Iterable[Frame | tuple[PathLike, str] | PathLike]

#: memory that a call is expected to take [bytes]
_CALL_MEMORY = 1_300_000_000
#: resource of workers that esorex takes one of, if they declare it
RESOURCE = "esorex"
#: file in the folder of a run that tells whose it is
OWNER = "owner"


# --- what is to be done ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One call of a recipe; it can be sent to another process.

    Attributes
    ----------
    recipe : Recipe
    ifu : int or None
    frames : tuple of Frame
        Those that the call needs.
    values : mapping of str to object
        All parameters.
    engine : str
        ``esorex`` or ``native``.
    output_dir : Path
        Where products go.
    logs : Path
        Where log and record go.
    stem : str
        Of their names.
    scratch : Path
        Where the folder of the call is made.
    threads : int or None
        Threads of the call, None for those of the worker that it runs on.
    alone : bool
        Whether no other call runs in this process at the time.
    timeout : float or None
        [s]
    executable : str
        esorex.
    function : str
        Native function, ``module:name``.
    overwrite, keep_scratch : bool
    names : mapping of str to str
        Products that get other names than the recipe's.
    record_file : Path or None
        Where the record goes, if not beside the log.
    """

    recipe: Recipe
    ifu: int | None
    frames: tuple[Frame, ...]
    values: Mapping[str, Any]
    engine: str
    output_dir: Path
    logs: Path
    stem: str
    scratch: Path
    threads: int | None = None
    alone: bool = False
    timeout: float | None = None
    executable: str = "esorex"
    function: str = ""
    overwrite: bool = True
    keep_scratch: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    record_file: Path | None = None

    @property
    def record_path(self) -> Path:
        """File of the record."""
        return self.record_file or self.logs / f"{self.stem}.json"

    @property
    def name(self) -> str:
        """The recipe, or the IFU where it works on one."""
        return self.recipe.name if self.ifu is None else f"IFU {self.ifu}"

    def blank_record(self) -> CallRecord:
        """Record of a call that has not begun."""
        return CallRecord(
            self.recipe.name, self.ifu, self.engine, dict(self.values), host=platform.node(), started=_now()
        )


@dataclass(frozen=True)
class Plan:
    """What a run of a recipe will do.

    Attributes
    ----------
    recipe : Recipe
    engine : str
    calls : tuple of Call
    refused : tuple of CallRecord
        Calls that cannot be made, with the reasons.
    workers : int or None
        Calls that run at a time in this process; None on a cluster.
    """

    recipe: Recipe
    engine: str
    calls: tuple[Call, ...]
    refused: tuple[CallRecord, ...]
    workers: int | None

    def describe(self) -> str:
        """Text about it: the calls, their frames and parameters."""
        lines = [self.headline()]
        for call in self.calls:
            lines.append(f"{call.name}: {len(call.frames)} frames, products in {call.output_dir}")
            lines += [f"  {frame.path} {frame.tag}" for frame in call.frames]
        if self.calls:
            first = self.calls[0]
            if first.engine == "esorex":
                command = drs.command_line(first.executable, first.recipe, first.values, "frames.sof")
                lines.append(f"command of {first.name}: {' '.join(command)}")
            else:
                lines.append("parameters: " + ", ".join(f"{k}={v}" for k, v in first.values.items()))
        lines += [f"{record.name}: not possible: {record.reason}" for record in self.refused]
        return "\n".join(lines)

    def headline(self) -> str:
        """One line about it."""
        n = len(self.calls)
        what = f"{n} IFU{'s' * (n != 1)}" if self.recipe.per_ifu else f"{n} call{'s' * (n != 1)}"
        at_a_time = "" if self.workers is None or n < 2 else f", {min(self.workers, n)} at a time"
        threads = self.calls[0].threads if self.calls else None
        each = "" if not threads else f", {threads} thread{'s' * (threads != 1)} each"
        return f"{self.recipe.name}, engine {self.engine}: {what}{at_a_time}{each}"


class Products(Sequence[Frame]):
    """Products of a run of a recipe: a sequence of frames, which the next recipe can be given.

    Attributes
    ----------
    records : list of CallRecord
        One for each call, in the order of the IFUs.
    """

    def __init__(self, records: Iterable[CallRecord], merged: Iterable[Frame] = ()) -> None:
        self.records = sorted(records, key=lambda r: r.ifu or 0)
        self._merged = list(merged)

    @property
    def frames(self) -> list[Frame]:
        """All of them, in the order of the IFUs."""
        own = [Frame(Path(f.path), f.tag) for r in self.records for f in r.products if f.merged_into is None]
        return own + self._merged

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: Any) -> Any:
        return self.frames[index]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames)

    def __repr__(self) -> str:
        return f"<{len(self)} products of {len(self.records)} calls, {len(self.failures)} failed>"

    def select(self, tag: str, ifu: int | None = None) -> list[Frame]:
        """Products of a tag, of all IFUs or one; those of several IFUs in one file belong to each."""
        found = [
            Frame(Path(f.path), f.tag)
            for record in self.records
            if ifu is None or record.ifu in (None, ifu)
            for f in record.products
            if f.tag == tag and f.merged_into is None
        ]
        return found + [f for f in self._merged if f.tag == tag]

    @property
    def failures(self) -> list[CallRecord]:
        """Records of the calls that failed."""
        return [record for record in self.records if not record.ok]

    @property
    def warnings(self) -> list[str]:
        """Warnings of all calls, each once, with the IFUs."""
        found: dict[str, list[int | None]] = {}
        for record in self.records:
            for text in record.warnings:
                found.setdefault(text, []).append(record.ifu)
        return [_with_ifus(text, ifus) for text, ifus in found.items()]


def _with_ifus(text: str, ifus: Sequence[int | None]) -> str:
    numbers = [i for i in ifus if i is not None]
    return f"{_ifu_text(numbers)}: {text}" if numbers else text


def _ifu_text(ifus: Sequence[int]) -> str:
    """``IFU 3``, ``IFUs 1-4, 7``."""
    spans: list[list[int]] = []
    for ifu in sorted(ifus):
        if spans and ifu == spans[-1][1] + 1:
            spans[-1][1] = ifu
        else:
            spans.append([ifu, ifu])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"IFU{'s' * (len(ifus) != 1)} {text}"


# --- planning --------------------------------------------------------------------------------------


def run_recipe(
    recipe: str | Recipe,
    frames: Frames,
    *,
    engine: Engine = "auto",
    ifus: Iterable[int] | int | None = None,
    client: Client | None = None,
    output_dir: PathLike = ".",
    n_workers: int | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    scratch: PathLike | None = None,
    keep_scratch: bool = False,
    overwrite: bool = True,
    esorex: str = "esorex",
    **parameters: Any,
) -> Products:
    """Run a recipe, for every IFU where it works on one.

    Parameters
    ----------
    recipe : str or Recipe
        ``muse_bias`` etc.
    frames : path-like or iterable
        A set of frames (SOF), several of them, or frames: `Frame` or pairs of path and tag.
    engine : {"auto", "esorex", "native"}
        What computes: the recipe of the reference pipeline as a child process, or that of this package; ``auto``
        takes the latter where there is one.
    ifus : iterable of int or int, optional
        IFUs, 1..24; by default what the parameter ``nifu`` says, and if it says all, those of the raw frames.
    client : distributed.Client, optional
        Default: the current one, else threads of this process.
    output_dir : path-like
        Where products go; it is made if need be.  Logs and records go into its folder ``logs``.
    n_workers : int, optional
        Calls at a time without a client; default: as many as there are CPUs and memory.
    threads : int, optional
        Threads of a call.
    timeout : float, optional
        Time of a call [s].  A native call can only be ended between its products.
    scratch : path-like, optional
        Where calls have their folders; default: in `output_dir`, so that products need not be copied.
    keep_scratch : bool
        Whether to leave these folders.
    overwrite : bool
        Whether products may replace files of their names.
    esorex : str
        Name or path of the program.
    **parameters
        Parameters of the recipe, by their names in the reference pipeline.

    Returns
    -------
    Products

    Raises
    ------
    InputError
        If a frame, a parameter or the recipe is wrong for all calls.
    OutputExistsError
        If a product is there already and `overwrite` is false.
    RecipeError
        If calls failed; all others are finished then, see `RecipeError.result`.
    """
    client = compute.resolve_client(client)
    plan = plan_recipe(
        recipe, frames, engine=engine, ifus=ifus, cluster=client is not None, output_dir=output_dir,
        n_workers=n_workers, threads=threads, timeout=timeout, scratch=scratch, keep_scratch=keep_scratch,
        overwrite=overwrite, esorex=esorex, **parameters,
    )  # fmt: skip
    return execute(plan, client)


def plan_recipe(
    recipe: str | Recipe,
    frames: Frames,
    *,
    engine: Engine = "auto",
    ifus: Iterable[int] | int | None = None,
    cluster: bool = False,
    output_dir: PathLike = ".",
    n_workers: int | None = None,
    threads: int | None = None,
    timeout: float | None = None,
    scratch: PathLike | None = None,
    keep_scratch: bool = False,
    overwrite: bool = True,
    esorex: str = "esorex",
    **parameters: Any,
) -> Plan:
    """Check the input and say what `run_recipe` will do, without doing it.

    Parameters
    ----------
    cluster : bool
        Whether the calls will run on a cluster.
    recipe, frames, engine, ifus, output_dir, n_workers, threads, timeout, scratch, keep_scratch, overwrite, esorex
        See `run_recipe`.
    **parameters
        Likewise.

    Returns
    -------
    Plan

    Raises
    ------
    InputError, OutputExistsError
        See `run_recipe`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    values = recipe.resolve(parameters)
    chosen = choose_engine(recipe, engine)
    for name, number in (("n_workers", n_workers), ("threads", threads), ("timeout", timeout)):
        if number is not None and not number > 0:
            raise InputError(f"{name} {number} found, expected a positive number")
    given = _given_frames(frames)
    # it warns of tags that are not known; the others are told if frames are missing
    known_frames(recipe, given)
    wanted = _wanted_ifus(recipe, given, ifus, values)
    # all that differs from call to call is set below
    pattern = Call(
        recipe, None, (), values, chosen, Path(output_dir), Path(output_dir) / "logs", "",
        Path(output_dir if scratch is None else scratch), timeout=timeout, executable=esorex,
        function=NATIVE.get(recipe.name, ""), overwrite=overwrite, keep_scratch=keep_scratch,
    )  # fmt: skip
    calls, refused = [], []
    for ifu in wanted:
        call = replace(pattern, ifu=ifu, values=values if ifu is None else {**values, "nifu": ifu})
        try:
            call = replace(call, frames=tuple(check_frames(recipe, given, ifu)))
            _check_names(call)
            calls.append(call)
        except OutputExistsError:
            raise
        except InputError as error:
            reason = str(error).removeprefix(f"{recipe.name}, IFU {ifu}: ").removeprefix(f"{recipe.name}: ")
            refused.append(_changed(call.blank_record(), status="failed", errors=[reason]))
    workers = None
    if not cluster:
        workers = n_workers or max(1, min(compute.default_workers(), _memory_workers()))
        at_a_time = max(1, min(workers, len(calls)))
        threads = threads or max(1, compute.default_workers() // at_a_time)
        calls = [replace(call, threads=threads, alone=at_a_time == 1) for call in calls]
    elif threads is not None:
        calls = [replace(call, threads=threads) for call in calls]
    return Plan(recipe, chosen, tuple(calls), tuple(refused), workers)


def _changed(record: CallRecord, **changes: Any) -> CallRecord:
    """Change attributes of a record."""
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def choose_engine(recipe: Recipe, engine: str) -> str:
    """The engine that will run a recipe; ``auto`` is native where there is one.

    Raises
    ------
    InputError
        If there is no such engine, or it does not have the recipe.
    """
    if engine not in ("auto", "esorex", "native"):
        raise InputError(f"engine {engine!r} found, expected auto, esorex or native")
    if engine == "auto":
        return "native" if has_native(recipe.name) else "esorex"
    if engine == "native" and not has_native(recipe.name):
        names = ", ".join(native_recipes()) or "none"
        raise InputError(f"{recipe.name} is not among the recipes of the engine native ({names}); use esorex")
    return engine


def _given_frames(frames: Frames) -> list[Frame]:
    """Frames of whatever they were given as."""
    if isinstance(frames, str | os.PathLike):
        return read_sof(frames)
    found: list[Frame] = []
    for item in frames:
        if isinstance(item, Frame):
            found.append(item)
        elif isinstance(item, str | os.PathLike):
            found += read_sof(item)
        else:
            try:
                path, tag = item
            except (TypeError, ValueError):
                raise InputError(f"frame {item!r} found, expected a path and a tag") from None
            found.append(Frame(Path(path), str(tag)))
    return found


def _wanted_ifus(
    recipe: Recipe, frames: Sequence[Frame], ifus: Iterable[int] | int | None, values: Mapping[str, Any]
) -> list[int | None]:
    if not recipe.per_ifu:
        if ifus is not None:
            raise InputError(f"{recipe.name} does not work on single IFUs, but IFUs were asked for")
        return [None]
    nifu = values["nifu"]
    if ifus is None:
        return list(ifus_of(recipe, frames)) if nifu < 1 else [nifu]
    numbers = [ifus] if isinstance(ifus, int) else list(ifus)
    wrong = [i for i in numbers if isinstance(i, bool) or not isinstance(i, int) or not 1 <= i <= N_IFUS]
    if wrong or not numbers:
        raise InputError(f"IFUs {wrong or numbers} found, expected numbers from 1 to {N_IFUS}")
    if nifu > 0 and set(numbers) != {nifu}:
        raise InputError(f"nifu {nifu} and ifus {numbers} found, expected one or the other")
    return list(dict.fromkeys(sorted(numbers)))


def _check_names(call: Call) -> None:
    """Check that no input and no file to be kept has the name of a product."""
    folder = call.output_dir.resolve()
    for frame in call.frames:
        path = frame.path.resolve()
        if path.parent == folder and may_be_made(path.name, call.recipe, call.ifu):
            raise InputError(f"{frame.path}: a product may have the name of this input; choose another output_dir")
    if not call.overwrite:
        for product in call.recipe.products:
            path = call.output_dir / product.file_name(call.ifu)
            if product.expected(call.values) is not False and path.exists():
                raise OutputExistsError(f"{path}: exists already; give --overwrite (overwrite=True) to replace it")


def _memory_workers() -> int:
    return max(1, int(compute.default_memory_limit() / 0.6 // _CALL_MEMORY))


# --- doing it --------------------------------------------------------------------------------------


def execute(plan: Plan, client: Client | None = None) -> Products:
    """Do what was planned; see `run_recipe` for what is returned and raised.

    Parameters
    ----------
    plan : Plan
    client : distributed.Client, optional
        None runs the calls in threads of this process.
    """
    records = list(plan.refused)
    if not plan.calls:
        raise RecipeError(_failure_text(plan, records), Products(records))
    log.info("%s", plan.headline())
    started = time.monotonic()
    with _workplace(plan) as calls:
        given_up = threading.Event()
        by_name = {call.name: call for call in calls}

        def lost(call: Call, error: BaseException) -> None:
            text = f"{type(error).__name__}: {error}"
            records.append(_changed(call.blank_record(), status="failed", errors=[text], ended=_now()))

        compute.run_tasks(
            partial(run_call, cancelled=given_up.is_set) if client is None else run_call,
            list(by_name.values()),
            client=client,
            n_workers=plan.workers,
            label=plan.recipe.name,
            on_result=lambda call, record: records.append(record),
            on_error=lost,
            on_abort=given_up.set,
            resources=_resources(client) if plan.engine == "esorex" else None,
        )
    result = Products(records)
    if plan.recipe.per_ifu and plan.calls[0].values.get("merge") and len(records) > 1:
        if result.failures:
            log.warning("%s: the products are not merged, since IFUs are missing", plan.recipe.name)
        else:
            try:
                result = _merge(plan, result)
            except MusedaskError as error:
                text = f"{plan.recipe.name}: all IFUs are finished, but their products could not be merged: {error}"
                raise RecipeError(text, result) from error
    _tell(plan, result, time.monotonic() - started)
    if result.failures:
        raise RecipeError(_failure_text(plan, result.failures), result)
    return result


def _tell(plan: Plan, result: Products, seconds: float) -> None:
    for text in result.warnings[:20]:
        log.warning("%s", text)
    if len(result.warnings) > 20:
        log.warning("%d more warnings are in the logs", len(result.warnings) - 20)
    done = [r for r in result.records if r.ok]
    log.info(
        "%s: %d of %d done in %.1f s, %d product%s in %s", plan.recipe.name, len(done), len(result.records), seconds,
        len(result), "s" * (len(result) != 1), plan.calls[0].output_dir,
    )  # fmt: skip


def _failure_text(plan: Plan, failures: Sequence[CallRecord]) -> str:
    """Every IFU that failed, with its reason and its log; those with the same reason together."""
    reasons: dict[str, list[CallRecord]] = {}
    for record in sorted(failures, key=lambda r: r.ifu or 0):
        reasons.setdefault(record.reason, []).append(record)

    def text(reason: str, records: Sequence[CallRecord]) -> str:
        logs = [r.log for r in records if r.log]
        where = f" (log {logs[0]}{', ...' * (len(logs) > 1)})" if logs else ""
        return _with_ifus(reason, [r.ifu for r in records]) + where

    name, total = plan.recipe.name, len(plan.calls) + len(plan.refused)
    lines = [text(reason, records) for reason, records in reasons.items()]
    if total == 1 or (len(lines) == 1 and len(failures) == total):
        return f"{name} failed: {lines[0]}"
    others = "" if len(failures) == total else ", the others are finished"
    return f"{name} failed for {len(failures)} of {total} IFUs{others}:\n" + "\n".join(f"  {line}" for line in lines)


def _resources(client: Client | None) -> dict[str, float] | None:
    """What an esorex task takes, if the workers declare it."""
    if client is None:
        return None
    try:
        info = client.scheduler_info(n_workers=-1)
    except TypeError:
        info = client.scheduler_info()
    return {RESOURCE: 1} if any(RESOURCE in (w.get("resources") or {}) for w in info["workers"].values()) else None


# --- folders ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workplace(plan: Plan) -> Iterator[list[Call]]:
    """Make the folders of products, logs and work; the last goes away again, also those of runs that were killed."""
    first = plan.calls[0]
    for folder in (first.output_dir, first.logs, first.scratch):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made: {error.strerror}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder}: cannot be written to")
    sweep(first.scratch)
    stamp = f"{plan.recipe.name}_{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for number in range(1, 1000):
        stem = stamp if number == 1 else f"{stamp}_{number}"
        if any(first.logs.glob(f"{stem}.*")) or any(first.logs.glob(f"{stem}-[0-9][0-9].*")):
            continue
        root = first.scratch.absolute() / f".musedask-{stem}"
        with contextlib.suppress(FileExistsError):
            root.mkdir()
            break
    try:
        if not first.keep_scratch:
            (root / OWNER).write_text(f"{platform.node()} {os.getpid()}\n")
        yield [
            replace(
                call, scratch=root, stem=stem if call.ifu is None else f"{stem}-{call.ifu:02d}",
                output_dir=call.output_dir.absolute(), logs=call.logs.absolute(),
            )
            for call in plan.calls
        ]  # fmt: skip
    finally:
        if first.keep_scratch:
            log.info("folders of the calls: %s", root)
        else:
            shutil.rmtree(root, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what is left of runs of this machine that were killed."""
    for root in folder.glob(".musedask-*"):
        try:
            host, number = (root / OWNER).read_text().split()
            if host != platform.node():
                continue
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(root, ignore_errors=True)
        except (OSError, ValueError):
            continue


# --- one call --------------------------------------------------------------------------------------


def wanted_record(call: Call) -> CallRecord:
    """Record of a call as far as its key depends on it, without doing it.

    Raises
    ------
    InputError, RecipeError
        If an input cannot be read, or there is no esorex.
    """
    record = call.blank_record()
    record.inputs = [FileRecord.of(frame, call.ifu) for frame in call.frames]
    record.versions = package_versions()
    if call.engine == "esorex":
        installation = drs.find_installation(call.executable, call.recipe.name)
        record.versions = {**record.versions, **installation.versions}
        record.environment = drs.deciding_environment(drs.child_environment(call.threads or 1))
    else:
        record.environment = native_environment()
    return record


def run_call(call: Call, cancelled: Callable[[], bool] | None = None) -> CallRecord:
    """Do one call, in any process: run it, publish its products, write its log and its record.

    Parameters
    ----------
    call : Call
    cancelled : callable, optional
        Asked now and then whether the call was given up; by default the worker of the cluster is.

    Returns
    -------
    CallRecord
        No error comes out of here; the record tells.
    """
    record = call.blank_record()
    began = time.monotonic()
    given_up = cancelled or _task_given_up()
    folder: Path | None = None
    try:
        folder = _call_folder(call)
        record.inputs = [FileRecord.of(frame, call.ifu) for frame in call.frames]
        record.threads = call.threads or _worker_threads(call.engine)
        record.log = os.fspath(call.logs / f"{call.stem}.log")
        made = (_run_esorex if call.engine == "esorex" else _run_native)(call, record, folder, given_up)
        record.products = _publish(call, made)
    except MusedaskError as error:
        record.errors.append(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            record.errors.append(f"no space left on the disk of {call.scratch}")
        else:
            record.errors.append(f"{error.filename or call.output_dir}: {error.strerror or error}")
    finally:
        if folder is not None and not call.keep_scratch:
            shutil.rmtree(folder, ignore_errors=True)
    if record.status == "running":
        record.status = "failed" if record.errors else "done"
    elif record.status == "done" and record.errors:
        record.status = "failed"
    record.ended = _now()
    record.wall_time = round(time.monotonic() - began, 3)
    if record.log and not os.path.exists(record.log):
        record.log = None
    if record.status != "cancelled":
        try:
            write_record(call.record_path, record)
        except (MusedaskError, OSError) as error:
            record.warnings.append(f"its record could not be written: {error}")
    return record


def _call_folder(call: Call) -> Path:
    """Make the folder of a call; on another machine with a disk of its own that of the run is not there."""
    name = call.name.replace(" ", "-")
    if call.scratch.is_dir():
        return Path(tempfile.mkdtemp(prefix=f"{name}.", dir=call.scratch))
    call.scratch.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{call.scratch.name}.{name}.", dir=call.scratch.parent))


def _run_esorex(call: Call, record: CallRecord, folder: Path, given_up: Callable[[], bool]) -> list[Frame]:
    installation = drs.find_installation(call.executable, call.recipe.name)
    if installation.warning:
        record.warnings.append(installation.warning)
    record.versions = {**package_versions(), **installation.versions}
    sof = drs.write_frames(folder, call.frames)
    record.command = drs.command_line(installation.executable, call.recipe, call.values, sof.name)
    record.environment = drs.deciding_environment(drs.child_environment(record.threads))
    outcome = drs.run_esorex(
        call.recipe, call.values, record.command, folder, threads=record.threads, timeout=call.timeout,
        cancelled=given_up, log=Path(record.log) if record.log else None,
    )  # fmt: skip
    record.warnings += outcome.warnings
    record.errors += outcome.errors
    record.status = outcome.status
    record.cpu_time, record.peak_memory = round(outcome.ended.cpu_time, 3), outcome.ended.peak_memory
    if outcome.ended.status < 0:
        record.signal = -outcome.ended.status
    else:
        record.exit_status = outcome.ended.status
    return outcome.products


def _run_native(call: Call, record: CallRecord, folder: Path, given_up: Callable[[], bool]) -> list[Frame]:
    # it loads what compiles, which esorex does not need
    from .native import NativeOutcome, Stopped, run_native, write_log

    record.versions = package_versions()
    record.environment = native_environment()
    task = Task(call.recipe, call.ifu, call.frames, call.values, record.threads)
    outcome = NativeOutcome()
    # other calls in other threads are not to be counted; threads of this call are, if it is alone
    clock = time.process_time if call.alone else time.thread_time
    started, trouble = clock(), ""
    try:
        run_native(task, call.function, folder, outcome, timeout=call.timeout, cancelled=given_up)
    except MusedaskError as error:
        record.errors.append(str(error))
    except Stopped as stopped:
        record.status = str(stopped)
        text = f"took longer than {call.timeout:g} s and was ended" if record.status == "timeout" else "was given up"
        record.errors.append(text)
        outcome.products = []
    except OSError:
        raise
    except Exception as error:
        trouble = traceback.format_exc()
        record.errors.append(f"unexpected {type(error).__name__}: {error}")
    finally:
        record.cpu_time = round(clock() - started, 3)
        record.peak_memory = _peak_memory()
        record.warnings += outcome.warnings
        if record.log:
            write_log(Path(record.log), outcome, more=trouble)
    missing = [
        p.tag for p in call.recipe.products
        if p.expected(call.values) and not record.errors and p.tag not in {f.tag for f in outcome.products}
    ]  # fmt: skip
    if missing:
        record.errors.append(f"there is no {', '.join(missing)}")
    return outcome.products


def _publish(call: Call, made: Sequence[Frame]) -> list[FileRecord]:
    """Give finished files their names; they are copied first where the work was done on another disk."""
    call.output_dir.mkdir(parents=True, exist_ok=True)
    staged: list[tuple[Path, Path, str]] = []
    published = []
    try:
        for frame in made:
            path = call.output_dir / call.names.get(frame.path.name, frame.path.name)
            if path.exists() and not call.overwrite:
                raise OutputExistsError(f"{path}: exists already; give --overwrite (overwrite=True) to replace it")
            source = frame.path
            if os.stat(source).st_dev != os.stat(call.output_dir).st_dev:
                source = path.with_name(f".{path.name}.{call.stem}.part")
                staged.append((source, path, frame.tag))
                shutil.copyfile(frame.path, source)
            else:
                staged.append((source, path, frame.tag))
        for source, path, tag in staged:
            os.replace(source, path)
            published.append(FileRecord.of(Frame(path, tag), call.ifu))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlanError(f"{call.output_dir}: no space left on the disk for the products; none was kept") from error
        raise
    finally:
        for source, _, _ in staged:
            if source.parent == call.output_dir:
                source.unlink(missing_ok=True)
    return published


def _merge(plan: Plan, result: Products) -> Products:
    """Put the files of the IFUs into one for each tag, pixel tables excepted."""
    from ..io.merge import merge_products

    by_name: dict[str, list[FileRecord]] = {}
    for record in result.records:
        for file in record.products:
            name = Path(file.path).name
            merged = name.removesuffix(f"-{record.ifu:02d}.fits") + ".fits"
            if not file.tag.startswith("PIXTABLE_") and merged != name:
                by_name.setdefault(merged, []).append(file)
    made: dict[str, str] = {}
    frames = []
    for name, files in by_name.items():
        if len(files) < 2:
            continue
        path = plan.calls[0].output_dir.absolute() / name
        merge_products([f.path for f in files], path, overwrite=plan.calls[0].overwrite, delete=True)
        frames.append(Frame(path, files[0].tag))
        made |= {f.path: os.fspath(path) for f in files}
    for record in result.records:
        record.products = [replace(f, merged_into=made.get(f.path)) for f in record.products]
        if record.log:
            with contextlib.suppress(MusedaskError, OSError):
                write_record(Path(record.log).with_suffix(".json"), record)
    return Products(result.records, frames)


# --- workers ---------------------------------------------------------------------------------------


def _worker() -> Any:
    """Worker of the cluster that this task runs on, or None."""
    import sys

    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _task_given_up() -> Callable[[], bool]:
    """Question whether the task that runs here is no longer wanted, or its worker is about to end."""
    worker = _worker()
    if worker is None:
        return bool
    key = worker.get_current_task()

    def asked() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status.name not in ("running", "paused")

    return asked


def _worker_threads(engine: str) -> int:
    """Threads that a call on a worker may use: those of the worker, shared with other tasks of its kind."""
    worker = _worker()
    if worker is None:
        return 1
    slots = worker.state.total_resources.get(RESOURCE, 0) if engine == "esorex" else 0
    return max(1, int(worker.state.nthreads // slots)) if slots else 1


def _peak_memory() -> int:
    try:
        import resource
        import sys
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
