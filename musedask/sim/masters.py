"""Master calibrations made from the truth, as ESO's archive delivers them.

They stand for the products of the calibration recipes, so that sorting and association can be tried and a chain
can start at muse_scibasic.  What a recipe would measure with noise, they hold exactly; variances are those that a
recipe would state for the exposures that the products claim to be made of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError, OutputExistsError
from ..instrument import DQ_BADOTHER, N_IFUS
from ..io import calibrations as cal
from ..io import references as ref
from ..io.headers import set_card
from ..io.muse_image import MuseImage, TwilightCube, write_merged_images, write_muse_image, write_twilight_cube
from ..io.products import channel, product_header, write_tables
from .association import MASTERS, archive_name
from .detector import DEAD, HOT, SCAN, Detector
from .optics import NX, NY, TELESCOPE_AREA, Instrument
from .plan import ExposurePlan
from .statics import astrometric_solution, lsf_hdus, lsf_profile
from .truth import trace_table, wavecal_table

#: categories in the order in which they are made, and the recipes that make them
RECIPES = {
    "MASTER_BIAS": "muse_bias",
    "MASTER_DARK": "muse_dark",
    "MASTER_FLAT": "muse_flat",
    "TRACE_TABLE": "muse_flat",
    "WAVECAL_TABLE": "muse_wavecal",
    "LSF_PROFILE": "muse_lsf",
    "TWILIGHT_CUBE": "muse_twilight",
    "STD_RESPONSE": "muse_standard",
    "STD_TELLURIC": "muse_standard",
    "ASTROMETRY_WCS": "muse_astrometry",
}
#: raw type that each category is made of
RAW_OF = {category: raw for raw, categories in MASTERS.items() for category in categories}
#: products of one IFU
_PER_IFU = ("MASTER_BIAS", "MASTER_DARK", "MASTER_FLAT", "TRACE_TABLE", "WAVECAL_TABLE", "LSF_PROFILE")
#: parameters of muse_bias, which other recipes take over from a master bias
_BIAS_PARAMETERS = (
    ("nifu", "0"), ("overscan", "vpoly"), ("ovscreject", "dcr"), ("ovscsigma", "30."), ("ovscignore", "3"),
    ("combine", "sigclip"), ("nlow", "1"), ("nhigh", "1"), ("nkeep", "1"), ("lsigma", "3."), ("hsigma", "3."),
    ("losigmabadpix", "30."), ("hisigmabadpix", "3."), ("merge", "true"),
)  # fmt: skip
#: rows and columns of the overscan that the reference leaves out next to the data
_IGNORE = 3
#: exposure time that darks are brought to [s]
_DARK_TIME = 3600.0
#: planes of a twilight cube, and range of the response [Angstrom]
_TWILIGHT_WAVES = (5000.0, 250.0, 17)
_RESPONSE_RANGE = (4150.0, 9800.0)
#: bins of the spectrum of the flat field [Angstrom]
_BIN = 5.0
#: error of the response [mag]
_RESPONSE_ERROR = 0.003
_HC = 1.98644586e-8


@dataclass
class _Flat:
    """What the flat field of an IFU is needed for elsewhere.

    Attributes
    ----------
    mean : float
        Electrons in a pixel, on average over the detector.
    spectrum : ndarray of float64, shape (n,)
        Mean of the normalised flat field in bins of wavelength; NaN where there are no pixels.
    """

    mean: float
    spectrum: NDArray[np.float64]


@dataclass
class _Group:
    """Raw frames that make one product."""

    plans: list[ExposurePlan]
    flats: dict[int, _Flat] = field(default_factory=dict)

    @property
    def first(self) -> ExposurePlan:
        return self.plans[0]


def master_name(category: str, first: ExposurePlan) -> str:
    """Name in the archive of a product, without suffix.

    Parameters
    ----------
    category : str
        ``ESO PRO CATG``.
    first : ExposurePlan
        First raw frame that it is made of.

    Returns
    -------
    str
        ``M.MUSE.<date>``: the date is some seconds after that of the raw frame, each category has its own.

    Raises
    ------
    InputError
        If the category is unknown.
    """
    if category not in RECIPES:
        raise InputError(f"category {category!r} found, expected one of {', '.join(RECIPES)}")
    time = datetime.fromisoformat(first.date_obs) + timedelta(seconds=1 + list(RECIPES).index(category))
    return f"M.MUSE.{time.strftime('%Y-%m-%dT%H:%M:%S')}.{time.microsecond // 1000:03d}"


def groups(plans: Iterable[ExposurePlan], raw: str) -> list[list[ExposurePlan]]:
    """Frames of a raw type that make one product each: those of one template and mode, in order of time."""
    found: dict[tuple[str, str], list[ExposurePlan]] = {}
    for plan in sorted((p for p in plans if p.tag == raw), key=lambda p: p.date_obs):
        start = plan.template_start or plan.date_obs
        single = raw in ("STD", "ASTROMETRY")
        found.setdefault((plan.date_obs if single else start, plan.mode), []).append(plan)
    return list(found.values())


def write_masters(
    folder: str | os.PathLike[str],
    plans: Sequence[ExposurePlan],
    *,
    ifus: Iterable[int],
    names: Literal["archive", "drs"] = "archive",
    merged: bool | None = None,
    tags: Iterable[str] | None = None,
    overwrite: bool = False,
) -> dict[str, list[Path]]:
    """Write the master calibrations of a night.

    Parameters
    ----------
    folder : path-like
        Made if it is missing.
    plans : sequence of ExposurePlan
        Raw frames, of which the products claim to be made: one product of each template.
    ifus : iterable of int
    names : {"archive", "drs"}
        ``M.MUSE.<date>.fits`` (`master_name`), or the reference's own, ``TRACE_TABLE-07.fits``; if there are
        products of several templates of a type, the later ones are put into folders ``2``, ``3`` ...
    merged : bool, optional
        Whether the products of all IFUs go into one file, as in the archive; default: for "archive".
    tags : iterable of str, optional
        Categories, of `RECIPES`; default: all whose raw frames are among the plans.
    overwrite : bool

    Returns
    -------
    dict of str to list of pathlib.Path
        Files by category, in order of template and IFU.

    Raises
    ------
    InputError
        If an IFU, category or kind of names is unknown, raw frames are missing, or the folder cannot be made.
    OutputExistsError, PlanError
        If a file exists (then nothing is written), or the disk is full.
    """
    numbers = sorted({int(i) for i in ifus})
    for ifu in numbers:
        channel(ifu)
    if not numbers:
        raise InputError("no IFU found, expected numbers from 1 to 24")
    if names not in ("archive", "drs"):
        raise InputError(f"names = {names!r} found, expected 'archive' or 'drs'")
    together = names == "archive" if merged is None else merged
    if names == "archive" and not together:
        raise InputError("files of single IFUs have no names in the archive: give names='drs' or merged=True")
    raws = {raw: [_Group(g) for g in groups(plans, raw)] for raw in MASTERS}
    wanted = [c for c in RECIPES if raws[RAW_OF[c]]] if tags is None else list(tags)
    for category in wanted:
        if category not in RECIPES:
            raise InputError(f"category {category!r} found, expected some of {', '.join(RECIPES)}")
        if not raws[RAW_OF[category]]:
            raise InputError(f"{category}: there is no {RAW_OF[category]} exposure to make it of")
        if category in ("TWILIGHT_CUBE", "STD_RESPONSE") and not raws["FLAT"]:
            raise InputError(f"{category}: there is no FLAT exposure")
    folder = Path(folder)
    jobs: list[tuple[str, _Group, dict[int | None, Path]]] = []
    for category in sorted(wanted, key=list(RECIPES).index):
        for number, group in enumerate(raws[RAW_OF[category]]):
            place = folder if number == 0 or names == "archive" else folder / str(number + 1)
            files: dict[int | None, Path]
            if category in _PER_IFU and not together:
                files = {ifu: place / f"{category}-{ifu:02d}.fits" for ifu in numbers}
            else:
                stem = master_name(category, group.first) if names == "archive" else category
                files = {None: place / f"{stem}.fits"}
            jobs.append((category, group, files))
    paths = [path for *_, files in jobs for path in files.values()]
    present = [str(path) for path in paths if path.exists()]
    if present and not overwrite:
        more = "" if len(present) < 4 else f" and {len(present) - 3} more"
        raise OutputExistsError(
            f"{', '.join(present[:3])}{more}: exists already; give --overwrite (overwrite=True) to replace it"
        )
    for place in {path.parent for path in paths} | {folder}:
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{place}: cannot be made a folder: {error.strerror}") from error

    written: dict[str, list[Path]] = {}
    for category, group, files in jobs:
        maker = _Maker(category, group, numbers, raws, overwrite)
        maker.write(files)
        written.setdefault(category, []).extend(files.values())
    return written


class _Maker:
    """Makes the files of one product."""

    def __init__(
        self, category: str, group: _Group, ifus: Sequence[int], raws: Mapping[str, list[_Group]], overwrite: bool
    ) -> None:
        from .exposure import instrument_of

        self.category, self.group, self.ifus, self.overwrite = category, group, ifus, overwrite
        self.instrument: Instrument = instrument_of(group.first)
        self.raws = raws

    def write(self, files: Mapping[int | None, Path]) -> None:
        if self.category in ("MASTER_BIAS", "MASTER_DARK", "MASTER_FLAT"):
            self._write_images(files)
        elif self.category in _PER_IFU:
            self._write_tables(files)
        else:
            (path,) = files.values()
            header = self._header(None, path)
            if self.category == "TWILIGHT_CUBE":
                cube = self._twilight()
                write_twilight_cube(path, cube, header=header, overwrite=self.overwrite)
            elif self.category == "STD_RESPONSE":
                ref.write_std_response(path, self._response(), header=header, overwrite=self.overwrite)
            elif self.category == "STD_TELLURIC":
                ref.write_std_telluric(path, self._telluric(), header=header, overwrite=self.overwrite)
            else:
                solution = astrometric_solution(self.instrument)
                ref.write_astrometry_wcs(path, solution, header=header, overwrite=self.overwrite)

    # --- headers

    def _header(self, ifu: int | None, path: Path) -> fits.Header:
        """Primary header: that of the first raw frame, and what a product adds."""
        from .headers import arcfile_of, extension_header, origfile_of, primary_header

        first = self.group.first
        inherit = primary_header(first, origfile=origfile_of(first), arcfile=arcfile_of(first))
        if ifu is not None:
            inherit.extend(extension_header(first, ifu, Detector(ifu)), update=True, strip=True)
        raws = [(f"{archive_name(p)}.fits", p.tag) for p in self.group.plans]
        name = self.category + ("" if ifu is None else f"-{ifu:02d}") + ".fits"
        header = product_header(
            self.category, ifu=ifu, inherit=inherit, recipe=RECIPES[self.category], raws=raws,
            cards={"PIPEFILE": (name, "Filename of data product")},
        )  # fmt: skip
        if "RADECSYS" in header:
            header.rename_keyword("RADECSYS", "RADESYS")
        if self.category == "MASTER_BIAS":
            for i, (name, value) in enumerate(_BIAS_PARAMETERS, 1):
                set_card(header, f"ESO PRO REC1 PARAM{i} NAME", name, "")
                set_card(header, f"ESO PRO REC1 PARAM{i} VALUE", value, f"Default: {value!r}")
        return header

    # --- images

    def _write_images(self, files: Mapping[int | None, Path]) -> None:
        make: Callable[[int, fits.Header], MuseImage] = {
            "MASTER_BIAS": self._bias, "MASTER_DARK": self._dark, "MASTER_FLAT": self._flat,
        }[self.category]  # fmt: skip
        for ifu, path in files.items():
            if ifu is not None:
                write_muse_image(path, make(ifu, self._header(ifu, path)), overwrite=self.overwrite)
                continue

            def images(path: Path = path) -> Iterator[tuple[int, MuseImage]]:
                for number in self.ifus:
                    yield number, make(number, self._header(number, path))

            header = self._header(self.ifus[0], path)
            header["PIPEFILE"] = f"{self.category}.fits"
            write_merged_images(path, images(), header=header, overwrite=self.overwrite)

    def _bias(self, ifu: int, header: fits.Header) -> MuseImage:
        """What is left of a bias when a polynomial has been taken off along y: the pattern along x."""
        detector = Detector(ifu)
        data = np.tile(detector.column_pattern.astype(np.float32), (NY, 1))
        dq = np.zeros((NY, NX), np.int32)
        for c in detector.column_defects:
            if int(c["status"]) == HOT:
                rows = slice(int(c["first"]), int(c["last"]) + 1)
                data[rows, c["x"]] += c["value"] / _by_quadrant(detector.gain, rows.start, int(c["x"]))
                dq[rows, c["x"]] = DEAD
        variance = _quadrant_image((detector.read_noise / detector.gain) ** 2 / len(self.group.plans))
        for q, (mean, deviation) in enumerate(overscans(detector), 1):
            set_card(header, f"ESO DRS MUSE OVSC{q} MEAN", round(mean, 4), "[adu] mean of the overscan")
            set_card(header, f"ESO DRS MUSE OVSC{q} STDEV", round(deviation, 4), "[adu] its standard deviation")
            part = data[_quadrant(q)]
            for name, value in (("MEDIAN", np.median(part)), ("MEAN", part.mean()), ("STDEV", part.std())):
                set_card(header, f"ESO QC BIAS MASTER{q} {name}", round(float(value), 4), "[adu]")
            set_card(header, f"ESO QC BIAS MASTER{q} RON", float(detector.read_noise[q - 1]), "[count] read-out noise")
            set_card(header, f"ESO QC BIAS MASTER{q} RONERR", 0.01, "[count] its error")
        set_card(header, "ESO QC BIAS MASTER NBADPIX", int(np.count_nonzero(dq)), "number of bad pixels")
        return MuseImage(data, dq, variance, "adu", header)

    def _dark(self, ifu: int, header: fits.Header) -> MuseImage:
        """Electrons in an hour."""
        detector = Detector(ifu)
        data = detector.dark_current() * np.float32(_DARK_TIME)
        dq = np.zeros((NY, NX), np.int32)
        hot = detector.hot_pixels
        data.flat[hot["index"]] += (hot["rate"] * _DARK_TIME).astype(np.float32)
        # as far above the scatter as the recipe looks for them
        level = 5 * np.abs(data - np.median(data)).mean()
        dq[data > np.median(data) + level] = HOT
        time = self.group.first.exptime
        scale = np.float32(_DARK_TIME / time / len(self.group.plans))
        noise = _quadrant_image(detector.read_noise**2) * np.float32(_DARK_TIME / time)
        header["EXPTIME"] = (_DARK_TIME, "Integration time")
        set_card(header, "ESO QC DARK MASTER NBADPIX", int(np.count_nonzero(dq)), "number of bad pixels")
        set_card(header, "ESO QC DARK MASTER MEDIAN", float(np.median(data)), "[count]")
        return MuseImage(data, dq, (data + noise) * scale, "count", header)

    def _flat(self, ifu: int, header: fits.Header) -> MuseImage:
        """The lamp on each pixel, with mean 1."""
        counts, dq = _flat_counts(self.instrument, ifu, self.group)
        mean = counts.mean(dtype=np.float64)
        self.group.flats[ifu] = _summary(self.instrument, ifu, counts, dq, mean)
        noise = _quadrant_image(Detector(ifu).read_noise ** 2)
        stat = (counts + noise) / np.float32(len(self.group.plans) * mean**2)
        total = float(counts.sum(dtype=np.float64))
        for name, value in (
            ("MEDIAN", float(np.median(counts))), ("MEAN", float(mean)), ("STDEV", float(counts.std(dtype=np.float64))),
            ("MIN", float(counts.min())), ("MAX", float(counts.max())), ("INTFLUX", total),
        ):  # fmt: skip
            set_card(header, f"ESO QC FLAT MASTER {name}", float(np.float32(value)), "[count]")
        set_card(header, "ESO QC FLAT MASTER NSATURATED", 0, "")
        counts /= np.float32(mean)
        return MuseImage(counts, dq, stat, "count", header)

    # --- tables

    def _write_tables(self, files: Mapping[int | None, Path]) -> None:
        for number, path in files.items():
            ifus = self.ifus if number is None else [number]
            hdus: Sequence[fits.BinTableHDU | fits.ImageHDU]
            if number is None and self.category == "LSF_PROFILE":
                ifus = list(range(1, N_IFUS + 1))
                hdus = lsf_hdus(self.instrument)
            else:
                hdus = [self._table(ifu, channel(ifu) if number is None else None) for ifu in ifus]
            headers = [self._header(ifu, path) for ifu in ifus]
            if number is None:
                headers[0]["PIPEFILE"] = f"{self.category}.fits"
                cal.write_merged_tables(path, hdus, headers=headers, overwrite=self.overwrite)
            else:
                write_tables(path, headers[0], hdus, self.overwrite)

    def _table(self, ifu: int, name: str | None) -> fits.BinTableHDU | fits.ImageHDU:
        optics = self.instrument.ifu(ifu)
        if self.category == "TRACE_TABLE":
            return cal.trace_hdu(trace_table(optics), name)
        if self.category == "WAVECAL_TABLE":
            return cal.wavecal_hdu(wavecal_table(optics), name)
        return cal.lsf_hdu(lsf_profile(optics))

    # --- the field

    def _flat_of(self, ifu: int) -> _Flat:
        """Flat field of an IFU, of the template nearest in time with the same mode."""
        from .association import nearest

        flats = [plan for group in self.raws["FLAT"] for plan in group.plans]
        found = nearest(self.group.first, "FLAT", flats)
        if not found:
            raise InputError(f"{self.category}: there is no FLAT exposure of mode {self.group.first.mode}")
        group = next(g for g in self.raws["FLAT"] if found[0] in g.plans)
        if ifu not in group.flats:
            counts, dq = _flat_counts(self.instrument, ifu, group)
            group.flats[ifu] = _summary(self.instrument, ifu, counts, dq, counts.mean(dtype=np.float64))
        return group.flats[ifu]

    def _illumination(self) -> tuple[NDArray[np.float64], float, float]:
        """Light of an even sky relative to that of the lamp over the field, and its first spaxel."""
        from .lamps import illumination

        xlo, xhi, ylo, yhi = self.instrument.limits(self.ifus)
        x = np.arange(np.floor(xlo), np.ceil(xhi) + 1)
        y = np.arange(np.floor(ylo), np.ceil(yhi) + 1)
        return 1 / np.asarray(illumination(x[None, :], y[:, None]), np.float64), float(x[0]), float(y[0])

    def _twilight(self) -> TwilightCube:
        field, x0, y0 = self._illumination()
        plane = (field / field.mean()).astype(np.float32)
        wave0, step, n = _TWILIGHT_WAVES
        # the sky gives each IFU what its flat field has lost by being brought to mean 1
        flux = {ifu: self._flat_of(ifu).mean * NX * NY for ifu in self.ifus}
        return TwilightCube(np.repeat(plane[None], n, axis=0), x0, y0, wave0, step, flux, {"white_global_fit": plane})

    def _response(self) -> ref.Response:
        """Counts per energy of data that have been through flat field, twilight and the spectrum of the lamp.

        Data of a source of flux density f are ``S f t m_i / (L <l>)`` after the flat field of IFU i (S
        sensitivity, t time, m_i mean of the lamp's counts, L the lamp's spectrum, l its illumination), and
        ``S f t m_1 <1/l> / L`` after the twilight.  The spectra of the flat fields of all IFUs, averaged, are
        multiplied to them.
        """
        from .exposure import light_of

        flats = [self._flat_of(ifu) for ifu in self.ifus]
        lamp_plan = next(g.first for g in self.raws["FLAT"] if any(ifu in g.flats for ifu in self.ifus))
        lamp = light_of(lamp_plan, "", tuple(self.ifus))
        assert lamp is not None
        centre = np.zeros(1, np.float32)
        bins = _bins()
        middle = (bins[1:] + bins[:-1]) / 2
        spectrum = np.mean([f.spectrum for f in flats], axis=0)
        light = np.asarray(lamp.continuum(centre, centre, middle.astype(np.float32)), np.float64) * lamp_plan.exptime
        field, *_ = self._illumination()
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity = self.instrument.sensitivity(middle) * 1e20
            counts = sensitivity * flats[0].mean * field.mean() * spectrum / (light * 1.25)
            response = 2.5 * np.log10(counts)
        mode = self.instrument.mode
        good = np.isfinite(response) & (middle > mode.useful[0] + 10) & (middle < mode.useful[1] - 10)
        if mode.notch is not None:
            good &= (middle < mode.notch[0] - 20) | (middle > mode.notch[1] + 20)
        wave = np.arange(_RESPONSE_RANGE[0], _RESPONSE_RANGE[1] + 0.1, 5.0)
        values = np.interp(wave, middle[good], response[good])
        for end in (slice(None, 20), slice(-20, None)):
            fit = np.polynomial.Polynomial.fit(middle[good][end], response[good][end], 1)
            beyond = wave < middle[good][0] if end.stop else wave > middle[good][-1]
            values[beyond] = fit(wave[beyond])
        error = np.full(len(wave), _RESPONSE_ERROR)
        throughput = _HC / (TELESCOPE_AREA * wave) * 10 ** (0.4 * values)
        return ref.Response(wave, values, error, values.copy(), error.copy(), throughput)

    def _telluric(self) -> ref.Telluric:
        """Transmission at airmass 1 as the instrument sees it."""
        from scipy.ndimage import gaussian_filter1d

        from .atmosphere import telluric

        step = 0.25
        fine = np.arange(6100.0, 9900.0, step)
        optics = self.instrument.ifu(self.ifus[len(self.ifus) // 2])
        sigma = float(np.hypot(optics.lsf_sigma(24, 7500.0), 1.25 / 12**0.5))
        seen = gaussian_filter1d(np.asarray(telluric(fine), np.float64), sigma / step)
        wave = np.arange(6200.0, 9800.1, 1.25)
        transmission = np.interp(wave, fine, seen)
        error = np.minimum(0.1, np.maximum(1 - transmission, 1e-4))
        return ref.Telluric(wave, transmission, error)


def _flat_counts(instrument: Instrument, ifu: int, group: _Group) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Electrons of the lamp in every pixel of one exposure, and bad pixels."""
    from .exposure import light_of
    from .render import render

    light = light_of(group.first, "", (ifu,))
    assert light is not None
    detector = Detector(ifu)
    temperature = float(np.mean([plan.conditions.instrument_temperature for plan in group.plans]))
    counts = render(instrument.ifu(ifu), light, temperature=temperature)
    counts *= np.float32(group.first.exptime)
    counts *= detector.response()
    dq = np.zeros((NY, NX), np.int32)
    for c in detector.column_defects:
        rows, x = slice(int(c["first"]), int(c["last"]) + 1), int(c["x"])
        if int(c["kind"]) == 0:
            counts[rows, x] *= np.float32(c["value"])
            dq[rows, x] |= int(c["status"])
    dq[counts <= 0] |= DQ_BADOTHER
    return counts, dq


