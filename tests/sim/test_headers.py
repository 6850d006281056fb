"""Headers of raw exposures: complete, plausible, consistent, standard."""

from __future__ import annotations

import datetime
import math
import re
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from musedask.errors import InputError
from musedask.instrument import RAW_TYPES
from musedask.sim.ephemeris import (
    LATITUDE,
    culmination,
    date_of,
    horizontal,
    mjd_of,
    moon,
    precess,
    sidereal_time,
    start_times,
    sun,
    to_j2000,
)  # fmt: skip
from musedask.sim.header_template import template
from musedask.sim.headers import (
    GUIDED,
    LAMP_TAGS,
    arcfile_of,
    extension_header,
    fitted,
    origfile_of,
    primary_header,
    product_header,
)  # fmt: skip
from musedask.sim.plan import ON_SKY, Conditions, ExposurePlan, ObservingBlock

LAMP = {"FLAT": "continuum", "ILLUM": "continuum", "ARC": "Xe", "MASK": "Ne,HgCd"}
MODES = ("WFM-NOAO-N", "WFM-NOAO-E", "WFM-AO-N", "WFM-AO-E", "NFM-AO-N")
#: the exposure of Abell 478 whose header is known
ABELL = ExposurePlan(
    index=30, tag="OBJECT", date_obs="2014-12-08T02:48:56.798", exptime=900.0, ra=63.355417, dec=10.46556,
    template_start="2014-12-08T02:48:44", nexp=3,
    ob=ObservingBlock(1135706, "WFM-Abell-478", "Abell 478", "094.A-0859(A)", "2014-12-08T02:46:20"),
    conditions=Conditions(
        temperature=14.8, instrument_temperature=14.72, humidity=6.5, pressure=742.7, seeing=0.95, wind_speed=8.78,
        wind_direction=123.0, tau0=0.0038, moon_ra=95.788903, moon_dec=18.95614,
    ),
)  # fmt: skip


class Ccd:
    """A detector, as far as headers tell of it."""

    chip_name = "CHAN01"
    chip_id = "psyche"
    gain = np.array([1.1, 1.06, 1.13, 1.11])
    read_noise = np.array([2.8, 2.75, 2.7, 3.12])


def plan_of(tag: str, mode: str = "WFM-NOAO-N", **keys: object) -> ExposurePlan:
    sky = tag in ON_SKY
    first = {
        "index": 3, "tag": tag, "date_obs": "2018-11-08T03:12:45.123", "exptime": 0.0 if tag == "BIAS" else 300.0,
        "mode": mode, "lamp": LAMP.get(tag, ""), "ra": 10.0 if sky else 0.0, "dec": -30.0 if sky else 0.0,
        "drot_mode": "SKY" if sky else "STAT", "mask": 0.25 if tag == "MASK" else None,
        "posang": 90.0 if tag == "MASK" else 0.0,
    }  # fmt: skip
    return ExposurePlan(**{**first, **keys})  # type: ignore[arg-type]


def primary(plan: ExposurePlan) -> fits.Header:
    return primary_header(plan, origfile=origfile_of(plan), arcfile=arcfile_of(plan))


@pytest.fixture(scope="module")
def real() -> fits.Header:
    """Header of the exposure of 2014-12-08, as a cube made of it has it."""
    mpdaf = pytest.importorskip("mpdaf")
    path = Path(mpdaf.__file__).parent / "data" / "sdetect" / "minicube.fits"
    if not path.exists():
        path = Path(mpdaf.__file__).parents[1] / "data" / "sdetect" / "minicube.fits"
    if not path.exists():
        pytest.skip("mpdaf without its cube")
    return fits.getheader(path)


# --- the known header -----------------------------------------------------------------------------------

