"""What a night takes: exposures of all types at times, places and in weather that go together."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from ..errors import InputError
from ..instrument import RAW_TYPES
from .ephemeris import horizontal, mjd_of, moon, sidereal_time, sun
from .lamps import TWILIGHT_DECAY
from .optics import MODES
from .plan import ON_SKY, Conditions, ExposurePlan, ObservingBlock, Tag
from .spectra import STANDARDS

#: how many frames of each type a night has: calibrations per night; SKY and ILLUM per observing block
COUNTS: Mapping[str, int] = {
    "BIAS": 5, "DARK": 0, "FLAT": 5, "ARC": 3, "MASK": 0, "SKYFLAT": 3, "ILLUM": 1, "STD": 1, "ASTROMETRY": 1, "SKY": 1,
}  # fmt: skip
#: positions of the pinhole mask that are enough for the geometry of all slices
N_MASKS = 60
#: step between them [mm]; a slice is 0.122 mm high, the pinholes of a column are 0.6135 mm apart
MASK_STEP = 0.0165
#: globular clusters towards which astrometric fields are made: name, RA, DEC [deg]
ASTROMETRIC_FIELDS = (
    ("47 Tuc", 6.02, -72.08), ("NGC 1851", 78.53, -40.05), ("NGC 3201", 154.40, -46.41),
    ("omega Cen", 201.69, -47.48), ("NGC 6397", 265.17, -53.67), ("NGC 6752", 287.72, -59.98),
    ("NGC 7089", 323.36, -0.82), ("NGC 7099", 325.09, -23.18),
)  # fmt: skip
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
        # as delivered: adaptive optics make it sharper, those of the narrow field by far
        delivered = 0.1 if mode.startswith("NFM") else 0.75 if "AO" in mode.split("-") else 1.0
        self._seeing = float(random.uniform(0.65, 0.95)) * delivered
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
    standards: Sequence[tuple[str, float, float]] | None = None,
    fields: Sequence[tuple[str, float, float]] = ASTROMETRIC_FIELDS,
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
    standards, fields : sequence of (name, ra, dec), optional
        Standard stars and astrometric fields to choose from [deg]: the highest one is taken.  Default: those of
        `spectra.STANDARDS` and `ASTROMETRIC_FIELDS`.
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
    if standards is None:
        standards = [(star.name, star.ra, star.dec) for star in STANDARDS.values()]
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
        raise InputError(f"{what}: no positions to choose from")
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
