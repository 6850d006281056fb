"""Headers of raw exposures: what the instrument, the telescope and the observing software would write.

Keywords and constants are in `musedask.sim.header_template`.  What depends on the exposure is worked out
here from its `ExposurePlan`: time, place, angles and weather so that they agree with each other; readings of
sensors from the weather plus a small scatter that follows from ``DATE-OBS`` alone, so that headers never depend
on a seed or on the order in which they are made.

Where angles are concerned, the header of 2014-12-08 shows (to 0.05 deg) that the adapter stands at
``ADA ABSROT = POSANG - PARANG - ALT - 180`` and the derotator, whose mirrors turn the field twice as fast as
themselves, at ``INS DROT = ABSROT / 2 - 270``; the sign of POSANG in it is assumed.
"""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections.abc import Iterable
from statistics import NormalDist
from typing import Any, Protocol

from astropy.io import fits

from ..errors import InputError
from ..instrument import N_IFUS, RAW_TYPES, mode_from_name
from ..io.headers import STRUCTURAL, remove_cards
from .ephemeris import LATITUDE, horizontal, mjd_of, precess, sidereal_time, sun, to_j2000
from .header_template import CRYOSTATS, LAMPS, sensor_number, template
from .plan import ExposurePlan

#: tags of exposures during which the telescope guides
GUIDED = ("STD", "ASTROMETRY", "SKY", "OBJECT")
#: tags of exposures in which the lamps of the calibration unit shine
LAMP_TAGS = ("FLAT", "ILLUM", "ARC", "MASK")

#: cards of the primary header before the hierarchical ones
_MAIN = {
    "ORIGIN": ("ESO-PARANAL", "European Southern Observatory"),
    "TELESCOP": ("ESO-VLT-U4", "ESO <TEL>"),
    "INSTRUME": ("MUSE", "Instrument used."),
    "EQUINOX": (2000.0, "Standard FK5"),
    "RADECSYS": ("FK5", "Coordinate system"),
    "PI-COI": ("UNKNOWN", "PI-COI name."),
    "OBSERVER": ("UNKNOWN", "Name of observer."),
}
#: name and sequencer script of templates, by tag
_TEMPLATES = {
    "BIAS": ("Bias", "MUSE_cal_bias.seq"),
    "DARK": ("Dark", "MUSE_cal_dark.seq"),
    "FLAT": ("Spectral flat-field", "MUSE_cal_lamp.seq"),
    "ILLUM": ("Illumination flat-field", "MUSE_cal_lamp.seq"),
    "ARC": ("Wavelength calibration", "MUSE_cal_lamp.seq"),
    "MASK": ("Geometrical calibration", "MUSE_cal_geometry.seq"),
    "SKYFLAT": ("Twilight flat-field", "MUSE_cal_twilight.seq"),
    "STD": ("Spectro-photometric standard star", "MUSE_obs_offset.seq"),
    "ASTROMETRY": ("Astrometric field", "MUSE_obs_offset.seq"),
    "SKY": ("Observation in {} with user defined offsets", "MUSE_obs_offset.seq"),
    "OBJECT": ("Observation in {} with user defined offsets", "MUSE_obs_offset.seq"),
}
#: middle part of the file name on the instrument's workstation, by tag
_FILES = {
    "FLAT": "FLAT", "ILLUM": "ILLUM", "ARC": "WAVE", "MASK": "MASK", "SKYFLAT": "TWILIGHT",
    "STD": "STD", "ASTROMETRY": "ASTROM", "SKY": "OBS", "OBJECT": "OBS",
}  # fmt: skip
#: temperature sensors in the cabinet and on the enclosure: number, whether they follow the ambient air or
#: the instrument, difference from it [deg C] (header of 2014-12-08: air 14.8, instrument 14.72)
_TEMPERATURES = (
    (1, "air", -3.4), (2, "air", -5.4), (3, "air", 1.9), (4, "air", -1.1), (5, "instrument", 0.63),
    (6, "instrument", 0.28), (9, "instrument", -0.08), (10, "instrument", -0.22), (11, "instrument", 0.07),
    (13, "instrument", 0.45), (14, "instrument", 0.99), (16, "air", 2.1), (17, "air", 13.8),
)  # fmt: skip
#: encoder steps per mm of the stages of the pinhole mask, per deg of the derotator; zero of the latter
_STAGE_STEPS, _DROT_STEPS, _DROT_ZERO = 48595.755, 356255.0, 542500
#: keywords of the headers of the extensions
_OF_EXTENSIONS = re.compile(r"DET (CHIP|OUT\d) ")
#: period of the slow guiding [s]
_GUIDE_PERIOD = 121.0