#: keywords whose value is another one, and why
EXCEPTIONS = {
    r"OBS PI-COI ID": "a person's number",
    r"DET DEV\d BOARD\d (BCKPL|SERNO|TRANS)": "serial numbers of boards are made up",
    r"DET DEV1 SHUT TM(CLOS|OPEN)": "-692.93 s is no time that a shutter takes: 0 like that of the others",
    r"OCS SGS OBJ1 [XY]": "another guide star",
    r"ADA GUID (RA|DEC)": "another guide star",
}
#: how far a value may be from the real one: absolute, or a factor; and why it cannot be equal
TOLERANCES = (
    (r"OBS EXECTIME", 200, None, "estimated from exposure times"),
    (r"TEL (AIRM|ALT|AZ|PARANG)", 0.35, None, "angles at start and end of the exposure, not of its overheads"),
    (r"ADA ABSROT", 0.35, None, "the same"),
    (r"INS DROT (START|END)", 0.2, None, "the same"),
    (r"INS DROT ENC", 60000, None, "the same"),
    (r"INS (ADC\d|DROT) RA", 2.5, None, "without aberration and nutation [0.1 s]"),
    (r"INS (ADC\d|DROT) DEC", 10, None, "the same [arcsec]"),
    (r"TEL AMBI FWHM", 0.35, None, "weather"),
    (r"TEL AMBI PRES", 0.2, None, "weather"),
    (r"TEL IA FWHM", 0.15, None, "weather"),
    (r"TEL TH M1 TEMP", 0.4, None, "a sensor"),
    (r"TEL FOCU VALUE", 0.1, None, "a sensor"),
    (r"TEL TARG (ALPHA|DELTA)", 0.1, None, "rounded"),
    (r"INS (TEMP\d+|SENS51) VAL", 0.3, None, "sensors"),
    (r"INS SENS40 VAL", 6, None, "a sensor"),
    (r"INS PRES[12] VAL", 0.8, None, "sensors"),
    (r"INS PRES\d\d VAL", None, 1.1, "sensors"),
    (r"DET DEV\d EXP (RDTTIME|XFERTIM)", 0.02, None, "measured times"),
    (r"DET OUT\d CONAD", 0.01, None, "rounded"),
    (r"OCS SGS (AG )?FWHM", 0.2, None, "weather"),
    (r"OCS SGS (FLUX|OBJ1 FLUX)", None, 10, "another guide star"),
    (r"OCS SGS OFFSET (RA|DEC)", 0.1, None, "errors of the guiding"),
)  # fmt: skip


def _allowed(keyword: str) -> tuple[float | None, float | None]:
    for pattern, absolute, factor, _ in TOLERANCES:
        if re.match(pattern, keyword):
            return absolute, factor
    return 0.0, None


def test_every_keyword_of_the_real_exposure_is_there(real: fits.Header) -> None:
    simulated = primary(ABELL)
    simulated.extend(extension_header(ABELL, 1, Ccd()), unique=True)
    groups = ("INS", "TEL", "DET", "DET2", "OCS", "TPL", "OBS", "ADA", "SEQ")
    cards = [c for c in real.cards if c.keyword.startswith("ESO ") and c.keyword.split()[1] in groups]
    assert len(cards) > 930
    wrong = []
    for keyword, expected, comment in cards:
        if keyword not in simulated:
            wrong.append(f"{keyword}: missing")
            continue
        found, short = simulated[keyword], keyword.removeprefix("ESO ")
        if type(found) is not type(expected):
            wrong.append(f"{keyword}: {found!r}, not of the type of {expected!r}")
        elif any(re.match(p, short) for p in EXCEPTIONS):
            assert found != expected, f"{keyword} needs no exception"
        elif isinstance(expected, float) or re.match(r"INS DROT ENC|OBS EXECTIME", short):
            absolute, factor = _allowed(short)
            if factor is None:
                good = math.isclose(found, expected, rel_tol=1e-9, abs_tol=absolute or 0.0)
            else:
                good = expected / factor <= found <= expected * factor or (found == expected == 0)
            if not good:
                wrong.append(f"{keyword}: {found!r}, far from {expected!r}")
        elif found != expected:
            wrong.append(f"{keyword}: {found!r}, not {expected!r}")
        # comments of the real header are cut off earlier or later
        ours = simulated.comments[keyword]
        # comments with angles and numbers of lamps differ in these
        first, second = (re.sub(r"[\d:.#]", "", text)[:12].lower() for text in (ours, comment))
        if first != second and len(comment) > 12:
            wrong.append(f"{keyword}: comment {ours!r}, not {comment!r}")
    assert not wrong, "\n".join(wrong)


