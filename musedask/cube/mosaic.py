"""The job from pixel tables to a cube: store -> limits -> grid -> plan -> tasks -> images -> FITS."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astropy.io import fits

from ..compute import MemoryMonitor, format_bytes
from ..errors import InputError
from ..io.files import publish
from ..io.headers import PIXTABLE
from ..recipe import Recipe
from ..recipes import EXP_COMBINE, MAKE_CUBE
from .build import build_store, load_tables, position_store, rows_in_range
from .chunks import run_chunks
from .cosmics import direction
from .exposure import Exposure, Placement, group_exposures, needs_cut, place, require
from .grid import check_overlap
from .layout import ALL_WAVES, dry_run_plan, find_grid, find_limits, plan_chunks
from .params import EXTRA, ResampleParams
from .plan import ROW_HELD, ROW_POSITION, check_memory, rows_fit
from .resample import Job
from .store import ROW_BYTES, AnyStore, DiskStore, MemoryStore, StoredExposure, describe
from .work import PathLike, check_disk, check_outputs, list_outputs, make_settings, work

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from ..io.tables import OutputWcs

log = logging.getLogger("musedask")


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
    settings = make_settings(output, memory_limit, client, n_workers, overwrite)
    check_outputs([output], tables, settings)
    exposures = group_exposures(tables, need_date=len(tables) > 1, wave_range=(lambdamin, lambdamax))
    wave_range = cut_range(exposures, lambdamin, lambdamax)
    description = {
        "job": "store",
        "inputs": [describe(e).fingerprint for e in exposures],
        "wave_range": list(wave_range),
    }
    check_disk((settings.scratch / "store", sum(e.n_rows for e in exposures) * ROW_BYTES))
    with work(settings, description):
        build_store(exposures, settings.scratch / "store", wave_range, settings)
        publish(settings.scratch / "store", output)
    return output


def cut_range(exposures: Sequence[Exposure | StoredExposure], low: float, high: float) -> tuple[float, float]:
    """Range to cut the rows to; infinite if the headers say that nothing lies outside."""
    return (low, high) if any(needs_cut(e.header, (low, high)) for e in exposures) else ALL_WAVES


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
        Whether to keep the rows of tables, or the positions of those of a store, in memory; by default if they fit.
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
    settings = make_settings(output, memory_limit, client, n_workers, overwrite)
    given = [*paths, *(p for p in (offset_list, output_wcs, filter_list) if p is not None)]
    check_outputs(products.files(), given, settings)
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
        check_outputs(products.files(), [*given, *(s for e in exposures for s in e.sources)], settings)
        products.check_sources()
    if not products.makes_cube:
        # as in the reference, tables are neither resampled nor searched for cosmic rays
        wcs = None
    positioned = exposures[0].stage != "pix"
    vacuum = wcs is not None and wcs.ctype3.startswith("WAVE")
    if vacuum:
        vacuum = _convertible(header)
    wave_range = cut_range(exposures, params.lambdamin, params.lambdamax)
    description = {
        "job": recipe.name,
        "inputs": [e.fingerprint for e in exposures],
        "parameters": params.to_dict(),
        "placements": [asdict(p) for p in placements],
        "output_wcs": asdict(wcs) if wcs is not None else None,
    }
    total = sum(e.n_rows for e in exposures) if inputs.store else sum(e.n_rows for e in inputs.exposures)
    row_bytes = ROW_HELD if inputs.store is None else ROW_POSITION
    held = total if inputs.store is None else rows_in_range(inputs.store, wave_range)
    if in_memory is None:
        in_memory = rows_fit(held, row_bytes, settings.memory_limit, settings.threads)
    in_memory = in_memory and settings.client is None
    if inputs.store is not None and (products.needs_rows or not products.makes_cube):
        # whatever else is made of rows takes them from the store
        in_memory = False
    if not in_memory:
        check_memory(settings.memory_limit, settings.threads)
    if inputs.store is None:
        where = "kept in memory" if in_memory else "sorted on disk"
    else:
        where = "in the store" + (f", positions of {held} kept in memory" if in_memory else "")
    log.info(
        "%d exposure%s, %d pixels (%s): rows %s",
        len(exposures), "s" if len(exposures) > 1 else "", total, format_bytes(total * ROW_BYTES), where,
    )  # fmt: skip
    if not in_memory and inputs.store is None and not dry_run:
        check_disk((settings.scratch / "store", total * ROW_BYTES))
    if dry_run:
        stored = inputs.store is not None
        n_rows = held if in_memory else total
        dry_run_plan(
            exposures, header, params, wcs, placements, settings, n_rows, chunks, in_memory=in_memory, stored=stored
        )
        return None

    with MemoryMonitor(children=settings.client is not None) as monitor, work(settings, description) as resumed:
        with timer("rows"):
            rows: MemoryStore | DiskStore
            if inputs.store is not None:
                rows = inputs.store
            elif in_memory:
                rows = load_tables(inputs.exposures, placements, vacuum, wave_range, settings)
            else:
                rows = build_store(inputs.exposures, settings.scratch / "store", wave_range, settings)
            store: AnyStore = rows
            if in_memory and inputs.store is not None:
                store = position_store(inputs.store, placements, vacuum, wave_range, settings)
        with timer("limits"):
            limits = find_limits(store, placements, vacuum, wave_range, settings)
            grid = find_grid(recipe, store, header, limits, wave_range, params, wcs, placements)
            check_overlap(grid)
        plan = None
        needs = [(products.folder, products.row_bytes(total))]
        if products.makes_cube:
            plan = plan_chunks(store, grid, params, placements, settings, wave_range, in_memory, chunks)
            log.info("%s", plan.describe())
            needs.append((settings.scratch / "cube.zarr", plan.disk_bytes))
            if products.fits is not None:
                needs.append((products.fits, 8 * math.prod(grid.shape)))
        check_disk(*needs)
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
        if plan is None:
            list_outputs(settings, products.files())
            with timer("FITS"):
                products.write_rows(job, rows, settings)
        else:
            cube = settings.scratch / "cube.zarr"
            with timer("cube"):
                run_chunks(job, store, plan, products, settings, resumed)
            with timer("images"):
                products.finish_cube(cube, settings)
            list_outputs(settings, products.files())
            with timer("FITS"):
                products.write(cube, job, rows, settings)
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


