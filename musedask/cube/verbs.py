"""Cubes made elsewhere: what is in them, gluing them along wavelength, images through filters.

These do what the command-line tools of the reference do (``muse_cube_combine``,
``muse_cube_concatenate``, ``muse_cube_filter``), with a few planes in memory, from and to FITS or
Zarr: what is written is decided by the suffix ``.zarr``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from ..io.cube_read import CubeSource, Image, Region, ZarrCube, is_zarr, make_wcs, open_source
from ..io.cube_write import (
    BYTES_IN_FLIGHT,
    Progress,
    append_images,
    band_step,
    cube_to_fits,
    cube_to_zarr,
    finish_cube_store,
    image_to_fits,
    iter_regions,
    write_image,
)
from ..io.files import atomic_path, check_output
from ..io.headers import extension_names, set_card
from ..io.tables import Filter, box_filter, list_filters, read_filter

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["cube_combine", "cube_concatenate", "cube_filter", "cube_info", "cube_to_fits", "render_info"]

log = logging.getLogger("musedask")

#: differences of numbers of two headers that the reference accepts
_EPS = 2.220446049250313e-16
#: how far the first plane of a cube may be from where the one before ends [planes]
_ADJACENT = 1e-6

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class JoinedCube:
    """Planes of several cubes, one after the other.  A `CubeSource`.

    Attributes
    ----------
    parts : tuple of (CubeSource, int, int)
        Sources with their first plane and the plane after the last one.
    primary, data, stat : astropy.io.fits.Header
    wavelength : ndarray of float64 [Angstrom]
    """

    parts: tuple[tuple[CubeSource, int, int], ...]
    primary: fits.Header
    data: fits.Header
    stat: fits.Header
    wavelength: NDArray[np.float64]

    @property
    def label(self) -> str:
        """The names of the parts."""
        return " + ".join(source.label for source, _, _ in self.parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        _, ny, nx = self.parts[0][0].shape
        return sum(stop - start for _, start, stop in self.parts), ny, nx

    @property
    def names(self) -> tuple[str, ...]:
        """Variables that there are."""
        return self.parts[0][0].names

    @property
    def ctype(self) -> str:
        """Spectral type."""
        return self.parts[0][0].ctype

    @property
    def block(self) -> tuple[int, int, int]:
        """That of the first part."""
        return self.parts[0][0].block

    @property
    def images(self) -> dict[str, Image]:
        """None: images of the parts are not images of the whole."""
        return {}

    def read(self, name: str, region: Region) -> NDArray[Any]:
        """Read a piece of ``flux`` or ``variance``, across the joints."""
        planes, y, x = region
        pieces, offset = [], 0
        for source, start, stop in self.parts:
            first, last = max(planes.start, offset), min(planes.stop, offset + stop - start)
            if first < last:
                shift = start - offset
                pieces.append(source.read(name, (slice(first + shift, last + shift), y, x)))
            offset += stop - start
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _write(
    source: CubeSource, output: PathLike, overwrite: bool, memory_limit: int, progress: Progress | None
) -> None:
    if is_zarr(output):
        cube_to_zarr(source, output, overwrite=overwrite, progress=progress)
    else:
        cube_to_fits(source, output, overwrite=overwrite, memory_limit=memory_limit, progress=progress)


# --- combine -----------------------------------------------------------------------------------


@dataclass
class _Range:
    """Planes of a cube (1-based, both included) that its range of wavelengths makes valid."""

    source: CubeSource
    low: float
    high: float
    first: int
    last: int


def cube_combine(
    output: PathLike,
    inputs: Sequence[PathLike],
    *,
    overwrite: bool = False,
    memory_limit: int = BYTES_IN_FLIGHT,
    progress: Progress | None = None,
) -> None:
    """Glue cubes of one grid that each hold data in a part of the wavelengths.

    For cubes made with the same ``OUTPUT_WCS`` and different ``lambdamin`` and ``lambdamax``: the
    ranges are read from the recipe parameters in their headers, a plane is dropped on either side
    of a cut, and where ranges overlap the later cube wins.  As ``muse_cube_combine``, which besides
    does not notice cubes that differ in ``CRPIX2``.

    Parameters
    ----------
    output : path-like
        FITS file, or Zarr group if its suffix is ``.zarr``.
    inputs : sequence of path-like
        FITS or Zarr cubes.  Those that do not fit are left out with a warning.
    overwrite : bool
        Whether an existing output may be replaced.
    memory_limit : int
        Bytes of the pieces that are held at one time.
    progress : callable, optional
        Called with the bytes written and the bytes in all.

    Raises
    ------
    InputError
        If fewer than two cubes are usable.
    OutputExistsError
        If the output exists.
    """
    check_output(output, overwrite=overwrite)
    ranges: list[_Range] = []
    for path in inputs:
        try:
            source = open_source(path)
            if ranges:
                _check_grid(ranges[0].source, source)
            ranges.append(_valid_range(source))
        except InputError as error:
            log.warning("cube combine: LEFT OUT: %s", error)
    ranges.sort(key=lambda r: r.first)
    for before, after in pairwise(ranges):
        if before.last != after.first - 1:
            kind = "overlap" if before.last >= after.first else "leave a gap between"
            log.warning(
                "cube combine: %s and %s %s planes %d and %d; the first is taken up to plane %d",
                before.source.label,
                after.source.label,
                kind,
                before.last,
                after.first,
                after.first - 1,
            )
            before.last = after.first - 1
    for used in [r for r in ranges if r.last < r.first]:
        log.warning("cube combine: LEFT OUT: %s: no plane of it remains", used.source.label)
        ranges.remove(used)
    for used in ranges:
        if used.last > used.source.shape[0]:
            raise InputError(
                f"{used.source.label}: planes up to {used.last} are needed, it has {used.source.shape[0]}"
            )
    if len(ranges) < 2:
        raise InputError(
            f"cube combine: {len(ranges)} of {len(inputs)} cubes are usable, expected two or more"
        )

    first = ranges[0]
    start, stop = first.first - 1, ranges[-1].last
    primary = first.source.primary.copy()
    _set_range(primary, min(r.low for r in ranges), max(r.high for r in ranges))
    data, stat = first.source.data.copy(), first.source.stat.copy()
    for header in (data, stat):
        if start and "CRPIX3" in header:
            header["CRPIX3"] -= start
    longest = max((r.source.wavelength for r in ranges), key=len)
    parts = tuple((r.source, r.first - 1, r.last) for r in ranges)
    joined = JoinedCube(parts, primary, data, stat, longest[start:stop])
    _write(joined, output, overwrite, memory_limit, progress)


def _check_grid(reference: CubeSource, source: CubeSource) -> None:
    """Raise InputError unless two cubes have the same grid."""
    if reference.shape[1:] != source.shape[1:]:
        raise InputError(
            f"{source.label}: {source.shape[2]} x {source.shape[1]} spaxels found, expected those of "
            f"{reference.label}, {reference.shape[2]} x {reference.shape[1]}"
        )
    if reference.names != source.names:
        raise InputError(f"{source.label}: only one of it and {reference.label} has an extension STAT")
    for keyword in (*[f"CTYPE{i}" for i in (1, 2, 3)], *[f"CUNIT{i}" for i in (1, 2, 3)]):
        expected, found = (str(h.get(keyword, "")).strip() for h in (reference.data, source.data))
        if expected != found:
            raise InputError(f"{source.label}: {keyword} = {found!r} found, expected {expected!r}")
    numbers = "CRPIX1 CRPIX2 CRPIX3 CRVAL1 CRVAL2 CRVAL3 CD1_1 CD1_2 CD2_1 CD2_2 CD3_3"
    for keyword in numbers.split():
        first, second = (float(h.get(keyword, 0.0)) for h in (reference.data, source.data))
        if abs(first - second) > _EPS:
            raise InputError(f"{source.label}: {keyword} = {second!r} found, expected {first!r}")


def _range_cards(primary: fits.Header) -> dict[str, str]:
    """Keywords with the values of ``lambdamin`` and ``lambdamax`` of the last recipe."""
    records = [int(m[1]) for key in primary if (m := re.match(r"^ESO PRO REC(\d+) ID$", key))]
    found: dict[str, str] = {}
    if not records:
        return found
    stem, number = f"ESO PRO REC{max(records)} PARAM", 1
    while f"{stem}{number} NAME" in primary:
        name = str(primary[f"{stem}{number} NAME"]).strip()
        if name in ("lambdamin", "lambdamax"):
            found[name] = f"{stem}{number} VALUE"
        number += 1
    return found


def _valid_range(source: CubeSource) -> _Range:
    wave, header = source.wavelength, source.data
    low, high = -np.inf, np.inf
    for name, keyword in _range_cards(source.primary).items():
        try:
            value = float(source.primary[keyword])
        except (KeyError, TypeError, ValueError) as error:
            found = source.primary.get(keyword)
            raise InputError(f"{source.label}: {keyword} = {found!r} found, expected a number") from error
        if name == "lambdamin":
            low = value
        else:
            high = value
    low, high = max(low, float(wave[0])), min(high, float(wave[-1]))
    value, step = float(header["CRVAL3"]), float(header.get("CD3_3", header.get("CDELT3", 0.0)))
    pixel = float(header.get("CRPIX3", 0.0))
    if str(header.get("CUNIT3", "")).strip().lower() != "angstrom":
        # planes are counted in Angstrom whatever the unit of the header is
        value, step, pixel = float(wave[0]), float(wave[1] - wave[0]) if len(wave) > 1 else 1.0, 1.0
    if source.ctype.endswith("-LOG"):
        planes = [int(_lround(value / step * np.log(w / value)) + pixel) for w in (low, high)]
    else:
        planes = [_lround((w - value) / step + pixel) for w in (low, high)]
    nz = source.shape[0]
    # planes next to a cut have pixels of one side only
    first = 1 if planes[0] <= 1 else planes[0] + 1
    last = nz if planes[1] >= nz else planes[1] - 1
    if first >= nz or last <= 1:
        raise InputError(f"{source.label}: none of its planes is in its range {low:g} .. {high:g} Angstrom")
    return _Range(source, low, high, first, last)


def _lround(value: float) -> int:
    """Round half away from zero, as C does."""
    whole = np.trunc(value)
    return int(whole + np.copysign(1.0, value)) if abs(value - whole) >= 0.5 else int(whole)


def _set_range(primary: fits.Header, low: float, high: float) -> None:
    for name, keyword in _range_cards(primary).items():
        value = f"{low if name == 'lambdamin' else high:g}"
        set_card(primary, keyword, value, "set with muse_cube_combine!")


# --- concatenate -------------------------------------------------------------------------------


def cube_concatenate(
    output: PathLike,
    inputs: Sequence[PathLike],
    *,
    overwrite: bool = False,
    memory_limit: int = BYTES_IN_FLIGHT,
    progress: Progress | None = None,
) -> None:
    """Append cubes with adjacent wavelength axes to the first one.

    For cubes made with ``OUTPUT_WCS`` files whose wavelength axes follow each other.  As
    ``muse_cube_concatenate``, but a plane's millionth of misfit is accepted where that needs
    equality to the last bit, and the pointings are compared.

    Parameters
    ----------
    output, overwrite, memory_limit, progress
        See `cube_combine`.
    inputs : sequence of path-like
        FITS or Zarr cubes in the order of wavelength.

    Raises
    ------
    InputError
        If a cube does not fit.
    OutputExistsError
        If the output exists.
    """
    check_output(output, overwrite=overwrite)
    if len(inputs) < 2:
        raise InputError(f"cube concatenate: {len(inputs)} cube(s) given, expected two or more")
    sources = [open_source(path) for path in inputs]
    first = sources[0]
    if first.ctype.endswith("-LOG"):
        raise InputError(f"{first.label}: CTYPE3 = {first.ctype!r}: only linear axes can be appended")
    for before, source in pairwise(sources):
        _check_adjacent(first, before, source)
    headers = first.primary.copy(), first.data.copy(), first.stat.copy()
    wavelength = np.concatenate([source.wavelength for source in sources])
    joined = JoinedCube(tuple((s, 0, s.shape[0]) for s in sources), *headers, wavelength)
    _write(joined, output, overwrite, memory_limit, progress)


def _check_adjacent(first: CubeSource, before: CubeSource, source: CubeSource) -> None:
    if source.shape[1:] != first.shape[1:]:
        raise InputError(
            f"{source.label}: {source.shape[2]} x {source.shape[1]} spaxels found, expected those of "
            f"{first.label}, {first.shape[2]} x {first.shape[1]}"
        )
    if source.names != first.names:
        raise InputError(f"{source.label}: only one of it and {first.label} has an extension STAT")
    if source.ctype != first.ctype:
        raise InputError(f"{source.label}: CTYPE3 = {source.ctype!r} found, expected {first.ctype!r}")
    steps = [float(s.data.get("CD3_3", s.data.get("CDELT3", 0.0))) for s in (first, source)]
    if abs(steps[0] - steps[1]) > _EPS:
        raise InputError(f"{source.label}: CD3_3 = {steps[1]!r} found, expected {steps[0]!r}")
    step = float(first.wavelength[1] - first.wavelength[0]) if len(first.wavelength) > 1 else steps[0]
    expected = float(before.wavelength[-1]) + step
    if abs(float(source.wavelength[0]) - expected) > _ADJACENT * abs(step):
        raise InputError(
            f"{source.label}: it starts at {source.wavelength[0]:.6f} Angstrom, expected {expected:.6f}, "
            f"one plane after the end of {before.label}"
        )
    for keyword in ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2"):
        pair = [float(s.data.get(keyword, 0.0)) for s in (first, source)]
        if abs(pair[0] - pair[1]) > _EPS:
            log.warning("%s: %s = %r, but %r in %s", source.label, keyword, pair[1], pair[0], first.label)


# --- filter ------------------------------------------------------------------------------------


def cube_filter(
    cube: PathLike,
    filter_list: PathLike | None = None,
    names: Iterable[str] | None = None,
    *,
    extend: bool = False,
    box: tuple[float, float] | None = None,
    overwrite: bool = False,
    memory_limit: int = BYTES_IN_FLIGHT,
) -> list[Path]:
    """Make images of a cube through filters.

    Parameters
    ----------
    cube : path-like
        FITS or Zarr cube.
    filter_list : path-like, optional
        FILTER_LIST; the filter ``white`` needs none.
    names : iterable of str, optional
        Filters; by default all of the list.  Those that are missing are left out with a warning.
    extend : bool
        Add the images to the cube (FITS: extensions; Zarr: variables ``fov_<name>``) instead of
        writing ``<cube>_<name>.fits`` beside it.  A FITS cube is copied first, so that a failure
        leaves the old one.
    box : tuple of float, optional
        Add a filter ``CUSTOM_<l1>_<l2>`` that is 1 between two wavelengths [Angstrom].
    overwrite : bool
        Whether existing images may be replaced.
    memory_limit : int
        Bytes of the pieces that are held at one time.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    InputError
        If the cube is unusable, no filter is found, or a FITS cube has an extension of that name.
    OutputExistsError
        If an image exists.
    """
    from .images import fov_headers, fov_images, image_header

    cube = Path(cube)
    source = open_source(cube)
    custom = [box_filter(*box)] if box is not None else []
    if names is None:
        names = list_filters(filter_list)
    filters = [*_find_filters(filter_list, names), *custom]
    if not filters:
        raise InputError("cube filter: none of the filters was found")
    if not extend:
        stem = cube.name.removesuffix(".fits").removesuffix(".zarr")
        paths = [cube.with_name(f"{stem}_{f.name}.fits") for f in filters]
        for path in paths:
            check_output(path, overwrite=overwrite)
    else:
        paths = [cube]
        for f in filters:
            if not isinstance(source, ZarrCube) and f.name in extension_names(cube):
                raise InputError(f"{cube}[{f.name}]: there is an extension of that name already")
    images = fov_images(source, filters, memory_limit=memory_limit)
    if not extend:
        for path, f, image in zip(paths, filters, images, strict=True):
            image_to_fits(path, *fov_headers(source, f), image, overwrite=overwrite)
        return paths

    headers = [image_header(source, f) for f in filters]
    if isinstance(source, ZarrCube):
        import zarr

        group = zarr.open_group(str(cube), mode="r+", use_consolidated=False)
        for f, header, image in zip(filters, headers, images, strict=True):
            write_image(group, f.name, image, header)
        finish_cube_store(cube)
        return paths
    ready: Mapping[str, Image] = {
        f.name: (header, image.copy) for f, header, image in zip(filters, headers, images, strict=True)
    }
    with atomic_path(cube, overwrite=True) as temporary:
        shutil.copyfile(cube, temporary)
        with open(temporary, "r+b", buffering=0) as file:
            append_images(file.fileno(), source.shape[1:], ready)
    return paths


def _find_filters(path: PathLike | None, names: Iterable[str]) -> list[Filter]:
    found = []
    for name in names:
        try:
            curve = read_filter(path, name)
        except InputError as error:
            log.warning("cube filter: LEFT OUT: %s", error)
            continue
        if curve is not None:
            found.append(curve)
    return found


# --- info --------------------------------------------------------------------------------------


def cube_info(
    cube: PathLike | xr.Dataset, *, scan: bool = False, memory_limit: int = BYTES_IN_FLIGHT
) -> dict[str, Any]:
    """Describe a cube.

    Parameters
    ----------
    cube : path-like or xarray.Dataset
    scan : bool
        Read the whole cube, in pieces, for the fraction of voxels without data and the range of the
        flux.
    memory_limit : int
        Bytes of a piece.

    Returns
    -------
    dict
        ``name``, ``format``, ``object``, ``shape`` (planes, rows, columns), ``variables``,
        ``bytes``, ``units``, ``wavelength`` (first, last, step [Angstrom], ctype), ``wcs`` (crpix,
        crval, cd, ctype, pixel scale [arcsec], centre and corners [deg]), ``chunks``, ``shards``,
        ``images``, ``header`` (cards of the primary, then of DATA) and, scanned, ``nan_fraction``
        and ``flux_range``.  It can be written as JSON.

    Raises
    ------
    InputError
        If it is unusable.
    """
    source = open_source(cube)
    nz, ny, nx = source.shape
    wave = source.wavelength
    info: dict[str, Any] = {
        "name": source.label,
        "format": {"ZarrCube": "Zarr", "FitsCube": "FITS"}.get(type(source).__name__, "dataset"),
        "object": str(source.primary.get("OBJECT", "")),
        "shape": [nz, ny, nx],
        "variables": list(source.names),
        "bytes": 4 * nz * ny * nx * len(source.names),
        "units": [str(h.get("BUNIT", "")).strip() for h in (source.data, source.stat)][: len(source.names)],
        "wavelength": {
            "first": float(wave[0]),
            "last": float(wave[-1]),
            "step": float(wave[-1] - wave[0]) / max(1, nz - 1),
            "ctype": source.ctype,
        },
        "wcs": _wcs_info(source),
        "chunks": list(source.block) if isinstance(source, ZarrCube) else None,
        "shards": list(source.shards) if isinstance(source, ZarrCube) else None,
        "images": list(source.images),
        "header": [
            [card.keyword, card.value, card.comment]
            for h in (source.primary, source.data)
            for card in h.cards
        ],
    }
    if scan:
        n_nan, low, high = 0, np.inf, -np.inf
        for region in iter_regions(source.shape, band_step(source, memory_limit)):
            values = source.read("flux", region)
            good = values[np.isfinite(values)]
            n_nan += values.size - good.size
            if good.size:
                low, high = min(low, float(good.min())), max(high, float(good.max()))
        info["nan_fraction"] = n_nan / (nz * ny * nx)
        info["flux_range"] = [low, high] if low <= high else None
    return info


def _wcs_info(source: CubeSource) -> dict[str, Any]:
    header = source.data
    _, ny, nx = source.shape
    info: dict[str, Any] = {
        "ctype": [str(header.get(f"CTYPE{i}", "")).strip() for i in (1, 2, 3)],
        "crpix": [header.get(f"CRPIX{i}") for i in (1, 2, 3)],
        "crval": [header.get(f"CRVAL{i}") for i in (1, 2, 3)],
        "cd": [[header.get(f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)],
    }
    if info["ctype"][:2] == ["RA---TAN", "DEC--TAN"]:
        wcs = make_wcs(source.primary, source.data, source.shape).celestial
        info["scale"] = [float(s) * 3600 for s in np.sqrt((wcs.pixel_scale_matrix**2).sum(axis=0))]
        points = [((nx - 1) / 2, (ny - 1) / 2), (0, 0), (nx - 1, 0), (nx - 1, ny - 1), (0, ny - 1)]
        sky = wcs.wcs_pix2world(points, 0).tolist()
        info["centre"], info["corners"] = sky[0], sky[1:]
    return info


def render_info(info: Mapping[str, Any], *, header: bool = False) -> str:
    """Write `cube_info` as text, with the cards of the headers if wanted."""
    nz, ny, nx = info["shape"]
    wave, wcs = info["wavelength"], info["wcs"]
    lines = [
        ("cube", f"{info['name']} ({info['format']})"),
        ("object", info["object"]),
        ("size", f"{nx} x {ny} spaxels, {nz} planes, {info['bytes'] / 1e9:.3f} GB"),
        ("holds", ", ".join(f"{v} [{u}]" for v, u in zip(info["variables"], info["units"], strict=True))),
        (
            "wavelength",
            f"{wave['first']:.4f} .. {wave['last']:.4f} Angstrom, step {wave['step']:.5g}, {wave['ctype']}",
        ),
    ]
    if "scale" in wcs:
        lines += [
            ("centre", f"RA {wcs['centre'][0]:.6f}, DEC {wcs['centre'][1]:.6f} deg"),
            ("spaxel", f"{wcs['scale'][0]:.5f} x {wcs['scale'][1]:.5f} arcsec"),
        ]
    else:
        lines.append(("axes", ", ".join(wcs["ctype"])))
    if info["chunks"]:
        lines.append(("chunks", f"{info['chunks']} in shards of {info['shards']} (planes, rows, columns)"))
    if info["images"]:
        lines.append(("images", ", ".join(info["images"])))
    if "nan_fraction" in info:
        lines.append(("no data", f"{100 * info['nan_fraction']:.2f} % of the voxels"))
        if info["flux_range"]:
            lines.append(("flux", "{:.6g} .. {:.6g}".format(*info["flux_range"])))
    text = [f"{name:<11}{value}" for name, value in lines if value]
    if header:
        text += ["", *[f"{k} = {v!r}" + (f" / {c}" if c else "") for k, v, c in info["header"]]]
    return "\n".join(text)
