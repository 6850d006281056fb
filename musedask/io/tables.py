"""Small tables: lists of offsets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from astropy.io import fits

from .files import atomic_path


def write_offset_list(
    path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], *, overwrite: bool = False
) -> None:
    """Write an OFFSET_LIST.

    Parameters
    ----------
    path : path-like
    rows : sequence of mapping
        One per exposure, with the keys ``date_obs`` (str), ``mjd_obs`` [d], ``ra_offset`` and
        ``dec_offset`` [deg; header minus true coordinate, without a factor cos(DEC)], and
        ``flux_scale`` (the factor that data must be multiplied by; NaN or missing: none).
    overwrite : bool
        Whether an existing file may be replaced.
    """

    def column(key: str) -> np.ndarray:
        return np.array([row.get(key, np.nan) for row in rows], np.float64)

    primary = fits.PrimaryHDU()
    primary.header["INSTRUME"] = ("MUSE", "Instrument used.")
    primary.header["HIERARCH ESO PRO CATG"] = ("OFFSET_LIST", "Category of pipeline product frame")
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column("DATE_OBS", "23A", array=[str(row["date_obs"])[:23] for row in rows]),
            fits.Column("MJD_OBS", "1D", unit="s", array=column("mjd_obs")),
            fits.Column("RA_OFFSET", "1D", unit="deg", array=column("ra_offset")),
            fits.Column("DEC_OFFSET", "1D", unit="deg", array=column("dec_offset")),
            fits.Column("FLUX_SCALE", "1D", array=column("flux_scale")),
        ]
    )
    with atomic_path(path, overwrite=overwrite) as temporary:
        fits.HDUList([primary, table]).writeto(temporary, overwrite=True)
