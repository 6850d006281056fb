"""The job from pixel tables to a cube: store -> limits -> grid -> plan -> tasks -> images -> FITS.

Work in progress lies in a folder ``.NAME.work`` beside the output: the description of the job, the
store if it has to be on disk, the cube, and one mark per finished chunk.  The same job started
again goes on there; another one refuses.  At the end the cube gets its name in one rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..compute import (
    MemoryMonitor,
    default_memory_limit,
    default_workers,
    format_bytes,
    n_threads,
    parse_bytes,
    resolve_client,
    run_tasks,
)
from ..errors import InputError, PlanError, StoreError
from ..io.files import check_output, publish
from ..io.headers import PIXTABLE
from ..recipe import Recipe
from . import geometry
from .cosmics import direction
from .exposure import Exposure, Placement, group_exposures, needs_cut, place, require
from .grid import Grid, Limits, check_overlap, make_grid
from .kernels import RECORD
from .params import EXP_COMBINE, EXTRA, MAKE_CUBE, ResampleParams
from .plan import PIECE_ROWS, ROW_READ, Plan, check_memory, make_plan
from .resample import STEPS, Job, Window, block_box, resample_chunk
from .store import (
    BIN_START,
    BIN_WIDTH,
    N_BINS,
    ROW_BYTES,
    Block,
    DiskStore,
    MemoryStore,
    StoredExposure,
    block_limits,
    describe,
    finish_store,
    plan_blocks,
    prepare,
    read_block,
    write_block,
)

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from ..io.tables import OutputWcs

log = logging.getLogger("musedask")

PathLike = str | os.PathLike[str]
#: rows of a block while it is read and sorted: columns, bins, records
_BLOCK_ROW_BYTES = 4 * 7 + 2 + ROW_READ
_MAX_BLOCK_ROWS = 1 << 21
_ALL = (-math.inf, math.inf)


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


# ------------------------------------------------------------------------------------- stores


@dataclass(frozen=True)
class _BlockTask:
    exposure: int
    number: int
    source: int
    start: int
    stop: int


def _block_tasks(exposures: Sequence[Exposure], block_rows: int) -> list[_BlockTask]:
    return [
        _BlockTask(e, k, *piece)
        for e, exposure in enumerate(exposures)
        for k, piece in enumerate(plan_blocks(exposure, block_rows))
    ]


def _load(
    exposures: Sequence[Exposure],
    store: MemoryStore,
    placements: Sequence[Placement],
    vacuum: bool,
    wave_range: tuple[float, float],
    task: _BlockTask,
) -> Block:
    """Read a block into memory and prepare its rows."""
    exposure = exposures[task.exposure]
    rows, bins = read_block(exposure, exposure.sources[task.source], task.start, task.stop, wave_range)
    prepare(rows, placements[task.exposure], vacuum)
    block = Block(task.exposure, task.number, task.source, task.start, task.stop, bins, block_limits(rows))
    store.add(block, rows)
    return block


@lru_cache(maxsize=2)
def _unpickle(path: str, stamp: int) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


def _write(inputs: str, stamp: int, folder: str, wave_range: tuple[float, float], task: _BlockTask) -> Block:
    """Read a block and write it to the store on disk."""
    exposures: list[Exposure] = _unpickle(inputs, stamp)
    exposure = exposures[task.exposure]
    kept = Path(folder) / "blocks" / f"{task.exposure:04d}_{task.number:05d}.npz"
    if kept.exists():
        with np.load(kept) as saved:
            if list(saved["task"]) == [task.source, task.start, task.stop]:
                limits = tuple(float(v) for v in saved["limits"])
                return Block(*_fields(task), saved["bins"], limits)
    rows, bins = read_block(exposure, exposure.sources[task.source], task.start, task.stop, wave_range)
    extremes = np.array([np.inf, -np.inf] * 3)
    dec = float(exposure.header.get("DEC", 0.0))
    for first in range(0, len(rows), PIECE_ROWS):
        piece = np.ascontiguousarray(rows[first : first + PIECE_ROWS, :3])
        if exposure.stage == "rad":
            geometry.position_rows(piece, dec, 0.0, 0.0, True)
        geometry.row_limits(piece, extremes)
    write_block(Path(folder), task.exposure, task.number, rows)
    # a block counts as finished once this file is there
    part = kept.with_suffix(".part.npz")
    np.savez(part, task=[task.source, task.start, task.stop], bins=bins, limits=extremes)
    os.replace(part, kept)
    return Block(*_fields(task), bins, tuple(float(v) for v in extremes))


def _fields(task: _BlockTask) -> tuple[int, int, int, int, int]:
    return task.exposure, task.number, task.source, task.start, task.stop


def _build_store(
    exposures: Sequence[Exposure], folder: Path, wave_range: tuple[float, float], settings: Settings
) -> DiskStore:
    """Write the store of some exposures, or go on with one that was interrupted."""
    if (folder / "zarr.json").exists():
        shutil.rmtree(folder / "blocks", ignore_errors=True)
        return DiskStore(folder)
    (folder / "blocks").mkdir(parents=True, exist_ok=True)
    rows = int(0.8 * settings.memory_limit / settings.threads / _BLOCK_ROW_BYTES)
    tasks = _block_tasks(exposures, max(min(rows, _MAX_BLOCK_ROWS), 1000))
    inputs = folder / "inputs.pickle"
    if not inputs.exists():
        part = inputs.with_suffix(".part")
        part.write_bytes(pickle.dumps(list(exposures)))
        os.replace(part, inputs)
    stored = [describe(e) for e in exposures]
    blocks: list[Block] = []
    run_tasks(
        partial(_write, str(inputs), inputs.stat().st_mtime_ns, str(folder), wave_range),
        tasks,
        client=settings.client,
        n_workers=settings.threads,
        label="sorting pixel tables",
        on_result=lambda _, block: blocks.append(block),
    )
    for block in sorted(blocks, key=lambda b: (b.exposure, b.number)):
        stored[block.exposure].blocks.append(block)
    if not any(e.n_rows for e in stored):
        raise InputError(
            f"no pixels between {wave_range[0]:g} and {wave_range[1]:g} Angstrom: empty wavelength range"
        )
    inputs.unlink()
    finish_store(folder, stored, wave_range)
    shutil.rmtree(folder / "blocks")
    return DiskStore(folder)


def make_store(
    tables: Sequence[PathLike],
    output: PathLike,
    *,
    lambdamin: float = 4000.0,
    lambdamax: float = 10000.0,
    memory_limit: str | int | None = None,
    client: Client | None = None,
    n_workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Read pixel tables once and write them as a pixel store, sorted by wavelength.

    Parameters
    ----------
    tables : sequence of path-like
        Pixel tables, merged or of single IFUs.
    output : path-like
        The Zarr group to write.
    lambdamin, lambdamax : float
        Rows outside are left out [Angstrom].
    memory_limit : str or int, optional
        Memory for all tasks together; six tenths of what is available by default.
    client : distributed.Client, optional
        Where to run; else the default client, else local threads.
    n_workers : int, optional
        Number of local threads.
    overwrite : bool
        Whether an existing store may be replaced.

    Returns
    -------
    pathlib.Path
    """
    output = Path(output)
    settings = _settings(output, memory_limit, client, n_workers, overwrite)
    _check_outputs([output], tables, settings)
    exposures = group_exposures(tables, need_date=len(tables) > 1, wave_range=(lambdamin, lambdamax))
    wave_range = _cut(exposures, lambdamin, lambdamax)
    description = {
        "job": "store",
        "inputs": [describe(e).fingerprint for e in exposures],
        "wave_range": list(wave_range),
    }
    _check_disk((settings.scratch / "store", sum(e.n_rows for e in exposures) * ROW_BYTES))
    with _work(settings, description):
        _build_store(exposures, settings.scratch / "store", wave_range, settings)
        publish(settings.scratch / "store", output)
    return output


