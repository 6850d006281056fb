"""What is to be observed: plain descriptions of exposures, from which headers, light and noise follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: raw tags that can be simulated
Tag = Literal[
    "BIAS", "DARK", "FLAT", "ILLUM", "ARC", "MASK", "SKYFLAT", "STD", "ASTROMETRY", "SKY", "OBJECT"
]
#: tags of exposures of the sky through the telescope
ON_SKY = ("SKYFLAT", "STD", "ASTROMETRY", "SKY", "OBJECT")


@dataclass(frozen=True)
class Conditions:
    """Weather, sky and instrument during an exposure.

    Attributes
    ----------
    temperature, instrument_temperature : float
        Ambient air and instrument [deg C].
    humidity : float
        Relative [%].
    pressure : float
        [hPa]
    seeing : float
        FWHM at zenith and 5000 Angstrom [arcsec].
    airglow : float
        Strength of the airglow lines, 1 on average.
    moon_fli : float
        Illuminated fraction of the Moon, 0..1.
    moon_ra, moon_dec : float
        Position of the Moon [deg].
    wind_speed, wind_direction : float
        [m/s], [deg]
    tau0 : float
        Coherence time of the atmosphere [s].
    """

    temperature: float = 11.5
    instrument_temperature: float = 10.0
    humidity: float = 14.5
    pressure: float = 743.0
    seeing: float = 0.8
    airglow: float = 1.0
    moon_fli: float = 0.0
    moon_ra: float = 95.8
    moon_dec: float = 19.0
    wind_speed: float = 6.0
    wind_direction: float = 30.0
    tau0: float = 0.004


@dataclass(frozen=True)
class ObservingBlock:
    """The observing block or calibration job that an exposure belongs to.

    Attributes
    ----------
    id : int
    name, target, prog_id, start : str
        ``start`` is a UTC time in ISO form.
    """

    id: int = 200000000
    name: str = "Calibration"
    target: str = ""
    prog_id: str = "60.A-9100(A)"
    start: str = ""


@dataclass(frozen=True)
class ExposurePlan:
    """One exposure.

    Attributes
    ----------
    index : int
        Number within the night; key of its random numbers.
    tag : str
        Raw tag.
    date_obs : str
        Start, UTC in ISO form with milliseconds; unique.
    exptime : float
        [s]
    mode : str
        ``ESO INS MODE``.
    lamp : str
        Lamps that shine, as "Ne", "Xe", "HgCd", "continuum", joined by commas; empty for none.
    ra, dec : float
        Where the telescope truly points [deg].
    pointing_error : tuple of float
        Header minus true RA and DEC [arcsec of coordinate, no cos(DEC)].
    offset : tuple of float
        Offset of this exposure from its OB's target, east and north [arcsec].
    posang : float
        ``ESO INS DROT POSANG`` [deg].
    drot_mode : str
        ``ESO INS DROT MODE``: with SKY the field is rotated by minus `posang`, with STAT by `posang`.
    scene : str
        Name of the scene observed; empty for blank sky and lamps.
    mask : float or None
        Vertical position of the pinhole mask [mm].
    template : str
        ``ESO TPL ID``.
    template_start : str
        UTC in ISO form.
    expno, nexp : int
        Number of this exposure within its template, and how many there are.
    ob : ObservingBlock
    conditions : Conditions
    """

    index: int
    tag: Tag
    date_obs: str
    exptime: float
    mode: str = "WFM-NOAO-N"
    lamp: str = ""
    ra: float = 0.0
    dec: float = 0.0
    pointing_error: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    posang: float = 0.0
    drot_mode: Literal["SKY", "STAT"] = "SKY"
    scene: str = ""
    mask: float | None = None
    template: str = ""
    template_start: str = ""
    expno: int = 1
    nexp: int = 1
    ob: ObservingBlock = field(default_factory=ObservingBlock)
    conditions: Conditions = field(default_factory=Conditions)

    @property
    def on_sky(self) -> bool:
        """Whether light comes from the sky."""
        return self.tag in ON_SKY

    @property
    def header_ra(self) -> float:
        """RA that the header claims [deg]."""
        return self.ra + self.pointing_error[0] / 3600

    @property
    def header_dec(self) -> float:
        """DEC that the header claims [deg]."""
        return self.dec + self.pointing_error[1] / 3600