def test_other_cards_of_the_real_exposure(real: fits.Header) -> None:
    simulated = primary(ABELL)
    for keyword in (
        "ORIGIN", "TELESCOP", "INSTRUME", "RA", "DEC", "EQUINOX", "RADECSYS", "EXPTIME", "MJD-OBS", "DATE-OBS",
        "PI-COI", "OBSERVER", "ARCFILE", "OBJECT",
    ):  # fmt: skip
        assert simulated[keyword] == real[keyword], keyword
        assert type(simulated[keyword]) is type(real[keyword])
    # the real ones are of 10 s before
    assert simulated["UTC"] == pytest.approx(real["UTC"], abs=11)
    assert simulated["LST"] == pytest.approx(real["LST"], abs=11)


def test_order_is_that_of_the_real_exposure(real: fits.Header) -> None:
    header = product_header(ABELL, 1, Ccd())
    place = {c.keyword: i for i, c in enumerate(real.cards)}
    for part in (primary(ABELL), extension_header(ABELL, 1, Ccd())):
        for group in ("OBS", "TPL", "TEL", "INS", "DET", "ADA", "OCS", "SEQ"):
            places = [place[k] for k in part if k.startswith(f"ESO {group} ") and k in place]
            if not part.get("XTENSION"):
                assert places == sorted(places), group
    assert not [k for k in header if k.startswith(("ESO DPR", "NAXIS", "BZERO")) or k == "RADECSYS"]
    assert header["RADESYS"] == "FK5" and header["EXTNAME"] == "CHAN01"


# --- all types ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tag", RAW_TYPES)
def test_headers_are_standard_and_complete(tag: str, mode: str) -> None:
    plan = plan_of(tag, mode)
    header, extension = primary(plan), extension_header(plan, 7, Ccd())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits.PrimaryHDU(header=header).verify("exception")
        for part in (header, extension):
            text = part.tostring()
            assert len(text) % 2880 == 0 and text.isascii()
            again = fits.Header.fromstring(text)
            for card in part.cards:
                assert len(card.image) == 80, card.keyword
                assert again[card.keyword] == card.value
                assert not isinstance(card.value, float) or math.isfinite(card.value)
                card.verify("exception")
            assert len(set(part)) == len(part)
    raw = RAW_TYPES[tag]
    assert (header["ESO DPR CATG"], header["ESO DPR TYPE"], header["ESO DPR TECH"]) == (raw.catg, raw.type, "IFU")
    assert header["ESO INS MODE"] == mode
    assert header["ESO TPL ID"] == raw.template(mode)
    # what recipes need (reference.md)
    for keyword, kind in {
        "DATE-OBS": str, "MJD-OBS": float, "EXPTIME": float, "RA": float, "DEC": float, "EQUINOX": float, "LST": float,
        "ESO INS DROT MODE": str, "ESO INS DROT POSANG": float, "ESO INS LAMPNUM": int, "ESO TEL AIRM START": float,
        "ESO TEL AIRM END": float, "ESO TEL PARANG START": float, "ESO TEL PARANG END": float, "ESO DET BINX": int,
        "ESO TEL AMBI TEMP": float, "ESO TEL AMBI RHUM": float, "ESO TEL AMBI PRES START": float, "ESO DET BINY": int,
        "ESO TEL GEOLAT": float, "ESO TEL GEOLON": float, "ESO TEL GEOELEV": float, "ESO TEL FOCU SCALE": float,
        "ESO DET READ CURID": int, "ESO DET READ CURNAME": str, "ESO INS TEMP7 VAL": float, "ESO INS SHUT1 ST": bool,
        "ESO INS OPTI1 NAME": str, "ESO INS OPTI2 NAME": str, "ESO TPL START": str, "ESO OBS ID": int,
    }.items():  # fmt: skip
        assert type(header[keyword]) is kind, keyword
    assert extension["EXTNAME"] == "CHAN07"
    for i in range(1, 5):
        scans = [extension[f"ESO DET OUT{i} {k}"] for k in ("NX", "NY", "PRSCX", "PRSCY", "OVSCX", "OVSCY")]
        assert scans == [2048, 2056, 32, 32, 32, 32]
        assert extension[f"ESO DET OUT{i} GAIN"] == Ccd.gain[i - 1]
        assert extension[f"ESO DET OUT{i} RON"] == Ccd.read_noise[i - 1]
    corners = [(extension[f"ESO DET OUT{i} X"], extension[f"ESO DET OUT{i} Y"]) for i in range(1, 5)]
    assert corners == [(1, 1), (4096, 1), (4096, 4112), (1, 4112)]
    # what the type of exposure does not have
    assert ("ESO OCS SGS LOOP ST" in header) == (tag in GUIDED)
    assert ("ESO TEL TARG ALPHA" in header) == (tag in GUIDED)
    assert ("ESO SEQ OFFSET CUM ALPHA" in header) == (tag in ON_SKY)
    assert ("ESO INS LAMP1 ST" in header) == (tag in LAMP_TAGS)
    assert ("ESO AOS HO LOOP ST" in header) == (tag in GUIDED and "-AO" in mode)
    assert header["ESO TEL TRAK STATUS"] == ("NORMAL" if tag in ON_SKY else "STOPPED")


