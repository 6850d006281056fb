"""What MUSE is: modes, samplings, wavelength ranges, geometry and the packing of the ``origin`` column.

The numbers are those of the reference pipeline (ESO MUSE pipeline 2.8.7); lengths are in
the units that the names or docstrings say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

N_IFUS = 24
N_SLICES = 48
#: nominal spectral sampling [Angstrom]
SPECTRAL_SAMPLING = 1.25
#: factor by which the default step of a logarithmic axis is finer than the linear one
LOG_OVERSAMPLING = 1.6
#: spaxel scale in x and y [arcsec]
SPAXEL_WFM = (0.2, 0.2)
SPAXEL_NFM = (0.02519, 0.02542)
#: typical width of a slice [pix]
SLICE_WIDTH = 75
#: nominal wavelength range of the instrument [Angstrom]
NOMINAL_RANGE = (4650.0, 9300.0)

#: CCD slice number (index + 1) -> number of the slice on the sky
CCD_TO_SKY_SLICE = (
    9, 8, 1, 10, 7, 2, 11, 6, 3, 12, 5, 4,
    21, 20, 13, 22, 19, 14, 23, 18, 15, 24, 17, 16,
    33, 32, 25, 34, 31, 26, 35, 30, 27, 36, 29, 28,
    45, 44, 37, 46, 43, 38, 47, 42, 39, 48, 41, 40,
)  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """An instrument mode.

    Attributes
    ----------
    name : str
        Value of ``ESO INS MODE``.
    useful : tuple of float
        Wavelength range that the pipeline keeps [Angstrom].
    notch : tuple of float or None
        Range masked because of the sodium lasers [Angstrom].
    spaxel : tuple of float
        Spaxel scale in x and y [arcsec].
    """

    name: str
    useful: tuple[float, float]
    notch: tuple[float, float] | None
    spaxel: tuple[float, float]

    @property
    def is_nfm(self) -> bool:
        """Whether this is the narrow-field mode."""
        return self.name.startswith("NFM")


_MODES = (
    # the prefixes are tested in this order
    ("WFM-NOAO-N", Mode("WFM-NOAO-N", (4750.0, 9350.0), None, SPAXEL_WFM)),
    ("WFM-NONAO-N", Mode("WFM-NOAO-N", (4750.0, 9350.0), None, SPAXEL_WFM)),
    ("WFM-AO-E", Mode("WFM-AO-E", (4600.0, 9350.0), (5755.0, 6008.0), SPAXEL_WFM)),
    ("WFM-AO-N", Mode("WFM-AO-N", (4700.0, 9350.0), (5805.0, 5966.0), SPAXEL_WFM)),
    ("NFM", Mode("NFM-AO-N", (4750.0, 9350.0), (5780.0, 6050.0), SPAXEL_NFM)),
)


def mode_from_name(name: str) -> Mode:
    """Find the mode of an ``ESO INS MODE`` value; unknown names mean extended wide-field mode."""
    for prefix, mode in _MODES:
        if name.startswith(prefix):
            return mode
    return Mode("WFM-NOAO-E", (4600.0, 9350.0), None, SPAXEL_WFM)


@dataclass(frozen=True)
class RawType:
    """A type of raw exposure.

    Attributes
    ----------
    tag : str
        By which the recipes know it.
    catg, type, tech : str
        Values of ``ESO DPR CATG``, ``TYPE`` and ``TECH``.
    templates : tuple of str
        ``ESO TPL ID`` of the template that takes it in WFM without and with AO, and in NFM.
    """

    tag: str
    catg: str
    type: str
    templates: tuple[str, str, str]
    tech: str = "IFU"

    def template(self, mode: str) -> str:
        """``ESO TPL ID`` in an instrument mode (value of ``ESO INS MODE``)."""
        if mode.startswith("NFM"):
            return self.templates[2]
        return self.templates[1 if "-AO" in mode else 0]


def _both_fields(name: str) -> tuple[str, str, str]:
    return f"MUSE_wfm_{name}", f"MUSE_wfm_{name}", f"MUSE_nfm_{name}"


_OFFSETS = (
    "MUSE_wfm-noao_obs_genericoffset",
    "MUSE_wfm-ao_obs_genericoffsetLGS",
    "MUSE_nfm-ao_obs_genericoffsetLGS",
)
#: raw types by tag (table 6.1 of the MUSE Pipeline User Manual; names of templates from the MUSE User Manual)
RAW_TYPES: dict[str, RawType] = {
    t.tag: t
    for t in (
        RawType("BIAS", "CALIB", "BIAS", ("MUSE_cal_bias",) * 3),
        RawType("DARK", "CALIB", "DARK", ("MUSE_cal_dark",) * 3),
        RawType("FLAT", "CALIB", "FLAT,LAMP", _both_fields("cal_specflat")),
        RawType("ILLUM", "CALIB", "FLAT,LAMP,ILLUM", _both_fields("cal_illum")),
        RawType("ARC", "CALIB", "WAVE", _both_fields("cal_wave")),
        RawType("MASK", "CALIB", "WAVE,MASK", ("MUSE_wfm_cal_geometry",) * 3),
        RawType("SKYFLAT", "CALIB", "FLAT,SKY", _both_fields("cal_twilight")),
        RawType("STD", "CALIB", "STD", _both_fields("cal_specphot")),
        RawType("ASTROMETRY", "CALIB", "ASTROMETRY", _both_fields("cal_astrom")),
        RawType("SKY", "SCIENCE", "SKY", _OFFSETS),
        RawType("OBJECT", "SCIENCE", "OBJECT", _OFFSETS),
    )
}


def air_index(wave):  # type: ignore[no-untyped-def]
    """Refractive index of dry air of 15 C, 1013.25 hPa, 450 ppm CO2 (Ciddor 1996, Appl. Opt. 35, 1566).

    Plain arithmetic on a float or an array, so that compiled code can use it, too.

    Parameters
    ----------
    wave : float or ndarray
        [Angstrom], in vacuum (the reference pipeline takes wavelengths in air for it).

    Returns
    -------
    float or ndarray
    """
    pressure = 101325.0
    celsius = 15.0
    kelvin = 288.15
    molar = 0.0289635 + 1.2011e-8 * (450.0 - 400.0)
    rho_axs = 101325.0 * molar / (0.9995922115 * 8.314472 * 288.15)
    z = (
        1.0
        - (pressure / kelvin) * (1.58123e-6 - 2.9331e-8 * celsius + 1.1043e-10 * celsius * celsius)
        + (pressure / kelvin) ** 2 * 1.83e-11
    )
    rho_a = pressure * molar / (z * 8.314472 * kelvin)
    s = 1.0 / (wave * 1e-4) ** 2
    r_as = 1e-8 * (5792105.0 / (238.0185 - s) + 167917.0 / (57.362 - s))
    return 1.0 + (rho_a / rho_axs) * r_as


def pack_origin(
    x: NDArray[np.integer], y: NDArray[np.integer], ifu: NDArray[np.integer], ccd_slice: NDArray[np.integer]
) -> NDArray[np.int32]:
    """Pack detector coordinates into the ``origin`` column.

    Parameters
    ----------
    x : ndarray of int
        Column on the trimmed image minus the offset of the slice, 0..127.
    y : ndarray of int
        Row on the trimmed image, 1..4112.
    ifu, ccd_slice : ndarray of int
        IFU 1..24 and CCD slice 1..48.

    Returns
    -------
    ndarray of int32
    """
    packed = (
        (np.asarray(x, np.uint32) << np.uint32(24))
        | (np.asarray(y, np.uint32) << np.uint32(11))
        | (np.asarray(ifu, np.uint32) << np.uint32(6))
        | np.asarray(ccd_slice, np.uint32)
    )
    return packed.astype(np.uint32).view(np.int32)


def unpack_origin(
    origin: NDArray[np.integer],
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint32]]:
    """Undo `pack_origin`: returns x (relative to the slice offset), y, IFU and CCD slice."""
    o = np.asarray(origin).astype(np.int32, copy=False).view(np.uint32)
    return (
        (o >> np.uint32(24)) & np.uint32(0x7F),
        (o >> np.uint32(11)) & np.uint32(0x1FFF),
        (o >> np.uint32(6)) & np.uint32(0x1F),
        o & np.uint32(0x3F),
    )


# Bits of the Euro3D data quality convention
DQ_COSMICRAY = 1 << 5
DQ_LOWQEPIXEL = 1 << 6
DQ_HOTPIXEL = 1 << 8
DQ_DARKPIXEL = 1 << 9
DQ_SATURATED = 1 << 12
DQ_DEADPIXEL = 1 << 13
DQ_BADOTHER = 1 << 14
DQ_MISSDATA = 1 << 30
DQ_OUTSDRANGE = 1 << 31
