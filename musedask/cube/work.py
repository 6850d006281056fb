"""The folder of a job's work in progress, and where the job runs.

Work in progress lies in a folder ``.NAME.work`` beside the output: the description of the job, the
store if it has to be on disk, the cube, and one mark per finished chunk.  The same job started
again goes on there; another one refuses.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compute import (
    default_memory_limit,
    default_workers,
    format_bytes,
    n_threads,
    parse_bytes,
    release_memory,
    resolve_client,
)
from ..errors import InputError, PlanError, StoreError
from ..io.files import check_output
from .plan import usable_threads

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

PathLike = str | os.PathLike[str]


class Timer:
    """Seconds spent in each stage of a job."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside towards `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            release_memory()
            self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - start

    def describe(self) -> str:
        """All stages in one line."""
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.stages.items())


@dataclass
class Settings:
    """Where and how a job runs; nothing of it changes a number.

    Attributes
    ----------
    memory_limit : int
        Bytes for all tasks together.
    client : distributed.Client or None
    threads : int
        Tasks at a time.
    scratch : pathlib.Path
        Folder of the work in progress.
    overwrite : bool
        Replace outputs, and work in progress of other jobs.
    """

    memory_limit: int
    client: Client | None
    threads: int
    scratch: Path
    overwrite: bool
    timer: Timer = field(default_factory=Timer)

    @property
    def local_threads(self) -> int:
        """Threads for work in this process."""
        return min(self.threads, default_workers()) if self.client is None else default_workers()


def make_settings(
    output: Path, memory_limit: str | int | None, client: Client | None, n_workers: int | None, overwrite: bool
) -> Settings:
    client = resolve_client(client)
    limit = default_memory_limit(client) if memory_limit is None else parse_bytes(memory_limit)
    if n_workers is not None and n_workers < 1:
        raise InputError(f"n_workers = {n_workers} found, expected at least 1")
    scratch = output.absolute().parent / f".{output.name}.work"
    threads = n_threads(client, n_workers)
    if client is None and n_workers is None:
        threads = usable_threads(limit, threads)
    return Settings(limit, client, threads, scratch, overwrite)


def check_outputs(files: Sequence[Path], inputs: Sequence[PathLike], settings: Settings) -> None:
    """Make sure, before any work, that every output may be written and none is an input.

    Raises
    ------
    OutputExistsError, InputError
        If it may not, or two outputs have one name.
    """
    if _is_complete(settings.scratch):
        shutil.rmtree(settings.scratch)
    sources = {Path(path).resolve() for path in inputs}
    seen: set[Path] = set()
    # what this job wrote before it was interrupted
    own = set(_listed(settings.scratch))
    for path in files:
        real = path.resolve()
        if real in sources or any(real in source.parents for source in sources):
            raise InputError(f"{path}: the output is or holds an input; choose another name")
        if real in seen:
            raise InputError(f"{path}: the name of an output is given twice")
        seen.add(real)
        check_output(path, overwrite=settings.overwrite or str(real) in own)


_LIST = "outputs.json"
_COMPLETE = "complete"


def _is_complete(scratch: Path) -> bool:
    """Whether a run was killed when all outputs had their names, and only had to clean up."""
    named = (scratch / _LIST).exists() and (scratch / "plan.json").exists() and not (scratch / "cube.zarr").exists()
    return named or (scratch / _COMPLETE).exists()


def _listed(scratch: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return list(json.loads((scratch / _LIST).read_text()))
    return []


def list_outputs(settings: Settings, files: Sequence[Path]) -> None:
    """Note what is about to be written: found there by the next run, it is of this one.

    Raises
    ------
    OutputExistsError
        If somebody else has made one of the files since the start.
    """
    scratch = settings.scratch
    own = set(_listed(scratch))
    for path in files:
        check_output(path, overwrite=settings.overwrite or str(path.resolve()) in own)
    settings.overwrite = True
    if not (scratch / _LIST).exists():
        part = scratch / f"{_LIST}.part"
        part.write_text(json.dumps([str(path.resolve()) for path in files]))
        os.replace(part, scratch / _LIST)
    # what a killed run had not finished
    for path in files:
        for stale in path.absolute().parent.glob(f".{glob.escape(path.name)}.*.part"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


@contextlib.contextmanager
def _lock(scratch: Path) -> Iterator[None]:
    """Keep other runs away from the work in progress; the lock goes with the process, however it ends."""
    scratch.mkdir(exist_ok=True)
    folder = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{scratch}: another run is at work there; wait for it, or choose another output"
            ) from None
        except OSError:
            log.debug("%s: this file system has no locks", scratch)
        if not scratch.exists() or not os.path.samestat(os.fstat(folder), scratch.stat()):
            raise StoreError(f"{scratch}: another run has just ended there; try again")
        yield
    finally:
        os.close(folder)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_worth_keeping(scratch: Path, error: BaseException) -> bool:
    """Whether a later run can go on with what is there."""
    if any((scratch / "done").glob("*[0-9]")):
        return True
    if isinstance(error, InputError):
        return False
    return (scratch / "store" / "zarr.json").exists() or any((scratch / "store" / "blocks").glob("*[0-9].npz"))


@contextlib.contextmanager
def work(settings: Settings, description: dict[str, Any]) -> Iterator[bool]:
    """Open the folder of the work in progress; it goes away when the work is done, or of no use.

    Raises
    ------
    StoreError
        If another job was interrupted there.
    """
    with _lock(settings.scratch):
        resumed = _open_work(settings, description)
        try:
            yield resumed
        except BaseException as error:
            if not _is_worth_keeping(settings.scratch, error):
                shutil.rmtree(settings.scratch, ignore_errors=True)
            raise
        # killed from here on, the next run must not take what is left for work in progress
        (settings.scratch / _COMPLETE).touch()
        for path in settings.scratch.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        (settings.scratch / "job.json").unlink(missing_ok=True)
        shutil.rmtree(settings.scratch, ignore_errors=True)


def _open_work(settings: Settings, description: dict[str, Any]) -> bool:
    """Find out whether there is work to go on with; if not, start afresh."""
    folder = settings.scratch
    path = folder / "job.json"
    description = json.loads(json.dumps(description))
    old: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        old = json.loads(path.read_text())
    if old == description:
        log.info("going on with the interrupted run in %s", folder)
        return True
    if old and not settings.overwrite:
        raise StoreError(
            f"{folder}: an earlier run with other inputs or parameters was interrupted there; it differs in "
            f"{'; '.join(_differences(old, description))}. Repeat that run to finish it, or give "
            "--overwrite (overwrite=True) to start anew"
        )
    _clear(folder)
    try:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(description))
        os.replace(part, path)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return False


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif len(str(a)) + len(str(b)) < 200:
            found.append(f"{prefix}{key} (was {a}, is {b})")
        else:
            found.append(f"{prefix}{key}")
    return found


def check_disk(*needs: tuple[Path, int]) -> None:
    """Make sure that all files and folders, given with their sizes, find room on their disks.

    Raises
    ------
    PlanError
        If they do not.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for path, size in needs:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        device = folder.stat().st_dev
        first, total = disks.get(device, (folder, 0))
        if path.name in ("store", "cube.zarr") and path.is_dir():
            # of an interrupted run
            size -= sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        disks[device] = first, total + max(size, 0)
    for folder, size in disks.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            shown = folder.parent if folder.name.endswith(".work") else folder
            raise PlanError(f"{shown}: {format_bytes(size)} are needed on this disk, {format_bytes(free)} are free")
