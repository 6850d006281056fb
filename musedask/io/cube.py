"""Data cubes as datasets: opening FITS or Zarr lazily; the way in to reading and writing them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .cube_read import (
    DIMS,
    SCHEMA_VERSION,
    CubeSource,
    FitsCube,
    MuseAccessor,
    ZarrCube,
    is_zarr,
    open_source,
    register_accessor,
    scan_cube,
    wavelength_axis,
)
from .cube_write import (
    create_cube_store,
    cube_to_fits,
    cube_to_zarr,
    default_chunks,
    finish_cube_store,
    image_to_fits,
    write_image,
    write_region,
)
from .headers import cards_to_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "DIMS",
    "SCHEMA_VERSION",
    "CubeSource",
    "MuseAccessor",
    "create_cube_store",
    "cube_to_fits",
    "cube_to_zarr",
    "default_chunks",
    "finish_cube_store",
    "image_to_fits",
    "open_cube",
    "open_source",
    "register_accessor",
    "scan_cube",
    "wavelength_axis",
    "write_image",
    "write_region",
]

#: bytes of a piece of a FITS cube
_AUTO_CHUNK = 32 << 20


def open_cube(
    path: str | os.PathLike[str], chunks: Mapping[str, int] | Literal["auto"] = "auto"
) -> xr.Dataset:
    """Open a cube as a lazy dataset.

    Parameters
    ----------
    path : path-like
        FITS file with extensions ``DATA``, ``STAT`` (optional) and ``DQ`` (optional), or Zarr group.
    chunks : mapping or "auto"
        Dask chunks by dimension, e.g. ``{"wavelength": 50}``; -1 means the whole axis, and
        dimensions that are not named keep theirs.  By default the shards of a Zarr group, and about
        32 MiB of whole planes of a FITS file.

    Returns
    -------
    xarray.Dataset
        Variables ``flux`` and ``variance`` of dimensions ``(wavelength, y, x)`` with ``units``,
        NaN where there are no data, and ``fov_<filter>`` images ``(y, x)``; coordinates
        ``wavelength`` [Angstrom] and ``y``, ``x`` (pixels from 0); headers as JSON cards in
        ``attrs``.  ``cube.muse.to_wcs()`` and ``cube.muse.header`` need no further import.

    Raises
    ------
    InputError
        If it is missing, damaged or no MUSE cube.

    Examples
    --------
    >>> cube = musedask.open_cube("DATACUBE_FINAL.fits")               # doctest: +SKIP
    >>> cube.flux.sel(wavelength=slice(6500, 6600)).mean("wavelength")  # doctest: +SKIP
    """
    register_accessor()
    path = Path(path)
    dataset = _open_zarr(path, chunks) if path.exists() and is_zarr(path) else _open_fits(path, chunks)
    sizes = dataset.sizes
    return dataset.assign_coords(y=np.arange(sizes["y"]), x=np.arange(sizes["x"]))


def _open_zarr(path: Path, chunks: Mapping[str, int] | Literal["auto"]) -> xr.Dataset:
    import xarray as xr

    cube = ZarrCube(path)
    wanted = dict(zip(DIMS, cube.shards, strict=True))
    if chunks != "auto":
        wanted.update(chunks)
    with warnings.catch_warnings():
        # a store whose metadata were not gathered at its end opens as well
        warnings.simplefilter("ignore", RuntimeWarning)
        dataset = xr.open_zarr(str(path), chunks=None)
    return dataset.chunk({dim: n for dim, n in wanted.items() if dim in dataset.dims})


class _LazyImage:
    """What Dask sees of a variable of a FITS cube."""

    ndim = 3

    def __init__(self, cube: FitsCube, name: str) -> None:
        self.cube, self.name = cube, name
        self.shape = cube.shape
        self.dtype = cube.parts[name].out_dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        ranges = [range(n)[k] for n, k in zip(self.shape, key, strict=True)]
        # the smallest box around it; steps and single indices are taken in memory
        region: list[slice] = []
        inner: list[int | slice] = []
        for found in ranges:
            if isinstance(found, int):
                region.append(slice(found, found + 1))
                inner.append(0)
            else:
                low, high = (min(found[0], found[-1]), max(found[0], found[-1])) if len(found) else (0, -1)
                region.append(slice(low, high + 1))
                inner.append(slice(None, None, found.step))
        return self.cube.read(self.name, (region[0], region[1], region[2]))[tuple(inner)]


def _open_fits(path: Path, chunks: Mapping[str, int] | Literal["auto"]) -> xr.Dataset:
    import dask.array as da
    import xarray as xr
    from dask.base import tokenize

    cube = scan_cube(path)
    nz, ny, nx = cube.shape
    rows = min(ny, max(1, _AUTO_CHUNK // (4 * nx)))
    wanted = {"wavelength": min(nz, max(1, _AUTO_CHUNK // (4 * nx * rows))), "y": rows, "x": nx}
    if chunks != "auto":
        wanted.update(chunks)
    stat = path.stat()
    token = tokenize(str(path.resolve()), stat.st_mtime_ns, stat.st_size, sorted(wanted.items()))
    variables: dict[str, Any] = {}
    for name, header in (("flux", cube.data), ("variance", cube.stat)):
        if name in cube.parts:
            lazy = _LazyImage(cube, name)
            array = da.from_array(
                lazy,
                tuple(wanted[dim] for dim in DIMS),
                name=f"{name}-{token}",
                asarray=False,
                fancy=False,
                meta=np.empty((0, 0, 0), lazy.dtype),
            )
            unit = str(header.get("BUNIT", "")).strip()
            variables[name] = (DIMS, array, {"units": unit} if unit else {})
    for order, (name, (header, image)) in enumerate(cube.image_parts.items()):
        attrs = {"header": cards_to_json(header), "filter": name, "order": order}
        if header.get("BUNIT"):
            attrs["units"] = str(header["BUNIT"]).strip()
        variables[f"fov_{name}"] = (DIMS[1:], da.from_array(image.read(), -1), attrs)
    return xr.Dataset(
        variables,
        {"wavelength": ("wavelength", cube.wavelength, {"units": "Angstrom", "ctype": cube.ctype})},
        {
            "schema_version": SCHEMA_VERSION,
            "primary_header": cards_to_json(cube.primary),
            "data_header": cards_to_json(cube.data),
            "stat_header": cards_to_json(cube.stat),
        },
    )
