"""Products of single IFUs in one file, and back: what ``--merge`` of the reference does, and its inverse.

The file of the whole is ``TAG.fits`` instead of ``TAG-nn.fits``.  Its primary header is that of the first IFU
without what belongs to one IFU: ``EXTNAME``, the cards of the CCD and its read-out ports, quality control, and
``ESO DRS``.  These go into every extension of their IFU.

=========================================  ==============================
in the file of an IFU                      in the file of all
=========================================  ==============================
image in the primary HDU                   ``CHANnn``
extension without a name (tables)          ``CHANnn``
extension ``NAME`` (``DATA``, ``DQ`` ...)  ``CHANnn.NAME``
=========================================  ==============================

Headers are kept card by card as they are in the files, and data units byte by byte, a few megabytes at a time.
The rules were found by comparing files of muse_bias, muse_flat, muse_wavecal and muse_lsf 2.8.7 with and without
``--merge``.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from ..compute import format_bytes
from ..errors import InputError, PlanError
from ..instrument import N_IFUS
from .checksum import MD5_PERIOD, datamd5, encode, fold, sum_bytes
from .files import atomic_path, check_output
from .headers import OF_ONE_IFU
from .products import PathLike, channel, channel_number, open_fits

log = logging.getLogger("musedask")

_CARD = 80
_BLOCK = 2880
_CHUNK = 1456 * _BLOCK
#: cards of world coordinates that go where the image goes; the reference leaves others behind
_OF_IMAGE = re.compile(
    r"^(WCSAXES|WCSNAME|C(RVAL|RPIX|DELT|TYPE|UNIT|RDER|SYER)\d+|CD\d+_\d+|LONPOLE|LATPOLE|BUNIT|BSCALE|BZERO|BLANK)$"
)
_STRUCTURE = re.compile(r"^(SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|CHECKSUM|DATASUM)$")
_POINTERS = ("SCIDATA", "ERRDATA", "QUALDATA")
_MEANING = {
    "DATA": "This extension contains data values",
    "DQ": "This extension contains bad pixel status values",
    "STAT": "This extension contains data variance",
}


def merge_products(
    paths: Iterable[PathLike], output: PathLike, *, overwrite: bool = False, delete: bool = False
) -> Path:
    """Put the files of several IFUs into one, as ``--merge`` of the reference does.

    Parameters
    ----------
    paths : iterable of path-like
        Files of one product, each of another IFU, in any order; tile-compressed images are uncompressed.
    output : path-like
        File to write, ``TAG.fits`` by custom.
    overwrite : bool
        Whether an existing file may be replaced.
    delete : bool
        Whether to remove the files of the IFUs when all is done, as the reference does.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there are fewer than two files, if one is no product of one IFU or a pixel table (those are never merged),
        if they are of different kinds or twice of one IFU, or if a file is damaged.
    OutputExistsError
        If `output` exists and `overwrite` is false.
    PlanError
        If the disk has no room for it.
    """
    files = [_read_product(Path(path)) for path in paths]
    output = check_output(output, overwrite=overwrite)
    _check_mergeable(files, output)
    files.sort(key=lambda file: file.ifu)
    first = files[0].hdus[0].records
    primary = _primary_records(r for r in first if not _moves(r) and _keyword(r) != "EXTNAME")
    _check_room(output, sum(hdu.size for file in files for hdu in file.hdus))
    with atomic_path(output, overwrite=overwrite) as temporary, _writing(temporary, output, primary) as writer:
        for file in files:
            for hdu in file.hdus:
                if hdu.size or hdu is not file.hdus[0]:
                    writer.put(_merged_records(file, hdu), hdu)
    if delete:
        for file in files:
            file.path.unlink()
    return output


def split_product(
    path: PathLike, output_dir: PathLike | None = None, *, overwrite: bool = False, delete: bool = False
) -> list[Path]:
    """Take the files of single IFUs out of one that ``--merge`` or `merge_products` made.

    Their primary headers are that of the whole with the cards of their IFU: what else was different between
    those of the IFUs was lost when they were merged.

    Parameters
    ----------
    path : path-like
    output_dir : path-like, optional
        Folder for ``NAME-nn.fits``; default: that of the file.
    overwrite : bool
        Whether existing files may be replaced.
    delete : bool
        Whether to remove `path` when all is done.

    Returns
    -------
    list of Path
        In order of the IFUs.

    Raises
    ------
    InputError
        If it is no product, of a single IFU already, has extensions of something else, or is damaged.
    OutputExistsError
        If one of the files exists and `overwrite` is false; then none is written.
    PlanError
        If the disk has no room for them.
    """
    path = Path(path)
    hdus = _read_hdus(path)
    primary = hdus[0].records
    _product_tag(path, primary)
    ifus: dict[int, list[tuple[str, _Hdu]]] = {}
    foreign = []
    for hdu in hdus[1:]:
        name = str(_value(hdu.records, "EXTNAME") or "")
        match = re.match(r"^CHAN(\d\d)(?:\.(.+))?$", name)
        if match and 1 <= int(match[1]) <= N_IFUS:
            ifus.setdefault(int(match[1]), []).append((match[2] or "", hdu))
        else:
            foreign.append(name or "one without name")
    if not ifus:
        own = channel_number(_value(primary, "EXTNAME"))
        of = f"; it is of IFU {own} alone" if own else ""
        raise InputError(f"{path}: there is no extension CHANnn or CHANnn.NAME, nothing to split{of}")
    if foreign:
        raise InputError(f"{path}: extensions {', '.join(foreign)} found, expected only CHANnn and CHANnn.NAME")
    if hdus[0].size:
        raise InputError(f"{path}: data found in the primary HDU, expected none in the file of several IFUs")
    folder = path.parent if output_dir is None else Path(output_dir)
    stem = re.sub(r"\.fits(\.fz|\.gz)?$", "", path.name)
    outputs = {ifu: check_output(folder / f"{stem}-{ifu:02d}.fits", overwrite=overwrite) for ifu in sorted(ifus)}
    _check_room(next(iter(outputs.values())), sum(hdu.size for hdu in hdus))
    with ExitStack() as stack:
        for ifu, output in outputs.items():
            temporary = stack.enter_context(atomic_path(output, overwrite=overwrite))
            _write_split(temporary, output, ifu, primary, ifus[ifu])
    if delete:
        path.unlink()
    return list(outputs.values())


def product_groups(paths: Iterable[PathLike]) -> dict[str, list[Path]]:
    """Group files by what they would be merged into: ``MASTER_BIAS-07.fits`` belongs to ``MASTER_BIAS``.

    Parameters
    ----------
    paths : iterable of path-like

    Returns
    -------
    dict of str to list of Path
        By the name without the IFU.  Files that are not named after an IFU are groups of their own.
    """
    groups: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        stem = re.sub(r"\.fits(\.fz|\.gz)?$", "", path.name)
        match = re.match(r"^(.+)-(\d\d)$", stem)
        of_ifu = match is not None and 1 <= int(match[2]) <= N_IFUS
        groups.setdefault(match[1] if match and of_ifu else stem, []).append(path)
    return groups


# --- headers as records: one card of 80 characters, with the CONTINUE cards that belong to it ---------------------


def _keyword(record: str) -> str:
    if record.startswith("HIERARCH "):
        return record[9:_CARD].partition("=")[0].strip()
    return record[:8].rstrip()


def _moves(record: str) -> bool:
    """Whether a card of the primary header goes into the extensions of its IFU."""
    keyword = _keyword(record)
    return bool(OF_ONE_IFU.match(keyword) or _OF_IMAGE.match(keyword))


def _value(records: Sequence[str], keyword: str) -> Any:
    for record in records:
        if _keyword(record) == keyword:
            value = fits.Card.fromstring(record).value
            return value.strip() if isinstance(value, str) else value
    return None


def _card(keyword: str, value: Any, comment: str = "") -> str:
    """A card; a comment that does not fit is cut, as CFITSIO does."""
    text = str(fits.Card(keyword, value)).rstrip()
    if len(text) > _CARD:
        return str(fits.Card(keyword, value))
    return f"{f'{text:30} / {comment}' if comment else text:{_CARD}.{_CARD}}"


def _replaced(records: Iterable[str], changes: dict[str, str]) -> list[str]:
    """Records with some replaced by keyword; those that are not there are not added."""
    return [changes.get(_keyword(record), record) for record in records]


def _primary_records(records: Iterable[str], image: _Hdu | None = None) -> list[str]:
    """Records that are not about structure, after those of a primary HDU."""
    no_data = [_card("BITPIX", 8, "number of bits per data pixel"), _card("NAXIS", 0, "number of data axes")]
    return [
        _card("SIMPLE", True, "file does conform to FITS standard"),
        *(no_data if image is None else _axes(image.records)),
        _card("EXTEND", True, "FITS dataset may contain extensions"),
        *(r for r in records if not _STRUCTURE.match(_keyword(r))),
    ]


def _axes(records: Sequence[str]) -> list[str]:
    return [r for r in records if re.match(r"^(BITPIX|NAXIS\d*)$", _keyword(r))]


def _merged_records(file: _File, hdu: _Hdu) -> list[str]:
    """Header of an extension of the file of all IFUs."""
    name = channel(file.ifu)
    own = [r for r in file.hdus[0].records if _moves(r)]
    if hdu is file.hdus[0]:
        return [
            _card("XTENSION", "IMAGE", "IMAGE extension"),
            *_axes(hdu.records),
            _card("PCOUNT", 0, "required keyword; must = 0"),
            _card("GCOUNT", 1, "required keyword; must = 1"),
            _card("EXTNAME", name, "FITS Extension name"),
            *own,
        ]
    old = str(_value(hdu.records, "EXTNAME") or "")
    extname = _card("EXTNAME", f"{name}.{old}" if old else name, "FITS Extension name")
    records = [r for r in hdu.records if _keyword(r) not in ("CHECKSUM", "DATASUM")]
    records = _replaced(records, {"EXTNAME": extname, **_pointers(records, f"{name}.")})
    if not old:
        records = [r for r in records if _keyword(r) != "EXTNAME"]
        last = max(i for i, r in enumerate(records) if re.match(r"^([PG]COUNT|TFIELDS|NAXIS\d*)$", _keyword(r)))
        records.insert(last + 1, extname)
    present = {_keyword(r) for r in records}
    return [*records, *(r for r in own if _keyword(r) not in present)]


def _pointers(records: Sequence[str], prefix: str, remove: bool = False) -> dict[str, str]:
    """Cards that name other extensions, with the prefix of the IFU or without it."""
    changes = {}
    for record in records:
        keyword = _keyword(record)
        if keyword in _POINTERS:
            card = fits.Card.fromstring(record)
            value = str(card.value).strip()
            changes[keyword] = _card(keyword, value.removeprefix(prefix) if remove else prefix + value, card.comment)
    return changes


def _write_split(
    temporary: Path, output: Path, ifu: int, primary: Sequence[str], parts: Sequence[tuple[str, _Hdu]]
) -> None:
    """Write the file of one IFU."""
    own: list[str] = []
    for _, hdu in parts:
        present = {_keyword(r) for r in own}
        own += [r for r in hdu.records if OF_ONE_IFU.match(_keyword(r)) and _keyword(r) not in present]
    # an image without a name had been in the primary HDU
    image = next((h for name, h in parts if not name and str(_value(h.records, "XTENSION")) == "IMAGE"), None)
    if image is not None:
        own = [r for r in image.records if _OF_IMAGE.match(_keyword(r))] + own
    present = {_keyword(r) for r in own} | {"EXTNAME"}
    rest = [r for r in primary if _keyword(r) not in present]
    records = _primary_records([*rest, _card("EXTNAME", channel(ifu), "FITS extension name"), *own], image)
    with _writing(temporary, output, records, image) as writer:
        for name, hdu in parts:
            if hdu is image:
                continue
            prefix = f"{channel(ifu)}."
            kept = [r for r in hdu.records if not OF_ONE_IFU.match(_keyword(r))]
            kept = [r for r in kept if _keyword(r) not in ("CHECKSUM", "DATASUM")]
            extname = _card("EXTNAME", name, _MEANING.get(name, ""))
            kept = _replaced(kept, {"EXTNAME": extname, **_pointers(kept, prefix, remove=True)})
            writer.put([r for r in kept if name or _keyword(r) != "EXTNAME"], hdu)


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Hdu:
    """A header and the place of its data unit.

    Attributes
    ----------
    path : Path
    records : list of str
    start, size : int
        First byte of the data unit, and its length with padding.
    number : int or None
        Of the HDU, if it is an image that has to be uncompressed.
    """

    path: Path
    records: list[str]
    start: int
    size: int
    number: int | None = None

    def blocks(self) -> Iterator[bytes]:
        """The data unit in pieces of whole FITS blocks.

        Raises
        ------
        InputError
            If it is damaged.
        """
        if self.number is None:
            with open(self.path, "rb") as file:
                file.seek(self.start)
                for start in range(0, self.size, _CHUNK):
                    yield file.read(min(_CHUNK, self.size - start))
            return
        with open_fits(self.path) as hdus:
            image = hdus[self.number].data
        values = image.astype(image.dtype.newbyteorder(">"), copy=False).reshape(-1)
        step = _CHUNK // values.itemsize
        for first in range(0, values.size, step):
            piece = values[first : first + step].tobytes()
            yield piece + b"\0" * (-len(piece) % _BLOCK)


@dataclass(frozen=True, eq=False)
class _File:
    """The product of one IFU."""

    path: Path
    tag: str
    ifu: int
    hdus: list[_Hdu]

    @property
    def layout(self) -> list[str]:
        """Names and kinds of the extensions."""
        return [
            f"{_value(h.records, 'EXTNAME') or 'without name'} ({_value(h.records, 'XTENSION')})" for h in self.hdus[1:]
        ]


def _read_hdus(path: Path) -> list[_Hdu]:
    """Headers of a file as they are, and the places of its data."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    hdus: list[_Hdu] = []
    with open(path, "rb") as file:
        if file.read(9) != b"SIMPLE  =":
            raise InputError(f"{path}: cannot be read as FITS: it does not start with SIMPLE")
        place = 0
        while place < size:
            file.seek(place)
            records = _read_header(file, path)
            start = file.tell()
            length = _data_size(records, path)
            if start + length > size:
                name = _value(records, "EXTNAME") or "the primary HDU"
                raise InputError(f"{path}: is truncated, {size} bytes found, {start + length} expected up to {name}")
            hdus.append(_Hdu(path, records, start, length))
            place = start + length
    return _uncompressed(path, hdus)


