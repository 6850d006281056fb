"""Exposures: from a plan to a raw file, one task per IFU."""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..compute import (
    default_memory_limit,
    default_workers,
    format_bytes,
    give_back_arrays,
    n_threads,
    parse_bytes,
    resolve_client,
    run_tasks,
)
from ..errors import InputError, PlanError
from ..instrument import N_IFUS
from ..io.files import atomic_path, check_output
from ..io.raw import RawUnit, RawWriter
from .association import archive_name
from .detector import Detector
from .ephemeris import horizontal, mjd_of, sun
from .headers import extension_header, origfile_of, primary_header
from .optics import Instrument, Light
from .plan import ExposurePlan
from .render import render
from .scene import SceneLike, scene_from_dict

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

#: order of the extensions in a file; as in real ones it is not that of the channels
CHANNEL_ORDER = (
    12, 11, 10, 9, 24, 23, 22, 21, 8, 7, 6, 5, 20, 19, 18, 17, 4, 3, 2, 1, 16, 15, 14, 13,
)  # fmt: skip
#: memory of one task, measured, and some to spare [bytes]
TASK_MEMORY = 600_000_000
#: until when the last IFU was vignetted
_VIGNETTED_UNTIL = "2017-03-11"
#: size of a data unit [bytes]
FRAME_BYTES = 4224 * 4240 * 2


def check_ifus(ifus: Iterable[int]) -> tuple[int, ...]:
    """IFU numbers, each once, ascending.

    Raises
    ------
    InputError
        If there are none or one does not exist.
    """
    numbers = sorted({int(i) for i in ifus})
    wrong = [i for i in numbers if not 1 <= i <= N_IFUS]
    if wrong or not numbers:
        found = ", ".join(f"IFU {i}" for i in wrong) or "no IFU"
        raise InputError(f"{found} found, expected numbers from 1 to {N_IFUS}")
    return tuple(numbers)


def instrument_of(plan: ExposurePlan) -> Instrument:
    """The instrument as it was at the time of an exposure: the vignetting was mended in 2017."""
    return Instrument(plan.mode, vignetted=plan.date_obs < _VIGNETTED_UNTIL)


def scene_text(scene: SceneLike | None) -> str:
    """A scene as JSON: small, comparable, to be sent to workers; empty for none."""
    if scene is None:
        return ""
    values = scene.to_dict()
    if values.get("source"):
        # workers may be in another folder
        values["source"] = os.path.abspath(values["source"])
    return json.dumps(values, sort_keys=True)


@lru_cache(maxsize=4)
def _scene(text: str) -> SceneLike:
    return scene_from_dict(json.loads(text))


@lru_cache(maxsize=4)
def light_of(plan: ExposurePlan, scene: str, ifus: tuple[int, ...]) -> Light | None:
    """What falls on the slicer in an exposure.

    Parameters
    ----------
    plan : ExposurePlan
    scene : str
        From `scene_text`.
    ifus : tuple of int
        All simulated IFUs: the middle of their field looks at the pointing.

    Returns
    -------
    Light or None
        None if the shutter is closed.

    Raises
    ------
    InputError
        If the scene is outside the field.
    """
    from . import lamps
    from .skylight import SkyLight

    instrument = instrument_of(plan)
    if plan.tag in ("BIAS", "DARK"):
        return None
    if plan.tag in ("FLAT", "ILLUM"):
        return lamps.FlatLight(plan.mode)
    if plan.tag == "ARC":
        return lamps.ArcLight(plan.lamp, plan.mode)
    if plan.tag == "MASK":
        assert plan.mask is not None
        return lamps.MaskLight(plan.lamp, plan.mask, plan.mode)
    if plan.tag == "SKYFLAT":
        return lamps.TwilightLight(plan.mode, elapsed=_into_twilight(plan))
    return SkyLight(_scene(scene) if scene else None, plan, instrument, ifus)


def _into_twilight(plan: ExposurePlan) -> float:
    """How long ago the Sun was 1.5 deg below the horizon, in an evening [s]; it sinks by 0.0037 deg/s."""
    middle = mjd_of(plan.date_obs) + plan.exptime / 2 / 86400
    return (-1.5 - horizontal(*sun(middle), middle).alt) / 0.0037


@lru_cache(maxsize=2 * N_IFUS)
def _detector(ifu: int) -> Detector:
    return Detector(ifu)


@dataclass(frozen=True, repr=False)
class _Task:
    """One IFU of one exposure."""

    plan: ExposurePlan
    ifu: int
    ifus: tuple[int, ...]
    scene: str
    seed: int
    images: str
    #: with its header packed: much smaller to send
    unit: RawUnit
    header: bytes

    def __repr__(self) -> str:
        return f"IFU {self.ifu} of {self.plan.tag} {self.plan.date_obs}"


