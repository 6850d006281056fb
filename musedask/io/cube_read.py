"""Data cubes as sources: where their numbers lie, in FITS, Zarr or a dataset, and their axes.

FITS cubes are read with plain file reads, never mapped, so that the memory of a process is what
it allocated.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from numpy.typing import NDArray

from ..errors import InputError
from .cards import card_bytes
from .headers import cards_from_json, cards_to_json

if TYPE_CHECKING:
    import xarray as xr
    from astropy.wcs import WCS

#: version of the Zarr schema that is written and read
SCHEMA_VERSION = 1
DIMS = ("wavelength", "y", "x")
#: spectral types that MUSE cubes use
SPECTRAL_TYPES = ("AWAV", "AWAV-LOG", "WAVE", "WAVE-LOG")

_UNITS = {"angstrom": 1.0, "a": 1.0, "m": 1e10, "nm": 10.0, "um": 1e4, "micron": 1e4}
_DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}

Region = tuple[slice, slice, slice]
#: a field-of-view image: its header and a function that reads it
Image = tuple[fits.Header, Callable[[], NDArray[np.float32]]]


class CubeSource(Protocol):
    """Something that pieces of a cube can be read from, by any thread.

    Attributes
    ----------
    label : str
        What messages call it.
    shape : tuple of int
        Planes, rows, columns.
    names : tuple of str
        ``("flux",)`` or ``("flux", "variance")``.
    primary, data, stat : astropy.io.fits.Header
        Cards of the three parts, without structural ones.
    wavelength : ndarray of float64, shape (nz,) [Angstrom]
    ctype : str
        Spectral type.
    block : tuple of int
        Shape in which reading is cheapest.
    images : dict of Image
        Field-of-view images by filter name.
    """

    @property
    def label(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def primary(self) -> fits.Header: ...
    @property
    def data(self) -> fits.Header: ...
    @property
    def stat(self) -> fits.Header: ...
    @property
    def wavelength(self) -> NDArray[np.float64]: ...
    @property
    def ctype(self) -> str: ...
    @property
    def block(self) -> tuple[int, int, int]: ...
    @property
    def images(self) -> Mapping[str, Image]: ...

    def read(self, name: str, region: Region) -> NDArray[Any]:
        """Read a piece in native byte order; the caller may change it."""
        ...


# --- the wavelength axis and the WCS -----------------------------------------------------------


def wavelength_axis(header: fits.Header, n: int, label: str = "") -> tuple[NDArray[Any], str]:
    """Wavelengths of the planes of a cube.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Header of the ``DATA`` extension.
    n : int
        Number of planes.
    label : str
        File and extension, for messages.

    Returns
    -------
    wavelength : ndarray of float64, shape (n,) [Angstrom]
    ctype : str
        ``AWAV``, ``AWAV-LOG``, ``WAVE`` or ``WAVE-LOG``.

    Raises
    ------
    InputError
        If ``CTYPE3``, ``CUNIT3`` or a number of the axis is missing or unknown.
    """
    ctype = str(header.get("CTYPE3", "")).strip()
    if ctype not in SPECTRAL_TYPES:
        raise InputError(f"{label}: CTYPE3 = {ctype!r} found, expected one of {', '.join(SPECTRAL_TYPES)}")
    unit = str(header.get("CUNIT3", "m")).strip()
    if unit.lower() not in _UNITS:
        raise InputError(f"{label}: CUNIT3 = {unit!r} found, expected Angstrom, nm, um or m")
    scale = _UNITS[unit.lower()]
    step = header.get("CD3_3")
    if step is None and "CDELT3" in header:
        step = header["CDELT3"] * header.get("PC3_3", 1.0)
    try:
        value, pixel = float(header["CRVAL3"]) * scale, float(header.get("CRPIX3", 0.0))
        step = float(step) * scale  # type: ignore[arg-type]  # None is caught
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{label}: CRVAL3, CRPIX3 and CD3_3 must be numbers: {error}") from error
    planes: NDArray[Any] = np.arange(n) + 1 - pixel
    if ctype.endswith("-LOG"):
        return value * np.exp(planes * step / value), ctype
    return planes * step + value, ctype


def cut_cards(header: fits.Header, start: Sequence[int], step: Sequence[int] = (1, 1, 1)) -> fits.Header:
    """Header of a part of an image.

    Parameters
    ----------
    header : astropy.io.fits.Header
    start, step : sequence of int
        First pixel (0-based) and step of the part, in FITS order (x, y, wavelength).

    Returns
    -------
    astropy.io.fits.Header
        A copy in which ``CRPIXi`` and the matrix refer to the pixels of the part.
    """
    header = header.copy()
    for axis, (first, every) in enumerate(zip(start, step, strict=True), 1):
        if first == 0 and every == 1:
            continue
        if f"CRPIX{axis}" in header:
            header[f"CRPIX{axis}"] = (header[f"CRPIX{axis}"] - 1 - first) / every + 1
        if every != 1:
            names = [f"CD{i}_{axis}" for i in (1, 2, 3)]
            # with a PC matrix the scale is that of the axis of the world, hence only diagonal ones
            for name in names if any(name in header for name in names) else [f"CDELT{axis}"]:
                if name in header:
                    header[name] *= every
    return header


def make_wcs(primary: fits.Header, data: fits.Header, shape: tuple[int, int, int]) -> WCS:
    """World coordinates of a cube as astropy's 3-D WCS (axes x, y, wavelength [m])."""
    from astropy.wcs import WCS, FITSFixedWarning

    header = data.copy()
    for name in ("RADESYS", "EQUINOX", "SPECSYS"):
        # the reference writes these in the primary header only
        if name not in header and name in primary:
            header[name] = primary[name]
    header["NAXIS"] = 3
    for axis, n in enumerate(shape[::-1], 1):
        header[f"NAXIS{axis}"] = n
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(card_bytes(header), naxis=3)


