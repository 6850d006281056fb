"""A simulated night: raw exposures, calibrations, truth and associations, as the archive would deliver them."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..compute import format_bytes, resolve_client
from ..errors import InputError, OutputExistsError, PlanError, StoreError
from ..instrument import N_IFUS, SPAXEL_WFM
from ..io.files import atomic_path, check_output
from .association import write_associations
from .exposure import (
    FRAME_BYTES,
    check_ifus,
    instrument_of,
    light_of,
    make_folder,
    raw_name,
    scene_text,
    task_threads,
    write_exposures,
)
from .fields import astrometric_field, standard_star
from .masters import RECIPES, master_name, write_masters
from .optics import Instrument
from .plan import ExposurePlan
from .scene import Background, Galaxy, Nebula, Scene, SceneLike, Star
from .schedule import ASTROMETRIC_FIELDS, Target, check_mode, plan_night
from .spectra import BlackBody, flux_from_ab
from .statics import write_statics
from .truth import plan_from_dict, write_cosmics, write_truth

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

# ---------------------------------------------------------------------------------------- scenes


def night_scene(
    instrument: Instrument, ifus: Sequence[int], angles: Sequence[float], ra: float, dec: float
) -> Scene:
    """A field of stars, galaxies and an emission-line nebula, made for the IFUs that look at it.

    A few IFUs see a narrow strip, and another one at each position angle; there are stars in all of them.

    Parameters
    ----------
    instrument : Instrument
    ifus : sequence of int
    angles : sequence of float
        Position angles of the exposures [deg].
    ra, dec : float
        Its centre [deg].

    Returns
    -------
    Scene
    """
    xlo, xhi, ylo, yhi = instrument.limits(ifus)
    sx, sy = instrument.mode.spaxel
    width, height = (xhi - xlo) * sx, (yhi - ylo) * sy
    # small lengths follow the size of spaxels, so that the narrow field looks alike
    unit = sx / SPAXEL_WFM[0]
    # small spaxels see little of what is extended
    brighter = 3.5 * math.log10(unit)
    random = np.random.default_rng(20140131)
    places: list[tuple[float, float]] = []

    def place(angle: float, distance: float) -> tuple[float, float] | None:
        for _ in range(200):
            u, v = random.uniform(-0.44, 0.44) * width, random.uniform(-0.34, 0.34) * height
            east, north = _from_field(u, v, angle)
            if all(math.hypot(east - x, north - y) > distance * unit for x, y in places):
                places.append((east, north))
                return east, north
        return None

    stars: list[Star] = []
    galaxies: list[Galaxy] = []
    strips = sorted({round(angle % 180, 3) for angle in angles}) if height < 0.8 * width else [0.0]
    n_stars = int(np.clip(width * height / unit**2 / 30, 12, 60))
    for angle in strips or [0.0]:
        for k in range(n_stars):
            where = place(angle, 3.0)
            if where is not None:
                # the first ones are bright, so that every strip has some to align
                magnitude = 18.5 + brighter + 4.0 * k / n_stars
                temperature = float(np.round(random.choice([3300, 4200, 5200, 6000, 7500, 9500])))
                name = f"star {len(stars) + 1}"
                stars.append(Star(*where, flux_from_ab(magnitude), spectrum=BlackBody(temperature), name=name))
        for _ in range(max(2, n_stars // 6)):
            where = place(angle, 4.0)
            if where is not None:
                flux = flux_from_ab(brighter + float(random.uniform(19.5, 21.5)))
                radius = float(random.uniform(0.4, 1.0)) * unit
                galaxies.append(Galaxy(
                    *where, flux, radius, sersic=float(random.choice([1.0, 1.0, 4.0])),
                    axis_ratio=float(random.uniform(0.4, 1.0)), angle=float(random.uniform(0, 180)),
                    spectrum=BlackBody(4800.0), name=f"galaxy {len(galaxies) + 1}",
                ))  # fmt: skip
    nebula = Nebula(150.0, scale=15.0 * unit, velocity=25.0, velocity_gradient=0.6 / unit, velocity_angle=30.0)
    return Scene(
        tuple(stars), background=Background(0.0), galaxies=tuple(galaxies), nebulae=(nebula,), ra=ra, dec=dec,
        name="default",
    )  # fmt: skip


def _from_field(u: float, v: float, posang: float) -> tuple[float, float]:
    """Arcsec east and north of a place in the field, given in arcsec to the right and up."""
    pa = math.radians(-posang)
    return -u * math.cos(pa) - v * math.sin(pa), -u * math.sin(pa) + v * math.cos(pa)


def scenes_of(
    plans: Sequence[ExposurePlan], ifus: Sequence[int], scene: SceneLike | Mapping[str, SceneLike] | None = None
) -> dict[str, SceneLike]:
    """Scenes of all exposures, by the names that the plans have.

    Parameters
    ----------
    plans : sequence of ExposurePlan
    ifus : sequence of int
    scene : SceneLike or mapping of them by name, optional
        What the OBJECT exposures see; default: `night_scene`.  Standard stars and astrometric fields are
        made here.  A scene without coordinates lies at the target of its first exposure.

    Returns
    -------
    dict of str to SceneLike
    """
    given = dict(scene) if isinstance(scene, Mapping) else {}
    scenes: dict[str, SceneLike] = {}
    for plan in plans:
        name = plan.scene
        if not name or name in scenes:
            continue
        kind, _, rest = name.partition(" ")
        if name in given:
            made = given[name]
        elif kind == "standard":
            made = standard_star(rest).scene
        elif kind == "astrometry":
            made = astrometric_scene(rest)
        elif scene is not None and not isinstance(scene, Mapping):
            made = scene
        else:
            angles = [p.posang for p in plans if p.scene == name]
            made = night_scene(instrument_of(plan), ifus, angles, *_target_of(plan))
        if isinstance(made, Scene) and made.ra is None:
            ra, dec = _target_of(plan)
            made = replace(made, ra=ra, dec=dec)
        scenes[name] = made
    return scenes


def astrometric_scene(name: str) -> Scene:
    """The stars of one of `ASTROMETRIC_FIELDS`."""
    for number, (known, ra, dec) in enumerate(ASTROMETRIC_FIELDS):
        if known == name:
            return astrometric_field(ra, dec, seed=number, name=known)
    raise InputError(
        f"astrometric field {name!r} found, expected one of {', '.join(n for n, _, _ in ASTROMETRIC_FIELDS)}"
    )


def _target_of(plan: ExposurePlan) -> tuple[float, float]:
    """Where the telescope was sent to, without the offset of the exposure [deg]."""
    east, north = plan.offset
    dec = plan.header_dec - north / 3600
    return round((plan.header_ra - east / 3600 / math.cos(math.radians(dec))) % 360, 7), round(dec, 7)


# --------------------------------------------------------------------------------------- writing

#: size of a compressed frame relative to a plain one, by type (measured)
_COMPRESSED = {
    "BIAS": 0.27, "DARK": 0.28, "ARC": 0.31, "MASK": 0.28, "FLAT": 0.65, "ILLUM": 0.65, "SKYFLAT": 0.64,
}  # fmt: skip
_ON_SKY_COMPRESSED = 0.33
#: processor time of a frame of one IFU, by type, and what compression adds (measured) [s]
_SECONDS = {
    "BIAS": 0.3, "DARK": 0.5, "FLAT": 1.2, "ILLUM": 1.2, "ARC": 1.2, "MASK": 1.3, "SKYFLAT": 2.0, "SKY": 2.5,
}  # fmt: skip
_ON_SKY_SECONDS, _COMPRESS_SECONDS = 4.0, 0.4
_INDEX = "night.json"


@dataclass(frozen=True)
class SimulatedNight:
    """What `simulate_night` has written, or would write.

    Attributes
    ----------
    folder : Path
    plans : list of ExposurePlan
        In the order of time.
    paths : list of Path
        Raw files of the exposures.
    scenes : dict of str to SceneLike
        By the names that the plans have.
    statics : dict of str to list of Path
        Static calibrations by category; empty if none were asked for.
    masters : dict of str to list of Path
        Master calibrations by category; empty if none were asked for.
    associations : list of Path
        XML files as of the archive.
    """

    folder: Path
    plans: list[ExposurePlan]
    paths: list[Path]
    scenes: dict[str, SceneLike]
    statics: dict[str, list[Path]] = field(default_factory=dict)
    masters: dict[str, list[Path]] = field(default_factory=dict)
    associations: list[Path] = field(default_factory=list)

    def files(self, tag: str, **values: Any) -> list[Path]:
        """Raw files of a type; also only those of a lamp, a mode, ... (``lamp="Ne"``)."""
        return [
            path
            for plan, path in zip(self.plans, self.paths, strict=True)
            if plan.tag == tag and all(getattr(plan, name) == value for name, value in values.items())
        ]

    def sof(self, *tags: str) -> str:
        """Lines for a set of frames: raw files and static calibrations of some tags, or all."""
        raw = zip(self.plans, [path.absolute() for path in self.paths], strict=True)
        lines = [f"{path} {plan.tag}\n" for plan, path in raw if plan.tag in tags or not tags]
        for category, paths in self.statics.items():
            lines += [f"{path.absolute()} {category}\n" for path in paths if category in tags or not tags]
        return "".join(lines)


def simulate_night(
    out: str | os.PathLike[str],
    *,
    ifus: Iterable[int] = range(1, N_IFUS + 1),
    mode: str = "WFM-NOAO-N",
    scene: SceneLike | None = None,
    dithers: int = 4,
    rotate: float = 90.0,
    exptimes: Sequence[float] = (600.0,),
    n_obs: int = 1,
    ra: float | None = None,
    dec: float | None = None,
    name: str = "",
    seed: int = 1,
    day: str | date = "2018-11-08",
    calibrations: Mapping[str, int] | None = None,
    dither: float | None = None,
    pointing_error: float | None = None,
    exposure_times: Mapping[str, float] | None = None,
    **writing: Any,
) -> SimulatedNight:
    """Simulate a night: raw frames of all types, static calibrations, truth, associations.

    Parameters
    ----------
    out : path-like
        Folder, made if it is missing: ``raw/``, ``static/``, ``truth/``, ``night.json``, ``frames.sof``.
    ifus : iterable of int
        IFUs to simulate.
    mode : str
        Instrument mode, one of `optics.MODES`.
    scene : SceneLike, optional
        What the OBJECT exposures see, as of `load_scene`; default `night_scene`.
    dithers : int
        Positions of a block.
    rotate : float
        Turn of the field from one to the next [deg].
    exptimes : sequence of float
        One exposure of each at each position [s].
    n_obs : int
        Number of observing blocks.
    ra, dec : float, optional
        Target [deg]; by default the coordinates of the scene, or a place that culminates meanwhile.
    name : str
        Of the blocks; they are numbered.
    seed : int
        Of noise, cosmic rays and drifts; instrument, sky, weather and pointing do not depend on it.
    day : str or date
        Evening of the night.
    calibrations : mapping, optional
        Numbers of frames by type, where they are not those of `COUNTS`.
    dither : float, optional
        Radius of the offsets [arcsec]; default 1, or less if the field of the IFUs is narrow.
    pointing_error : float, optional
        Standard deviation of header minus true position [arcsec]; default 0.2, a tenth of it in NFM.
    exposure_times : mapping, optional
        Exposure times of calibrations [s] by type or lamp, where they are not those of `EXPTIMES`.
    **writing
        Of `simulate_plans`: ``compress``, ``truth``, ``statics``, ``masters``, ``associations``,
        ``overwrite``, ``dry_run``, ``client``, ``n_workers``, ``memory_limit``.

    Returns
    -------
    SimulatedNight

    Raises
    ------
    InputError
        If something asked for does not exist or does not fit.
    OutputExistsError
        If the folder holds another night.
    PlanError
        If disk or memory are too small.

    Notes
    -----
    The same call goes on where an interrupted one has stopped: files that are whole are kept.
    """
    numbers, mode = check_ifus(ifus), check_mode(mode)
    if n_obs < 0:
        raise InputError(f"{n_obs} observing blocks found, expected 0 or more")
    if (ra is None) != (dec is None):
        raise InputError(f"ra {ra}, dec {dec} found, expected both, or neither")
    if ra is None and scene is not None:
        ra, dec = getattr(scene, "ra", None), getattr(scene, "dec", None)
    if ra is not None and dec is not None and not (0 <= ra <= 360 and -90 < dec < 90):
        raise InputError(f"target at RA {ra}, DEC {dec} found, expected 0..360 and -90..90 deg")
    instrument = Instrument(mode)
    xlo, xhi, ylo, yhi = instrument.limits(numbers)
    sx, sy = instrument.mode.spaxel
    narrow = min((xhi - xlo) * sx, (yhi - ylo) * sy)
    label = name or f"{mode.rpartition('-')[0]}-simulated"
    targets = [
        Target(f"{label}-{k + 1}" if n_obs > 1 else label, ra, dec, "field", dithers, rotate, tuple(exptimes))
        for k in range(n_obs)
    ]
    plans = plan_night(
        day,
        mode=mode,
        targets=targets,
        counts=calibrations,
        dither=min(sx / 0.2, 0.2 * narrow) if dither is None else dither,
        pointing_error=(0.02 if mode.startswith("NFM") else 0.2) if pointing_error is None else pointing_error,
        exptimes=exposure_times,
    )
    return simulate_plans(out, plans, scene, ifus=numbers, seed=seed, **writing)


def simulate_plans(
    out: str | os.PathLike[str],
    plans: Sequence[ExposurePlan],
    scene: SceneLike | Mapping[str, SceneLike] | None = None,
    *,
    ifus: Iterable[int] = range(1, N_IFUS + 1),
    seed: int = 1,
    compress: bool = False,
    truth: bool = True,
    images: bool = False,
    statics: bool = True,
    masters: bool = False,
    associations: bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    client: Client | None = None,
    n_workers: int | None = None,
    memory_limit: str | int | None = None,
) -> SimulatedNight:
    """Write exposures that are planned, of one or several nights.

    Parameters
    ----------
    out : path-like
        See `simulate_night`.
    plans : sequence of ExposurePlan
        From `plan_night`; indices and times must differ.
    scene : SceneLike or mapping of them by name, optional
        See `scenes_of`.
    ifus : iterable of int
    seed : int
    compress : bool
        Write ``.fits.fz``.
    truth : bool
        Write the truth beside the data.
    images : bool
        And the expected rate of every pixel of every exposure, without noise.
    statics : bool
        Write static calibrations.
    masters : bool
        Write master calibrations, as the archive delivers them.
    associations : bool
        Write the XML files of the archive.
    overwrite : bool
        Replace another night, and start anew.
    dry_run : bool
        Only check, and say what would be written.
    client : distributed.Client, optional
        Where the tasks run, one for each exposure and IFU; None for threads of this process.
    n_workers : int, optional
        Number of threads, at most.
    memory_limit : str or int, optional
        For all tasks together.

    Returns
    -------
    SimulatedNight

    Raises
    ------
    InputError, OutputExistsError, PlanError
        See `simulate_night`.
    """
    numbers = check_ifus(ifus)
    if not plans:
        raise InputError("no exposures found, expected at least one")
    plans = sorted(plans, key=lambda p: p.date_obs)
    client = resolve_client(client)
    threads = task_threads(client, n_workers, memory_limit)
    scenes = scenes_of(plans, numbers, scene)
    texts = {key: scene_text(value) for key, value in scenes.items()}
    _check_scenes(plans, texts, numbers)

    folder = Path(out)
    raw = folder / "raw"
    paths = [raw / raw_name(plan, compress) for plan in plans]
    night = SimulatedNight(folder, list(plans), paths, scenes)
    job = {
        "version": __version__, "seed": seed, "ifus": list(numbers), "compress": compress,
        "scenes": {key: json.loads(text) for key, text in texts.items()},
        "exposures": [{"file": path.name, **asdict(plan)} for plan, path in zip(plans, paths, strict=True)],
    }  # fmt: skip
    # as it is read back
    job = json.loads(json.dumps(job))
    found = _found(folder, job, overwrite)
    anew = overwrite or not found
    todo = [(plan, path) for plan, path in zip(plans, paths, strict=True) if anew or not path.exists()]
    log.info("%s", describe(plans, numbers, compress=compress, threads=threads))
    if len(todo) < len(plans):
        log.info("%d of %d exposures are there already", len(plans) - len(todo), len(plans))
    _check_space(folder, [plan for plan, _ in todo], len(numbers), compress, images)
    if dry_run:
        return night
    make_folder(raw)
    with _locked(folder):
        if found and overwrite:
            _remove(folder, found)
        for _, path in todo:
            check_output(path, overwrite=False)
        for stale in _parts(raw):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        with atomic_path(folder / _INDEX, overwrite=True) as part:
            part.write_text(json.dumps(job, indent=1) + "\n")
        if images or truth:
            make_folder(folder / "truth")

        def finished(plan: ExposurePlan, path: Path, results: Mapping[int, Mapping[str, Any]]) -> None:
            if truth:
                write_cosmics(folder, plan, {ifu: r["cosmics"] for ifu, r in results.items()}, overwrite=True)

        started = time.perf_counter()
        write_exposures(
            [plan for plan, _ in todo], raw, ifus=numbers, seed=seed, scenes=texts, compress=compress,
            images=folder / "truth" if images else None, client=client, n_workers=n_workers,
            memory_limit=memory_limit, on_exposure=finished, done_before=len(plans) - len(todo),
        )  # fmt: skip
        if todo:
            seconds = time.perf_counter() - started
            log.info(
                "wrote %d exposures in %.0f s, %.2f s per frame of one IFU",
                len(todo), seconds, seconds / len(todo) / len(numbers),
            )  # fmt: skip
        if truth:
            write_truth(folder, plans, numbers, wave_maps=images, overwrite=True)
        if statics:
            night = replace(night, statics=_write_statics(folder / "static", plans, numbers))
        made = write_masters(raw, plans, ifus=numbers, overwrite=True) if masters else {}
        night = replace(night, masters=made)
        if associations:
            names = {category: files[0].stem for category, files in night.statics.items()}
            there = {path.stem for files in made.values() for path in files}

            def master(category: str, first: ExposurePlan) -> str | None:
                stem = master_name(category, first)
                return stem if stem in there else None

            found_files = write_associations(raw, plans, masters=master if masters else None, statics=names)
            night = replace(night, associations=found_files)
        with atomic_path(folder / "frames.sof", overwrite=True) as part:
            part.write_text(night.sof())
        return night


def write_all_statics(
    folder: str | os.PathLike[str],
    *,
    mode: str = "WFM-NOAO-N",
    ifus: Iterable[int] = range(1, N_IFUS + 1),
    vignetted: bool = True,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Static calibrations for everything that a night may observe; see `statics.write_statics`."""
    fields = [astrometric_scene(name) for name, _, _ in ASTROMETRIC_FIELDS]
    return write_statics(
        folder, mode=check_mode(mode), ifus=check_ifus(ifus), fields=fields, vignetted=vignetted, overwrite=overwrite
    )


