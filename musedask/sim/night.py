"""A night at the telescope: what is observed when, and all of it written as the archive would deliver it."""

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
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..compute import format_bytes, resolve_client
from ..errors import InputError, OutputExistsError, PlanError, StoreError
from ..instrument import N_IFUS, RAW_TYPES, SPAXEL_WFM
from ..io.files import atomic_path, check_output
from .association import write_associations
from .ephemeris import horizontal, mjd_of, moon, sidereal_time, sun
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
from .lamps import TWILIGHT_DECAY
from .masters import RECIPES, master_name, write_masters
from .optics import MODES, Instrument
from .plan import ON_SKY, Conditions, ExposurePlan, ObservingBlock, Tag
from .scene import Background, Galaxy, Nebula, Scene, SceneLike, Star
from .spectra import STANDARDS, BlackBody, flux_from_ab
from .statics import write_statics
from .truth import plan_from_dict, write_cosmics, write_truth

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger("musedask")

#: how many frames of each type a night has: calibrations per night; SKY and ILLUM per observing block
COUNTS: Mapping[str, int] = {
    "BIAS": 5, "DARK": 0, "FLAT": 5, "ARC": 3, "MASK": 0, "SKYFLAT": 3, "ILLUM": 1, "STD": 1, "ASTROMETRY": 1, "SKY": 1,
}  # fmt: skip
#: positions of the pinhole mask that are enough for the geometry of all slices
N_MASKS = 60
#: step between them [mm]; a slice is 0.122 mm high, the pinholes of a column are 0.6135 mm apart
MASK_STEP = 0.0165
#: exposure times of calibrations [s]; the twilight flats get longer as it gets darker
EXPTIMES: Mapping[str, float] = {
    "BIAS": 0.0, "DARK": 1800.0, "FLAT": 0.35, "ILLUM": 0.35, "MASK": 10.0, "STD": 30.0, "ASTROMETRY": 30.0,
    "SKY": 120.0, "SKYFLAT": 2.0, "HgCd": 18.5, "Ne": 1.4, "Xe": 35.5,
}  # fmt: skip
#: what passes between two exposures [s]: read-out and file, a small offset, a turn of the field, a new target
READOUT, OFFSET, ROTATION, PRESET = 60.0, 15.0, 30.0, 360.0
#: lowest altitude of a target [deg]: airmass 2
LOWEST = 30.0


@dataclass(frozen=True)
class Target:
    """What one observing block looks at, and how.

    Attributes
    ----------
    name : str
        Name of the block, ``ESO OBS NAME``.
    ra, dec : float or None
        Centre of its scene [deg]; None for a place that culminates meanwhile.
    scene : str
        Name of its scene.
    dithers : int
        Positions around the target.
    rotate : float
        Turn of the field from one to the next [deg].
    exptimes : tuple of float
        One exposure of each at each position [s].
    field : tuple of float
        Offset of the block from the centre of the scene, east and north [arcsec].
    sky : int or None
        Exposures of blank sky; None for the number of the night.
    part : tuple of int or None
        Only exposures from the first to before the second, counted from 0; the others are of another night.
    id : int or None
        ``ESO OBS ID``.
    """

    name: str = "WFM-simulated"
    ra: float | None = None
    dec: float | None = None
    scene: str = "field"
    dithers: int = 4
    rotate: float = 90.0
    exptimes: tuple[float, ...] = (600.0,)
    field: tuple[float, float] = (0.0, 0.0)
    sky: int | None = None
    part: tuple[int, int] | None = None
    id: int | None = None


# ------------------------------------------------------------------------------------------- sky


def altitude(ra: float, dec: float, time: datetime) -> float:
    """Height above the horizon, without refraction [deg]."""
    return horizontal(ra, dec, mjd_of(time)).alt


def _when_sun_is(height: float, day: date, *, rising: bool) -> datetime:
    """Time of the night that begins on `day` at which the Sun is `height` [deg] high, going down or up."""
    # sunset at Paranal is between 21:30 and 23:50 UTC, sunrise between 9:10 and 11:40
    low = datetime(day.year, day.month, day.day, 16 if not rising else 4, tzinfo=UTC) + timedelta(days=int(rising))
    high = low + timedelta(hours=12)
    if not rising:
        high = low + timedelta(hours=12.5)
    for _ in range(40):
        middle = low + (high - low) / 2
        if (altitude(*sun(mjd_of(middle)), middle) < height) == rising:
            low = middle
        else:
            high = middle
    return low