class MuseAccessor:
    """What a MUSE cube knows beyond its arrays: ``cube.muse``.

    Selections along ``wavelength``, ``y`` and ``x`` are followed through the coordinates.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    @property
    def header(self) -> fits.Header:
        """The primary header."""
        return cards_from_json(self._dataset.attrs["primary_header"])

    @property
    def data_header(self) -> fits.Header:
        """Header of ``DATA``, with the reference pixel of what is selected."""
        return self._cut("data_header")

    @property
    def stat_header(self) -> fits.Header:
        """Header of ``STAT``, with the reference pixel of what is selected."""
        return self._cut("stat_header")

    def to_wcs(self) -> WCS:
        """World coordinates as astropy's 3-D WCS (axes x, y, wavelength [m])."""
        sizes = self._dataset.sizes
        shape = (sizes["wavelength"], sizes["y"], sizes["x"])
        return make_wcs(self.header, self.data_header, shape)

    def _cut(self, name: str) -> fits.Header:
        header = cards_from_json(self._dataset.attrs[name])
        if "CTYPE3" not in header:
            return header
        starts, steps = [], []
        for dim in ("x", "y"):
            pixels = self._dataset.coords[dim].values if dim in self._dataset.coords else np.arange(1)
            starts.append(int(pixels[0]))
            steps.append(_step(pixels, dim))
        wave = self._dataset["wavelength"].values
        # planes counted on the axis as it was written; sizes beyond the last plane do no harm
        axis, ctype = wavelength_axis(header, 2)
        if ctype.endswith("-LOG"):
            planes = np.log(wave / axis[0]) / np.log(axis[1] / axis[0])
        else:
            planes = (wave - axis[0]) / (axis[1] - axis[0])
        planes = np.rint(planes).astype(int)
        starts.append(int(planes[0]))
        steps.append(_step(planes, "wavelength"))
        return cut_cards(header, starts, steps)


def _step(pixels: NDArray[np.integer], dim: str) -> int:
    steps = np.unique(np.diff(pixels))
    if len(steps) > 1:
        raise ValueError(f"the selected pixels along {dim} are not equally spaced: they have no WCS")
    return int(steps[0]) if len(steps) else 1


def register_accessor() -> None:
    """Make ``dataset.muse`` known to xarray; later calls do nothing."""
    import xarray as xr

    if not hasattr(xr.Dataset, "muse"):
        xr.register_dataset_accessor("muse")(MuseAccessor)


