"""Small arc exposures: two slices on a narrow detector of full height, with all lines of the lamps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from musedask.calib.task import Task
from musedask.instrument import N_SLICES
from musedask.io.calibrations import BadPixels, TraceTable, write_badpix_table, write_trace_table
from musedask.io.headers import set_card
from musedask.io.muse_image import MuseImage, write_muse_image
from musedask.io.products import product_header
from musedask.io.references import write_line_catalog
from musedask.io.sof import Frame
from musedask.recipes import get_recipe
from musedask.sim.statics import line_catalog

#: pixels of a quadrant, width of its scans
NX, NY, SCAN = 145, 2056, 32
SHAPE = 2 * NY, 2 * NX
GAIN, NOISE, LEVEL = 1.1, 2.5, 1000.0
#: slices that there are, and where the middle of each is at the bottom [pix]
SLICES = {1: 70.3, 48: 215.8}
WIDTH = 76.7
#: number and content of the lamps
LAMPS = {3: "Ne", 4: "Xe", 5: "HgCd"}
SIGMA = 0.95
#: range in which wavelengths are fitted [Angstrom]
RANGE = 4750.0, 9350.0


def centre_polynomial(ccd_slice):
    return np.array([SLICES[ccd_slice], 2e-4, 1e-7, 0.0, 0.0, 0.0])


def edges(ccd_slice, y):
    """Left and right edge of a slice."""
    middle = np.polynomial.polynomial.polyval(np.asarray(y, float), centre_polynomial(ccd_slice))
    return middle - WIDTH / 2, middle + WIDTH / 2


def wavelength(ccd_slice, x, y):
    """The truth [Angstrom]."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    d = x - SLICES[ccd_slice]
    shift = 25.0 if ccd_slice == 48 else 0.0
    return 4400.0 + shift + 1.2475 * y + 3.2e-6 * y * (y - 1000) / 1.5 + 0.02 * d + 1.5e-4 * d * d


@functools.cache
def light(lamp):
    """Expected electrons of a lamp in an exposure."""
    catalog = line_catalog()
    image = np.zeros(SHAPE)
    y = np.arange(1, SHAPE[0] + 1.0)
    own = catalog.lamp == LAMPS[lamp]
    for ccd_slice in SLICES:
        low, high = edges(ccd_slice, y)
        for x in range(math.floor(low.min()) - 1, math.ceil(high.max()) + 2):
            # part of the pixel that is inside
            inside = np.clip(np.minimum(high, x + 0.5) - np.maximum(low, x - 0.5), 0, 1)
            waves = wavelength(ccd_slice, x, y)
            column = np.zeros(len(y))
            for wave, flux in zip(catalog.wave[own], catalog.flux[own], strict=True):
                where = float(np.interp(wave, waves, y, left=-99, right=-99))
                rows = np.arange(max(int(where) - 9, 1), min(int(where) + 10, len(y)) + 1)
                if where > 0 and len(rows):
                    column[rows - 1] += (
                        0.8 * flux / (SIGMA * math.sqrt(2 * math.pi)) * np.exp(-0.5 * ((rows - where) / SIGMA) ** 2)
                    )
            image[:, x - 1] += column * inside
    return image


def header_of(ifu=1, lamp=None, seconds=0, mode="WFM-NOAO-N"):
    """Cards of a raw exposure, primary and extension together."""
    header = fits.Header()
    cards = {
        "INSTRUME": "MUSE", "EXPTIME": 20.0, "DATE-OBS": f"2018-11-08T21:40:{seconds:02d}.000", "MJD-OBS": 58430.9,
        "RA": 0.0, "DEC": -24.0, "OBJECT": "WAVE", "ESO INS MODE": mode, "ESO INS LAMPNUM": 6,
        "ESO DET BINX": 1, "ESO DET BINY": 1, "ESO DET READ CURID": 1, "ESO DET READ CURNAME": "SCI1.0",
        "EXTNAME": f"CHAN{ifu:02d}", "ESO DET CHIP NAME": "toy", "ESO DET CHIP ID": "toy", "ESO DET CHIP LIVE": True,
    }  # fmt: skip
    for i in range(1, 7):
        cards |= {f"ESO INS LAMP{i} NAME": f"CU-LAMP{i}", f"ESO INS SHUT{i} NAME": f"CU-SHUT{i}"}
        cards |= {f"ESO INS LAMP{i} ST": i == lamp, f"ESO INS SHUT{i} ST": i == lamp}
    for n, (x, y) in enumerate(((1, 1), (4096, 1), (4096, 4112), (1, 4112)), 1):
        out = f"ESO DET OUT{n}"
        cards |= {f"{out} X": x, f"{out} Y": y, f"{out} NX": NX, f"{out} NY": NY}
        cards |= {f"{out} GAIN": GAIN, f"{out} RON": 2.7}
        cards |= {f"{out} {scan}{axis}": SCAN for scan in ("PRSC", "OVSC") for axis in "XY"}
    for keyword, value in cards.items():
        set_card(header, keyword, value)
    return header