class _Weather:
    """Weather of a night, a smooth function of time; the same for the same date."""

    def __init__(self, day: date, sunset: datetime, mode: str) -> None:
        self._sunset = sunset
        random = np.random.default_rng([20140131, day.toordinal()])
        self._terms = {
            name: [(random.normal(), random.uniform(0, 2 * math.pi), random.uniform(1.5, 6.0)) for _ in range(3)]
            for name in ("temperature", "humidity", "pressure", "seeing", "airglow", "wind", "direction", "tau0")
        }
        self._seeing = float(random.uniform(0.65, 0.95)) * (0.75 if "AO" in mode.split("-") else 1.0)
        self._level = {"temperature": float(random.uniform(10, 15)), "humidity": float(random.uniform(6, 30))}
        self._season = 2.5 * math.cos(2 * math.pi * (day.timetuple().tm_yday - 30) / 365.25)

    def _wave(self, name: str, hours: float) -> float:
        """Something that goes up and down in hours, with variance near 1."""
        return sum(a * math.sin(phase + 2 * math.pi * hours / period) for a, phase, period in self._terms[name]) / 1.2

    def _temperature(self, hours: float) -> float:
        day = self._level["temperature"] + self._season
        # the dome is closed and cooled by day; the air loses some degrees until morning
        return day - 3.5 * (1 - math.exp(-max(hours, -1.0) / 5)) + 0.15 * self._wave("temperature", hours)

    def at(self, time: datetime) -> Conditions:
        hours = (time - self._sunset).total_seconds() / 3600
        moon_ra, moon_dec, illuminated = moon(mjd_of(time))
        # airglow declines by a third in the first half of the night
        evening = 0.85 + 0.35 * math.exp(-max(hours, 0) / 4)
        return Conditions(
            temperature=round(self._temperature(hours), 2),
            # the instrument follows the air of some hours ago
            instrument_temperature=round(self._temperature(hours - 2.5) + 0.8, 2),
            humidity=round(float(np.clip(self._level["humidity"] + 2 * self._wave("humidity", hours), 2, 60)), 1),
            pressure=round(743.0 + 0.5 * self._wave("pressure", hours), 2),
            seeing=round(self._seeing * math.exp(0.08 * self._wave("seeing", hours)), 3),
            airglow=round(evening * math.exp(0.08 * self._wave("airglow", hours)), 4),
            moon_fli=round(illuminated, 4),
            moon_ra=round(moon_ra, 5),
            moon_dec=round(moon_dec, 5),
            wind_speed=round(7.0 * math.exp(0.2 * self._wave("wind", hours)), 2),
            wind_direction=round((20 + 15 * self._wave("direction", hours)) % 360, 0),
            tau0=round(0.0045 * math.exp(0.15 * self._wave("tau0", hours)), 5),
        )


# ------------------------------------------------------------------------------------------ plan


@dataclass
class _Schedule:
    """Exposures one after the other, at times that follow from the ones before."""

    day: date
    mode: str
    weather: _Weather
    time: datetime
    first_index: int
    exposures: list[ExposurePlan] = field(default_factory=list)

    def wait_until(self, time: datetime) -> None:
        self.time = max(self.time, time)

    def template(self, name: str, ob: ObservingBlock, shots: Sequence[Mapping[str, Any]]) -> None:
        """Take the exposures of one template; each has a tag, an exposure time, and what else a plan says."""
        start = self.time
        self.time += timedelta(seconds=12)
        for number, shot in enumerate(shots, 1):
            shot = dict(shot)
            self.time += timedelta(seconds=shot.pop("overhead", 0.0))
            index = self.first_index + len(self.exposures)
            # clocks do not tick in whole seconds
            fraction = int(np.random.default_rng([20140131, self.day.toordinal(), index]).integers(1000))
            begin = self.time.replace(microsecond=0) + timedelta(milliseconds=1000 + fraction)
            self.exposures.append(
                ExposurePlan(
                    index=index,
                    date_obs=begin.strftime("%Y-%m-%dT%H:%M:%S.") + f"{fraction:03d}",
                    mode=shot.pop("mode", self.mode),
                    template=name,
                    template_start=start.strftime("%Y-%m-%dT%H:%M:%S"),
                    expno=number,
                    nexp=len(shots),
                    ob=ob,
                    conditions=self.weather.at(begin),
                    **shot,
                )
            )
            self.time = begin + timedelta(seconds=shot["exptime"] + READOUT)

    def block(self, number: int, name: str, target: str = "", *, science: bool = False) -> ObservingBlock:
        """An observing block that starts now."""
        return ObservingBlock(
            id=(1_100_000 if science else 200_100_000) + number,
            name=name,
            target=target,
            prog_id="094.A-0859(A)" if science else "60.A-9100(A)",
            start=self.time.strftime("%Y-%m-%dT%H:%M:%S"),
        )