# --- FITS --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitsImage:
    """Where an image lies in its file.

    Attributes
    ----------
    path : pathlib.Path
    name : str
        Name of the extension.
    offset : int
        Byte of the first value.
    shape : tuple of int
        In NumPy order.
    dtype : str
        Big-endian type.
    scale, zero : float
        ``BSCALE`` and ``BZERO``.
    blank : int or None
        Integer that means "no value".
    as_float : bool
        Whether plain integers become float32 too, so that they may be NaN.
    """

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None
    as_float: bool = False

    @property
    def n_bytes(self) -> int:
        """Bytes of the data without padding."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def out_dtype(self) -> np.dtype[Any]:
        """Type of what `read` returns: that of the file, scaled integers become float32."""
        if self.scale != 1 or self.zero != 0 or self.as_float:
            return np.dtype(np.float32)
        return np.dtype(self.dtype).newbyteorder("=")

    def read(self, region: tuple[slice, ...] | None = None) -> NDArray[Any]:
        """Read a rectangular part (slices without steps, within bounds), all by default.

        Raises
        ------
        InputError
            If the file ends too early.
        """
        if region is None:
            region = tuple(slice(0, n) for n in self.shape)
        if len(self.shape) == 2:
            return self._read_cube((1, *self.shape), (slice(0, 1), *region))[0]
        return self._read_cube(self.shape, region)

    def _read_cube(self, shape: tuple[int, ...], region: tuple[slice, ...]) -> NDArray[Any]:
        z, y, x = region
        _, ny, nx = shape
        rows, n_planes = max(0, y.stop - y.start), max(0, z.stop - z.start)
        if not rows or not n_planes or x.stop <= x.start:
            return np.zeros((n_planes, rows, max(0, x.stop - x.start)), self.out_dtype)
        size = np.dtype(self.dtype).itemsize
        raw = np.empty((n_planes, rows, x.stop - x.start), self.dtype)
        whole_rows = x.start == 0 and x.stop == nx
        with open(self.path, "rb", buffering=0) as file:
            if whole_rows and rows == ny:
                self._fill(file.fileno(), raw, self.offset + z.start * ny * nx * size)
            else:
                # whole rows are one read a plane; a part of each row is cheaper cut out in memory
                band = None if whole_rows else np.empty((rows, nx), self.dtype)
                for i in range(n_planes):
                    position = self.offset + ((z.start + i) * ny + y.start) * nx * size
                    self._fill(file.fileno(), raw[i] if band is None else band, position)
                    if band is not None:
                        raw[i] = band[:, x]
        if raw.dtype.itemsize > 1:
            raw = raw.byteswap(inplace=True).view(raw.dtype.newbyteorder("="))
        if self.out_dtype == raw.dtype:
            return raw
        values = (raw * self.scale + self.zero).astype(np.float32)
        if self.blank is not None:
            values[raw == self.blank] = np.nan
        return values

    def _fill(self, file: int, target: NDArray[Any], offset: int) -> None:
        view = memoryview(target.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        done = 0
        while done < len(view):
            got = os.preadv(file, [view[done:]], offset + done)
            if not got:
                raise InputError(
                    f"{self.path}[{self.name}]: the file ends before its last pixel (truncated?)"
                )
            done += got


@dataclass(frozen=True)
class FitsCube:
    """A cube in a FITS file; only headers are held.  A `CubeSource`."""

    path: Path
    parts: Mapping[str, FitsImage]
    dq: FitsImage | None
    primary: fits.Header = field(repr=False)
    data: fits.Header = field(repr=False)
    stat: fits.Header = field(repr=False)
    wavelength: NDArray[np.float64] = field(repr=False)
    ctype: str
    image_parts: Mapping[str, tuple[fits.Header, FitsImage]] = field(repr=False)

    @property
    def label(self) -> str:
        """The file name."""
        return str(self.path)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Planes, rows, columns."""
        nz, ny, nx = self.parts["flux"].shape
        return nz, ny, nx

    @property
    def names(self) -> tuple[str, ...]:
        """Variables that there are."""
        return tuple(self.parts)

    @property
    def block(self) -> tuple[int, int, int]:
        """One plane."""
        return 1, self.shape[1], self.shape[2]

    @property
    def images(self) -> dict[str, Image]:
        """Field-of-view images by name."""
        return {name: (header, image.read) for name, (header, image) in self.image_parts.items()}

    def read(self, name: str, region: Region) -> NDArray[Any]:
        """Read a piece of ``flux`` or ``variance``; flagged voxels are NaN."""
        values = self.parts[name].read(region)
        if self.dq is not None:
            values[self.dq.read(region) != 0] = np.nan
        return values