class DetectorLike(Protocol):
    """What the header of an extension tells of a detector: see `musedask.sim.detector.Detector`."""

    chip_name: str
    chip_id: str
    gain: Any
    read_noise: Any


def primary_header(plan: ExposurePlan, *, origfile: str, arcfile: str) -> fits.Header:
    """Primary header of a raw exposure.

    Parameters
    ----------
    plan : ExposurePlan
    origfile, arcfile : str
        Values of ``ORIGFILE`` and ``ARCFILE``; see `origfile_of` and `arcfile_of`.

    Returns
    -------
    astropy.io.fits.Header

    Raises
    ------
    InputError
        If the plan has an unknown tag, or lamps that do not fit it.
    """
    if plan.tag not in RAW_TYPES:
        raise InputError(f"raw type {plan.tag!r} found, expected one of {', '.join(RAW_TYPES)}")
    values = _Values(plan)
    header = fits.PrimaryHDU().header
    header.append(("DATE", values.iso(plan.exptime + 60), "Date the file was written"))
    main = {
        **_MAIN,
        "RA": (round(values.ra, 6), f"[deg] {_sexagesimal(values.ra / 15)} RA (J2000) pointing"),
        "DEC": (round(values.dec, 6), f"[deg] {_sexagesimal(values.dec)} DEC (J2000) pointing"),
        "EXPTIME": (float(plan.exptime), "Integration time"),
        "MJD-OBS": (round(values.mjd, 8), "Obs start"),
        "DATE-OBS": (plan.date_obs, "Observing date"),
        "UTC": (round(values.mjd % 1 * 86400, 3), f"[s] {_sexagesimal(values.mjd % 1 * 24, 3)} UTC"),
        "LST": (round(values.lst * 240, 3), f"[s] {_sexagesimal(values.lst / 15, 3)} LST"),
    }
    order = (
        "ORIGIN", "TELESCOP", "INSTRUME", "RA", "DEC", "EQUINOX", "RADECSYS", "EXPTIME", "MJD-OBS", "DATE-OBS",
        "UTC", "LST", "PI-COI", "OBSERVER",
    )  # fmt: skip
    for keyword in order:
        header.append((keyword, *main[keyword]))
    header.append(("ORIGFILE", origfile, "Original File Name"))
    header.append(("ARCFILE", arcfile, "Archive File Name"))
    header.append(("OBJECT", values.object, "Original target."))
    work = values.work_out()
    _append(header, work, _left_out(plan))
    return header


