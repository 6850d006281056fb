"""Images of the reference pipeline: MUSE_IMAGE (DATA, DQ, STAT), masks, wavelength maps, twilight cubes.

Files of the size of a detector are written and read one IFU at a time, without astropy's copies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..errors import InputError
from .cards import header_bytes
from .files import atomic_path
from .headers import OF_ONE_IFU, STRUCTURAL, WCS, append_cards, remove_cards, set_card
from .product_headers import part_cards
from .products import PathLike, channel, channel_number, open_fits, product_header

_BLOCK = 2880
#: bytes that are read and swapped at a time
_PIECE = 1 << 18
_BITPIX = {np.dtype(np.float32): -32, np.dtype(np.int32): 32, np.dtype(np.uint8): 8, np.dtype(np.float64): -64}


@dataclass(frozen=True, eq=False)
class MuseImage:
    """An image with quality and variance.

    Attributes
    ----------
    data : ndarray of float32, shape (ny, nx)
    dq : ndarray of int32, shape (ny, nx), or None
        Bits of the Euro3D convention; 0 is good.
    stat : ndarray of float32, shape (ny, nx), or None
        Variance.
    unit : str
        Of the data: ``adu``, ``count``.
    header : astropy.io.fits.Header
        Primary header with ``EXTNAME = CHANnn``; of a merged file, with the cards of this IFU.
    """

    data: NDArray[np.float32]
    dq: NDArray[np.int32] | None = None
    stat: NDArray[np.float32] | None = None
    unit: str = "count"
    header: fits.Header = field(default_factory=fits.Header, repr=False)

    def parts(self) -> dict[str, NDArray[Any]]:
        """The arrays that there are, by the names of their extensions.

        Raises
        ------
        InputError
            If their shapes differ, or are not those of images.
        """
        parts: dict[str, NDArray[Any]] = {"DATA": np.asarray(self.data, np.float32)}
        if self.dq is not None:
            parts["DQ"] = np.asarray(self.dq, np.int32)
        if self.stat is not None:
            parts["STAT"] = np.asarray(self.stat, np.float32)
        shapes = {name: part.shape for name, part in parts.items()}
        if len(set(shapes.values())) > 1 or parts["DATA"].ndim != 2:
            raise InputError(f"MUSE_IMAGE: shapes {shapes} found, expected the same two axes of all")
        return parts


def write_muse_image(
    path: PathLike, image: MuseImage, *, header: fits.Header | None = None, overwrite: bool = False
) -> Path:
    """Write the image of one IFU.

    Parameters
    ----------
    path : path-like
    image : MuseImage
    header : astropy.io.fits.Header, optional
        Primary header, see `musedask.io.products.product_header`; default: that of the image.
    overwrite : bool

    Raises
    ------
    OutputExistsError, PlanError
        If the file exists, or the disk is full.
    InputError
        If the shapes of the parts differ.
    """
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        _put_primary(file, image.header if header is None else header)
        _put_parts(file, image, "", fits.Header())
    return path


def write_merged_images(
    path: PathLike, images: Iterable[tuple[int, MuseImage]], *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write the images of several IFUs into one file, as ``--merge`` and ESO's archive do.

    Parameters
    ----------
    path : path-like
    images : iterable of (int, MuseImage)
        IFU and image, one in memory at a time; cards of their headers about the CCD and its quality
        control go into their extensions.
    header : astropy.io.fits.Header
        Of the whole; its ``EXTNAME`` and the cards of one IFU are left out.
    overwrite : bool

    Raises
    ------
    OutputExistsError, PlanError, InputError
        As in `write_muse_image`.
    """
    path = Path(path)
    common = header.copy()
    remove_cards(common, OF_ONE_IFU)
    common.remove("EXTNAME", ignore_missing=True)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        _put_primary(file, common)
        for ifu, image in images:
            own = fits.Header()
            cards = [[c.keyword, c.value, c.comment] for c in image.header.cards if OF_ONE_IFU.match(c.keyword)]
            append_cards(own, cards)
            _put_parts(file, image, f"{channel(ifu)}.", own)
    return path


def _put_primary(file: BinaryIO, header: fits.Header) -> None:
    whole = fits.Header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)])
    append_cards(whole, _plain_cards(header))
    file.write(header_bytes(whole))