def scan_cube(path: str | os.PathLike[str]) -> FitsCube:
    """Check a FITS cube and locate its data, without reading them.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    FitsCube

    Raises
    ------
    InputError
        If the file is missing, not (uncompressed) FITS, truncated, has no extension ``DATA`` with
        three axes, extensions of different sizes or an unknown wavelength axis.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
    if start[:2] in (b"\x1f\x8b", b"BZ", b"\x1f\x9d", b"PK"):
        raise InputError(f"{path}: a compressed file; uncompress it first")
    if start != b"SIMPLE  =":
        raise InputError(f"{path}: not a FITS file: it does not start with the keyword SIMPLE")
    extensions: dict[str, tuple[fits.Header, FitsImage]] = {}
    try:
        with warnings.catch_warnings():
            # cards that break the standard, and files that end early: the latter is checked below
            warnings.simplefilter("ignore", AstropyUserWarning)
            with fits.open(
                path, memmap=False, disable_image_compression=True, do_not_scale_image_data=True
            ) as hdus:
                primary = _clean(hdus[0].header)
                for hdu in hdus[1:]:
                    name = str(hdu.header.get("EXTNAME", "")).strip()
                    if isinstance(hdu, fits.ImageHDU) and name and name not in extensions:
                        extensions[name] = _clean(hdu.header), _locate(path, name, hdu)
                    elif name == "DATA" and "ZIMAGE" in hdu.header:
                        raise InputError(f"{path}[DATA]: a tile-compressed image; run funpack first")
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"{path}: cannot be read as FITS: {error}") from error

    if "DATA" not in extensions:
        found = ", ".join(extensions) or "none"
        raise InputError(f"{path}: not a MUSE cube: no image extension DATA (found: {found}); truncated?")
    for name, key in (("DATA", "flux"), ("STAT", "variance"), ("DQ", "dq")):
        if name not in extensions:
            continue
        image = extensions[name][1]
        if name == "DATA" and len(image.shape) != 3:
            raise InputError(f"{path}[DATA]: NAXIS = {len(image.shape)} found, expected 3")
        if image.shape != extensions["DATA"][1].shape:
            raise InputError(
                f"{path}[{name}]: {_size(image.shape)} pixels found, expected those of DATA, "
                f"{_size(extensions['DATA'][1].shape)}"
            )
        if key != "dq" and np.dtype(image.dtype).kind != "f":
            extensions[name] = extensions[name][0], replace(image, as_float=True)
        if image.offset + image.n_bytes > size:
            raise InputError(
                f"{path}[{name}]: truncated: it ends at byte {image.offset + image.n_bytes}, "
                f"the file has {size}"
            )
    data, flux = extensions["DATA"]
    wavelength, ctype = wavelength_axis(data, flux.shape[0], f"{path}[DATA]")
    names = (("DATA", "flux"), ("STAT", "variance"))
    parts = {key: extensions[name][1] for name, key in names if name in extensions}
    images = {
        name: (header, image)
        for name, (header, image) in extensions.items()
        if image.shape == flux.shape[1:] and image.dtype == ">f4" and image.offset + image.n_bytes <= size
    }
    return FitsCube(
        path,
        parts,
        extensions["DQ"][1] if "DQ" in extensions else None,
        primary,
        data,
        extensions["STAT"][0] if "STAT" in extensions else fits.Header(),
        wavelength,
        ctype,
        images,
    )


def _clean(header: fits.Header) -> fits.Header:
    # through JSON once: every source has the same, parsed and writable cards
    return cards_from_json(cards_to_json(header))


def _locate(path: Path, name: str, hdu: fits.ImageHDU) -> FitsImage:
    head = hdu.header
    shape = tuple(head[f"NAXIS{axis}"] for axis in range(head["NAXIS"], 0, -1))
    return FitsImage(
        path,
        name,
        hdu.fileinfo()["datLoc"],
        shape,
        _DTYPES[head["BITPIX"]],
        float(head.get("BSCALE", 1)),
        float(head.get("BZERO", 0)),
        head.get("BLANK"),
    )


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape[::-1])


# --- Zarr --------------------------------------------------------------------------------------


class ZarrCube:
    """A cube in a Zarr group.  A `CubeSource`.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    InputError
        If it is no cube of this schema.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import zarr

        self.label = str(path)
        try:
            group: Any = zarr.open_group(self.label, mode="r", zarr_format=3)
        except (FileNotFoundError, ValueError, KeyError, OSError) as error:
            raise InputError(f"{path}: not a Zarr group of version 3: {error}") from error
        version = group.attrs.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path}: attribute schema_version = {version} found, expected {SCHEMA_VERSION}; not a cube?"
            )
        missing = [n for n in ("flux", "wavelength") if n not in group]
        missing += [n for n in ("primary_header", "data_header") if n not in group.attrs]
        if missing:
            raise InputError(f"{path}: not a complete cube: no {', '.join(missing)}")
        self._arrays: dict[str, Any] = {n: group[n] for n in ("flux", "variance") if n in group}
        self._group = group
        shape = self._arrays["flux"].shape
        for name, array in self._arrays.items():
            if len(shape) != 3 or array.shape != shape:
                raise InputError(f"{path}[{name}]: shape {array.shape} found, expected three axes like flux")
        self.shape: tuple[int, int, int] = shape
        self.names = tuple(self._arrays)
        self.primary = cards_from_json(str(group.attrs["primary_header"]))
        self.data = cards_from_json(str(group.attrs["data_header"]))
        self.stat = cards_from_json(str(group.attrs.get("stat_header", "[]")))
        self.wavelength = np.asarray(group["wavelength"][...], np.float64)
        if len(self.wavelength) != shape[0]:
            raise InputError(f"{path}[wavelength]: {len(self.wavelength)} values found, expected {shape[0]}")
        self.ctype = str(group["wavelength"].attrs.get("ctype", "AWAV"))
        self.block: tuple[int, int, int] = self._arrays["flux"].chunks

    @property
    def shards(self) -> tuple[int, int, int]:
        """Shape of the files: shards, or chunks if there are none."""
        array = self._arrays["flux"]
        return array.shards or array.chunks

    @property
    def images(self) -> dict[str, Image]:
        """Field-of-view images by filter name."""
        return _images(dict(self._group.arrays()))

    def read(self, name: str, region: Region) -> NDArray[Any]:
        """Read a piece of ``flux`` or ``variance``."""
        return self._arrays[name][region]