# ---------------------------------------------------------------------------------------- job


def _settings(
    output: Path, memory_limit: str | int | None, client: Client | None, n_workers: int | None, overwrite: bool
) -> Settings:
    client = resolve_client(client)
    limit = default_memory_limit() if memory_limit is None else parse_bytes(memory_limit)
    if n_workers is not None and n_workers < 1:
        raise InputError(f"n_workers = {n_workers} found, expected at least 1")
    scratch = output.absolute().parent / f".{output.name}.work"
    return Settings(limit, client, n_threads(client, n_workers), scratch, overwrite)


def _check_outputs(files: Sequence[Path], inputs: Sequence[PathLike], settings: Settings) -> None:
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


def _list_outputs(scratch: Path, files: Sequence[Path]) -> None:
    """Note what is about to be written: found there by the next run, it is of this one."""
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
            raise StoreError(f"{scratch}: another run is at work there; wait for it, or choose another output") from None
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
def _work(settings: Settings, description: dict[str, Any]) -> Iterator[bool]:
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


def _check_disk(*needs: tuple[Path, int]) -> None:
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


def _cut(exposures: Sequence[Exposure | StoredExposure], low: float, high: float) -> tuple[float, float]:
    """Range to cut the rows to; infinite if the headers say that nothing lies outside."""
    return (low, high) if any(needs_cut(e.header, (low, high)) for e in exposures) else _ALL