def _plain_cards(header: fits.Header) -> list[list[Any]]:
    """Cards without those of the structure and of world coordinates."""
    return [
        [c.keyword, c.value, c.comment]
        for c in header.cards
        if not STRUCTURAL.match(c.keyword) and not WCS.match(c.keyword) and c.keyword != "BUNIT"
    ]


def _put_parts(file: BinaryIO, image: MuseImage, prefix: str, cards: fits.Header) -> None:
    parts = image.parts()
    for name, part in parts.items():
        header = _extension_header(part, f"{prefix}{name}")
        set_card(header, "INHERIT", True, "Primary header keywords are inherited")
        append_cards(header, part_cards(name, list(parts), prefix))
        if name != "DQ":
            set_card(header, "BUNIT", image.unit if name == "DATA" else f"({image.unit})**2", "")
        append_cards(header, [[c.keyword, c.value, c.comment] for c in cards.cards])
        file.write(header_bytes(header))
        put_array(file, part)


def _extension_header(array: NDArray[Any], name: str) -> fits.Header:
    header = fits.Header([("XTENSION", "IMAGE"), ("BITPIX", _BITPIX[array.dtype]), ("NAXIS", array.ndim)])
    for i, n in enumerate(reversed(array.shape), 1):
        header[f"NAXIS{i}"] = n
    header["PCOUNT"], header["GCOUNT"], header["EXTNAME"] = 0, 1, name
    return header


def put_array(file: BinaryIO, array: NDArray[Any], rows: int = 512) -> None:
    """Write the data unit of an image, a band of rows at a time."""
    big = array.dtype.newbyteorder(">")
    for start in range(0, len(array), rows):
        file.write(np.ascontiguousarray(array[start : start + rows], big).tobytes())
    file.write(b"\0" * (-array.nbytes % _BLOCK))


def read_muse_image(path: PathLike, *, ifu: int | None = None) -> MuseImage:
    """Read an image of one IFU from a file of its own or a merged one; tile compression is undone.

    Parameters
    ----------
    path : path-like
    ifu : int, optional
        IFU wanted; needed if the file has those of several.

    Raises
    ------
    InputError
        If the file or the IFU is missing, there is no ``DATA``, it has no unit, or shapes differ.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        header = hdus[0].header.copy()
        names = [str(h.header.get("EXTNAME", "")).strip() for h in hdus]
        own = channel_number(header.get("EXTNAME"))
        merged = [int(n[4:6]) for n in names if re.match(r"^CHAN\d\d\.DATA$", n)]
        if "DATA" in names[1:] and (ifu is None or own in (None, ifu)):
            prefix = ""
        elif ifu in merged or (ifu is None and len(merged) == 1):
            number = merged[0] if ifu is None else ifu
            prefix = f"{channel(number)}."
            header["EXTNAME"] = channel(number)
        else:
            wanted = "DATA" if ifu is None else f"DATA of IFU {ifu}"
            found = ", ".join(n for n in names if n) or "no named extension"
            raise InputError(f"{path}: there is no single {wanted}; it has {found}")
        parts: dict[str, NDArray[Any]] = {}
        for name, dtype in (("DATA", np.float32), ("DQ", np.int32), ("STAT", np.float32)):
            if prefix + name in names[1:]:
                hdu = hdus[names.index(prefix + name, 1)]
                plain = _read_plain(path, hdu, np.dtype(dtype))
                if plain is None and (hdu.data is None or hdu.data.ndim != 2):
                    raise InputError(f"{path}[{prefix}{name}]: there is no image")
                parts[name] = _native(hdu.data, np.dtype(dtype)) if plain is None else plain
                if name == "DATA":
                    unit = str(hdu.header.get("BUNIT", "")).strip()
                    if prefix:
                        append_cards(header, [[c.keyword, c.value, c.comment] for c in hdu.header["ESO *"].cards])
                if plain is None:
                    del hdu.data
        shapes = {name: part.shape for name, part in parts.items()}
        if len(set(shapes.values())) > 1:
            raise InputError(f"{path}: shapes {shapes} found, expected the same of all")
        if not unit:
            raise InputError(f"{path}[{prefix}DATA]: there is no BUNIT")
        return MuseImage(parts["DATA"], parts.get("DQ"), parts.get("STAT"), unit, header)


def read_quality(path: PathLike) -> Iterator[tuple[int, NDArray[np.int32], fits.Header]]:
    """Read the qualities of the pixels of all IFUs of an image, one after the other.

    Parameters
    ----------
    path : path-like
        Image of one IFU or a merged one.

    Yields
    ------
    ifu : int
    dq : ndarray of int32, shape (ny, nx)
        Bits of the Euro3D convention.
    header : astropy.io.fits.Header
        As in `MuseImage`.

    Raises
    ------
    InputError
        If the file is missing, there is no ``DQ``, or it is unknown of which IFU it is.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        own = channel_number(hdus[0].header.get("EXTNAME"))
        names = [str(h.header.get("EXTNAME", "")).strip() for h in hdus]
        found = [(i, own if n == "DQ" else channel_number(n)) for i, n in enumerate(names) if n.split(".")[-1] == "DQ"]
        if not found:
            known = ", ".join(n for n in names if n) or "no named extension"
            raise InputError(f"{path}: there is no DQ; it has {known}")
        for number, ifu in found:
            if ifu is None:
                raise InputError(f"{path}: there is no EXTNAME = CHANnn in its primary header; of which IFU is it?")
            hdu = hdus[number]
            if hdu.data is None or hdu.data.ndim != 2 or hdu.data.dtype.kind not in "iu":
                raise InputError(f"{path}[{names[number]}]: there is no image of whole numbers")
            header = hdus[0].header.copy()
            if names[number] != "DQ":
                append_cards(header, [[c.keyword, c.value, c.comment] for c in hdu.header["ESO *"].cards])
                header["EXTNAME"] = channel(ifu)
            yield ifu, np.asarray(hdu.data).astype(np.int32), header
            del hdu.data


