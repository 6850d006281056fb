"""Comparison of native master calibrations with those of the reference."""

from __future__ import annotations

import re

import numpy as np
from astropy.io import fits

#: polynomials of the reference up to this order are good to 1e-5 adu; above, its fit loses digits
GOOD_ORDER = 10
_LEVEL = re.compile(r"^ESO DRS MUSE OVSC(\d) POLY ")


def read(path):
    """Primary header and the three parts of a product."""
    with fits.open(path) as hdus:
        parts = [hdus[n].data.astype(t) for n, t in (("DATA", np.float32), ("DQ", np.int32), ("STAT", np.float32))]
        return hdus[0].header.copy(), *parts


def image_difference(image, reference, *, absolute, relative, stat):
    """What differs between our image and that of the reference by more than the tolerances."""
    _, data, dq, variance = reference
    found = []
    far = np.abs(image.data.astype(np.float64) - data) > absolute + relative * np.abs(data)
    if far.any():
        y, x = np.argwhere(far)[0]
        found.append(
            f"DATA: {far.sum()} pixels differ, first ({y}, {x}): {image.data[y, x]!r}, reference {data[y, x]!r}; "
            f"largest difference {np.abs(image.data - data).max()}"
        )
    if not np.array_equal(image.dq, dq):
        y, x = np.argwhere(image.dq != dq)[0]
        found.append(
            f"DQ: {(image.dq != dq).sum()} pixels differ, first ({y}, {x}): {image.dq[y, x]:#x}, "
            f"reference {dq[y, x]:#x}"
        )
    far = np.abs(image.stat.astype(np.float64) - variance) > stat * np.abs(variance)
    if far.any():
        y, x = np.argwhere(far)[0]
        found.append(f"STAT: {far.sum()} pixels differ, first: {image.stat[y, x]!r}, reference {variance[y, x]!r}")
    return found


def card_difference(header, reference):
    """What differs between the cards of quality control and of the overscan."""
    found = []
    for key in reference:
        if not key.startswith(("ESO QC", "ESO DRS MUSE OVSC")) or (_LEVEL.match(key) and "NCOEFF" not in key):
            continue
        value = reference[key]
        if key not in header:
            found.append(f"{key}: missing")
            continue
        mine = header[key]
        relative, absolute = 1.5e-6, 1e-6
        # the reference sums columns and rows in float32
        if "SLOPE" in key:
            relative, absolute = 1e-4, 2e-6
        if type(mine) is not type(value) or abs(mine - value) > relative * abs(value) + absolute:
            found.append(f"{key}: {mine!r}, reference {value!r}")
        # comments are cut at the end of the card
        if not header.comments[key].startswith(reference.comments[key]):
            found.append(f"{key}: comment {header.comments[key]!r}, reference {reference.comments[key]!r}")
    found += [f"{key}: not in the reference" for key in header if key.startswith("ESO QC") and key not in reference]
    found += level_difference(header, reference)
    return found


def levels(header, n, rows):
    """Overscan polynomial of a quadrant."""
    count = header.get(f"ESO DRS MUSE OVSC{n} POLY NCOEFF", 0)
    coefficients = [header[f"ESO DRS MUSE OVSC{n} POLY Y{i}"] for i in range(count)]
    return np.polynomial.polynomial.polyval(rows, coefficients) if count else np.zeros_like(rows)


def level_difference(header, reference, tolerance=1e-5):
    found = []
    for n in range(1, 5):
        half = reference["ESO DET OUT1 NY"] + 64.0
        rows = np.arange(33.0, half + 1) + (half if n > 2 else 0)
        rows -= 32 if n > 2 else 0
        far = np.abs(levels(header, n, rows) - levels(reference, n, rows)).max()
        if far > tolerance:
            found.append(f"OVSC{n} POLY: differs by {far:.3g} adu")
    return found


def differences(made, path, *, absolute=1e-5, relative=0.0, stat=1e-6):
    """All that differs between a native product and a file of the reference."""
    reference = read(path)
    return [
        *image_difference(made.content, reference, absolute=absolute, relative=relative, stat=stat),
        *card_difference(made.header, reference[0]),
    ]