def extension_header(plan: ExposurePlan, ifu: int, detector: DetectorLike) -> fits.Header:
    """Header of the extension of one IFU, with the structure of its 16-bit image.

    Parameters
    ----------
    plan : ExposurePlan
    ifu : int
        1..24.
    detector : DetectorLike
        Has `chip_name`, `chip_id`, `gain` [e-/adu] and `read_noise` [e-] of the quadrants, shape (4,).

    Returns
    -------
    astropy.io.fits.Header

    Raises
    ------
    InputError
        If there is no such IFU.
    """
    if not 1 <= ifu <= N_IFUS:
        raise InputError(f"IFU {ifu} found, expected 1 to {N_IFUS}")
    header = fits.Header()
    for card in (
        ("XTENSION", "IMAGE", "IMAGE extension"),
        ("BITPIX", 16, "number of bits per data pixel"),
        ("NAXIS", 2, "number of data axes"),
        ("NAXIS1", 4224, "length of data axis 1"),
        ("NAXIS2", 4240, "length of data axis 2"),
        ("PCOUNT", 0, "required keyword; must = 0"),
        ("GCOUNT", 1, "required keyword; must = 1"),
        ("BSCALE", 1.0, "pixel=FITS*BSCALE+BZERO"),
        ("BZERO", 32768.0, "pixel=FITS*BSCALE+BZERO"),
        ("EXTNAME", f"CHAN{ifu:02d}", "FITS extension name"),
    ):
        header.append(card)
    # each of the four controllers reads six CCDs; that of IFU 1 is the sixth of its controller
    index = 6 - (ifu - 1) % 6
    installed = datetime.date(2012, 10, 12) + datetime.timedelta(days=3 * (ifu - 1))
    values: dict[str, Any] = {
        "DET CHIP NAME": detector.chip_name, "DET CHIP ID": detector.chip_id, "DET CHIP DATE": installed.isoformat(),
        "DET CHIP INDEX": index, "DET CHIP X": index, "DET CHIP Y": index,
    }  # fmt: skip
    for i in range(4):
        # the name says adu/e-, but the number is e-/adu: so it is in real headers, and so recipes read it
        values[f"DET OUT{i + 1} GAIN"] = round(float(detector.gain[i]), 3)
        values[f"DET OUT{i + 1} CONAD"] = round(1 / float(detector.gain[i]), 3)
        values[f"DET OUT{i + 1} RON"] = round(float(detector.read_noise[i]), 3)
    _append(header, values, (), extension=True)
    return header


def product_header(plan: ExposurePlan, ifu: int | None = None, detector: DetectorLike | None = None) -> fits.Header:
    """What the recipes hand on of the headers of an exposure, without what they add.

    Parameters
    ----------
    plan : ExposurePlan
    ifu : int, optional
        IFU of the product; default: one of several IFUs, without keywords of a detector.
    detector : DetectorLike, optional
        Goes with `ifu`.

    Returns
    -------
    astropy.io.fits.Header
        Without cards that describe the structure of an HDU.
    """
    header = primary_header(plan, origfile="", arcfile=arcfile_of(plan))
    if ifu is not None and detector is not None:
        header.extend(extension_header(plan, ifu, detector), unique=True)
    header.rename_keyword("RADECSYS", "RADESYS")
    remove_cards(header, r"(ESO DPR .*|ESO DET OUT\d (OVSC|PRSC)[XY]|ORIGFILE)$")
    remove_cards(header, STRUCTURAL)
    return header


def origfile_of(plan: ExposurePlan, number: int = 1) -> str:
    """Name of the file on the instrument's workstation, as ``MUSE_WFM-NOAO_OBS342_0001.fits``."""
    day = datetime.datetime.fromisoformat(plan.date_obs) - datetime.timedelta(hours=12)
    return f"{_image_name(plan)}{day.timetuple().tm_yday:03d}_{number:04d}.fits"


def arcfile_of(plan: ExposurePlan) -> str:
    """Name of the file in the archive, as ``MUSE.2014-12-08T02:48:56.798.fits``."""
    return f"MUSE.{plan.date_obs}.fits"


def _image_name(plan: ExposurePlan) -> str:
    if plan.tag not in _FILES:
        return f"MUSE_{plan.tag}"
    return f"MUSE_{plan.mode.rpartition('-')[0] or plan.mode}_{_FILES[plan.tag]}"


def fitted(keyword: str, value: Any, comment: str) -> tuple[str, Any, str]:
    """Cut the comment of a card so that the card has at most 80 characters; add HIERARCH where needed."""
    if len(keyword) <= 8 and " " not in keyword:
        # value and comment of short keywords have fixed columns, unless the value is a long text
        used = max(31, 11 + len(repr(value))) if isinstance(value, str) else 31
        return keyword, value, comment[: max(0, 79 - used)].rstrip()
    shown = max(8, len(value.replace("'", "''"))) + 2 if isinstance(value, str) else len(repr(value))
    used = len("HIERARCH ") + len(keyword) + len(" = ") + shown + len(" / ")
    return f"HIERARCH {keyword}", value, comment[: max(0, 80 - used)].rstrip()


