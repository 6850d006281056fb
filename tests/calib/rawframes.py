"""Raw frames of a CCD of few pixels: the reference takes its size from the header, and needs a blink for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from astropy.io import fits

from musedask.calib.task import Task
from musedask.io.headers import set_card
from musedask.io.raw import write_raw
from musedask.io.sof import Frame
from musedask.recipes import get_recipe

#: pixels of a quadrant; boxes of the cosmic-ray search, 128 pixels long, just fit
NX, NY, SCAN = 160, 128, 32
GAINS = (1.15, 1.18, 1.19, 1.20)
NOISE = (2.7, 2.8, 3.1, 2.9)
LEVELS = (1000.0, 1010.0, 990.0, 1040.0)
#: rows and columns of the raw image with data
ROWS = np.r_[SCAN : SCAN + NY, NY + 3 * SCAN : 2 * NY + 3 * SCAN]
COLUMNS = np.r_[SCAN : SCAN + NX, NX + 3 * SCAN : 2 * NX + 3 * SCAN]
SHAPE = 2 * NY, 2 * NX


def headers(number=0, exptime=0.0, ifu=1, primary=None, extension=None):
    """Primary header and that of the extension; a value of None removes a card."""
    cards = {
        "INSTRUME": "MUSE", "OBJECT": "test", "EXPTIME": float(exptime), "MJD-OBS": 58000.0 + number / 1440,
        "DATE-OBS": f"2017-09-04T00:{number:02d}:00.000", "ARCFILE": f"MUSE.2017-09-04T00:{number:02d}:00.000.fits",
        "ESO INS MODE": "WFM-NOAO-N", "ESO DET BINX": 1, "ESO DET BINY": 1, "ESO DET READ CURID": 1,
        "ESO DET READ CURNAME": "SCI1.0", **(primary or {}),
    }  # fmt: skip
    own = {
        "EXTNAME": f"CHAN{ifu:02d}", "ESO DET CHIP NAME": "CCD", "ESO DET CHIP ID": f"no {ifu}",
        "ESO DET CHIP LIVE": True,
    }  # fmt: skip
    for n, (x, y) in enumerate(((1, 1), (4096, 1), (4096, 4112), (1, 4112)), 1):
        port = {"X": x, "Y": y, "NX": NX, "NY": NY, "GAIN": GAINS[n - 1], "RON": NOISE[n - 1]}
        port |= dict.fromkeys(("PRSCX", "PRSCY", "OVSCX", "OVSCY"), SCAN)
        own |= {f"ESO DET OUT{n} {key}": value for key, value in port.items()}
    own |= extension or {}
    made = []
    for values in (cards, own):
        header = fits.Header()
        for key, value in values.items():
            if value is not None:
                set_card(header, key, value)
        made.append(header)
    return made[0], made[1]


def expose(random, *, levels=LEVELS, light=None, slope=0.0, noise=True):
    """A raw image: levels of the quadrants, which rise by `slope` adu a row, noise, light on the data [adu]."""
    height, width = NY + 2 * SCAN, NX + 2 * SCAN
    image = np.empty((2 * height, 2 * width))
    for n, (top, right) in enumerate(((0, 0), (0, 1), (1, 1), (1, 0))):
        rows, columns = slice(top * height, (top + 1) * height), slice(right * width, (right + 1) * width)
        image[rows, columns] = levels[n] + slope * np.arange(2 * height)[rows, None]
        if noise:
            image[rows, columns] += random.normal(0, NOISE[n] / GAINS[n], (height, width))
    if light is not None:
        image[np.ix_(ROWS, COLUMNS)] += light
    return np.clip(np.rint(image), 0, 65535).astype(np.uint16)


def write(path, image, *, number=0, exptime=0.0, ifu=1, primary=None, extension=None):
    """Write a raw frame of one IFU."""
    first, own = headers(number, exptime, ifu, primary, extension)
    return write_raw(path, first, [(own, image)], overwrite=True)


def series(folder, n, tag="BIAS", *, seed=0, exptime=0.0, change=None, cards=None, suffix=".fits", **options):
    """Write n raw frames; ``change(image, number)`` works on their data, `cards` gives keywords for write."""
    random = np.random.default_rng(seed)
    frames = []
    for i in range(n):
        image = expose(random, **options)
        if change is not None:
            data = image[np.ix_(ROWS, COLUMNS)]
            change(data, i)
            image[np.ix_(ROWS, COLUMNS)] = data
        time = exptime[i] if isinstance(exptime, tuple) else exptime
        path = folder / f"{tag.lower()}{seed}_{i}{suffix}"
        frames.append((write(path, image, number=i, exptime=time, **(cards(i) if cards else {})), tag))
    return frames


def task(recipe, inputs, *, ifu=1, n_threads=1, **values):
    """A task of a recipe from (path, tag) pairs."""
    declared = get_recipe(recipe)
    frames = tuple(Frame(Path(path), tag) for path, tag in inputs)
    return Task(declared, ifu, frames, declared.resolve(values), n_threads)