def _bins() -> NDArray[np.float64]:
    return np.arange(4400.0, 9600.0 + _BIN, _BIN)


def _summary(
    instrument: Instrument, ifu: int, counts: NDArray[np.float32], dq: NDArray[np.int32], mean: float
) -> _Flat:
    wave = instrument.ifu(ifu).wave_map()
    inside = (wave > 0) & (dq == 0)
    k = ((wave[inside] - _bins()[0]) / _BIN).astype(np.int64)
    n = len(_bins()) - 1
    keep = (k >= 0) & (k < n)
    number = np.bincount(k[keep], minlength=n)
    total = np.bincount(k[keep], counts[inside][keep], minlength=n)
    with np.errstate(invalid="ignore"):
        return _Flat(float(mean), total / number / mean)


def overscans(detector: Detector) -> list[tuple[float, float]]:
    """Mean and standard deviation of the overscans of the quadrants, as the reference measures them [adu]."""
    level = detector.bias_level()
    found = []
    for q in range(4):
        side, top = int(q in (1, 2)), q in (2, 3)
        half = level.shape[1] // 2
        if top:
            strip, data = slice(half, half + SCAN - _IGNORE), slice(half, level.shape[1] - SCAN)
        else:
            strip, data = slice(half - SCAN + _IGNORE, half), slice(SCAN, half)
        columns, rows = NX // 2, SCAN - _IGNORE
        # the strip along x has few rows and many columns, that along y the other way round
        values = np.concatenate([level[side, strip], level[side, data]])
        weights = np.concatenate([np.full(rows, columns), np.full(half - SCAN, rows)]).astype(np.float64)
        mean = float(np.average(values, weights=weights))
        spread = float(np.average((values - mean) ** 2, weights=weights))
        found.append((mean, float(np.sqrt(spread + (detector.read_noise[q] / detector.gain[q]) ** 2))))
    return found


def _quadrant(number: int) -> tuple[slice, slice]:
    """Rows and columns of a quadrant (1..4) of the trimmed image."""
    right, top = number in (2, 3), number in (3, 4)
    rows = slice(NY // 2, NY) if top else slice(0, NY // 2)
    return rows, slice(NX // 2, NX) if right else slice(0, NX // 2)


def _quadrant_image(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Image with a value in each quadrant."""
    image = np.empty((NY, NX), np.float32)
    for q in range(1, 5):
        image[_quadrant(q)] = values[q - 1]
    return image


def _by_quadrant(values: NDArray[np.float64], row: int, column: int) -> float:
    """The value of the quadrant of a pixel."""
    right, top = column >= NX // 2, row >= NY // 2
    return float(values[(3 if not right else 2) if top else int(right)])