def _append(header: fits.Header, values: dict[str, Any], left_out: Iterable[str], *, extension: bool = False) -> None:
    """Append the cards of the template that are constant or in `values`."""
    unknown = set(values) - set(template())
    assert not unknown, unknown
    pattern = re.compile("|".join(left_out) or "$.")
    for keyword, card in template().items():
        value: Any = values.get(keyword, card.value)
        if value is None or (_OF_EXTENSIONS.match(keyword) is not None) != extension:
            continue
        if keyword not in values and pattern.match(keyword):
            continue
        if card.type is float:
            value = float(value)
        assert isinstance(value, card.type), (keyword, value)
        comment = card.comment
        if "{}" in comment:
            angle: float = values[keyword]
            comment = comment.format(_sexagesimal(angle / 15 if keyword.endswith("RA") else angle))
        header.append(fits.Card(*fitted(f"ESO {keyword}", value, comment)), end=True)


def _left_out(plan: ExposurePlan) -> list[str]:
    """Patterns of constants that this exposure does not have."""
    patterns = []
    if plan.tag not in GUIDED:
        patterns += ["OCS SGS", "TEL TARG"]
    if not plan.on_sky:
        patterns += ["SEQ OFFSET"]
    if plan.tag not in LAMP_TAGS:
        patterns += [r"INS LAMP\d"]
    return patterns