def check_mode(mode: str) -> str:
    """The mode, if there is such a mode.

    Raises
    ------
    InputError
    """
    if mode not in MODES:
        raise InputError(f"instrument mode {mode!r} found, expected one of {', '.join(MODES)}")
    return mode


def parse_date(text: str | date) -> date:
    """Date of the evening of a night.

    Raises
    ------
    InputError
        If it is none, or MUSE was not yet there.
    """
    if isinstance(text, date):
        day = text
    else:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise InputError(f"date {text!r} found, expected something like 2014-12-08") from None
    if not date(2014, 1, 31) <= day <= date(2050, 12, 31):
        raise InputError(f"date {day} found, expected one from the first light of MUSE (2014-01-31) to 2050")
    return day


def resolve_counts(counts: Mapping[str, int] | None) -> dict[str, int]:
    """Numbers of frames of all types; `COUNTS` where nothing is said.

    Raises
    ------
    InputError
        If a type is unknown or a number is negative.
    """
    result = dict(COUNTS)
    for tag, number in (counts or {}).items():
        if tag.upper() not in COUNTS:
            raise InputError(f"type of calibration {tag!r} found, expected one of {', '.join(COUNTS)}")
        if number < 0 or number != int(number):
            raise InputError(f"{tag}: {number} frames found, expected a whole number, 0 or more")
        result[tag.upper()] = int(number)
    return result


def _dithers(n: int, size: float) -> Iterator[tuple[float, float]]:
    """Offsets in a disc, evenly spread (sunflower pattern), the first in the middle [same unit as size]."""
    golden = math.pi * (3 - math.sqrt(5))
    for k in range(n):
        radius = size * math.sqrt(k / max(n - 1, 1))
        # multiples of 0.01", as an observer would type them
        yield round(radius * math.cos(k * golden), 2), round(radius * math.sin(k * golden), 2)