def test_nothing_of_the_template_is_forgotten() -> None:
    """Each keyword is in the header of some exposure."""
    seen: set[str] = set()
    for tag in RAW_TYPES:
        lamps = ("Ne", "HgCd", "Xe") if tag == "ARC" else (LAMP.get(tag, ""),)
        for lamp in lamps:
            seen.update(primary(plan_of(tag, "WFM-AO-N", lamp=lamp)))
    seen.update(extension_header(ABELL, 1, Ccd()))
    # the second neon lamp is never used
    assert {f"ESO {k}" for k in template()} - seen == {"ESO SEQ LAMP6 ONTIME"}


def test_modes_and_filters() -> None:
    header = primary(plan_of("OBJECT", "WFM-NOAO-E"))
    assert (header["ESO INS OPTI1 NAME"], header["ESO INS OPTI2 NAME"]) == ("Clear", "WFM")
    header = primary(plan_of("OBJECT", "NFM-AO-N"))
    assert (header["ESO INS OPTI1 NAME"], header["ESO INS OPTI2 NAME"]) == ("Blue", "NFM")
    assert header["ESO AOS IR LOOP ST"] and header["ESO TPL ID"] == "MUSE_nfm-ao_obs_genericoffsetLGS"
    assert header["ESO OCS IPS PIXSCALE"] == 0.025


# --- lamps and mask -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lamp", "on"), [("Ne", {3}), ("Xe", {4}), ("HgCd", {5}), ("continuum", {1, 2}), ("Ne, HgCd", {3, 5}), ("", set())]
)
def test_lamps(lamp: str, on: set[int]) -> None:
    header = primary(plan_of("ARC", lamp=lamp))
    assert {i for i in range(1, 7) if header[f"ESO INS LAMP{i} ST"]} == on
    assert {i for i in range(1, 7) if header[f"ESO INS SHUT{i} ST"]} == on
    assert {i for i in range(1, 7) if f"ESO SEQ LAMP{i} ONTIME" in header} == on
    for i in on:
        # 1 and 2 are in ampere, others in milliampere
        assert header[f"ESO INS SENS{4 * i - 3} VAL"] > 50
        assert header[f"ESO SEQ LAMP{i} ONTIME"] >= 300
    assert [header[f"ESO INS LAMP{i} NAME"] for i in range(1, 7)] == [f"CU-LAMP{i}" for i in range(1, 7)]