def expected_rate(
    plan: ExposurePlan, ifu: int, ifus: Sequence[int], scene: SceneLike | None = None
) -> NDArray[np.float32] | None:
    """Expected photo-electrons of every pixel of an IFU, without noise.

    Parameters
    ----------
    plan : ExposurePlan
    ifu : int
    ifus : sequence of int
        All simulated IFUs.
    scene : SceneLike, optional

    Returns
    -------
    ndarray of float32, shape (4112, 4096), or None
        [e-/s]; None if the shutter is closed.
    """
    return _rate(plan, ifu, tuple(ifus), scene_text(scene))


def _rate(plan: ExposurePlan, ifu: int, ifus: tuple[int, ...], scene: str) -> NDArray[np.float32] | None:
    light = light_of(plan, scene, ifus)
    if light is None:
        return None
    return render(instrument_of(plan).ifu(ifu), light, temperature=plan.conditions.instrument_temperature)


# ----------------------------------------------------------------------------------------- tasks


def _expose(task: _Task) -> dict[str, Any]:
    """Make one data unit, and say how it was."""
    give_back_arrays()
    started = time.perf_counter()
    plan, detector = task.plan, _detector(task.ifu)
    rate = _rate(plan, task.ifu, task.ifus, task.scene)
    if rate is not None and task.images:
        _save_image(Path(task.images), plan, task.ifu, rate)
    frame = detector.expose(rate, plan.exptime, (task.seed, plan.index))
    del rate
    header = fits.Header.fromstring(zlib.decompress(task.header))
    replace(task.unit, header=header).write(frame.image)
    return {
        "saturated": int(frame.saturated),
        "cosmics": (frame.cosmic_pixels, frame.cosmic_charge),
        "seconds": time.perf_counter() - started,
    }


