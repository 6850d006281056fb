"""Two weeks of several modes, as files that have nothing but headers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from astropy.io import fits

from musedask.instrument import RAW_TYPES
from musedask.sim.ephemeris import mjd_of
from musedask.sim.headers import arcfile_of, fitted, primary_header
from musedask.sim.plan import Conditions, ExposurePlan, ObservingBlock

MODES = {
    "N": "WFM-NOAO-N", "E": "WFM-NOAO-E", "A": "WFM-AO-N", "AE": "WFM-AO-E", "F": "NFM-AO-N",
}  # fmt: skip

#: label, night of March 2017, UT, tag, mode; number of frames, or lamps of arcs; and what else there is to say.
#: The vignetted field became whole on 2017-03-11.
SCHEDULE = """
B04   04 21:00 BIAS       N  5
F04   04 21:10 FLAT       N  5
R04   04 21:20 ARC        N  Ne,Ne,Xe,Xe,HgCd,HgCd
T04   04 23:10 SKYFLAT    N  3
I04a  04 23:16 ILLUM      N  1  temp=12.0
S04   04 00:10 STD        N  1  temp=11.7
I04b  04 01:01 ILLUM      N  1  temp=11.5
O04a  04 01:05 OBJECT     N  1  temp=11.4 ob=alpha
O04b  04 02:00 OBJECT     N  1  temp=10.9 ob=alpha
K04   04 02:30 SKY        N  1  temp=10.8 ob=alpha
O04c  04 03:00 OBJECT     N  1  temp=9.2  ob=beta
I04c  04 03:30 ILLUM      N  1  temp=9.0
B05   05 21:00 BIAS       N  5
F05   05 21:10 FLAT       E  2
R05   05 21:20 ARC        E  Ne,Xe,HgCd
T05   05 23:10 SKYFLAT    E  3  temp=14.0
I05   05 23:16 ILLUM      E  1  temp=14.0
S05   05 03:30 STD        N  1  temp=11.2
O05   05 04:00 OBJECT     E  1  temp=11.0 ob=gamma
B06   06 21:00 BIAS       A  5
F06   06 21:10 FLAT       A  3
R06   06 21:20 ARC        A  Ne,HgCd
R06n  06 21:40 ARC        N  Ne,Xe,HgCd
S06   06 01:00 STD        A  1  temp=12.1
I06   06 01:40 ILLUM      N  1  temp=12.1
O06   06 02:00 OBJECT     A  1  temp=12.0 ob=delta
B07   07 21:00 BIAS       E  5
F07   07 21:10 FLAT       E  5
R07   07 21:20 ARC        E  Ne,Xe,HgCd
S07   07 01:00 STD        E  1  temp=10.0
I07   07 01:30 ILLUM      E  1  temp=10.0
O07   07 02:00 OBJECT     E  1  temp=10.0 ob=gamma
K07   07 02:30 SKY        E  1  temp=10.0 ob=gamma
B08   08 21:00 BIAS       A  2
F08   08 21:10 FLAT       A  3
R08   08 21:20 ARC        A  Ne,Xe,HgCd
T08   08 23:10 SKYFLAT    A  3  temp=12.0
S08a  08 00:00 STD        A  1  temp=12.0
I08   08 01:50 ILLUM      A  1  temp=12.0
O08a  08 02:00 OBJECT     A  1  temp=12.0 ob=delta
O08b  08 07:00 OBJECT     A  1  temp=11.5 ob=delta
S08b  08 09:00 STD        A  1  temp=11.3
B09   09 21:00 BIAS       F  5
F09   09 21:10 FLAT       F  3
R09   09 21:20 ARC        F  Ne,Xe,HgCd
T09   09 23:10 SKYFLAT    F  3  temp=12.0
S09   09 00:00 STD        F  1  temp=12.0
A09   09 00:30 ASTROMETRY F  1  temp=12.0
I09   09 01:00 ILLUM      F  1  temp=11.8
I09w  09 01:55 ILLUM      A  1  temp=12.0
O09   09 02:00 OBJECT     F  1  temp=12.0 ob=eta
K09w  09 02:20 SKY        A  1  temp=12.0 ob=eta
B10   10 21:00 BIAS       N  5
F10   10 21:10 FLAT       N  5
R10   10 21:20 ARC        N  Ne,Xe,HgCd
T10   10 23:10 SKYFLAT    N  3  temp=12.0
O10   10 02:00 OBJECT     N  1  temp=12.0 ob=theta
T11   11 23:10 SKYFLAT    N  3  temp=12.0
O11   11 02:00 OBJECT     N  1  temp=12.0 ob=theta
B12   12 21:00 BIAS       N  5
F12   12 21:10 FLAT       N  5
R12   12 21:20 ARC        N  Ne,Xe,HgCd
S12   12 00:30 STD        N  1  temp=12.0
K12   12 02:00 SKY        N  1  temp=12.0 ob=epsilon
O12   12 02:10 OBJECT     N  1  temp=12.0 ob=epsilon
B13   13 21:00 BIAS       N  5
F13   13 21:10 FLAT       N  5
R13   13 21:20 ARC        N  Ne,Xe,HgCd
O13   13 01:00 OBJECT     N  1  temp=12.0 ob=epsilon
B14   14 21:00 BIAS       N  5  curid=2
D14   14 11:00 DARK       N  5
O14   14 01:00 OBJECT     N  1  temp=12.0 ob=iota
B15   15 21:00 BIAS       N  5
F15   15 21:10 FLAT       N  5
R15   15 21:20 ARC        N  Ne,Xe,HgCd
O15   15 01:00 OBJECT     N  1  temp=12.0 ob=iota
B16   16 21:00 BIAS       AE 5
F16   16 21:10 FLAT       AE 5
O16   16 01:00 OBJECT     AE 1  temp=12.0 ob=kappa
O17   17 02:00 OBJECT     F  1  temp=12.0 ob=eta
"""
#: in the order in which they are numbered
BLOCKS = ("calibration", "alpha", "beta", "gamma", "delta", "epsilon", "eta", "theta", "iota", "kappa")


@dataclass(frozen=True)
class Line:
    """One template of the schedule."""

    label: str
    plans: tuple[ExposurePlan, ...]
    cards: dict[str, object]


def read_schedule(text: str = SCHEDULE) -> list[Line]:
    """Plans of all exposures."""
    lines = []
    index = 0
    for row in text.strip().splitlines():
        label, night, time, tag, mode, what, *more = row.split()
        extra = dict(word.split("=") for word in more)
        start = datetime.fromisoformat(f"2017-03-{night}T{time}:00")
        if start.hour < 12:
            start += timedelta(days=1)
        lamps = what.split(",") if tag == "ARC" else ["continuum" if tag in ("FLAT", "ILLUM") else ""] * int(what)
        name = extra.get("ob", "calibration")
        plans = []
        for number, lamp in enumerate(lamps, 1):
            begin = start + timedelta(seconds=12 + 65 * (number - 1))
            plans.append(
                ExposurePlan(
                    index=index,
                    tag=tag,  # type: ignore[arg-type]
                    date_obs=begin.isoformat(timespec="milliseconds"),
                    exptime=600.0 if tag == "OBJECT" else 1.0,
                    mode=MODES[mode],
                    lamp=lamp,
                    ra=150.0,
                    dec=-30.0,
                    template=RAW_TYPES[tag].template(MODES[mode]),
                    template_start=start.isoformat(timespec="seconds"),
                    expno=number,
                    nexp=5 if tag == "FLAT" else len(lamps),
                    ob=ObservingBlock(1000 + BLOCKS.index(name), name, name),
                    conditions=Conditions(instrument_temperature=float(extra.get("temp", 13.0))),
                )
            )
            index += 1
        cards = {"ESO DET READ CURID": int(extra["curid"])} if "curid" in extra else {}
        lines.append(Line(label, tuple(plans), cards))
    return lines


def file_name(plan: ExposurePlan) -> str:
    """As the archive would call it."""
    return arcfile_of(plan)


class Headers:
    """Headers of many exposures; those that differ in a few cards are not made anew each time."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, str, str], tuple[bytes, dict[str, int]]] = {}
        self._cards: dict[tuple[str, object], bytes] = {}

    def of(self, plan: ExposurePlan, cards: dict[str, object] | None = None) -> bytes:
        """Bytes of the primary HDU of an exposure, with some cards of one's own."""
        key = (plan.tag, plan.mode, plan.lamp)
        if key not in self._bases:
            header = primary_header(plan, origfile="x.fits", arcfile=arcfile_of(plan))
            text = header.tostring().encode()
            places = {k: 80 * i for i, k in enumerate(header)}
            self._bases[key] = text, places
        text, places = self._bases[key]
        data = bytearray(text)
        values: dict[str, object] = {
            "ARCFILE": arcfile_of(plan), "DATE-OBS": plan.date_obs, "MJD-OBS": round(mjd_of(plan.date_obs), 8),
            "EXPTIME": plan.exptime, "RA": plan.ra, "DEC": plan.dec, "ESO TPL START": plan.template_start,
            "ESO TPL EXPNO": plan.expno, "ESO TPL NEXP": plan.nexp, "ESO OBS ID": plan.ob.id,
            "ESO OBS NAME": plan.ob.name, "ESO OBS TARG NAME": plan.ob.target,
            "ESO INS TEMP7 VAL": plan.conditions.instrument_temperature, "ESO INS DROT POSANG": plan.posang,
            **(cards or {}),
        }  # fmt: skip
        for keyword, value in values.items():
            if (keyword, value) not in self._cards:
                self._cards[keyword, value] = str(fits.Card(*fitted(keyword, value, ""))).encode()
            assert len(self._cards[keyword, value]) == 80
            data[places[keyword] : places[keyword] + 80] = self._cards[keyword, value]
        return bytes(data)