def write_arc(path, lamp, seed, *, ifu=1, mode="WFM-NOAO-N", change=None):
    """Write a raw arc; `change` may spoil its numbers, given without scans [adu]."""
    rng = np.random.default_rng(100 * lamp + seed)
    image = rng.normal(LEVEL, NOISE, (2 * NY + 4 * SCAN, 2 * NX + 4 * SCAN))
    adu = rng.poisson(light(lamp)) / GAIN
    if change is not None:
        change(adu)
    for rows, source in ((slice(SCAN, SCAN + NY), slice(NY)), (slice(-SCAN - NY, -SCAN), slice(NY, None))):
        image[rows, SCAN : SCAN + NX] += adu[source, :NX]
        image[rows, -SCAN - NX : -SCAN] += adu[source, NX:]
    primary, extension = fits.Header(), fits.Header()
    for card in header_of(ifu, lamp, (10 * lamp + seed) % 60, mode).cards:
        (extension if card.keyword.startswith(("ESO DET OUT", "ESO DET CHIP", "EXTNAME")) else primary).append(card)
    data = np.clip(np.round(image), 0, 65535).astype(np.uint16)
    fits.HDUList([fits.PrimaryHDU(header=primary), fits.ImageHDU(data, extension)]).writeto(path)
    return path


def write_calibrations(folder, ifu=1):
    """MASTER_BIAS, TRACE_TABLE and LINE_CATALOG: (path, tag) pairs."""
    folder = Path(folder)
    header = header_of(ifu)
    set_card(header, "ESO PRO CATG", "MASTER_BIAS")
    for n in range(1, 5):
        set_card(header, f"ESO QC BIAS MASTER{n} RON", NOISE * GAIN)
        set_card(header, f"ESO DRS MUSE OVSC{n} MEAN", LEVEL)
        set_card(header, f"ESO DRS MUSE OVSC{n} STDEV", NOISE)
    bias = MuseImage(
        np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int32), np.full(SHAPE, NOISE**2 / 5, np.float32), "adu", header
    )
    polynomials = np.full((3, N_SLICES, 6), np.nan)
    for ccd_slice in SLICES:
        centre = centre_polynomial(ccd_slice)
        for i, offset in enumerate((0.0, -WIDTH / 2, WIDTH / 2)):
            polynomials[i, ccd_slice - 1] = centre
            polynomials[i, ccd_slice - 1, 0] += offset
    missing = np.isnan(polynomials[0, :, 0])
    width = np.where(missing, np.nan, WIDTH)
    mse = np.where(missing[:, None], np.nan, np.full((N_SLICES, 3), 1e-4))
    table = TraceTable(*polynomials, width, mse)
    trace = write_trace_table(folder / "trace.fits", table, header=product_header("TRACE_TABLE", ifu=ifu))
    return [
        (write_muse_image(folder / "bias.fits", bias), "MASTER_BIAS"),
        (trace, "TRACE_TABLE"),
        (write_line_catalog(folder / "lines.fits", line_catalog()), "LINE_CATALOG"),
    ]


def write_bad_pixels(path, x, y, ifu=1):
    """Bad pixels given on the image without scans, from 1."""
    x, y = np.broadcast_arrays(np.asarray(x), np.asarray(y))
    raw = [np.where(v > n, v + 3 * SCAN, v + SCAN).astype(np.int32) for v, n in ((x, NX), (y, NY))]
    n = x.size
    pixels = BadPixels(raw[0].ravel(), raw[1].ravel(), np.full(n, 256, np.int32), np.zeros(n))
    return write_badpix_table(path, {ifu: pixels})


def task_of(frames, ifu=1, n_threads=1, **values):
    recipe = get_recipe("muse_wavecal")
    return Task(recipe, ifu, tuple(Frame(Path(p), t) for p, t in frames), recipe.resolve(values), n_threads)


@dataclass
class Arcs:
    """Frames made on demand, each once."""

    folder: Path
    calibrations: list

    @classmethod
    def make(cls, folder):
        return cls(Path(folder), write_calibrations(folder))

    def arcs(self, *which, mode="WFM-NOAO-N", change=None, name=""):
        """Raw arcs: lamp, or (lamp, number)."""
        frames = []
        for item in which:
            lamp, number = item if isinstance(item, tuple) else (item, 0)
            path = self.folder / f"arc{lamp}-{number}{mode}{name}.fits"
            if not path.exists():
                write_arc(path, lamp, number, mode=mode, change=change)
            frames.append((path, "ARC"))
        return frames