def combine(
    tables: Sequence[PathLike] | PathLike,
    output: PathLike,
    *,
    offset_list: PathLike | None = None,
    output_wcs: PathLike | None = None,
    filter_list: PathLike | None = None,
    fits_output: PathLike | None = None,
    memory_limit: str | int | None = None,
    client: Client | None = None,
    n_workers: int | None = None,
    chunks: tuple[int, int, int] | None = None,
    in_memory: bool | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    open_result: bool = True,
    **parameters: Any,
) -> xr.Dataset | None:
    """Combine exposures into one cube, as ``muse_exp_combine`` does, in bounded memory.

    Parameters
    ----------
    tables : path-like or sequence of path-like
        Reduced pixel tables (stage ``rad``), or one pixel store made of such tables.
    output : path-like
        Zarr cube to write, or a name ending in ``.fits`` for a FITS cube only.
    offset_list, output_wcs, filter_list : path-like, optional
        OFFSET_LIST, OUTPUT_WCS and FILTER_LIST files.
    fits_output : path-like, optional
        FITS cube to write as well; field-of-view images go beside it.
    memory_limit : str or int, optional
        Memory for all tasks together, e.g. ``"2GB"``; by default six tenths of what is available.
    client : distributed.Client, optional
        Where to run; else the default client, else local threads.
    n_workers : int, optional
        Number of local threads.
    chunks : tuple of int, optional
        Chunk ``(wavelength, y, x)`` of a task, instead of a planned one.
    in_memory : bool, optional
        Whether to keep the rows in memory; by default if they fit.
    overwrite : bool
        Whether existing outputs may be replaced.
    dry_run : bool
        Stop after the plan.
    open_result : bool
        Whether to open and return the cube.
    **parameters
        Parameters of the recipe (``resample``, ``crsigma``, ``pixfrac``, ``weight``, ...), and
        ``cr_per_exposure``, ``nearest_corrected``, ``weight_map``.

    Returns
    -------
    xarray.Dataset or None
        The cube, lazy; None after a dry run, or if there is none among the products (``save``).

    Raises
    ------
    MusedaskError
        With a message that says what to do.

    Examples
    --------
    >>> cube = musedask.combine(tables, "mosaic.zarr", memory_limit="2GB")   # doctest: +SKIP
    """
    paths = [tables] if isinstance(tables, (str, os.PathLike)) else list(tables)
    made = _make(
        EXP_COMBINE, paths, output, offset_list, output_wcs, filter_list, fits_output, memory_limit, client,
        n_workers, chunks, in_memory, overwrite, dry_run, parameters,
    )  # fmt: skip
    return _opened(made, open_result)


def make_cube(
    table: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    output_wcs: PathLike | None = None,
    filter_list: PathLike | None = None,
    fits_output: PathLike | None = None,
    memory_limit: str | int | None = None,
    client: Client | None = None,
    n_workers: int | None = None,
    chunks: tuple[int, int, int] | None = None,
    in_memory: bool | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    open_result: bool = True,
    **parameters: Any,
) -> xr.Dataset | None:
    """Make the cube of one pixel table, as ``muse_scipost_make_cube`` does.

    Parameters
    ----------
    table : path-like or sequence of path-like
        A pixel table of any coordinate stage, the single-IFU tables of one exposure, or a store of it.
    output, output_wcs, filter_list, fits_output, memory_limit, client, n_workers, chunks, in_memory
        See `combine`.
    overwrite, dry_run, open_result, **parameters
        See `combine`; the defaults are those of ``muse_scipost_make_cube``.

    Returns
    -------
    xarray.Dataset or None
    """
    paths = [table] if isinstance(table, (str, os.PathLike)) else list(table)
    made = _make(
        MAKE_CUBE, paths, output, None, output_wcs, filter_list, fits_output, memory_limit, client,
        n_workers, chunks, in_memory, overwrite, dry_run, parameters,
    )  # fmt: skip
    return _opened(made, open_result)


def _opened(path: Path | None, wanted: bool) -> xr.Dataset | None:
    if path is None or not wanted:
        return None
    from ..io.cube import open_cube

    return open_cube(path)


@dataclass
class _Inputs:
    """Exposures of a job, either to be read from tables or in a store already."""

    exposures: list[Exposure]
    store: DiskStore | None

    @property
    def described(self) -> list[StoredExposure]:
        return self.store.exposures if self.store is not None else [describe(e) for e in self.exposures]


def _open_inputs(paths: Sequence[PathLike], recipe: Recipe, wave_range: tuple[float, float]) -> _Inputs:
    if len(paths) == 1 and Path(paths[0]).is_dir():
        store = DiskStore(paths[0])
        low, high = store.wave_range
        if low > wave_range[0] or high < wave_range[1]:
            log.warning("%s holds only %g to %g Angstrom, and so will the cube", store.path, low, high)
        return _Inputs([], store)
    for path in paths:
        if Path(path).is_dir():
            raise InputError(f"{path}: a pixel store is to be the only input")
    combined = recipe is EXP_COMBINE
    exposures = group_exposures(paths, need_date=combined, wave_range=wave_range, merge_one=combined)
    return _Inputs(exposures, None)


