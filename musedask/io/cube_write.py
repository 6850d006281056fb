"""Data cubes: creating the Zarr, streaming FITS and Zarr in bounded memory.

The schema of the Zarr group is in ``docs/architecture.md``.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from .cards import header_bytes
from .cube_read import DIMS, SCHEMA_VERSION, CubeSource, Image, Region, open_source
from .files import atomic_path
from .headers import append_cards, cards_to_json

if TYPE_CHECKING:
    from concurrent.futures import Future

    import xarray as xr
    import zarr

#: default memory of the pieces that are being copied at one time
BYTES_IN_FLIGHT = 256 << 20
_PIECE = 16 << 20
_BLOCK = 2880

Progress = Callable[[int, int], None]


def compressor(name: Literal["lz4", "zstd", "none"] = "lz4") -> Any:
    """Codec of that name: ``lz4`` (with byte shuffle), ``zstd`` or ``none``.

    Noise does not compress: lz4 costs little time and takes the empty corners of a mosaic away.
    """
    from zarr.codecs import BloscCodec

    if name == "none":
        return None
    return BloscCodec(cname=name, clevel=1, shuffle="shuffle")


def default_chunks(shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Chunks and shards for a cube that no plan has been made for.

    Chunks of about 64 voxels a side serve spectra and planes alike; shards are whole rows of
    chunks, so that a FITS file, which stores planes, is read in long stretches.
    """
    chunks = tuple(min(n, 64) for n in shape)
    width = -(-shape[2] // chunks[2]) * chunks[2]
    rows = max(1, min(-(-shape[1] // chunks[1]), (64 << 20) // (4 * chunks[0] * chunks[1] * width)))
    return (chunks[0], chunks[1], chunks[2]), (chunks[0], rows * chunks[1], width)


def create_cube_store(
    path: str | os.PathLike[str],
    shape: tuple[int, int, int],
    *,
    chunks: tuple[int, int, int],
    shards: tuple[int, int, int] | None,
    wavelength: NDArray[np.floating],
    ctype: str,
    primary: fits.Header,
    data: fits.Header,
    stat: fits.Header,
    units: tuple[str, str] = ("", ""),
    extra: Mapping[str, Any] | None = None,
    variance: bool = True,
    codec: Literal["lz4", "zstd", "none"] = "lz4",
) -> zarr.Group:
    """Create the Zarr group of a cube; nothing but metadata and the wavelengths is written.

    Parameters
    ----------
    path : path-like
        Name of the group, usually the temporary one of `atomic_path`; an empty file or folder of
        that name is replaced.
    shape, chunks, shards : tuple of int
        Planes, rows, columns; shards are multiples of chunks, or None.
    wavelength : ndarray, shape (nz,) [Angstrom]
    ctype : str
        Spectral type of the axis.
    primary, data, stat : astropy.io.fits.Header
        Cards of the three parts of the FITS cube; structural ones are left out.
    units : tuple of str
        Units of flux and variance.
    extra : mapping of str to dtype
        Further variables of the same shape, e.g. ``{"n_pixels": "i4"}``.
    variance : bool
        Whether there is a variance.
    codec : str
        See `compressor`.

    Returns
    -------
    zarr.Group
        Open for writing.  Write with `write_region` and `write_image`, end with
        `finish_cube_store`.
    """
    import zarr

    path = Path(path)
    if path.is_file() and path.stat().st_size == 0:
        path.unlink()
    group = zarr.create_group(
        str(path),
        zarr_format=3,
        attributes={
            "schema_version": SCHEMA_VERSION,
            "primary_header": cards_to_json(primary),
            "data_header": cards_to_json(data),
            "stat_header": cards_to_json(stat),
        },
    )
    axis = group.create_array(
        "wavelength",
        data=np.ascontiguousarray(wavelength, np.float64),
        chunks=(shape[0],),
        fill_value=np.nan,
        dimension_names=("wavelength",),
        attributes={"units": "Angstrom", "ctype": ctype},
    )
    assert axis.shape == (shape[0],)
    variables: dict[str, Any] = {"flux": "f4"}
    if variance:
        variables["variance"] = "f4"
    variables.update(extra or {})
    for name, dtype in variables.items():
        unit = dict(zip(("flux", "variance"), units, strict=True)).get(name, "")
        group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            fill_value=np.nan if np.dtype(dtype).kind == "f" else 0,
            compressors=compressor(codec),
            dimension_names=DIMS,
            attributes={"units": unit} if unit else {},
        )
    return group


def write_region(array: Any, start: tuple[int, int, int], values: NDArray[Any]) -> None:
    """Write whole shards of a variable; threads and processes may write different ones at a time.

    Parameters
    ----------
    array : zarr.Array
        ``group["flux"]`` etc.
    start : tuple of int
        First plane, row and column.
    values : ndarray

    Raises
    ------
    ValueError
        If the region is not made of whole shards, which two writers might then share.
    """
    files = array.shards or array.chunks
    stop = tuple(s + n for s, n in zip(start, values.shape, strict=True))
    for first, last, file, size in zip(start, stop, files, array.shape, strict=True):
        if first % file or (last % file and last != size) or last > size:
            raise ValueError(f"region {start} to {stop} is not made of whole shards {files} of {array.shape}")
    array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = values


def write_image(group: zarr.Group, name: str, image: NDArray[np.floating], header: fits.Header) -> None:
    """Add a field-of-view image ``fov_<name>``; an existing one is replaced.

    Its attribute ``order`` keeps the order of the images, which a group does not have.
    """
    unit = str(header.get("BUNIT", ""))
    order = sum(1 for key in group.array_keys() if key.startswith("fov_") and key != f"fov_{name}")
    group.create_array(
        f"fov_{name}",
        data=np.ascontiguousarray(image, np.float32),
        chunks=image.shape,
        fill_value=np.nan,
        dimension_names=DIMS[1:],
        attributes={
            "header": cards_to_json(header),
            "filter": name,
            "order": order,
            **({"units": unit} if unit else {}),
        },
        overwrite=True,
    )


def finish_cube_store(path: str | os.PathLike[str]) -> None:
    """Gather the metadata of a finished group, so that ``xarray.open_zarr`` opens it at once."""
    import zarr

    with warnings.catch_warnings():
        # gathered metadata are not yet in the standard of version 3, but xarray asks for them
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(str(path), zarr_format=3)


# --- copying cubes -----------------------------------------------------------------------------


def iter_regions(shape: tuple[int, int, int], step: tuple[int, int, int]) -> Iterator[Region]:
    """Yield the boxes of size `step` that cover a cube, planes outermost."""
    nz, ny, nx = shape
    dz, dy, dx = step
    for z in range(0, nz, dz):
        for y in range(0, ny, dy):
            for x in range(0, nx, dx):
                yield slice(z, min(nz, z + dz)), slice(y, min(ny, y + dy)), slice(x, min(nx, x + dx))


def band_step(source: CubeSource, n_bytes: int) -> tuple[int, int, int]:
    """Shape of pieces of whole rows to go through a cube with.

    Pieces are multiples of the source's blocks, so that none is decoded twice, of about 16 MiB
    (larger arrays cost more time to be had from the system than to be filled), and in any case
    within `n_bytes`, at the price of parts of blocks, if one row fits.
    """
    nz, ny, nx = source.shape
    bz, by, _ = (min(b, n) for b, n in zip(source.block, source.shape, strict=True))
    row = 4 * nx
    if bz * by * row > n_bytes:
        by = max(1, min(by, n_bytes // (bz * row)))
        return max(1, min(bz, n_bytes // (by * row))), by, nx
    wanted = min(n_bytes, _PIECE)
    rows = min(ny, max(1, wanted // (bz * row * by)) * by)
    planes = min(nz, max(1, wanted // (rows * row * bz)) * bz) if rows == ny else bz
    return planes, rows, nx


def run_pieces(
    work: Callable[[Any], int], pieces: Sequence[Any], *, threads: int, progress: Progress | None, total: int
) -> None:
    """Do independent pieces with threads; each returns the bytes it moved."""
    from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

    waiting = iter(pieces)
    done = 0
    with ThreadPoolExecutor(threads) as pool:
        # no more futures than threads need: the results of many pieces would be kept
        running = {pool.submit(work, piece) for piece in islice(waiting, 2 * threads)}
        try:
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += future.result()
                    if progress is not None:
                        progress(done, total)
                    running.update(pool.submit(work, piece) for piece in islice(waiting, 1))
        finally:
            for future in running:
                future.cancel()


@dataclass
class Hdu:
    """One HDU of a file that is being written.

    Attributes
    ----------
    header : astropy.io.fits.Header
        Complete but for its checksums, see `layout_primary` and `layout_extension`.
    shape : tuple of int
        Of its float32 values; empty if there are none.
    start : int
        Its first byte, set by `HduWriter`.
    """

    header: fits.Header
    shape: tuple[int, ...] = ()
    start: int = 0

    @cached_property
    def header_span(self) -> int:
        """Bytes of the header."""
        return len(header_bytes(self.header))

    @property
    def offset(self) -> int:
        """First byte of the data."""
        return self.start + self.header_span

    @property
    def n_bytes(self) -> int:
        """Bytes of the data without padding."""
        return 4 * int(np.prod(self.shape, dtype=np.int64)) if self.shape else 0

    @property
    def span(self) -> int:
        """Bytes of the data with padding."""
        return -(-self.n_bytes // _BLOCK) * _BLOCK


def layout_primary(cards: fits.Header, datamd5: bool) -> fits.Header:
    """Header of a primary HDU without data, with room for ``DATAMD5``."""
    header = fits.Header(
        [
            ("SIMPLE", True, "file does conform to FITS standard"),
            ("BITPIX", 8, "number of bits per data pixel"),
            ("NAXIS", 0, "number of data axes"),
            ("EXTEND", True, "FITS dataset may contain extensions"),
        ]
    )
    append_cards(header, json.loads(cards_to_json(cards)))
    value = ("0" * 32 if datamd5 else "Not computed", "MD5 checksum")
    if "DATAMD5" in header:
        header["DATAMD5"] = value
    elif "PIPEFILE" in header:
        header.insert("PIPEFILE", ("DATAMD5", *value))
    else:
        header["DATAMD5"] = value
    return header


def layout_extension(cards: fits.Header, shape: tuple[int, ...], name: str, comment: str) -> fits.Header:
    """Header of an image extension of float32 values."""
    header = fits.Header(
        [
            ("XTENSION", "IMAGE", "IMAGE extension"),
            ("BITPIX", -32, "number of bits per data pixel"),
            ("NAXIS", len(shape), "number of data axes"),
            *[(f"NAXIS{i}", n, f"length of data axis {i}") for i, n in enumerate(shape[::-1], 1)],
            ("PCOUNT", 0, "required keyword; must = 0"),
            ("GCOUNT", 1, "required keyword; must = 1"),
        ]
    )
    append_cards(header, json.loads(cards_to_json(cards)))
    if "EXTNAME" in header:
        header["EXTNAME"] = name
    elif "HDUCLASS" in header:
        header.insert("HDUCLASS", ("EXTNAME", name, comment))
    else:
        header["EXTNAME"] = (name, comment)
    return header


def cube_to_fits(
    cube: str | os.PathLike[str] | xr.Dataset | CubeSource,
    path: str | os.PathLike[str],
    *,
    format: Literal["Cube", "xCube"] = "Cube",
    overwrite: bool = False,
    memory_limit: int = BYTES_IN_FLIGHT,
    threads: int = 2,
    datamd5: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write a cube as a FITS file like those of the reference pipeline.

    The cube is streamed: pieces are read, turned to big-endian and written by `threads` threads.

    Parameters
    ----------
    cube : path-like, xarray.Dataset or CubeSource
        Zarr group, FITS file, or dataset from `open_cube` or a part of it.
    path : path-like
        FITS file to write; it appears when it is whole.
    format : {"Cube", "xCube"}
        ``xCube`` appends the field-of-view images.
    overwrite : bool
        Whether an existing file may be replaced.
    memory_limit : int
        Bytes of the pieces that are held at one time.
    threads : int
    datamd5 : bool
        Whether to compute ``DATAMD5`` (see `checksum.datamd5`; about 1.3 s a GB of a core).
    progress : callable, optional
        Called with the bytes written and the bytes in all.

    Raises
    ------
    OutputExistsError, InputError, PlanError
        If the output exists, the cube is unusable, or the disk is full.
    """
    source = open_source(cube)
    with atomic_path(path, overwrite=overwrite) as temporary, open(temporary, "r+b", buffering=0) as file:
        write_fits(
            source,
            file.fileno(),
            images=source.images if format == "xCube" else {},
            memory_limit=memory_limit,
            threads=threads,
            datamd5=datamd5,
            progress=progress,
        )


def write_fits(
    source: CubeSource,
    file: int,
    *,
    images: Mapping[str, Image],
    memory_limit: int = BYTES_IN_FLIGHT,
    threads: int = 2,
    datamd5: bool = True,
    progress: Progress | None = None,
) -> None:
    """Write a cube to an open, empty file; see `cube_to_fits`."""
    extensions = [("flux", "DATA", source.data, "This extension contains data values")]
    if "variance" in source.names:
        extensions.append(("variance", "STAT", source.stat, "This extension contains data variance"))
    hdus = {"": Hdu(layout_primary(source.primary, datamd5))}
    for key, name, cards, comment in extensions:
        hdus[key] = Hdu(layout_extension(cards, source.shape, name, comment), source.shape)
    for name, (cards, _) in images.items():
        header = layout_extension(cards, source.shape[1:], name, "reconstructed image (data values)")
        hdus[f"fov_{name}"] = Hdu(header, source.shape[1:])
    _, ny, nx = source.shape
    # decoding a piece takes its size once more
    step = band_step(source, memory_limit // (2 * threads))
    with HduWriter(file, hdus, datamd5) as out:
        for name, (_, read) in images.items():
            out.put(f"fov_{name}", 0, read())
        if datamd5:
            out.start_md5({key: _head(source, key) for key, *_ in extensions})

        def copy(piece: tuple[str, Region]) -> int:
            key, (z, y, x) = piece
            values = source.read(key, (z, y, x))
            first = nx * (z.start * ny + y.start)
            if y.stop - y.start == ny:
                return out.put(key, first, values)
            return sum(out.put(key, first + nx * ny * i, plane) for i, plane in enumerate(values))

        run_pieces(
            copy,
            [(key, region) for key, *_ in extensions for region in iter_regions(source.shape, step)],
            threads=threads,
            progress=progress,
            total=sum(hdus[key].n_bytes for key, *_ in extensions),
        )


def image_to_fits(
    path: str | os.PathLike[str],
    primary: fits.Header,
    header: fits.Header,
    image: NDArray[np.floating],
    *,
    overwrite: bool = False,
    datamd5: bool = True,
) -> None:
    """Write an image as the reference writes ``IMAGE_FOV``: cards in the primary, extension ``DATA``.

    Parameters
    ----------
    path : path-like
    primary, header : astropy.io.fits.Header
        Cards of the primary and of ``DATA``.
    image : ndarray, shape (ny, nx)
    overwrite, datamd5 : bool
        See `cube_to_fits`.
    """
    comment = "This extension contains data values"
    hdus = {
        "": Hdu(layout_primary(primary, datamd5)),
        "flux": Hdu(layout_extension(header, image.shape, "DATA", comment), image.shape),
    }
    with (
        atomic_path(path, overwrite=overwrite) as temporary,
        open(temporary, "r+b", buffering=0) as file,
        HduWriter(file.fileno(), hdus, datamd5) as out,
    ):
        out.put("flux", 0, image.astype(np.float32))


def append_images(file: int, shape: tuple[int, int], images: Mapping[str, Image]) -> None:
    """Append image extensions to an open FITS file."""
    comment = "reconstructed image (data values)"
    hdus = {
        name: Hdu(layout_extension(cards, shape, name, comment), shape)
        for name, (cards, _) in images.items()
    }
    with HduWriter(file, hdus, False, os.fstat(file).st_size) as out:
        for name, (_, read) in images.items():
            out.put(name, 0, read())


def _head(source: CubeSource, name: str) -> bytes:
    """First bytes of a data unit, as many as `checksum.datamd5` takes."""
    from .checksum import MD5_PERIOD

    nz, ny, nx = source.shape
    rows = -(-MD5_PERIOD // (4 * nx))
    region = slice(0, min(nz, -(-rows // ny))), slice(0, min(ny, rows)), slice(0, nx)
    values = np.asarray(source.read(name, region), ">f4").tobytes()[:MD5_PERIOD]
    return values.ljust(min(MD5_PERIOD, -(-len(values) // _BLOCK) * _BLOCK), b"\0")


class HduWriter:
    """Lays HDUs out in a file, takes their pieces in any order from any thread, signs them at the end."""

    def __init__(self, file: int, hdus: Mapping[str, Hdu], datamd5: bool, start: int = 0) -> None:
        from .checksum import swap_and_sum

        self._file, self._hdus, self._datamd5, self._swap_and_sum = file, hdus, datamd5, swap_and_sum
        self._md5: Future[str] | None = None
        self._failed = Event()
        # appending to a list is safe in any thread
        self._totals: dict[str, list[int]] = {key: [0] for key in hdus}
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        end = start
        for hdu in hdus.values():
            hdu.header["CHECKSUM"] = ("0" * 16, f"HDU checksum updated {stamp}")
            hdu.header["DATASUM"] = ("0", f"data unit checksum updated {stamp}")
            hdu.start = end
            end = hdu.offset + hdu.span
        # claim the space at once: a full disk shows now, not after an hour
        os.posix_fallocate(file, start, end - start)

    def put(self, key: str, first: int, values: NDArray[Any]) -> int:
        """Write values from pixel `first` on; contiguous float32 arrays are used up (swapped in place)."""
        values = np.require(values, np.float32, ("C", "W"))
        self._totals[key].append(int(self._swap_and_sum(values.reshape(-1).view(np.uint32))))
        self._put_bytes(values.reshape(-1).view(np.uint8), self._hdus[key].offset + 4 * first)
        return values.nbytes

    def _put_bytes(self, values: NDArray[np.uint8] | bytes, offset: int) -> None:
        view = memoryview(values)  # type: ignore[arg-type]  # arrays are buffers
        while len(view):
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def start_md5(self, heads: Mapping[str, bytes]) -> None:
        """Take ``DATAMD5`` while the data are written; `heads` are those of the HDUs not written yet."""
        from concurrent.futures import ThreadPoolExecutor

        from .checksum import MD5_PERIOD, datamd5

        units = [
            (
                heads[key] if key in heads else os.pread(self._file, min(hdu.span, MD5_PERIOD), hdu.offset),
                hdu.span,
            )
            for key, hdu in self._hdus.items()
        ]
        pool = ThreadPoolExecutor(1)
        self._md5 = pool.submit(datamd5, units, self._failed.is_set)
        pool.shutdown(wait=False)

    def __enter__(self) -> HduWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from .checksum import fold

        if kind is not None:
            self._failed.set()
            return
        if self._datamd5:
            if self._md5 is None:
                self.start_md5({})
            assert self._md5 is not None
            self._hdus[""].header["DATAMD5"] = self._md5.result()
        for key, hdu in self._hdus.items():
            self._put_bytes(_signed(hdu.header, fold(sum(self._totals[key]))), hdu.start)


def _signed(header: fits.Header, datasum: int) -> bytes:
    """Header with its ``DATASUM`` and ``CHECKSUM``."""
    from .checksum import encode, fold, sum_bytes

    header["DATASUM"] = str(datasum)
    header["CHECKSUM"] = "0" * 16
    header["CHECKSUM"] = encode(fold(sum_bytes(header_bytes(header)) + datasum))
    return header_bytes(header)


def cube_to_zarr(
    cube: str | os.PathLike[str] | xr.Dataset | CubeSource,
    path: str | os.PathLike[str],
    *,
    images: bool = True,
    overwrite: bool = False,
    chunks: tuple[int, int, int] | None = None,
    shards: tuple[int, int, int] | None = None,
    codec: Literal["lz4", "zstd", "none"] = "lz4",
    threads: int = 2,
    progress: Progress | None = None,
) -> None:
    """Write a cube as a Zarr group.

    Parameters
    ----------
    cube, path, overwrite, threads, progress
        See `cube_to_fits`.
    images : bool
        Whether to copy the field-of-view images.
    chunks, shards : tuple of int, optional
        See `default_chunks`.
    codec : str
        See `compressor`.

    Raises
    ------
    OutputExistsError, InputError, PlanError
        If the output exists, the cube is unusable, or the disk is full.
    """
    source = open_source(cube)
    if chunks is None:
        chunks, shards = default_chunks(source.shape)
    with atomic_path(path, overwrite=overwrite) as temporary:
        group = create_cube_store(
            temporary,
            source.shape,
            chunks=chunks,
            shards=shards,
            wavelength=source.wavelength,
            ctype=source.ctype,
            primary=source.primary,
            data=source.data,
            stat=source.stat,
            units=(str(source.data.get("BUNIT", "")), str(source.stat.get("BUNIT", ""))),
            variance="variance" in source.names,
            codec=codec,
        )
        arrays = {name: group[name] for name in source.names}

        def copy(piece: tuple[str, Region]) -> int:
            name, region = piece
            values = source.read(name, region)
            write_region(arrays[name], tuple(s.start for s in region), values)
            return values.nbytes

        step = shards or chunks
        pieces = [(name, region) for name in source.names for region in iter_regions(source.shape, step)]
        total = 4 * len(source.names) * int(np.prod(source.shape, dtype=np.int64))
        run_pieces(copy, pieces, threads=threads, progress=progress, total=total)
        for name, (header, read) in source.images.items() if images else ():
            write_image(group, name, read(), header)
        finish_cube_store(temporary)