def write_fortnight(folder: Path, lines: list[Line] | None = None) -> dict[str, str]:
    """Write all files; gives the label of each by its name in the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    headers = Headers()
    labels = {}
    for line in read_schedule() if lines is None else lines:
        for plan in line.plans:
            (folder / file_name(plan)).write_bytes(headers.of(plan, line.cards))
            labels[file_name(plan).removesuffix(".fits")] = line.label
    return labels


def write_product(path: Path, tag: str, **keywords: object) -> Path:
    """A product that has nothing but a header."""
    hdu = fits.PrimaryHDU()
    for keyword, value in {"INSTRUME": "MUSE", "ESO__PRO__CATG": tag, **keywords}.items():
        name = keyword.replace("__", " ").replace("_", "-")
        hdu.header[f"HIERARCH {name}" if " " in name else name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    hdu.writeto(path)
    return path


#: category and mode of static calibrations
STATICS = (
    ("ASTROMETRY_REFERENCE", ""), ("BADPIX_TABLE", ""), ("EXTINCT_TABLE", ""), ("FILTER_LIST", ""),
    ("LINE_CATALOG", ""), ("SKY_LINES", ""), ("STD_FLUX_TABLE", ""), ("TELLURIC_REGIONS", ""),
    ("RAMAN_LINES", ""), ("VIGNETTING_MASK", ""), ("GEOMETRY_TABLE", "WFM-NOAO-N"), ("ASTROMETRY_WCS", "WFM-NOAO-N"),
    ("ASTROMETRY_WCS", "NFM-AO-N"), ("LSF_PROFILE", "WFM-NOAO-N"),
)  # fmt: skip


def write_statics(folder: Path) -> None:
    """Static calibrations, whose names say nothing."""
    for number, (tag, mode) in enumerate(STATICS):
        more = {"ESO__INS__MODE": mode, "ESO__INS__OPTI2__NAME": mode[:3]} if mode else {}
        write_product(folder / f"s{number:02d}.fits", tag, **more)