class DatasetCube:
    """A cube that is a dataset, lazy or in memory.  A `CubeSource`."""

    def __init__(self, dataset: xr.Dataset) -> None:
        register_accessor()
        missing = [n for n in ("primary_header", "data_header") if n not in dataset.attrs]
        if "flux" not in dataset or missing:
            raise InputError(f"not a cube: the dataset has no {', '.join(missing) or 'variable flux'}")
        self._dataset = dataset.transpose(*DIMS, ...)
        self.label = "dataset"
        self.shape: tuple[int, int, int] = self._dataset["flux"].shape  # type: ignore[assignment]
        self.names = tuple(n for n in ("flux", "variance") if n in dataset)
        self.primary: fits.Header = dataset.muse.header
        self.data: fits.Header = dataset.muse.data_header
        self.stat: fits.Header = dataset.muse.stat_header if "stat_header" in dataset.attrs else fits.Header()
        self.wavelength = np.asarray(dataset["wavelength"].values, np.float64)
        self.ctype = str(dataset["wavelength"].attrs.get("ctype", self.data.get("CTYPE3", "AWAV")))
        chunks = self._dataset["flux"].chunks
        self.block: tuple[int, int, int] = (
            tuple(c[0] for c in chunks) if chunks else (1, *self.shape[1:])  # type: ignore[assignment]
        )

    @property
    def images(self) -> dict[str, Image]:
        """Field-of-view images by filter name."""
        return _images({str(name): variable for name, variable in self._dataset.data_vars.items()})

    def read(self, name: str, region: Region) -> NDArray[Any]:
        """Read a piece of ``flux`` or ``variance``."""
        return np.array(self._dataset[name].data[region])


def _images(variables: Mapping[str, Any]) -> dict[str, Image]:
    found = [(v.attrs.get("order", 0), name, v) for name, v in variables.items() if name.startswith("fov_")]
    return {
        str(variable.attrs.get("filter", name[4:])): (
            cards_from_json(str(variable.attrs.get("header", "[]"))),
            partial(_whole, variable),
        )
        for _, name, variable in sorted(found, key=lambda item: item[:2])
    }


def _whole(image: Any) -> NDArray[np.float32]:
    return np.array(image[...], np.float32)


def is_zarr(path: str | os.PathLike[str]) -> bool:
    """Whether a path is (or, by its suffix, shall be) a Zarr group."""
    return Path(path).suffix == ".zarr" or (Path(path) / "zarr.json").exists()


def open_source(cube: str | os.PathLike[str] | xr.Dataset | CubeSource) -> CubeSource:
    """Open anything that holds a cube for reading in pieces.

    Raises
    ------
    InputError
        See `scan_cube` and `ZarrCube`.
    """
    if isinstance(cube, str | os.PathLike):
        if not Path(cube).exists():
            raise InputError(f"{cube}: no such file")
        return ZarrCube(cube) if is_zarr(cube) else scan_cube(cube)
    # by what it has, so that xarray need not be imported for a file
    return DatasetCube(cube) if hasattr(cube, "data_vars") else cube  # type: ignore[arg-type, return-value]