def _read_header(file: BinaryIO, path: Path) -> list[str]:
    cards: list[str] = []
    while True:
        block = file.read(_BLOCK)
        if len(block) != _BLOCK or not block.isascii():
            raise InputError(f"{path}: is truncated or damaged, a header without END found")
        text = block.decode("ascii")
        for first in range(0, _BLOCK, _CARD):
            card = text[first : first + _CARD]
            if card == f"{'END':{_CARD}}":
                return _records(cards)
            cards.append(card)


def _records(cards: Iterable[str]) -> list[str]:
    records: list[str] = []
    for card in cards:
        if card.startswith("CONTINUE") and records:
            records[-1] += card
        elif card.strip():
            records.append(card)
    return records


def _data_size(records: Sequence[str], path: Path) -> int:
    keywords = {_keyword(r): r for r in records[:40]}
    try:
        numbers = {k: int(fits.Card.fromstring(keywords[k]).value) for k in ("BITPIX", "NAXIS")}
        axes = [int(fits.Card.fromstring(keywords[f"NAXIS{i + 1}"]).value) for i in range(numbers["NAXIS"])]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged, a header without BITPIX and NAXIS found") from error
    if not axes:
        return 0
    more, groups = int(_value(records, "PCOUNT") or 0), int(_value(records, "GCOUNT") or 1)
    length = abs(numbers["BITPIX"]) // 8 * groups * (more + int(np.prod(axes, dtype=np.int64)))
    return -(-length // _BLOCK) * _BLOCK


def _uncompressed(path: Path, hdus: list[_Hdu]) -> list[_Hdu]:
    """The HDUs of the file before it was tile-compressed."""
    if any(_value(h.records, "ZTABLE") for h in hdus):
        raise InputError(f"{path}: compressed tables found, which are not read; uncompress them with funpack")
    packed = [number for number, hdu in enumerate(hdus) if _value(hdu.records, "ZIMAGE")]
    if not packed:
        return hdus
    with open_fits(path) as opened:
        headers = {n: opened[n].header.tostring(sep="", endcard=False, padding=False) for n in packed}
    was_primary = packed[0] == 1 and bool(_value(hdus[1].records, "ZSIMPLE"))
    for number, text in headers.items():
        records = _records(text[i : i + _CARD] for i in range(0, len(text), _CARD))
        if _value(hdus[number].records, "EXTNAME") is None:
            # a name of astropy's own
            records = [r for r in records if _keyword(r) != "EXTNAME"]
        hdus[number] = _Hdu(path, records, 0, _data_size(records, path), number)
    # an image of the primary HDU becomes an extension when it is compressed
    return hdus[1:] if was_primary else hdus


def _product_tag(path: Path, primary: Sequence[str]) -> str:
    tag = _value(primary, "ESO PRO CATG")
    if not tag:
        raise InputError(f"{path}: there is no ESO PRO CATG in its primary header; not a product")
    return str(tag)


def _read_product(path: Path) -> _File:
    hdus = _read_hdus(path)
    primary = hdus[0].records
    tag = _product_tag(path, primary)
    if tag.startswith("PIXTABLE_"):
        raise InputError(f"{path}: {tag} found; pixel tables are never merged")
    name = _value(primary, "EXTNAME")
    ifu = channel_number(name)
    names = [str(_value(h.records, "EXTNAME") or "") for h in hdus[1:]]
    if any(n.startswith("CHAN") for n in names):
        raise InputError(f"{path}: extension {names[0]} found; it is of several IFUs already")
    if ifu is None or not 1 <= ifu <= N_IFUS:
        found = "no EXTNAME" if name is None else f"EXTNAME = {name!r}"
        raise InputError(f"{path}: {found} found in its primary header, expected CHAN01..CHAN{N_IFUS}; not of one IFU")
    if not hdus[0].size and len(hdus) < 2:
        raise InputError(f"{path}: there are no data in it")
    return _File(path, tag, ifu, hdus)


def _check_mergeable(files: Sequence[_File], output: Path) -> None:
    if len(files) < 2:
        found = str(files[0].path) if files else "none"
        raise InputError(f"files to merge: {found} found, expected at least two")
    first = files[0]
    for file in files[1:]:
        if file.tag != first.tag:
            raise InputError(f"{file.path}: a {file.tag} found, expected a {first.tag} as {first.path}")
        if file.layout != first.layout:
            raise InputError(
                f"{file.path}: extensions {', '.join(file.layout) or 'none'} found, expected "
                f"{', '.join(first.layout) or 'none'} as in {first.path}"
            )
    for number, file in enumerate(files):
        twin = next((f for f in files[:number] if f.ifu == file.ifu), None)
        if twin:
            raise InputError(f"{file.path}: IFU {file.ifu} found, which is that of {twin.path}, too")
        if output.exists() and output.samefile(file.path):
            raise InputError(f"{output}: is one of the files to merge, choose another name")
    dates = {str(_value(f.hdus[0].records, "DATE-OBS")) for f in files}
    if len(dates) > 1:
        log.warning("%s: files of different exposures are merged, DATE-OBS is %s", output, ", ".join(sorted(dates)))


def _check_room(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.absolute().parent).free
    if needed > free:
        raise PlanError(f"{output}: {format_bytes(needed)} are needed on this disk, {format_bytes(free)} are free")


# --- writing ------------------------------------------------------------------------------------------------------


class _Writer:
    """Appends HDUs to a file; headers are completed by checksums when their data are there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        #: what `datamd5` takes, then None
        self.units: SimpleQueue[tuple[bytes, int] | None] = SimpleQueue()

    def put(self, records: Sequence[str], hdu: _Hdu | None) -> int:
        """Append an HDU with a header and the data of another; returns the sum of the data."""
        start = self._file.tell()
        self.write_header(records, 0)
        if hdu is None:
            return 0
        datasum = self._copy(hdu)
        end = self._file.tell()
        self._file.seek(start)
        self.write_header(records, datasum)
        self._file.seek(end)
        return datasum

    def _copy(self, hdu: _Hdu) -> int:
        total, copied, head = 0, 0, b""
        for block in hdu.blocks():
            if len(head) < MD5_PERIOD:
                head += block[: MD5_PERIOD - len(head)]
            total = fold(total + sum_bytes(block))
            self._file.write(block)
            copied += len(block)
        if copied != hdu.size:
            raise InputError(f"{hdu.path}: {copied} bytes of data found, {hdu.size} expected")
        known = _value(hdu.records, "DATASUM")
        if known is not None and hdu.number is None and str(known).strip() not in ("", str(total)):
            name = _value(hdu.records, "EXTNAME") or "the primary HDU"
            raise InputError(f"{hdu.path}: data of {name} are damaged, their sum is {total}, DATASUM says {known}")
        if hdu.size:
            self.units.put((head, hdu.size))
        return total

    def write_header(self, records: Sequence[str], datasum: int) -> None:
        """Write a header where the file is."""
        text = "".join(records) + _card("CHECKSUM", "0" * 16, "HDU checksum")
        text += _card("DATASUM", str(datasum), "data unit checksum") + "END"
        content = text.ljust(-(-len(text) // _BLOCK) * _BLOCK).encode("ascii")
        code = encode(fold(sum_bytes(content) + datasum))
        self._file.write(content.replace(b"CHECKSUM= '0000000000000000'", f"CHECKSUM= '{code}'".encode()))


@contextmanager
def _writing(temporary: Path, output: Path, primary: Sequence[str], image: _Hdu | None = None) -> Iterator[_Writer]:
    """Begin a file with a primary HDU, whose header gets ``DATAMD5`` when all is there.

    Parameters
    ----------
    temporary, output : Path
        File to write, and the name that it will have.
    primary : sequence of str
        Records of the primary header.
    image : _Hdu, optional
        Data of the primary HDU.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    changes = {
        "DATE": _card("DATE", now, "file creation date (YYYY-MM-DDThh:mm:ss UT)"),
        "PIPEFILE": _card("PIPEFILE", output.name, "Filename of data product"),
    }
    records = [r for r in _replaced(primary, changes) if _keyword(r) != "DATAMD5"]
    failed = False
    with open(temporary, "w+b") as file, ThreadPoolExecutor(1) as pool:
        writer = _Writer(file)
        # taken beside the copying: it is slower than that
        md5 = pool.submit(datamd5, iter(writer.units.get, None), lambda: failed)
        try:
            datasum = writer.put([*records, _card("DATAMD5", "0" * 32, "MD5 checksum")], image)
            yield writer
        except BaseException:
            failed = True
            raise
        finally:
            writer.units.put(None)
        file.seek(0)
        writer.write_header([*records, _card("DATAMD5", md5.result(), "MD5 checksum")], datasum)