def test_lamps_grow_old() -> None:
    early = primary(plan_of("ARC", date_obs="2014-02-01T15:00:00.000"))
    late = primary(plan_of("ARC", date_obs="2019-02-01T15:00:00.000"))
    assert 0 < early["ESO INS SENS14 VAL"] < late["ESO INS SENS14 VAL"]


@pytest.mark.parametrize("mode, angle, sign", [("STAT", 90.0, 1), ("SKY", 90.0, -1), ("SKY", -90.0, 1)])
def test_height_of_the_mask_as_the_geometry_recipe_reads_it(mode: str, angle: float, sign: int) -> None:
    header = primary(plan_of("MASK", posang=angle, drot_mode=mode, mask=-0.4125))
    assert header["ESO INS POS3 POS"] == pytest.approx(sign * -0.4125, abs=1e-6)
    assert header["ESO INS POS3 ENC"] == pytest.approx(48595.755 * sign * -0.4125, abs=1)
    assert header["ESO INS OPTI4 NAME"] != primary(plan_of("ARC"))["ESO INS OPTI4 NAME"]


# --- consistency ----------------------------------------------------------------------------------------


def test_angles_follow_time_and_pointing() -> None:
    plan = plan_of("OBJECT", exptime=1200.0, pointing_error=(3.6, -7.2), offset=(10.0, -4.0), posang=30.0)
    header = primary(plan)
    assert header["RA"] == pytest.approx(10.001) and header["DEC"] == pytest.approx(-30.002)
    assert header["MJD-OBS"] == pytest.approx(mjd_of(plan.date_obs), abs=1e-8)
    assert header["UTC"] == pytest.approx(3 * 3600 + 12 * 60 + 45.123)
    assert header["LST"] == pytest.approx(240 * sidereal_time(mjd_of(plan.date_obs)), abs=1e-3)
    for name, mjd in (("START", header["MJD-OBS"]), ("END", header["MJD-OBS"] + 1200 / 86400)):
        place = horizontal(header["RA"], header["DEC"], mjd)
        assert header[f"ESO TEL AIRM {name}"] == pytest.approx(place.airmass, abs=6e-4)
        assert header[f"ESO TEL PARANG {name}"] == pytest.approx(place.parang, abs=2e-3)
        rotator = header[f"ESO ADA ABSROT {name}"]
        assert (rotator - (30 - place.parang - place.alt - 180) + 180) % 360 - 180 == pytest.approx(0, abs=1e-2)
        assert (2 * header[f"ESO INS DROT {name}"] - rotator) % 360 == pytest.approx(180, abs=2e-2)
    assert header["ESO ADA POSANG"] == header["ESO INS DROT POSANG"] == 30.0
    assert header["ESO SEQ OFFSET CUM ALPHA"] == 10.0 and header["ESO SEQ OFFSET CUM DELTA"] == -4.0
    # target: pointing less offset
    target_ra = 10.001 - 10 / 3600 / math.cos(math.radians(30.002))
    alpha, delta = header["ESO TEL TARG ALPHA"], -header["ESO TEL TARG DELTA"]
    assert (alpha // 10000 + alpha % 10000 // 100 / 60 + alpha % 100 / 3600) * 15 == pytest.approx(target_ra, abs=1e-5)
    assert delta // 10000 + delta % 10000 // 100 / 60 + delta % 100 / 3600 == pytest.approx(30.002 - 4 / 3600, abs=1e-6)
    distance = math.hypot(
        (header["ESO ADA GUID RA"] - target_ra) * math.cos(math.radians(30)), header["ESO ADA GUID DEC"] + 30
    )
    assert 5 < 60 * distance < 12


def test_weather_is_that_of_the_plan() -> None:
    cold = replace(ABELL, conditions=Conditions(temperature=5.0, instrument_temperature=6.25, seeing=0.5))
    header = primary(cold)
    assert header["ESO INS TEMP7 VAL"] == 6.25
    assert header["ESO TEL AMBI TEMP"] == 5.0
    assert abs(header["ESO INS TEMP11 VAL"] - 6.25) < 0.5 and abs(header["ESO INS TEMP4 VAL"] - 5.0) < 2
    assert 0.35 < header["ESO OCS SGS AG FWHMX AVG"] < 0.6
    for name in ("AG FWHMX ", "AG FWHMY ", "FWHM ", "FLUX ", "OFFSET RA", "OFFSET DEC"):
        low, middle, high = (header[f"ESO OCS SGS {name}{k}"] for k in ("MIN", "MED", "MAX"))
        assert low < middle < high
        assert low < header[f"ESO OCS SGS {name}AVG"] < high


def test_headers_follow_from_the_plan_alone() -> None:
    assert primary(ABELL).tostring() == primary(replace(ABELL)).tostring()
    later = primary(replace(ABELL, date_obs="2014-12-08T03:06:10.001"))
    assert later["ESO INS TEMP1 VAL"] != primary(ABELL)["ESO INS TEMP1 VAL"] or (
        later["ESO INS PRES1 VAL"] != primary(ABELL)["ESO INS PRES1 VAL"]
    )
    # the guide star is that of the target
    assert later["ESO ADA GUID RA"] == primary(ABELL)["ESO ADA GUID RA"]


def test_parked_telescope_looks_at_the_zenith() -> None:
    header = primary(plan_of("BIAS"))
    assert header["ESO TEL ALT"] == pytest.approx(90, abs=0.01)
    assert header["ESO TEL AIRM START"] == header["ESO TEL AIRM END"] == 1.0
    apparent = precess(header["RA"], header["DEC"], header["MJD-OBS"])
    assert apparent[0] == pytest.approx(header["LST"] / 240, abs=1e-4)
    assert apparent[1] == pytest.approx(LATITUDE, abs=1e-4)


def test_dome_is_closed_by_day() -> None:
    assert primary(plan_of("BIAS", date_obs="2018-11-08T17:00:00.000"))["ESO TEL DOME STATUS"] == "FULLY-CLOSED"
    assert primary(plan_of("ILLUM", date_obs="2018-11-08T05:00:00.000"))["ESO TEL DOME STATUS"] == "FULLY-OPEN"


def test_file_names() -> None:
    assert arcfile_of(ABELL) == "MUSE.2014-12-08T02:48:56.798.fits"
    assert origfile_of(ABELL, 4) == "MUSE_WFM-NOAO_OBS341_0004.fits"
    assert origfile_of(plan_of("BIAS"), 2) == "MUSE_BIAS311_0002.fits"
    assert primary(ABELL)["ESO OCS DET IMGNAME"] == "MUSE_WFM-NOAO_OBS"


def test_long_texts_fit() -> None:
    long = "A long name of a target with 'quotes' and more of them that fills the card to its end"[:68]
    plan = replace(ABELL, ob=replace(ABELL.ob, name=long[:50], target=long[:45]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = primary(plan).tostring()
    assert fits.Header.fromstring(text)["ESO OBS NAME"] == long[:50].rstrip()
    name, value, comment = fitted("ESO OBS NAME", "x" * 50, "y" * 50)
    assert len(fits.Card(name, value, comment).image) == 80


# --- errors ---------------------------------------------------------------------------------------------


def test_errors_say_what_was_found_and_expected() -> None:
    with pytest.raises(InputError, match=r"IFU 25 found, expected 1 to 24"):
        extension_header(ABELL, 25, Ccd())
    with pytest.raises(InputError, match=r"raw type 'LAMP' found, expected one of BIAS, DARK"):
        primary(plan_of("LAMP"))
    with pytest.raises(InputError, match=r"lamp Kr found, expected some of HgCd, Ne, Xe, continuum"):
        primary(plan_of("ARC", lamp="Ne,Kr"))
    with pytest.raises(InputError, match=r"BIAS: lamps Ne found, expected none"):
        primary(plan_of("BIAS", lamp="Ne"))


# --- ephemeris ------------------------------------------------------------------------------------------


def test_place_and_sun_and_moon_agree_with_astropy() -> None:
    coordinates = pytest.importorskip("astropy.coordinates")
    from astropy import units as u
    from astropy.time import Time
    from astropy.utils import iers

    with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("iers_degraded_accuracy", "ignore"):
        site = coordinates.EarthLocation.from_geodetic(-70.404 * u.deg, -24.627 * u.deg, 2648 * u.m)
        for mjd in (56999.1173, 58100.2, 59234.1):
            time = Time(mjd, format="mjd")
            target = coordinates.SkyCoord(63.355417, 10.46556, unit="deg")
            exact = target.transform_to(coordinates.AltAz(obstime=time, location=site))
            place = horizontal(63.355417, 10.46556, mjd)
            assert place.alt == pytest.approx(exact.alt.deg, abs=0.02)
            # ours is counted from the south
            assert (place.az - exact.az.deg - 180 + 180) % 360 - 180 == pytest.approx(0, abs=0.05)
            body = coordinates.get_body("moon", time, site)
            ra, dec, fraction = moon(mjd)
            assert (ra, dec) == (pytest.approx(body.ra.deg, abs=0.3), pytest.approx(body.dec.deg, abs=0.3))
            assert 0 <= fraction <= 1
            body = coordinates.get_sun(time)
            assert sun(mjd) == (pytest.approx(body.ra.deg, abs=0.02), pytest.approx(body.dec.deg, abs=0.02))


def test_moon_of_the_real_exposure(real: fits.Header) -> None:
    ra, dec, fraction = moon(real["MJD-OBS"])
    assert ra == pytest.approx(real["ESO TEL MOON RA"], abs=0.3)
    assert dec == pytest.approx(real["ESO TEL MOON DEC"], abs=0.3)
    assert fraction > 0.95  # full on 2014-12-06


def test_real_exposure_is_where_its_header_says(real: fits.Header) -> None:
    """Its angles at start are of its LST, 10 s before the shutter opened; those at end of after the read-out."""
    before = horizontal(real["RA"], real["DEC"], real["MJD-OBS"] - 10.8 / 86400)
    assert before.alt == pytest.approx(real["ESO TEL ALT"], abs=0.01)
    assert before.az == pytest.approx(real["ESO TEL AZ"], abs=0.01)
    assert before.parang == pytest.approx(real["ESO TEL PARANG START"], abs=0.01)
    assert before.airmass == pytest.approx(real["ESO TEL AIRM START"], abs=6e-4)
    after = horizontal(real["RA"], real["DEC"], real["MJD-OBS"] + (900 + 48.1) / 86400)
    assert after.parang == pytest.approx(real["ESO TEL PARANG END"], abs=0.01)
    assert after.airmass == pytest.approx(real["ESO TEL AIRM END"], abs=6e-4)
    for place, name in ((before, "START"), (after, "END")):
        rotator = -place.parang - place.alt - 180
        assert (rotator - real[f"ESO ADA ABSROT {name}"] + 180) % 360 - 180 == pytest.approx(0, abs=0.05)
    assert real["ESO INS DROT END"] == pytest.approx(real["ESO ADA ABSROT END"] / 2 - 270, abs=0.03)


def test_times() -> None:
    assert mjd_of("2014-12-08T02:48:56.798") == pytest.approx(56999.11732405, abs=1e-8)
    assert date_of(56999.5) == datetime.datetime(2014, 12, 8, 12)
    starts = start_times(150.1, [600, 300, 600])
    assert [(b - a).total_seconds() for a, b in pairwise(starts)] == pytest.approx(
        [673.217, 373.217], abs=2e-3
    )
    for ra in (0.0, 63.4, 150.1, 300.0):
        first = mjd_of(start_times(ra, [600])[0])
        top = culmination(ra, first)
        assert abs(top - first) < 1.2 / 24
        assert (sidereal_time(top) - precess(ra, LATITUDE, top)[0] + 180) % 360 - 180 == pytest.approx(0, abs=1e-3)
    assert to_j2000(*precess(200.0, -45.0, 59000.0), 59000.0) == pytest.approx((200.0, -45.0), abs=1e-6)
    assert horizontal(0.0, -24.6, 59000.0).alt <= 90