def _shots_of(
    target: Target, sky: int, request: _Request, sky_exptime: float, seed: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Exposures of an observing block, with blank sky in between."""
    assert target.ra is not None and target.dec is not None
    ra, dec, error = target.ra, target.dec, request.pointing_error
    cosine = math.cos(math.radians(dec))
    shots: list[dict[str, Any]] = []
    offsets = list(_dithers(target.dithers, request.dither))
    pause = max(1, math.ceil(target.dithers / (sky + 1)))
    skies = 0
    # of the whole block: the guide stars; of each exposure: what is left after a turn of the field
    whole = np.random.default_rng([*seed, 1]).normal(0, error, 2)

    def pointing(east: float, north: float, index: int) -> dict[str, Any]:
        single = np.random.default_rng([*seed, 2, index]).normal(0, error / 2, 2)
        wrong = whole + single
        return {
            "ra": ra + (east - float(wrong[0])) / 3600 / cosine,
            "dec": dec + (north - float(wrong[1])) / 3600,
            "pointing_error": (round(float(wrong[0] / cosine), 4), round(float(wrong[1]), 4)),
            "offset": (round(east, 3), round(north, 3)),
        }

    for k, (east, north) in enumerate(offsets):
        angle = (k * target.rotate) % 360
        overhead = OFFSET + (ROTATION if target.rotate % 360 and k else 0)
        for exptime in target.exptimes:
            shots.append({
                "tag": "OBJECT", "exptime": exptime, "posang": angle, "scene": target.scene, "overhead": overhead,
                **pointing(target.field[0] + east, target.field[1] + north, len(shots)),
            })  # fmt: skip
            overhead = 0.0
        if (k + 1) % pause == 0 and skies < sky:
            skies += 1
            shots.append({
                "tag": "SKY", "exptime": sky_exptime, "posang": angle, "overhead": 2 * OFFSET,
                # two fields away, where the scene ends
                **pointing(90.0 + 10 * skies, 60.0, len(shots)),
            })  # fmt: skip
    first, last = target.part or (0, len(shots))
    if not 0 <= first < last:
        raise InputError(f"{target.name}: part {target.part} found, expected two increasing numbers")
    return shots[first:last]


def plan_night(
    day: str | date = "2018-11-08",
    *,
    mode: str = "WFM-NOAO-N",
    targets: Sequence[Target] = (Target(),),
    counts: Mapping[str, int] | None = None,
    dither: float = 1.0,
    pointing_error: float = 0.2,
    standards: Sequence[tuple[str, float, float]] = (),
    fields: Sequence[tuple[str, float, float]] = (),
    exptimes: Mapping[str, float] | None = None,
    mask_step: float = MASK_STEP,
    first_index: int = 0,
) -> list[ExposurePlan]:
    """What a night takes, in the order of time.

    Lamp flats, arcs, biases and the pinhole mask in the afternoon; flats of the twilight sky; in the dark
    an astrometric field, and the observing blocks, each with its own illumination flat; a standard star
    in the evening and, if two are asked for, in the morning; darks after sunrise.

    Parameters
    ----------
    day : str or date
        Evening of the night.
    mode : str
        Instrument mode.
    targets : sequence of Target
        Observing blocks, one after the other.
    counts : mapping, optional
        Numbers of frames by type, where they are not those of `COUNTS`.  ARC is per lamp, SKY per block
        (where a target does not say), ILLUM per block and standard star.
    dither : float
        Radius of the pattern of offsets [arcsec].
    pointing_error : float
        Standard deviation of header minus true position of a block; half of it for each exposure [arcsec].
    standards, fields : sequence of (name, ra, dec)
        Standard stars and astrometric fields to choose from [deg]: the highest one is taken.
    exptimes : mapping, optional
        Exposure times [s] by type or lamp, where they are not those of `EXPTIMES`.
    mask_step : float
        Step of the pinhole mask [mm].
    first_index : int
        Index of the first exposure; for plans of several nights that go into one folder.

    Returns
    -------
    list of ExposurePlan

    Raises
    ------
    InputError
        If a target is not up, the night is too short, or something asked for does not exist.
    """
    day, mode = parse_date(day), check_mode(mode)
    number = resolve_counts(counts)
    times = {**EXPTIMES, **(exptimes or {})}
    for target in targets:
        if target.dithers < 1 or not target.exptimes or min(target.exptimes) <= 0 or max(target.exptimes) > 7200:
            raise InputError(
                f"{target.name}: {target.dithers} positions with exposures of {target.exptimes} s found, expected at "
                "least one position and exposure times between 0 and 7200 s"
            )
    request = _Request(number, times, standards, fields, dither, pointing_error, mask_step)
    resolved = list(targets)
    if any(t.ra is None or t.dec is None for t in targets):
        # a first round, to know when they are observed
        trial = _fill(day, mode, [replace(t, ra=0.0, dec=-30.0) for t in targets], request, first_index)
        taken = [_time(p.date_obs) for p in trial if p.tag == "OBJECT"]
        # past the zenith, where the telescope cannot follow
        ra = round(sidereal_time(mjd_of(taken[0] + (taken[-1] - taken[0]) / 2)), 1) % 360 if taken else 0.0
        resolved = [replace(t, ra=ra, dec=-33.5) if t.ra is None or t.dec is None else t for t in targets]
    exposures = _fill(day, mode, resolved, request, first_index)
    _check_night(exposures, day)
    return exposures


@dataclass(frozen=True)
class _Request:
    """What `plan_night` was asked for."""

    counts: Mapping[str, int]
    exptimes: Mapping[str, float]
    standards: Sequence[tuple[str, float, float]]
    fields: Sequence[tuple[str, float, float]]
    dither: float
    pointing_error: float
    mask_step: float


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _highest(places: Sequence[tuple[str, float, float]], what: str, time: datetime) -> tuple[str, float, float]:
    """The one that is best observed at a time."""
    if not places:
        # just past the zenith
        return "anywhere", (sidereal_time(mjd_of(time)) + 5.0) % 360, -33.5
    heights = [altitude(ra, dec, time) for _, ra, dec in places]
    # past the zenith, where the telescope cannot follow
    return places[max(range(len(places)), key=lambda i: heights[i] if heights[i] < 87 else 0.0)]


def _when_up(ra: float, dec: float, time: datetime, day: date) -> datetime:
    """When a target has risen high enough, at or after a time of the night; the time itself if it does not rise."""
    end = _when_sun_is(-12, day, rising=True)
    later = time
    while later < end:
        if altitude(ra, dec, later) > LOWEST + 2:
            return later
        later += timedelta(minutes=5)
    return time


def _fill(
    day: date, mode: str, targets: Sequence[Target], request: _Request, first_index: int
) -> list[ExposurePlan]:
    number, times = request.counts, request.exptimes
    sunset = _when_sun_is(-0.8, day, rising=False)
    schedule = _Schedule(day, mode, _Weather(day, sunset, mode), sunset, first_index)

    afternoon: list[tuple[str, list[dict[str, Any]]]] = [
        ("BIAS", [{"tag": "BIAS", "exptime": times["BIAS"]}] * number["BIAS"]),
        ("FLAT", [{"tag": "FLAT", "exptime": times["FLAT"], "lamp": "continuum"}] * number["FLAT"]),
        ("ARC", [
            {"tag": "ARC", "exptime": times[lamp], "lamp": lamp}
            for lamp in ("HgCd", "Ne", "Xe") for _ in range(number["ARC"])
        ]),
        ("MASK", [
            {
                "tag": "MASK", "exptime": times["MASK"], "lamp": "Ne,HgCd", "posang": 90.0,
                "mode": "WFM-NOAO-N" if mode.startswith("NFM") else mode,
                "mask": round((k - (number["MASK"] - 1) / 2) * request.mask_step, 4),
            }
            for k in range(number["MASK"])
        ]),
    ]  # fmt: skip
    length = sum(times_.get("exptime", 0) + READOUT + 15 for _, shots in afternoon for times_ in shots)
    schedule.time = sunset - timedelta(hours=1, seconds=length)
    for tag, shots in afternoon:
        if shots:
            ob = schedule.block(len(schedule.exposures), f"CALIB-{tag}")
            schedule.template(RAW_TYPES[tag].template(mode), ob, [{"drot_mode": "STAT", **shot} for shot in shots])

    def illuminate(ob: ObservingBlock) -> None:
        shots = [{"tag": "ILLUM", "exptime": times["ILLUM"], "lamp": "continuum", "drot_mode": "STAT"}]
        if number["ILLUM"]:
            schedule.template(RAW_TYPES["ILLUM"].template(mode), ob, shots * number["ILLUM"])

    if number["SKYFLAT"]:
        schedule.wait_until(_when_sun_is(-1.5, day, rising=False))
        ob = schedule.block(100, "CALIB-SKYFLAT")
        place = {"ra": round((sidereal_time(mjd_of(schedule.time)) + 15) % 360, 3), "dec": -28.0, "drot_mode": "STAT"}
        shots = []
        passed = 12.0
        for _ in range(number["SKYFLAT"]):
            passed += OFFSET
            # longer as it gets darker
            exptime = round(times["SKYFLAT"] * math.exp(passed / TWILIGHT_DECAY), 1)
            shots.append({"tag": "SKYFLAT", "exptime": exptime, **place, "overhead": OFFSET})
            passed += exptime + READOUT
        schedule.template(RAW_TYPES["SKYFLAT"].template(mode), ob, shots)
        illuminate(ob)

    def point(tag: Tag, places: Sequence[tuple[str, float, float]], what: str) -> None:
        schedule.time += timedelta(seconds=PRESET)
        name, ra, dec = _highest(places, what, schedule.time)
        ob = schedule.block(200 + len(schedule.exposures), f"CALIB-{tag}-{name.replace(' ', '')}", name)
        illuminate(ob)
        schedule.template(RAW_TYPES[tag].template(mode), ob, [
            {"tag": tag, "exptime": times[tag], "ra": ra % 360, "dec": dec, "scene": f"{what} {name}"}
        ])  # fmt: skip

    schedule.wait_until(_when_sun_is(-12, day, rising=False))
    for _ in range((number["STD"] + 1) // 2):
        point("STD", request.standards, "standard")
    if targets or number["ASTROMETRY"]:
        schedule.wait_until(_when_sun_is(-18, day, rising=False))
    for _ in range(number["ASTROMETRY"]):
        point("ASTROMETRY", request.fields, "astrometry")
    for block, target in enumerate(targets):
        assert target.ra is not None and target.dec is not None
        schedule.wait_until(_when_up(target.ra, target.dec, schedule.time, day))
        schedule.time += timedelta(seconds=PRESET)
        made = schedule.block(zlib.crc32(target.name.encode()) % 90_000, target.name, target.scene, science=True)
        ob = made if target.id is None else replace(made, id=target.id)
        illuminate(ob)
        seed = (20140131, day.toordinal(), block)
        sky = number["SKY"] if target.sky is None else target.sky
        shots = _shots_of(target, sky, request, times["SKY"], seed)
        schedule.template(RAW_TYPES["OBJECT"].template(mode), ob, shots)
    for _ in range(number["STD"] // 2):
        point("STD", request.standards, "standard")
    if number["DARK"]:
        schedule.wait_until(_when_sun_is(2, day, rising=True))
        ob = schedule.block(900, "CALIB-DARK")
        shot = {"tag": "DARK", "exptime": times["DARK"], "drot_mode": "STAT"}
        schedule.template(RAW_TYPES["DARK"].template(mode), ob, [shot] * number["DARK"])
    return schedule.exposures


def _check_night(exposures: Sequence[ExposurePlan], day: date) -> None:
    """Targets must be up, and the night long enough."""
    end = _when_sun_is(-12, day, rising=True)
    dark = [plan for plan in exposures if plan.tag in ON_SKY and plan.tag != "SKYFLAT"]
    if not dark:
        return
    last = _time(dark[-1].date_obs) + timedelta(seconds=dark[-1].exptime)
    if last > end:
        raise InputError(
            f"night of {day}: it ends at {end:%H:%M} UTC, what is asked for takes until "
            f"{(last - end).total_seconds() / 3600:.1f} h later; ask for fewer or shorter exposures, or spread them "
            "over several nights"
        )
    for plan in dark:
        start = _time(plan.date_obs)
        stop = start + timedelta(seconds=plan.exptime)
        lowest = min(altitude(plan.ra, plan.dec, start), altitude(plan.ra, plan.dec, stop))
        if lowest < LOWEST:
            raise InputError(
                f"{plan.ob.name}: RA {plan.ra:.4f}, DEC {plan.dec:.4f} is {lowest:.0f} deg high during the night of "
                f"{day} ({plan.date_obs[11:16]} UTC), expected at least {LOWEST:.0f} deg; choose another date or target"
            )


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
                magnitude = 18.5 + 4.0 * k / n_stars
                temperature = float(np.round(random.choice([3300, 4200, 5200, 6000, 7500, 9500])))
                name = f"star {len(stars) + 1}"
                stars.append(Star(*where, flux_from_ab(magnitude), spectrum=BlackBody(temperature), name=name))
        for _ in range(max(2, n_stars // 6)):
            where = place(angle, 4.0)
            if where is not None:
                flux, radius = flux_from_ab(float(random.uniform(19.5, 21.5))), float(random.uniform(0.4, 1.0)) * unit
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


#: globular clusters towards which astrometric fields are made: name, RA, DEC [deg]
ASTROMETRIC_FIELDS = (
    ("47 Tuc", 6.02, -72.08), ("NGC 1851", 78.53, -40.05), ("NGC 3201", 154.40, -46.41),
    ("omega Cen", 201.69, -47.48), ("NGC 6397", 265.17, -53.67), ("NGC 6752", 287.72, -59.98),
    ("NGC 7089", 323.36, -0.82), ("NGC 7099", 325.09, -23.18),
)  # fmt: skip


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
_COMPRESSED = {"BIAS": 0.27, "DARK": 0.27, "ARC": 0.3, "MASK": 0.28, "FLAT": 0.55, "ILLUM": 0.55, "SKYFLAT": 0.52}
#: processor time of a frame of one IFU, by type, and what compression adds (measured) [s]
_SECONDS = {"BIAS": 0.5, "DARK": 0.7, "FLAT": 1.3, "ILLUM": 1.3, "ARC": 1.0, "MASK": 1.1, "SKYFLAT": 2.7}
_ON_SKY_SECONDS, _COMPRESS_SECONDS = 2.4, 1.2
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
        standards=[(s.name, s.ra, s.dec) for s in STANDARDS.values()],
        fields=ASTROMETRIC_FIELDS,
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
        _remove_parts(raw)
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
    factor = _COMPRESSED.get(plan.tag, 0.4) if compress else 1.0
    return int(n_ifus * FRAME_BYTES * factor) + 30_000 * (n_ifus + 1)


def _check_space(folder: Path, plans: Sequence[ExposurePlan], n_ifus: int, compress: bool, images: bool) -> None:
    """A disk that is too small shows before the first exposure."""
    needed = sum(_size(plan, n_ifus, compress) for plan in plans)
    if images:
        needed += sum(2 * FRAME_BYTES * n_ifus for plan in plans if plan.tag not in ("BIAS", "DARK"))
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
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


def _remove_parts(raw: Path) -> None:
    """Remove what a killed run has left; nobody else is at work here."""
    for stale in raw.glob(".MUSE.*.part*"):
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()


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