def _read_plain(path: Path, hdu: Any, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Image of an ordinary extension, a piece at a time that stays in the cache; None if it is not one.

    What is compressed, scaled, of another type or truncated is left to astropy.
    """
    header = hdu.header
    if type(hdu) is not fits.ImageHDU or header["BITPIX"] != _BITPIX[dtype] or header["NAXIS"] != 2:
        return None
    if not header["NAXIS1"] * header["NAXIS2"] or header.get("BZERO", 0) != 0 or header.get("BSCALE", 1) != 1:
        return None
    from .checksum import swap_into

    image = np.empty((header["NAXIS2"], header["NAXIS1"]), dtype)
    words = image.reshape(-1).view(np.uint32)
    buffer = np.empty(min(_PIECE // 4, words.size), np.uint32)
    with open(path, "rb", buffering=0) as file:
        # a file that is compressed as a whole begins otherwise
        if file.read(6) != b"SIMPLE":
            return None
        file.seek(hdu.fileinfo()["datLoc"])
        for i in range(0, words.size, buffer.size):
            piece = buffer[: words.size - i]
            if file.readinto(piece.view(np.uint8).data) != piece.nbytes:
                return None
            swap_into(piece, words[i : i + piece.size])
    return image


def _native(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers in the order of this machine; bytes are swapped where they are, if they belong to nobody else."""
    if array.dtype == dtype.newbyteorder(">") and array.dtype != dtype and array.flags.writeable:
        return np.ascontiguousarray(array).byteswap(inplace=True).view(dtype)
    return array.astype(dtype)


# --- images in the primary HDU ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mask:
    """SKY_MASK, VIGNETTING_MASK or AUTOCAL_MASK.

    Attributes
    ----------
    data : ndarray of int32, shape (ny, nx)
        1 where to use the pixel (sky, or vignetted), else 0.
    crpix, crval : tuple of float
        Reference pixel and its coordinates.
    cd : tuple of tuple of float
        CD1_1, CD1_2; CD2_1, CD2_2.
    celestial : bool
        Coordinates are RA and DEC [deg], else spaxels of the field of view [pix].
    """

    data: NDArray[np.int32]
    crpix: tuple[float, float]
    crval: tuple[float, float]
    cd: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    celestial: bool = False


def write_mask(
    path: PathLike,
    mask: Mask,
    *,
    tag: str = "SKY_MASK",
    header: fits.Header | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a mask as an integer image.

    Parameters
    ----------
    path : path-like
    mask : Mask
    tag : str
        SKY_MASK, VIGNETTING_MASK or AUTOCAL_MASK.
    header : astropy.io.fits.Header, optional
    overwrite : bool
    """
    cards: dict[str, Any] = {"WCSAXES": 2}
    types = (("RA---TAN", "deg"), ("DEC--TAN", "deg")) if mask.celestial else (("PIXEL", "pixel"),) * 2
    for i in (1, 2):
        cards[f"CTYPE{i}"], cards[f"CUNIT{i}"] = types[i - 1]
        cards[f"CRPIX{i}"], cards[f"CRVAL{i}"] = float(mask.crpix[i - 1]), float(mask.crval[i - 1])
        for j in (1, 2):
            cards[f"CD{i}_{j}"] = float(mask.cd[i - 1][j - 1])
    return _write_primary(path, np.asarray(mask.data, np.int32), header or product_header(tag), cards, overwrite)


def read_mask(path: PathLike) -> Mask:
    """Read a mask.

    Raises
    ------
    InputError
        If the file or its image is missing, or it has no CD matrix.
    """
    path = Path(path)
    data, h = _read_primary(path)
    missing = [k for k in ("CD1_1", "CD2_2") if k not in h]
    if missing:
        raise InputError(f"{path}: there is no {', '.join(missing)}; not a mask with world coordinates")
    return Mask(
        data.astype(np.int32),
        (h.get("CRPIX1", 0.0), h.get("CRPIX2", 0.0)),
        (h.get("CRVAL1", 0.0), h.get("CRVAL2", 0.0)),
        ((h["CD1_1"], h.get("CD1_2", 0.0)), (h.get("CD2_1", 0.0), h["CD2_2"])),
        str(h.get("CTYPE1", "")).startswith("RA"),
    )


def write_wave_map(
    path: PathLike, wave: NDArray[np.float32], *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a WAVE_MAP: the wavelength of each pixel [Angstrom], 0 outside the slices."""
    return _write_primary(path, np.asarray(wave, np.float32), header, {"BUNIT": "Angstrom"}, overwrite)


def read_wave_map(path: PathLike) -> NDArray[np.float32]:
    """Read a WAVE_MAP.

    Raises
    ------
    InputError
        If the file or its image is missing.
    """
    return _read_primary(Path(path))[0].astype(np.float32)


def _write_primary(
    path: PathLike, data: NDArray[Any], header: fits.Header, cards: Mapping[str, Any], overwrite: bool
) -> Path:
    whole = fits.Header([("SIMPLE", True), ("BITPIX", _BITPIX[data.dtype]), ("NAXIS", data.ndim)])
    for i, n in enumerate(reversed(data.shape), 1):
        whole[f"NAXIS{i}"] = n
    append_cards(whole, _plain_cards(header))
    for keyword, value in cards.items():
        set_card(whole, keyword, value)
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        file.write(header_bytes(whole))
        put_array(file, data)
    return path


def _read_primary(path: Path) -> tuple[NDArray[Any], fits.Header]:
    with open_fits(path) as hdus:
        # a compressed image cannot be in the primary HDU
        hdu = hdus[0] if hdus[0].data is not None or len(hdus) < 2 else hdus[1]
        if hdu.data is None or not isinstance(hdu.data, np.ndarray) or hdu.data.ndim != 2:
            raise InputError(f"{path}: there is no image in its primary HDU")
        return np.asarray(hdu.data), hdu.header.copy()


# --- TWILIGHT_CUBE ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TwilightCube:
    """Illumination of the field by the sky relative to the lamp, in wide planes of wavelength.

    Attributes
    ----------
    data : ndarray of float32, shape (nz, ny, nx)
        Data are divided by it; mean of each plane 1, NaN outside the field.
    x0, y0 : float
        Position of the first spaxel in the field [pix]; the step is 1.
    wave0, wave_step : float
        First plane and step [Angstrom].
    flux : dict of int to float
        Integrated flux of the twilight by IFU: the throughput of the IFUs relative to each other.
    images : dict of str to ndarray
        Images of the field kept beside the cube.
    header : astropy.io.fits.Header
    """

    data: NDArray[np.float32]
    x0: float
    y0: float
    wave0: float = 5000.0
    wave_step: float = 250.0
    flux: dict[int, float] = field(default_factory=dict)
    images: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    header: fits.Header = field(default_factory=fits.Header, repr=False)


_SKY_FLUX = "ESO DRS MUSE FLAT FLUX SKY"


def write_twilight_cube(
    path: PathLike, cube: TwilightCube, *, header: fits.Header, overwrite: bool = False
) -> Path:
    """Write a TWILIGHT_CUBE.

    Parameters
    ----------
    path : path-like
    cube : TwilightCube
    header : astropy.io.fits.Header
        Primary header; the integrated fluxes are added.
    overwrite : bool

    Raises
    ------
    InputError
        If the cube has not three axes.
    """
    data = np.asarray(cube.data, np.float32)
    if data.ndim != 3:
        raise InputError(f"TWILIGHT_CUBE: shape {data.shape} found, expected three axes")
    header = header.copy()
    for ifu, flux in sorted(cube.flux.items()):
        set_card(header, f"{_SKY_FLUX}{ifu}", float(flux), "[count] integrated flux of the twilight")
    plane = {
        "WCSAXES": 2, "CRPIX1": 1.0, "CRPIX2": 1.0, "CRVAL1": float(cube.x0), "CRVAL2": float(cube.y0),
        "CTYPE1": "PIXEL", "CTYPE2": "PIXEL", "CUNIT1": "pixel", "CUNIT2": "pixel", "CD1_1": 1.0, "CD2_2": 1.0,
        "CD1_2": 0.0, "CD2_1": 0.0,
    }  # fmt: skip
    axis = {
        "WCSAXES": 3, "CTYPE3": "AWAV", "CUNIT3": "Angstrom", "CRPIX3": 1.0, "CRVAL3": float(cube.wave0),
        "CD3_3": float(cube.wave_step), "CD1_3": 0.0, "CD2_3": 0.0, "CD3_1": 0.0, "CD3_2": 0.0,
    }  # fmt: skip
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "wb") as file:
        _put_primary(file, header)
        for name, array in {"DATA": data, **cube.images}.items():
            part = np.asarray(array, np.float32)
            cards = _extension_header(part, name)
            for keyword, value in {**plane, **(axis if part.ndim == 3 else {}), "BUNIT": "count"}.items():
                set_card(cards, keyword, value)
            file.write(header_bytes(cards))
            put_array(file, part)
    return path


def read_twilight_cube(path: PathLike) -> TwilightCube:
    """Read a TWILIGHT_CUBE.

    Raises
    ------
    InputError
        If the file, its cube or a world coordinate is missing.
    """
    path = Path(path)
    with open_fits(path) as hdus:
        header = hdus[0].header.copy()
        names = [str(h.header.get("EXTNAME", "")).strip() for h in hdus]
        if "DATA" not in names or hdus["DATA"].data is None or hdus["DATA"].data.ndim != 3:
            raise InputError(f"{path}: there is no cube DATA; it has {', '.join(n for n in names if n) or 'none'}")
        h = hdus["DATA"].header
        missing = [k for k in ("CRVAL1", "CRVAL2", "CRVAL3", "CD1_1", "CD2_2", "CD3_3") if k not in h]
        if missing:
            raise InputError(f"{path}[DATA]: there is no {', '.join(missing)}")
        start = [h[f"CRVAL{i}"] + (1 - h.get(f"CRPIX{i}", 1.0)) * h[f"CD{i}_{i}"] for i in (1, 2, 3)]
        pattern = re.compile(rf"^{_SKY_FLUX}(\d+)$")
        flux = {int(m[1]): float(c.value) for c in header.cards if (m := pattern.match(c.keyword))}
        images = {
            name: np.asarray(hdu.data).astype(np.float32)
            for name, hdu in zip(names, hdus, strict=True)
            if name not in ("", "DATA") and isinstance(hdu.data, np.ndarray) and hdu.data.ndim == 2
        }
        data = np.asarray(hdus["DATA"].data).astype(np.float32)
        return TwilightCube(data, start[0], start[1], start[2], h["CD3_3"], flux, images, header)
