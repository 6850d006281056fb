"""Scenes from real cubes: the sky as it was observed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numba as nb
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..io.cube_read import CubeSource, open_source
from .scene import deproject, flat_arrays, scene_from_dict

#: cubes of at most so many bytes are kept in memory; of others pieces are read for so many points
_WHOLE_CUBE, _PIECE_POINTS = 256 << 20, 1 << 15


@dataclass(frozen=True)
class CubeScene:
    """A real cube as the sky, interpolated linearly in all three axes.

    A cube of more than 256 MiB stays on disk, and pieces are read where they are needed.  A scene with a file is
    pickled as the path of it.

    Attributes
    ----------
    data : ndarray, shape (n_wave, n_y, n_x), float32, or None
        Flux density per spaxel; no NaN.  None if the cube stays on disk.
    ra, dec : float
        Sky position of the centre of the cube, which is the origin of the scene [deg].
    to_pixel : tuple of float
        ``(a, b, c, d)``: offsets [arcsec] to offsets from the central pixel,
        ``x = a * dra + b * ddec``, ``y = c * dra + d * ddec``.
    wave0, wave_step : float
        Wavelength of the first plane and step [Angstrom].
    outside : {"mirror", "zero"}
        What lies beyond the edges of the field: the cube reflected again and again, or nothing.
        Beyond the wavelength range the first and last planes go on.
    source : str
        Path of the cube.
    scale : float
        Factor of the data.
    shape : tuple of int
        Planes, rows, columns.
    """

    data: NDArray[np.float32] | None = field(repr=False, compare=False)
    ra: float
    dec: float
    to_pixel: tuple[float, float, float, float]
    wave0: float
    wave_step: float
    outside: Literal["mirror", "zero"] = "mirror"
    source: str = ""
    scale: float = 1.0
    shape: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if self.data is not None:
            object.__setattr__(self, "shape", self.data.shape)
        elif not self.source:
            raise InputError("cube: neither data nor a source")

    @classmethod
    def from_cube(
        cls,
        path: str | os.PathLike[str],
        *,
        outside: Literal["mirror", "zero"] = "mirror",
        ra: float | None = None,
        dec: float | None = None,
    ) -> CubeScene:
        """Open a cube in FITS (extension ``DATA``) or Zarr with a linear wavelength axis in air.

        Parameters
        ----------
        path : path-like
        outside : {"mirror", "zero"}
            See the attribute.
        ra, dec : float, optional
            Where the centre of the cube is put [deg]; default: where it is.

        Returns
        -------
        CubeScene

        Raises
        ------
        InputError
            If it is not such a cube.
        """
        if outside not in ("mirror", "zero"):
            raise InputError(f"outside: {outside!r} found, expected mirror or zero")
        source = open_source(path)
        header, wave, shape = source.data, source.wavelength, source.shape
        ctypes = tuple(str(header.get(f"CTYPE{i}", "")).strip() for i in (1, 2))
        if ctypes != ("RA---TAN", "DEC--TAN") or source.ctype != "AWAV":
            raise InputError(
                f"{path}: CTYPE {', '.join(ctypes)}, {source.ctype} found, expected RA---TAN, DEC--TAN, AWAV"
            )
        if min(shape) < 1:
            raise InputError(f"{path}: {shape[2]} x {shape[1]} x {shape[0]} pixels found, expected a cube")
        try:
            crpix, crval = ([float(header[f"{key}{i}"]) for i in (1, 2)] for key in ("CRPIX", "CRVAL"))
            cd = np.array([[float(header.get(f"CD{i}_{j}", 0.0)) for j in (1, 2)] for i in (1, 2)])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: CRPIXi, CRVALi and CDi_j must be numbers: {error}") from error
        if abs(np.linalg.det(cd)) == 0:
            raise InputError(f"{path}: the matrix CDi_j is missing or singular")
        data = None
        if 4 * int(np.prod(shape, dtype=np.int64)) <= _WHOLE_CUBE:
            data = _clean_piece(source, (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])))
        xi, eta = np.radians(cd @ np.array([(shape[2] + 1) / 2 - crpix[0], (shape[1] + 1) / 2 - crpix[1]]))
        centre = deproject(float(xi), float(eta), *crval)
        inverse = np.linalg.inv(cd * 3600)
        return cls(
            data,
            centre[0] if ra is None else float(ra),
            centre[1] if dec is None else float(dec),
            (float(inverse[0, 0]), float(inverse[0, 1]), float(inverse[1, 0]), float(inverse[1, 1])),
            float(wave[0]),
            float(wave[1] - wave[0]) if len(wave) > 1 else 1.25,
            outside,
            str(path),
            1.0,
            shape,
        )

    @property
    def spaxel_area(self) -> float:
        """Solid angle of a spaxel of the cube [arcsec2]."""
        a, b, c, d = self.to_pixel
        return 1 / abs(a * d - b * c)

    @property
    def reach(self) -> float:
        """Distance of the corners of the cube from its centre [arcsec]."""
        a, b, c, d = self.to_pixel
        inverse = np.linalg.inv([[a, b], [c, d]])
        _, ny, nx = self.shape
        corners = inverse @ (0.5 * np.array([[nx, nx], [ny, -ny]]))
        return float(np.hypot(*corners).max())

    def observed(self, *, spaxel_area: float) -> CubeScene:
        """The same sky seen by spaxels of another size; its seeing and line widths are what they are."""
        return replace(self, scale=spaxel_area / self.spaxel_area)

    def surface_brightness(
        self, dra_arcsec: ArrayLike, ddec_arcsec: ArrayLike, wave: ArrayLike
    ) -> NDArray[np.float32]:
        """Flux density per spaxel; see `Scene.surface_brightness`."""
        x, y, w, shape = flat_arrays(dra_arcsec, ddec_arcsec, wave)
        out = np.empty(x.size, np.float32)
        for first in range(0, x.size, _PIECE_POINTS if self.data is None else max(1, x.size)):
            part = slice(first, first + _PIECE_POINTS if self.data is None else None)
            self._interpolated(x[part], y[part], w[part], out[part])
        return out.reshape(shape)

    def _interpolated(
        self, x: NDArray[np.float64], y: NDArray[np.float64], w: NDArray[np.float64], out: NDArray[np.float32]
    ) -> None:
        matrix = np.array([*self.to_pixel, self.wave0, self.wave_step, self.scale])
        shape, mirror = np.array(self.shape), self.outside == "mirror"
        box = np.zeros((3, 2), np.int64)
        if self.data is not None:
            _interpolate(x, y, w, self.data, box[:, 0], shape, matrix, mirror, out)
            return
        _bounds(x, y, w, shape, matrix, mirror, box)
        if (box[:, 1] <= box[:, 0]).any():
            out[:] = 0
            return
        if 4 * np.prod(box[:, 1] - box[:, 0]) > _WHOLE_CUBE and x.size > 1:
            half = x.size // 2
            for part in (slice(None, half), slice(half, None)):
                self._interpolated(x[part], y[part], w[part], out[part])
            return
        low, piece = self._piece[0]
        if not ((low <= box[:, 0]).all() and (box[:, 1] <= low + piece.shape).all()):
            # wavelengths are the slowest axis: what comes next is likely to be near these
            low = box[:, 0].copy()
            piece = _clean_piece(self._open, tuple(slice(int(a), int(b)) for a, b in box))  # type: ignore[arg-type]
            self._piece[0] = low, piece
        _interpolate(x, y, w, piece, low, shape, matrix, mirror, out)

    @cached_property
    def _open(self) -> CubeSource:
        return open_source(self.source)

    @cached_property
    def _piece(self) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The piece that was read last, and where it begins; replaced as a whole."""
        return [(np.zeros(3, np.int64), np.zeros((0, 0, 0), np.float32))]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the path, not the pixels."""
        return {
            "kind": "cube", "source": self.source, "outside": self.outside, "ra": self.ra, "dec": self.dec,
            "scale": self.scale,
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source:
            return scene_from_dict, (self.to_dict(),)
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)


def _clean_piece(source: CubeSource, region: tuple[slice, slice, slice]) -> NDArray[np.float32]:
    data = np.ascontiguousarray(source.read("flux", region), np.float32)
    np.nan_to_num(data, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return data


@nb.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _pixel(x, y, w, shape, matrix, mirror):  # type: ignore[no-untyped-def]
    """Fractional pixel of a position and wavelength; a plane of -1 is outside."""
    px = matrix[0] * x + matrix[1] * y + 0.5 * (shape[2] - 1)
    py = matrix[2] * x + matrix[3] * y + 0.5 * (shape[1] - 1)
    pz = min(max((w - matrix[4]) / matrix[5], 0.0), shape[0] - 1.0)
    if mirror:
        px, py = _reflect(px, shape[2]), _reflect(py, shape[1])
    elif px < 0.0 or py < 0.0 or px > shape[2] - 1.0 or py > shape[1] - 1.0:
        pz = -1.0
    return px, py, pz


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _bounds(dra, ddec, wave, shape, matrix, mirror, box):  # type: ignore[no-untyped-def]
    """Smallest piece of the cube from which `_interpolate` can work."""
    box[:, 0], box[:, 1] = shape, 0
    for i in range(dra.size):
        x, y, z = _pixel(dra[i], ddec[i], wave[i], shape, matrix, mirror)
        if z < 0.0:
            continue
        for axis, value in enumerate((z, y, x)):
            k = min(int(value), max(shape[axis] - 2, 0))
            box[axis, 0] = min(box[axis, 0], k)
            box[axis, 1] = max(box[axis, 1], min(k + 2, shape[axis]))


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _interpolate(dra, ddec, wave, data, origin, shape, matrix, mirror, out):  # type: ignore[no-untyped-def]
    nz, ny, nx = shape
    z0, y0, x0 = origin
    scale = matrix[6]
    for i in range(dra.size):
        x, y, z = _pixel(dra[i], ddec[i], wave[i], shape, matrix, mirror)
        if z < 0.0:
            out[i] = 0.0
            continue
        kx, ky, kz = min(int(x), max(nx - 2, 0)), min(int(y), max(ny - 2, 0)), min(int(z), max(nz - 2, 0))
        fx, fy, fz = x - kx, y - ky, z - kz
        mx, my, mz = min(kx + 1, nx - 1) - x0, min(ky + 1, ny - 1) - y0, min(kz + 1, nz - 1) - z0
        kx, ky, kz = kx - x0, ky - y0, kz - z0
        low = (1 - fy) * ((1 - fx) * data[kz, ky, kx] + fx * data[kz, ky, mx]) + fy * (
            (1 - fx) * data[kz, my, kx] + fx * data[kz, my, mx]
        )
        high = (1 - fy) * ((1 - fx) * data[mz, ky, kx] + fx * data[mz, ky, mx]) + fy * (
            (1 - fx) * data[mz, my, kx] + fx * data[mz, my, mx]
        )
        out[i] = ((1 - fz) * low + fz * high) * scale


@nb.njit(nogil=True, cache=True, inline="always")
def _reflect(x, n):  # type: ignore[no-untyped-def]
    if n < 2:
        return 0.0
    period = 2.0 * (n - 1)
    x = abs(x) % period
    return period - x if x > n - 1 else x