def _write_statics(folder: Path, plans: Sequence[ExposurePlan], ifus: tuple[int, ...]) -> dict[str, list[Path]]:
    """Static calibrations for all modes that occur."""
    written: dict[str, list[Path]] = {}
    for instrument in dict.fromkeys(instrument_of(plan) for plan in plans):
        files = write_all_statics(
            folder, mode=instrument.mode.name, ifus=ifus, vignetted=instrument.vignetted, overwrite=True
        )
        for category, path in files.items():
            if path not in written.setdefault(category, []):
                written[category].append(path)
    return written


def describe(plans: Sequence[ExposurePlan], ifus: Sequence[int], *, compress: bool, threads: int) -> str:
    """Table of what a night consists of, its size and about how long it takes to simulate it."""
    first, last = plans[0], plans[-1]
    lines = [
        f"{len(plans)} exposures of {len(ifus)} IFU{'s' * (len(ifus) != 1)}, {first.mode}, "
        f"{first.date_obs[:16]} to {last.date_obs[:16]} UTC"
    ]
    for tag in dict.fromkeys(plan.tag for plan in plans):
        group = [plan for plan in plans if plan.tag == tag]
        seconds = sorted({plan.exptime for plan in group})
        shown = ", ".join(f"{s:g}" for s in seconds) if len(seconds) <= 4 else f"{seconds[0]:g} to {seconds[-1]:g}"
        size = sum(_size(plan, len(ifus), compress) for plan in group)
        names = list(dict.fromkeys(plan.ob.name for plan in group)) if tag in ("STD", "ASTROMETRY", "OBJECT") else []
        text = f"  {tag:<10} {len(group):>3} x {shown} s, {format_bytes(size)}"
        lines.append(f"{text}: {', '.join(names)}" if names else text)
    size = sum(_size(plan, len(ifus), compress) for plan in plans)
    work = sum(_SECONDS.get(p.tag, _ON_SKY_SECONDS) + _COMPRESS_SECONDS * compress for p in plans) * len(ifus)
    minutes = math.ceil(work / threads / 60)
    lines.append(f"  together {format_bytes(size)}, about {minutes} min with {threads} tasks at a time")
    return "\n".join(lines)