def task_threads(client: Client | None, n_workers: int | None, memory_limit: str | int | None) -> int:
    """How many tasks run at a time: one per worker, as far as the memory reaches.

    Raises
    ------
    PlanError
        If it is not enough for one, or the workers of a cluster are too many for it.
    """
    if n_workers is not None and n_workers < 1:
        raise InputError(f"n_workers = {n_workers} found, expected at least 1")
    limit = default_memory_limit(client) if memory_limit is None else parse_bytes(memory_limit)
    if client is not None:
        workers = n_threads(client, None)
        if memory_limit is not None and workers * TASK_MEMORY > limit:
            raise PlanError(
                f"memory limit {format_bytes(limit)} found, {workers} workers need "
                f"{format_bytes(workers * TASK_MEMORY)}; give more memory or fewer workers"
            )
        return workers
    if limit < TASK_MEMORY:
        raise PlanError(f"memory limit {format_bytes(limit)} found, expected at least {format_bytes(TASK_MEMORY)}")
    return max(1, min(n_workers or default_workers(), limit // TASK_MEMORY))


class _Tasks(Sequence[_Task]):
    """Tasks of all exposures; the file of an exposure is laid out when its first task is taken."""

    def __init__(self, items: Sequence[tuple[ExposurePlan, int]], make: Callable[[ExposurePlan, int], _Task]) -> None:
        self._items = items
        self._make = make

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: Any) -> Any:
        return self._make(*self._items[number])


def write_exposures(
    plans: Sequence[ExposurePlan],
    folder: Path,
    *,
    ifus: tuple[int, ...],
    seed: int,
    scenes: Mapping[str, str],
    compress: bool = False,
    images: Path | None = None,
    client: Client | None = None,
    n_workers: int | None = None,
    memory_limit: str | int | None = None,
    on_exposure: Callable[[ExposurePlan, Path, dict[int, dict[str, Any]]], None] | None = None,
    done_before: int = 0,
) -> list[Path]:
    """Write exposures, each to a file that appears when it is whole.

    Parameters
    ----------
    plans : sequence of ExposurePlan
    folder : Path
        Exists.
    ifus, seed, compress
        See `observe`.
    scenes : mapping of str to str
        `scene_text` of the scenes by the names that the plans have.
    images : Path, optional
        Folder for the images without noise.
    client, n_workers, memory_limit
        See `observe`.
    on_exposure : callable, optional
        Called in this thread with each plan, its file, and what is known of each of its IFUs: ``saturated``
        (pixels), ``cosmics`` (see `truth.write_cosmics`), ``seconds``.
    done_before : int
        Exposures of an earlier run, for the display.

    Returns
    -------
    list of Path
    """
    workers = task_threads(client, n_workers, memory_limit)
    order = [i for i in CHANNEL_ORDER if i in ifus]
    paths = {plan.index: folder / raw_name(plan, compress) for plan in plans}
    if len(paths) != len(plans) or len(set(paths.values())) != len(plans):
        raise InputError("two exposures have the same index or start at the same time")
    writers: dict[int, RawWriter] = {}
    results: dict[int, dict[int, dict[str, Any]]] = {plan.index: {} for plan in plans}

    def make(plan: ExposurePlan, ifu: int) -> _Task:
        if plan.index not in writers:
            primary = primary_header(plan, origfile=origfile_of(plan, plan.index + 1), arcfile=raw_name(plan))
            extensions = [extension_header(plan, i, _detector(i)) for i in order]
            writers[plan.index] = RawWriter(paths[plan.index], primary, extensions)
        unit = writers[plan.index].units[ifu]
        header = zlib.compress(unit.header.tostring().encode("ascii"), 1)
        scene = scenes[plan.scene] if plan.scene else ""
        return _Task(plan, ifu, ifus, scene, seed, str(images or ""), replace(unit, header=fits.Header()), header)

    def finished(task: _Task, result: dict[str, Any]) -> None:
        done = results[task.plan.index]
        done[task.ifu] = result
        if len(done) == len(order):
            path = writers.pop(task.plan.index).finish()
            if on_exposure is not None:
                on_exposure(task.plan, path, results.pop(task.plan.index))

    tasks: Sequence[_Task] = _Tasks([(plan, ifu) for plan in plans for ifu in order], make)
    try:
        if client is not None:
            tasks = list(tasks)
        run_tasks(
            _expose, tasks, client=client, n_workers=workers, label="frames", on_result=finished,
            done_before=done_before * len(order),
        )  # fmt: skip
    finally:
        for writer in writers.values():
            writer.abort()
    return list(paths.values())


def raw_name(plan: ExposurePlan, compress: bool = False) -> str:
    """Name of a raw file as in the archive, ``MUSE.2014-12-08T02:48:56.798.fits``."""
    return f"{archive_name(plan)}.fits{'.fz' if compress else ''}"


def observe(
    plan: ExposurePlan,
    scene: SceneLike | None = None,
    *,
    ifus: Iterable[int] = range(1, N_IFUS + 1),
    out_dir: str | os.PathLike[str] = ".",
    seed: int = 1,
    compress: bool = False,
    images: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    n_workers: int | None = None,
    memory_limit: str | int | None = None,
) -> Path:
    """Take one exposure.

    Parameters
    ----------
    plan : ExposurePlan
        What is exposed, when and how.
    scene : SceneLike, optional
        What is on the sky; None is blank sky.
    ifus : iterable of int
        IFUs to simulate.  The middle of their common field looks at RA and DEC of the header.
    out_dir : path-like
        Where the file goes; it is made if it is missing.
    seed : int
        Of noise, cosmic rays and drifts.  The instrument and the sky do not depend on it.
    compress : bool
        Write ``.fits.fz``.
    images : bool
        Write also the expected rate of every pixel, without noise, to ``<name>_RATE-<IFU>.fits``.
    overwrite : bool
        Whether an existing file may be replaced.
    client : distributed.Client, optional
        Where the tasks run, one for each IFU; None for threads of this process.
    n_workers : int, optional
        Number of threads, at most; fewer if the memory does not reach for so many.
    memory_limit : str or int, optional
        For all tasks together; default six tenths of what is free.

    Returns
    -------
    Path
        The raw file, ``MUSE.<DATE-OBS>.fits``.

    Raises
    ------
    InputError
        If an IFU does not exist, the scene is outside the field, or the folder cannot be written to.
    OutputExistsError
        If the file exists.
    PlanError
        If memory or disk are too small.
    """
    numbers = check_ifus(ifus)
    folder = make_folder(out_dir)
    path = check_output(folder / raw_name(plan, compress), overwrite=overwrite)
    if scene is not None and plan.on_sky:
        plan = replace(plan, scene=plan.scene or "scene")
    else:
        plan = replace(plan, scene="")
    text = scene_text(scene)
    light_of(plan, text if plan.scene else "", numbers)
    if overwrite:
        path.unlink(missing_ok=True)
    write_exposures(
        [plan], folder, ifus=numbers, seed=seed, scenes={plan.scene: text}, compress=compress,
        images=folder if images else None, client=resolve_client(client), n_workers=n_workers,
        memory_limit=memory_limit,
    )  # fmt: skip
    return path


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder for output, if it is not there.

    Raises
    ------
    InputError
        If it cannot be made or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written to")
    return folder


def _save_image(folder: Path, plan: ExposurePlan, ifu: int, rate: NDArray[np.float32]) -> None:
    header = fits.Header([("BUNIT", "electron/s"), ("EXTNAME", f"CHAN{ifu:02d}"), ("EXPTIME", plan.exptime, "[s]")])
    with atomic_path(folder / f"{archive_name(plan)}_RATE-{ifu:02d}.fits", overwrite=True) as path:
        fits.PrimaryHDU(rate, header).writeto(path, overwrite=True)