class _Values:
    """Values of the keywords that depend on the exposure."""

    def __init__(self, plan: ExposurePlan) -> None:
        self.plan = plan
        self.mjd = mjd_of(plan.date_obs)
        self.lst = sidereal_time(self.mjd)
        self.tracking = plan.on_sky or (plan.ra, plan.dec) != (0.0, 0.0)
        if self.tracking:
            self.ra, self.dec = plan.header_ra % 360, plan.header_dec
        else:  # parked at the zenith
            self.ra, self.dec = to_j2000(self.lst, LATITUDE, self.mjd)
        raw = RAW_TYPES[plan.tag]
        self.raw = raw
        self.target = plan.ob.target or plan.ob.name
        self.object = self.target if plan.tag == "OBJECT" else raw.type
        self.ao = "-AO" in plan.mode and plan.tag in GUIDED

    def noise(self, *what: object) -> float:
        """Normal deviate that belongs to this exposure and a name."""
        return _normal(self.plan.date_obs, *what)

    def iso(self, seconds: float) -> str:
        """UTC time so many seconds after the start, in whole seconds."""
        time = datetime.datetime.fromisoformat(self.plan.date_obs) + datetime.timedelta(seconds=seconds)
        return time.strftime("%Y-%m-%dT%H:%M:%S")

    def work_out(self) -> dict[str, Any]:
        """Values by keyword."""
        values = {**self._block(), **self._telescope(), **self._optics(), **self._lamps(), **self._sensors()}
        values.update(self._detectors())
        if self.plan.tag in GUIDED:
            values.update(self._guiding())
        return values

    def _block(self) -> dict[str, Any]:
        plan, raw = self.plan, self.raw
        name, script = _TEMPLATES[plan.tag]
        start = plan.template_start or self.iso(-12)
        guided = plan.tag in GUIDED
        return {
            "DPR CATG": raw.catg, "DPR TYPE": raw.type, "DPR TECH": raw.tech,
            "OBS EXECTIME": round(plan.nexp * (plan.exptime + 75) + (420 if guided else 30)),
            "OBS ID": plan.ob.id, "OBS NAME": plan.ob.name, "OBS PROG ID": plan.ob.prog_id,
            "OBS NTPL": 2 if guided else 1, "OBS TPLNO": 2 if guided else 1,
            "OBS START": plan.ob.start or start, "OBS TARG NAME": self.target,
            "TPL ID": plan.template or raw.template(plan.mode), "TPL NAME": name.format(plan.mode[:3]),
            "TPL PRESEQ": script, "TPL START": start, "TPL EXPNO": plan.expno, "TPL NEXP": plan.nexp,
        }  # fmt: skip

    def _telescope(self) -> dict[str, Any]:
        plan, sky, noise = self.plan, self.plan.conditions, self.noise
        end = self.mjd + plan.exptime / 86400
        first = horizontal(self.ra, self.dec, self.mjd)
        # a telescope that stands still keeps its height and angle
        last = horizontal(self.ra, self.dec, end) if self.tracking else first
        night = horizontal(*sun(self.mjd), self.mjd).alt < 0
        apparent = precess(self.ra, self.dec, self.mjd)
        here = {"RA": round(_packed(apparent[0] / 15), 4), "DEC": round(_packed(apparent[1]), 5)}
        rotator = [_turn(plan.posang - at.parang - at.alt - 180) for at in (first, last)]
        if plan.drot_mode == "STAT":
            derotator = [plan.posang, plan.posang]
        else:
            # through the turn the angle must not jump
            rotator[1] = rotator[0] + _turn(rotator[1] - rotator[0])
            derotator = [angle / 2 - 270 for angle in rotator]
        airmass = 0.5 * (first.airmass + last.airmass)
        delivered = sky.seeing * airmass**0.6
        values: dict[str, Any] = {
            "TEL AIRM START": round(first.airmass, 3), "TEL AIRM END": round(last.airmass, 3),
            "TEL ALT": round(first.alt, 3), "TEL AZ": round(first.az, 3),
            "TEL PARANG START": round(first.parang, 3), "TEL PARANG END": round(last.parang, 3),
            "TEL AMBI FWHM START": round(sky.seeing * (1 + 0.05 * noise("seeing", 0)), 2),
            "TEL AMBI FWHM END": round(sky.seeing * (1 + 0.05 * noise("seeing", 1)), 2),
            "TEL AMBI PRES START": round(sky.pressure + 0.02 * noise("pressure", 0), 2),
            "TEL AMBI PRES END": round(sky.pressure + 0.02 * noise("pressure", 1), 2),
            "TEL AMBI RHUM": round(float(sky.humidity), 1), "TEL AMBI TEMP": round(float(sky.temperature), 2),
            "TEL AMBI TAU0": round(float(sky.tau0), 6), "TEL AMBI WINDSP": round(float(sky.wind_speed), 2),
            "TEL AMBI WINDDIR": round(float(sky.wind_direction), 1),
            "TEL DOME STATUS": "FULLY-OPEN" if plan.on_sky or night else "FULLY-CLOSED",
            "TEL FOCU VALUE": round(-35.29 + 0.03 * (sky.temperature - 14.8) + 0.01 * noise("focus"), 3),
            "TEL IA FWHM": round(sky.seeing * (1 + 0.03 * noise("ia")), 2),
            "TEL IA FWHMLIN": round(sky.seeing * (1.05 + 0.03 * noise("ialin")), 2),
            "TEL IA FWHMLINOBS": round(delivered * (1.05 + 0.03 * noise("ialin")), 2),
            "TEL MOON RA": round(float(sky.moon_ra), 6), "TEL MOON DEC": round(float(sky.moon_dec), 5),
            "TEL TH M1 TEMP": round(sky.temperature - 1.7 + 0.1 * noise("m1"), 2),
            "TEL TRAK STATUS": "NORMAL" if self.tracking else "STOPPED",
            "INS DROT START": round(derotator[0], 3), "INS DROT END": round(derotator[1], 3),
            "INS DROT ENC START": _steps(derotator[0]), "INS DROT ENC END": _steps(derotator[1]),
            "INS DROT MODE": plan.drot_mode, "INS DROT POSANG": float(plan.posang),
            "ADA ABSROT START": round(rotator[0], 5), "ADA ABSROT END": round(rotator[1], 5),
            "ADA ABSROT PPOS": "POS", "ADA POSANG": float(plan.posang),
        }  # fmt: skip
        for device in ("ADC1", "ADC2", "DROT"):
            values[f"INS {device} RA"], values[f"INS {device} DEC"] = here["RA"], here["DEC"]
        if plan.on_sky:
            offset = tuple(round(float(v), 3) for v in plan.offset)
            values["SEQ OFFSET CUM ALPHA"], values["SEQ OFFSET CUM DELTA"] = offset
            values["SEQ OFFSET REL ALPHA"], values["SEQ OFFSET REL DELTA"] = offset
        values["ADA GUID STATUS"] = "ON" if plan.tag in GUIDED else "OFF"
        if plan.tag in GUIDED:
            cosine = max(math.cos(math.radians(self.dec)), 1e-6)
            ra = (self.ra - plan.offset[0] / 3600 / cosine) % 360
            dec = self.dec - plan.offset[1] / 3600
            values["TEL TARG ALPHA"] = round(_packed(ra / 15), 3)
            values["TEL TARG DELTA"] = round(_packed(dec), 3)
            # the guide star stays the same as long as the target does
            distance = (9 + 1.5 * math.tanh(_normal(plan.ob.id, self.target, "distance"))) / 60
            angle = 2 * math.pi * NormalDist().cdf(_normal(plan.ob.id, self.target, "angle"))
            values["ADA GUID RA"] = round((ra + distance * math.sin(angle) / cosine) % 360, 6)
            values["ADA GUID DEC"] = round(max(-90.0, min(90.0, dec + distance * math.cos(angle))), 5)
        if self.ao:
            nfm = mode_from_name(plan.mode).is_nfm
            values.update({"AOS HO LOOP ST": True, "AOS TT LOOP ST": True, "AOS IR LOOP ST": nfm})
            values.update({"INS AO MIRR1 NAME": plan.mode[:3], "INS AO OPTI1 NAME": "NOTCH"})
        return values

    def _optics(self) -> dict[str, Any]:
        plan = self.plan
        mode = mode_from_name(plan.mode)
        nominal, unit, mask = plan.mode.endswith("-N"), plan.tag in LAMP_TAGS, plan.mask is not None
        values: dict[str, Any] = {
            "INS MODE": plan.mode,
            "INS OPTI1 NAME": "Blue" if nominal else "Clear", "INS OPTI1 NO": 1 if nominal else 2,
            "INS OPTI2 NAME": "NFM" if mode.is_nfm else "WFM", "INS OPTI2 NO": 1 if mode.is_nfm else 2,
            "INS OPTI3 NAME": "Cal" if unit else mode.name[:3], "INS OPTI3 NO": 2 if unit else 1,
            "INS OPTI3 ID": "2" if unit else "1", "INS OPTI3 TYPE": "MIRROR" if unit else "FREE",
            "INS OPTI4 NAME": "Multi-pinhole" if mask else "Clear", "INS OPTI4 NO": 2 if mask else 4,
            "INS OPTI4 ID": "2" if mask else "4",
            "INS ADC1 MODE": "AUTO" if mode.is_nfm else "OFF", "INS ADC2 MODE": "AUTO" if mode.is_nfm else "OFF",
            "INS POS1 POS": 13.1, "INS POS1 ENC": 751206,
            "OCS DET IMGNAME": _image_name(plan), "OCS IPS PIXSCALE": round(mode.spaxel[0], 3),
        }  # fmt: skip
        stages = [13.9, 14.5, 13.9]
        if plan.mask is not None:
            # the geometry recipe takes the height of the mask for POS3 / sin(effective position angle)
            sine = math.sin(math.radians(plan.posang if plan.drot_mode == "STAT" else -plan.posang))
            stages[1] = plan.mask * (sine if abs(sine) > 1e-6 else 1.0)
        for number, position in enumerate(stages, 2):
            values[f"INS POS{number} POS"] = round(position, 5)
            values[f"INS POS{number} ENC"] = round(position * _STAGE_STEPS)
        return values

    def _lamps(self) -> dict[str, Any]:
        plan = self.plan
        lamps = {name.strip() for name in plan.lamp.split(",") if name.strip()}
        known = {lamp[1] for lamp in LAMPS if lamp[1]}
        if lamps - known:
            wrong = ", ".join(sorted(lamps - known))
            raise InputError(f"lamp {wrong} found, expected some of {', '.join(sorted(known))}")
        if lamps and plan.tag not in LAMP_TAGS:
            raise InputError(f"{plan.tag}: lamps {plan.lamp} found, expected none in this type of exposure")
        values: dict[str, Any] = {}
        years = (self.mjd - 56999.0) / 365.25
        for i, (_, name, off, current, hours, yearly, _) in enumerate(LAMPS, 1):
            on = name in lamps and bool(name)
            values[f"INS SHUT{i} ST"] = on
            values[f"INS SENS{4 * i - 3} VAL"] = current + round(self.noise("current", i)) if on else off
            values[f"INS SENS{4 * i - 2} VAL"] = max(0, round(hours + yearly * years))
            if plan.tag in LAMP_TAGS:
                values[f"INS LAMP{i} ST"] = on
            if on:
                before = 60 + (plan.expno - 1) * (plan.exptime + 75)
                values[f"SEQ LAMP{i} ONTIME"] = round(before + plan.exptime, 1)
        return values

    def _sensors(self) -> dict[str, Any]:
        sky, noise = self.plan.conditions, self.noise
        base = {"air": sky.temperature, "instrument": sky.instrument_temperature}
        values: dict[str, Any] = {
            f"INS TEMP{number} VAL": round(base[follows] + difference + 0.03 * noise("temperature", number), 2)
            for number, follows, difference in _TEMPERATURES
        }
        # the temperature of the instrument by which flats are matched to exposures: without scatter
        values["INS TEMP7 VAL"] = round(float(sky.instrument_temperature), 2)
        values["INS SENS51 VAL"] = round(sky.humidity + 1.1 + 0.05 * noise("hygrometer"), 2)
        values["INS SENS40 VAL"] = float(round(221 + 1.5 * noise("flow")))
        values["INS PRES1 VAL"] = round(-3.5 + 0.2 * noise("enclosure", 1), 2)
        values["INS PRES2 VAL"] = round(-0.9 + 0.2 * noise("enclosure", 2), 2)
        for i, pressure in enumerate(CRYOSTATS, 1):
            number = sensor_number(i)
            values[f"INS PRES{number} VAL"] = float(f"{pressure * 1e-6 * (1 + 0.02 * noise('cryostat', i)):.2g}")
            values[f"INS TEMP{number} VAL"] = round(163 + 0.012 * noise("ccd", i), 2)
        return values

    def _detectors(self) -> dict[str, Any]:
        plan = self.plan
        time = float(plan.exptime)
        values: dict[str, Any] = {
            "DET DIT1": time, "DET UIT1": time, "DET DKTM": time, "DET EXP NO": plan.index + 1,
            "DET EXP TYPE": {"BIAS": "Bias", "DARK": "Dark"}.get(plan.tag, "Normal"),
            "DET2 TEMP1 VAL": 283.0, "DET2 TEMP2 VAL": 243.0,
        }  # fmt: skip
        for i in range(1, 5):
            read = round(48.13 + 0.001 * self.noise("read", i), 3)
            values[f"DET DEV{i} EXP RDTTIME"] = read
            values[f"DET DEV{i} EXP XFERTIM"] = round(read + 0.008 + 0.001 * abs(self.noise("transfer", i)), 3)
            values[f"DET DEV{i} SHUT TMOPEN"] = values[f"DET DEV{i} SHUT TMCLOS"] = 0.0
        return values

    def _guiding(self) -> dict[str, Any]:
        """Statistics of the slow guiding system, which measures stars around the field every two minutes."""
        plan, noise = self.plan, self.noise
        ra, dec, middle = self.ra, self.dec, self.mjd + plan.exptime / 172800
        # smaller than at 500 nm: guide cameras see red light (2014-12-08: 0.88" in 0.95" at airmass 1.26)
        seeing = 0.84 * plan.conditions.seeing * horizontal(ra, dec, middle).airmass ** 0.6
        n = max(1, int(plan.exptime // _GUIDE_PERIOD))
        closed = plan.exptime >= _GUIDE_PERIOD
        values: dict[str, Any] = {}

        def statistics(name: str, mean: float, rms: float, digits: int | None, join: str = " ") -> None:
            low, high, shift = (abs(noise(name, k)) for k in range(3))
            mean = mean + rms * noise(name, 3) / math.sqrt(n)
            found = {
                "AVG": mean, "MAX": mean + rms * (1 + 0.4 * high), "MED": mean + 0.2 * rms * (shift - 0.5),
                "MIN": mean - rms * (1 + 0.4 * low), "RMS": rms * math.exp(0.1 * noise(name, 4)),
            }  # fmt: skip
            for key, value in found.items():
                # fluxes, which are large, to four figures
                rounded = float(f"{value:.4g}") if digits is None else round(value, digits) + 0.0
                values[f"OCS SGS {name}{join}{key}"] = rounded

        statistics("AG FWHMX", seeing * 1.02, 0.05, 3)
        statistics("AG FWHMY", seeing * 1.05, 0.06, 3)
        statistics("FWHM", seeing * 0.97, 0.08, 3)
        statistics("OFFSET RA", 0.0, 0.01, 3, "")
        statistics("OFFSET DEC", 0.0, 0.03, 3, "")
        for axis in ("RA", "DEC"):
            values[f"OCS SGS OFFSET {axis}SUM"] = round(n * values[f"OCS SGS OFFSET {axis}AVG"], 3) + 0.0
        # the flux of a guide star in the field around the target
        flux = round(10 ** (6.3 + 0.3 * _normal(plan.ob.id, self.target, "flux")), -3)
        statistics("FLUX", flux, 0.009 * flux, None)
        values["OCS SGS FLUX RMSPRC"] = round(100 * values["OCS SGS FLUX RMS"] / values["OCS SGS FLUX AVG"], 1)
        values["OCS SGS LOOP CLOSED PRCTG"] = 100.0 if closed else 0.0
        values["OCS SGS LOOP ST"] = closed
        values["OCS SGS NOBJ"] = 1
        values["OCS SGS REJECT PRCTG"] = 0.0
        for i in range(1, 11):
            used = i == 1
            place = [round(512 + 250 * math.tanh(_normal(plan.ob.id, self.target, axis)), 1) for axis in "xy"]
            values[f"OCS SGS OBJ{i} FLUX"] = values["OCS SGS FLUX AVG"] if used else 0.0
            values[f"OCS SGS OBJ{i} REJECTED"] = False
            values[f"OCS SGS OBJ{i} USED PRCTG"] = 100.0 if used and closed else 0.0
            values[f"OCS SGS OBJ{i} X"], values[f"OCS SGS OBJ{i} Y"] = place if used else (0.0, 0.0)
        return values


def _normal(*key: object) -> float:
    """Normal deviate that belongs to a key, not farther out than 3."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return max(-3.0, min(3.0, NormalDist().inv_cdf(min(max(uniform, 1e-12), 1 - 1e-12))))


def _turn(angle: float) -> float:
    """Angle between -180 and 180 deg."""
    return (angle + 180) % 360 - 180


def _steps(derotator: float) -> int:
    return round(_DROT_ZERO + _DROT_STEPS * (derotator % 360))


def _packed(value: float) -> float:
    """Degrees (or hours) as the number ddmmss.s."""
    degrees, minutes, seconds = _split(value, 5)
    return math.copysign(degrees * 10000 + minutes * 100 + seconds, value)


def _split(value: float, digits: int) -> tuple[int, int, float]:
    total = round(abs(value) * 3600, digits)
    return int(total // 3600), int(total % 3600 // 60), round(total % 60, digits)


def _sexagesimal(value: float, digits: int = 1) -> str:
    degrees, minutes, seconds = _split(value, digits)
    return f"{'-' if value < 0 else ''}{degrees:02d}:{minutes:02d}:{seconds:0{3 + digits}.{digits}f}"