def _size(plan: ExposurePlan, n_ifus: int, compress: bool) -> int:
    """Expected size of a raw file [bytes]."""
    factor = _COMPRESSED.get(plan.tag, _ON_SKY_COMPRESSED) if compress else 1.0
    return int(n_ifus * FRAME_BYTES * factor) + 30_000 * (n_ifus + 1)


def _check_space(folder: Path, plans: Sequence[ExposurePlan], n_ifus: int, compress: bool, images: bool) -> None:
    """A disk that is too small shows before the first exposure."""
    needed = sum(_size(plan, n_ifus, compress) for plan in plans)
    if images:
        needed += sum(2 * FRAME_BYTES * n_ifus for plan in plans if plan.tag not in ("BIAS", "DARK"))
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    # what a killed run has left is removed before the start
    stale = sum(file.stat().st_blocks * 512 for part in _parts(folder / "raw") for file in (part, *part.rglob("*")))
    free = shutil.disk_usage(there).free + stale
    if needed > free:
        raise PlanError(f"{folder}: {format_bytes(needed)} are needed on this disk, {format_bytes(free)} are free")


def _check_scenes(plans: Sequence[ExposurePlan], texts: Mapping[str, str], ifus: tuple[int, ...]) -> None:
    """Lights of all scenes, one exposure of each: a scene outside the field shows before the first exposure."""
    seen = set()
    for plan in plans:
        if plan.scene and plan.scene not in seen:
            seen.add(plan.scene)
            light_of(plan, texts[plan.scene], ifus)