def _make(
    recipe: Recipe,
    paths: Sequence[PathLike],
    output: PathLike,
    offset_list: PathLike | None,
    output_wcs: PathLike | None,
    filter_list: PathLike | None,
    fits_output: PathLike | None,
    memory_limit: str | int | None,
    client: Client | None,
    n_workers: int | None,
    chunks: tuple[int, int, int] | None,
    in_memory: bool | None,
    overwrite: bool,
    dry_run: bool,
    parameters: Mapping[str, Any],
) -> Path | None:
    from ..io.tables import read_offset_list
    from .finish import Products, describe_outputs

    extra_names = {p.name for p in EXTRA}
    values = recipe.resolve({k: v for k, v in parameters.items() if k not in extra_names})
    params = ResampleParams.from_values(values, {k: v for k, v in parameters.items() if k in extra_names})
    output = Path(output)
    products = Products(recipe, values, output, fits_output, filter_list, offset_list, output_wcs)
    settings = _settings(output, memory_limit, client, n_workers, overwrite)
    given = [*paths, *(p for p in (offset_list, output_wcs, filter_list) if p is not None)]
    _check_outputs(products.files(), given, settings)
    timer = settings.timer

    with timer("inputs"):
        inputs = _open_inputs(paths, recipe, (params.lambdamin, params.lambdamax))
        exposures = inputs.described
        products.exposures = exposures
        products.inputs = [] if inputs.store is not None else [str(p) for p in paths]
        offsets = read_offset_list(offset_list) if offset_list is not None else None
        wcs = _output_wcs(output_wcs)
        placements, header = _place(recipe, inputs, exposures, offsets, params)
        # now that the exposures are known
        _check_outputs(products.files(), [*given, *(s for e in exposures for s in e.sources)], settings)
        products.check_sources()
    if not products.makes_cube:
        # as in the reference, tables are neither resampled nor searched for cosmic rays
        wcs = None
    positioned = exposures[0].stage != "pix"
    vacuum = wcs is not None and wcs.ctype3.startswith("WAVE")
    if vacuum:
        vacuum = _convertible(header)
    wave_range = _cut(exposures, params.lambdamin, params.lambdamax)
    description = {
        "job": recipe.name,
        "inputs": [e.fingerprint for e in exposures],
        "parameters": params.to_dict(),
        "placements": [asdict(p) for p in placements],
        "output_wcs": asdict(wcs) if wcs is not None else None,
    }
    total = sum(e.n_rows for e in exposures) if inputs.store else sum(e.n_rows for e in inputs.exposures)
    if in_memory is None:
        # leave more than half of the limit to the tasks
        in_memory = inputs.store is None and total * ROW_BYTES < 0.4 * settings.memory_limit
    in_memory = in_memory and settings.client is None and inputs.store is None
    if not in_memory:
        check_memory(settings.memory_limit, settings.threads)
    log.info(
        "%d exposure%s, %d pixels (%s): rows %s",
        len(exposures), "s" if len(exposures) > 1 else "", total, format_bytes(total * ROW_BYTES),
        "kept in memory" if in_memory else ("in the store" if inputs.store else "sorted on disk"),
    )  # fmt: skip
    if not in_memory and inputs.store is None and not dry_run:
        _check_disk((settings.scratch / "store", total * ROW_BYTES))
    if dry_run:
        _dry_run(recipe, inputs, header, params, wcs, placements, settings, total, in_memory, chunks)
        return None

    with MemoryMonitor() as monitor, _work(settings, description) as resumed:
        with timer("rows"):
            store: MemoryStore | DiskStore
            if in_memory:
                store = MemoryStore(inputs.exposures)
                blocks: list[Block] = []
                block_rows = int(0.4 * settings.memory_limit / settings.threads / _BLOCK_ROW_BYTES)
                run_tasks(
                    partial(_load, inputs.exposures, store, placements, vacuum, wave_range),
                    _block_tasks(inputs.exposures, max(min(block_rows, _MAX_BLOCK_ROWS // 2), 1000)),
                    n_workers=settings.threads,
                    label="reading pixel tables",
                    on_result=lambda _, block: blocks.append(block),
                )
                for block in sorted(blocks, key=lambda b: (b.exposure, b.number)):
                    store.exposures[block.exposure].blocks.append(block)
            elif inputs.store is not None:
                store = inputs.store
            else:
                store = _build_store(inputs.exposures, settings.scratch / "store", wave_range, settings)
        with timer("limits"):
            limits = _limits(store, placements, vacuum, wave_range, settings)
            grid = _grid(recipe, store, header, limits, wave_range, params, wcs, placements)
            check_overlap(grid)
        plan = None
        needs = [(products.folder, products.row_bytes(total))]
        if products.makes_cube:
            plan = _plan(store, grid, params, placements, settings, wave_range, in_memory, chunks)
            log.info("%s", plan.describe())
            needs.append((settings.scratch / "cube.zarr", plan.disk_bytes))
            if products.fits is not None:
                needs.append((products.fits, 8 * math.prod(grid.shape)))
        _check_disk(*needs)
        posangs = [
            direction(
                float(e.header.get("ESO INS DROT POSANG", 0.0)),
                str(e.header.get("ESO INS DROT MODE", "")),
                positioned,
            )
            for e in exposures
        ]
        job = Job(grid, params, tuple(placements), tuple(posangs), wave_range, plan.max_rows if plan else 0)
        products.start(header, grid)
        cube_path = None
        _list_outputs(settings.scratch, products.files())
        # all that may not be replaced has been refused
        settings.overwrite = True
        if plan is None:
            with timer("FITS"):
                products.write_rows(job, store, settings)
        else:
            cube = settings.scratch / "cube.zarr"
            with timer("cube"):
                _run_chunks(job, store, plan, products, settings, resumed)
            with timer("images"):
                products.finish_cube(cube, settings)
            with timer("FITS"):
                products.write(cube, job, store, settings)
            cube_path = products.publish(cube)
    log.info("wrote %s", describe_outputs(products))
    log.info("time: %s", timer.describe())
    log.info(
        "peak memory %s in %d process%s (limit %s)",
        format_bytes(monitor.peak), monitor.processes, "es" if monitor.processes > 1 else "",
        format_bytes(settings.memory_limit),
    )  # fmt: skip
    return cube_path


def _output_wcs(path: PathLike | None) -> OutputWcs | None:
    """Read an OUTPUT_WCS; one that the reference would ignore, in whole or in part, is an error here."""
    from ..io.tables import read_output_wcs

    if path is None:
        return None
    wcs = read_output_wcs(path, strict=True)
    if wcs is None:
        return None
    if wcs.ctype3.endswith("-LOG") and not (wcs.crval3 or 1.0) > 0:
        raise InputError(f"{wcs.source}: CRVAL3 = {wcs.crval3} of a {wcs.ctype3} axis found, expected a wavelength")
    if (wcs.cd3_3 or 1.0) < 0:
        raise InputError(f"{wcs.source}: CD3_3 = {wcs.cd3_3} found, expected a positive step")
    if wcs.cd is None:
        raise InputError(f"{wcs.source}: the CD matrix is singular or its wavelength axis is tilted")
    if wcs.cd[1] != 0 or wcs.cd[2] != 0:
        log.warning(
            "%s: the grid is rotated; as in the reference, kernels keep the size |CD1_1|, |CD2_2| and are not rotated",
            wcs.source,
        )
    return wcs


def _convertible(header: fits.Header) -> bool:
    """Whether wavelengths are in air, so that they can be converted to vacuum."""
    kind = str(header.get(f"{PIXTABLE} SPECTYPE", "AWAV"))
    if kind.startswith("AWAV"):
        return True
    log.warning("the pixel table's wavelengths are of type %s: not converted to vacuum", kind)
    return False


def _place(
    recipe: Recipe,
    inputs: _Inputs,
    exposures: Sequence[StoredExposure],
    offsets: Any,
    params: ResampleParams,
) -> tuple[list[Placement], fits.Header]:
    if recipe is EXP_COMBINE:
        if len(exposures) == 1:
            log.warning("only one exposure: nothing to combine, its cube is made without weights")
        return place(exposures, offsets, params.weight)  # type: ignore[arg-type]
    if len(exposures) > 1:
        names = ", ".join(e.name for e in exposures)
        raise InputError(f"make-cube takes one exposure, {len(exposures)} found: {names}; use combine")
    exposure = exposures[0]
    if exposure.stage == "rad":
        placements, header = place([exposure], None, "none")  # type: ignore[list-item]
        return placements, header
    header = exposure.header.copy()
    if exposure.stage == "deg":
        for axis in (1, 2):
            require(header, f"CRVAL{axis}", exposure.name)
    return [Placement(False, 0.0, (0.0, 0.0), 1.0, -1.0)], header


# ------------------------------------------------------------------------------ limits and plan


def _store_task(store: DiskStore | MemoryStore) -> Any:
    return str(store.path) if isinstance(store, DiskStore) else store


@lru_cache(maxsize=4)
def _open_store(path: str, stamp: int) -> DiskStore:
    return DiskStore(path, check_sources=False)


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def _block_extremes(
    store_path: str, stamp: int, placements: Sequence[Placement], vacuum: bool, wave_range: tuple[float, float],
    task: tuple[int, int],
) -> NDArray[np.float64]:  # fmt: skip
    """Limits of the prepared rows of a block on disk."""
    store = _open_store(store_path, stamp)
    block = store.exposures[task[0]].blocks[task[1]]
    extremes = np.array([np.inf, -np.inf] * 3)
    from .resample import read_pieces

    for rows in read_pieces(store, block, wave_range):
        prepare(rows, placements[block.exposure], vacuum)
        geometry.row_limits(rows, extremes)
    return extremes


def _known_extremes(
    block: Block, exposure: StoredExposure, placement: Placement, vacuum: bool, wave_range: tuple[float, float]
) -> NDArray[np.float64] | None:
    """Limits of a block from those in the store, where rounding keeps the order of rows."""
    extremes = np.array(block.limits)
    if extremes[4] < wave_range[0] or extremes[5] > wave_range[1]:
        return None
    if placement.position and placement.dec0 != float(exposure.header["DEC"]):
        return None
    pair = np.zeros((2, RECORD), np.float32)
    pair[:, 0], pair[:, 1], pair[:, 2] = extremes[:2], extremes[2:4], extremes[4:]
    if placement.position and placement.shift != (0.0, 0.0):
        pair[:, 0] = (pair[:, 0].astype(np.float64) + placement.shift[0]).astype(np.float32)
        pair[:, 1] = (pair[:, 1].astype(np.float64) + placement.shift[1]).astype(np.float32)
    if vacuum:
        geometry.air_to_vacuum(pair)
    return pair[:, :3].astype(np.float64).T.ravel()


def _limits(
    store: MemoryStore | DiskStore,
    placements: Sequence[Placement],
    vacuum: bool,
    wave_range: tuple[float, float],
    settings: Settings,
) -> NDArray[np.float64]:
    """``xlo xhi ylo yhi llo lhi`` over all prepared rows."""
    extremes = np.array([np.inf, -np.inf] * 3)

    def merge(values: NDArray[np.float64]) -> None:
        extremes[::2] = np.minimum(extremes[::2], values[::2])
        extremes[1::2] = np.maximum(extremes[1::2], values[1::2])

    unknown: list[tuple[int, int]] = []
    for number, exposure in enumerate(store.exposures):
        for block in exposure.blocks:
            if block.n_rows == 0:
                continue
            if store.in_memory:
                merge(np.array(block.limits))
                continue
            if block.limits[5] < wave_range[0] or block.limits[4] > wave_range[1]:
                continue
            known = _known_extremes(block, exposure, placements[number], vacuum, wave_range)
            if known is None:
                unknown.append((number, block.number))
            else:
                merge(known)
    if unknown:
        assert isinstance(store, DiskStore)
        run_tasks(
            partial(
                _block_extremes, str(store.path), _stamp(store.path / "zarr.json"), list(placements), vacuum, wave_range
            ),
            unknown,
            client=settings.client,
            n_workers=settings.threads,
            label="field of view",
            on_result=lambda _, values: merge(values),
        )
    if not np.isfinite(extremes).all():
        low, high = wave_range
        raise InputError(f"no pixels between {low:g} and {high:g} Angstrom: empty wavelength range")
    return extremes


def _grid(
    recipe: Recipe,
    store: MemoryStore | DiskStore,
    header: fits.Header,
    extremes: NDArray[np.float64],
    wave_range: tuple[float, float],
    params: ResampleParams,
    wcs: Any,
    placements: Sequence[Placement],
) -> Grid:
    celestial = store.exposures[0].stage != "pix"
    zero = (float(header["CRVAL1"]), float(header["CRVAL2"])) if celestial else (0.0, 0.0)
    computed = Limits.from_rows(extremes, zero)
    vacuum = wcs is not None and wcs.ctype3.startswith("WAVE")
    if recipe is MAKE_CUBE and not placements[0].position and wave_range == _ALL and not vacuum:
        # the reference takes the limits of a positioned table from its header
        with contextlib.suppress(InputError):
            computed = Limits.from_header(header)
    try:
        return make_grid(header, computed, params, wcs, celestial=celestial)
    except InputError as error:
        raise InputError(f"{store.exposures[0].name}: {error}") from error


def _cumulative(store: MemoryStore | DiskStore, grid: Grid, wave_range: tuple[float, float]) -> NDArray[np.float64]:
    """Number of rows before each plane, from the histograms of the blocks."""
    counts = np.zeros(N_BINS)
    for exposure in store.exposures:
        for block in exposure.blocks:
            counts += np.diff(block.bins)
    edges = BIN_START + BIN_WIDTH * np.arange(N_BINS + 1)
    before = np.concatenate([[0.0], np.cumsum(counts)])
    # rows that will be cut away do not count
    low, high = np.interp(wave_range, edges, before)
    before = np.clip(before, low, high) - low
    if grid.vacuum:
        edges = edges * 1.00027
    wave, step = grid.wavelengths(), grid.steps()
    result = np.interp(np.append(wave - step / 2, wave[-1] + step[-1] / 2), edges, before)
    # the outermost planes take everything beyond them
    result[0], result[-1] = 0.0, before[-1]
    return result


def _tile_fraction(
    store: MemoryStore | DiskStore, placements: Sequence[Placement], grid: Grid
) -> Callable[[int, int, int, int], float]:
    """Share of rows in a tile, taking each block's rows as spread evenly over its box."""
    boxes, sizes = [], []
    for number, exposure in enumerate(store.exposures):
        for block in exposure.blocks:
            box = block_box(block, exposure, placements[number], grid, prepared=store.in_memory)
            boxes.append(box or (0.0, grid.nx - 1.0, 0.0, grid.ny - 1.0))
            sizes.append(block.n_rows)
    b = np.array(boxes)
    size = np.array(sizes, float)
    # what lies beyond the grid is kept in its outermost spaxels
    b[:, :2] = np.clip(b[:, :2], 0, grid.nx - 1)
    b[:, 2:] = np.clip(b[:, 2:], 0, grid.ny - 1)
    area = (b[:, 1] - b[:, 0] + 1) * (b[:, 3] - b[:, 2] + 1)

    def fraction(y0: int, y1: int, x0: int, x1: int) -> float:
        wide = np.minimum(b[:, 1] + 1, x1) - np.maximum(b[:, 0], x0)
        high = np.minimum(b[:, 3] + 1, y1) - np.maximum(b[:, 2], y0)
        share = np.maximum(wide, 0) * np.maximum(high, 0) / area
        return float((share * size).sum() / size.sum())

    return fraction


def _plan(
    store: MemoryStore | DiskStore,
    grid: Grid,
    params: ResampleParams,
    placements: Sequence[Placement],
    settings: Settings,
    wave_range: tuple[float, float],
    in_memory: bool,
    chunks: tuple[int, int, int] | None,
) -> Plan:
    voxels = math.prod(grid.shape)
    disk = voxels * (16 if params.weight_map else 8)
    return make_plan(
        grid.shape,
        params.halo,
        _cumulative(store, grid, wave_range),
        _tile_fraction(store, placements, grid),
        settings.memory_limit,
        settings.threads,
        rows_in_memory=in_memory,
        maps=params.weight_map,
        disk_bytes=disk,
        chunk=chunks,
    )


def _dry_run(
    recipe: Recipe,
    inputs: _Inputs,
    header: fits.Header,
    params: ResampleParams,
    wcs: Any,
    placements: Sequence[Placement],
    settings: Settings,
    total: int,
    in_memory: bool,
    chunks: tuple[int, int, int] | None,
) -> None:
    """Plan from the headers' limits alone: nothing is read, nothing is written."""
    boxes = []
    exposures = inputs.described
    for exposure, placement in zip(exposures, placements, strict=True):
        limits = Limits.from_header(exposure.header)
        if placement.position:
            # a projected table's limits are polar; theta alone bounds its radius
            radius = math.degrees(-limits.y[0])
            wide = radius / max(math.cos(math.radians(placement.dec0)), 1e-3)
            zero = (float(header["CRVAL1"]), float(header["CRVAL2"]))
            x, y = placement.shift[0] + zero[0], placement.shift[1] + zero[1]
            limits = replace(limits, x=(x - wide, x + wide), y=(y - radius, y + radius))
        boxes.append(limits)
    low = max(min(b.wave[0] for b in boxes), params.lambdamin)
    high = min(max(b.wave[1] for b in boxes), params.lambdamax)
    if not low < high:
        raise InputError(
            f"no pixels between {params.lambdamin:g} and {params.lambdamax:g} Angstrom: empty wavelength range"
        )
    limits = Limits(
        (min(b.x[0] for b in boxes), max(b.x[1] for b in boxes)),
        (min(b.y[0] for b in boxes), max(b.y[1] for b in boxes)),
        (low, high),
    )
    grid = make_grid(header, limits, params, wcs, celestial=exposures[0].stage != "pix")
    check_overlap(grid)
    cumulative = np.linspace(0, total, grid.nz + 1)
    voxels = math.prod(grid.shape)
    plan = make_plan(
        grid.shape,
        params.halo,
        cumulative,
        lambda y0, y1, x0, x1: (y1 - y0) * (x1 - x0) / (grid.ny * grid.nx),
        settings.memory_limit,
        settings.threads,
        rows_in_memory=in_memory,
        maps=params.weight_map,
        disk_bytes=voxels * 8 + (0 if in_memory or inputs.store else total * ROW_BYTES),
        chunk=chunks,
    )
    log.info("dry run, sizes from the headers (the field may turn out smaller): %s", plan.describe())


# --------------------------------------------------------------------------------------- chunks


@dataclass(frozen=True)
class _ChunkSpec:
    """What a task needs besides its number; small enough to travel with every task."""

    store: Any
    stamp: int
    job_path: str
    cube: str
    marks: str
    keep_cosmics: bool


@lru_cache(maxsize=2)
def _cube_arrays(path: str, stamp: int) -> dict[str, Any]:
    import zarr

    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    return {name: group[name] for name in ("flux", "variance", "weight", "n_pixels") if name in group}


def _run_chunk(spec: _ChunkSpec, item: tuple[int, Window]) -> NDArray[np.float64]:
    """Compute a chunk, write its shard, leave a mark; returns counts and the seconds of the steps."""
    from ..io.cube import write_region

    number, window = item
    job: Job = _unpickle(spec.job_path, spec.stamp)
    store = _open_store(spec.store, spec.stamp) if isinstance(spec.store, str) else spec.store
    chunk = resample_chunk(job, store, window, keep_cosmics=spec.keep_cosmics)
    started = time.perf_counter()
    arrays = _cube_arrays(spec.cube, spec.stamp)
    start = (window[0], window[2], window[4])
    write_region(arrays["flux"], start, chunk.data)
    write_region(arrays["variance"], start, chunk.stat)
    if job.params.weight_map:
        write_region(arrays["weight"], start, chunk.weight)
        write_region(arrays["n_pixels"], start, chunk.n_pixels)
    mark = Path(spec.marks) / f"{number:06d}"
    if spec.keep_cosmics:
        part = mark.with_suffix(".part.npz")
        np.savez(part, **_joined(chunk.cosmics))  # type: ignore[arg-type]
        os.replace(part, mark)
    else:
        mark.touch()
    written = time.perf_counter() - started
    return np.array([*chunk.statistics, np.isfinite(chunk.data).any(), *chunk.seconds, written])


def _joined(cosmics: Sequence[tuple[int, NDArray[np.int32]]]) -> dict[str, NDArray[np.int32]]:
    joined: dict[str, list[NDArray[np.int32]]] = {}
    for exposure, rows in cosmics:
        joined.setdefault(str(exposure), []).append(rows)
    return {key: np.concatenate(parts) for key, parts in joined.items()}


def _run_chunks(
    job: Job, store: MemoryStore | DiskStore, plan: Plan, products: Any, settings: Settings, resumed: bool
) -> None:
    folder = settings.scratch
    cube = folder / "cube.zarr"
    marks = folder / "done"
    state = folder / "plan.json"
    layout = {"shape": list(plan.shape), "chunk": list(plan.chunk), "keep_cosmics": products.keep_cosmics}
    if resumed and state.exists():
        old = json.loads(state.read_text())
        if old["shape"] == layout["shape"] and old["keep_cosmics"] == layout["keep_cosmics"]:
            # the shards that are there fix the chunks; one that is too big now splits itself
            plan = replace(plan, chunk=tuple(old["chunk"]))
        else:
            state.unlink()
    if not state.exists():
        shutil.rmtree(cube, ignore_errors=True)
        shutil.rmtree(marks, ignore_errors=True)
        products.create_cube(cube, plan, maps=job.params.weight_map)
        marks.mkdir()
        part = state.with_suffix(".part")
        part.write_text(json.dumps(layout))
        os.replace(part, state)
    job_path = folder / "job.pickle"
    job_path.write_bytes(pickle.dumps(job))
    done = {int(name) for name in os.listdir(marks) if name.isdigit()}
    items = [(k, window) for k, window in enumerate(plan.windows()) if k not in done]
    if done:
        log.info("%d of %d chunks are finished already", len(done), plan.n_tasks)
    spec = _ChunkSpec(
        _store_task(store), time.time_ns(), str(job_path), str(cube), str(marks), products.keep_cosmics
    )
    statistics = np.zeros(7 + len(STEPS) + 1)

    def add(_: Any, values: NDArray[np.float64]) -> None:
        nonlocal statistics
        statistics = statistics + values

    run_tasks(
        partial(_run_chunk, spec),
        items,
        client=settings.client,
        n_workers=settings.threads,
        label="resampling",
        on_result=add,
        done_before=len(done),
    )
    if not done and not statistics[6]:
        log.warning("no voxel of the cube has a value: are all pixels bad, or outside OUTPUT_WCS?")
    tested = max(int(statistics[2]), 1)
    log.debug(
        "rows with halos %d, projected term by term %d; voxels tested for cosmic rays %d: "
        "settled by the bracket %.1f %%, by the median %.1f %%, in full %.1f %%",
        *statistics[:3], *(100 * statistics[3:6] / tested),
    )  # fmt: skip
    seconds = zip((*STEPS, "write"), statistics[7:], strict=True)
    log.info("time of the chunks, all threads together: %s", ", ".join(f"{name} {s:.1f} s" for name, s in seconds))