def _found(folder: Path, job: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The night that is there already; only this one, unless it may be replaced."""
    path = folder / _INDEX
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        names = [str(exposure["file"]) for exposure in found["exposures"] if exposure["date_obs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputExistsError(f"{path}: is damaged ({error}); choose another folder, or remove it") from error
    if any("/" in name for name in names):
        raise OutputExistsError(f"{path}: is damaged; choose another folder, or remove it")
    if found != job and not overwrite:
        different = [key for key in job if found.get(key) != job[key]]
        raise OutputExistsError(
            f"{folder}: holds another night (different: {', '.join(different)}); choose another folder, or give "
            "--overwrite (overwrite=True) to replace it"
        )
    return found


def _remove(folder: Path, found: Mapping[str, Any]) -> None:
    """Remove what was written here for another night."""
    for exposure in found["exposures"]:
        path = folder / "raw" / str(exposure["file"])
        stem = path.name.partition(".fits")[0]
        for stale in (
            path,
            *path.parent.glob(f"{glob.escape(stem)}_raw2*.xml"),
            *(folder / "truth").glob(f"{glob.escape(stem)}_*.fits"),
            *(path.parent / f"{name}.fits" for name in _master_names(exposure)),
        ):
            stale.unlink(missing_ok=True)
    (folder / _INDEX).unlink()


def _master_names(exposure: Mapping[str, Any]) -> list[str]:
    """Names of products that an exposure may be the first raw frame of."""
    values = {key: value for key, value in exposure.items() if key != "file"}
    return [master_name(category, plan_from_dict(values)) for category in RECIPES]


def _parts(raw: Path) -> list[Path]:
    """Files and folders in the making; nobody is making them if nobody else is at work here."""
    return list(raw.glob(".MUSE.*.part*"))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs away; the lock goes with the process, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{folder}: another run is at work there; wait for it, or choose another folder"
            ) from None
        except OSError:
            log.debug("%s: this file system has no locks", folder)
        yield
    finally:
        os.close(handle)
