"""What files are, by their headers: raw exposures by the rules of the observatory (OCA), products by ``PRO CATG``."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io.files import atomic_path
from ..io.header_read import read_keywords
from ..tags import TAGS
from .state import FOLDER

log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

#: lamps by their number in ``ESO INS LAMPi``
LAMPS: Mapping[int, str] = {1: "continuum", 2: "continuum", 3: "Ne", 4: "Xe", 5: "HgCd"}
#: files that are looked at
SUFFIXES = (".fits", ".fits.fz", ".fits.gz")
#: files that the recipes cannot read
PACKED = (".fits.Z", ".fits.bz2", ".fits.zip")
#: of exposures that no recipe takes
IGNORED = ("ACQUISITION", "TEST")

_KEYWORDS = (
    "INSTRUME", "RA", "DEC", "EXPTIME", "MJD-OBS", "DATE-OBS", "ARCFILE", "OBJECT", "EXTNAME",
    "ESO DPR CATG", "ESO DPR TYPE", "ESO DPR TECH", "ESO PRO CATG", "ESO INS MODE", "ESO INS OPTI1 NAME",
    "ESO INS OPTI2 NAME", "ESO DET READ CURID", "ESO INS DROT POSANG", "ESO INS DROT MODE", "ESO OBS NAME",
    "ESO OBS ID", "ESO OBS TARG NAME", "ESO TPL ID", "ESO TPL START", "ESO TPL EXPNO", "ESO TPL NEXP",
    "ESO INS TEMP7 VAL",
    *(f"ESO INS {what}{i} ST" for i in LAMPS for what in ("LAMP", "SHUT")),
)  # fmt: skip
_CHANNEL = re.compile(r"CHAN(\d\d)")
#: form of the cache; raise it when `RawFile` or the rules change
_CACHE_VERSION = 1


@dataclass(frozen=True)
class RawFile:
    """A raw exposure, or a product or static calibration.

    Attributes
    ----------
    path : Path
        Absolute.
    tag : str
        As in sets of frames: BIAS, OBJECT, ..., or ``PRO CATG`` of a product; empty if no rule fits.
    product : bool
        Whether it has ``PRO CATG``.
    name : str
        Name in the archive without suffix, ``MUSE.2014-12-08T02:48:56.798``; of a product that of the file.
    mjd : float
        Start; 0 if it has none, as static calibrations.
    date_obs : str
        Start, UTC; empty if it has none.
    exptime : float
        [s]
    mode : str
        ``ESO INS MODE``; empty if it has none.
    nominal : bool or None
        Whether the blue cut-off filter is in: nominal wavelength range, not extended.
    field : str
        WFM or NFM; empty if unknown.
    curid : int or None
        ``ESO DET READ CURID``: read-out mode.
    ra, dec : float or None
        [deg]
    posang : float
        ``ESO INS DROT POSANG`` [deg].
    drot_mode : str
    ob_name : str
    ob_id : int or None
    target : str
        ``ESO OBS TARG NAME``.
    template : str
        ``ESO TPL ID``.
    tpl_start : str
    expno, nexp : int
        Number within the template, and how many it has; 0 if unknown.
    lamps : tuple of str
        Ne, Xe, HgCd, continuum: those that shine into an open shutter.
    temperature : float or None
        Of the instrument, ``ESO INS TEMP7 VAL`` [deg C].
    ifus : tuple of int
        IFU of a file of one IFU; empty: all.
    note : str
        Why it is of no use, if it is of none.
    """

    path: Path
    tag: str
    product: bool = False
    name: str = ""
    mjd: float = 0.0
    date_obs: str = ""
    exptime: float = 0.0
    mode: str = ""
    nominal: bool | None = None
    field: str = ""
    curid: int | None = None
    ra: float | None = None
    dec: float | None = None
    posang: float = 0.0
    drot_mode: str = ""
    ob_name: str = ""
    ob_id: int | None = None
    target: str = ""
    template: str = ""
    tpl_start: str = ""
    expno: int = 0
    nexp: int = 0
    lamps: tuple[str, ...] = ()
    temperature: float | None = None
    ifus: tuple[int, ...] = ()
    note: str = ""

    @cached_property
    def night(self) -> date:
        """Date of the evening of its night, which goes on until 12 UT; `date.min` without ``DATE-OBS``."""
        if not self.date_obs:
            return date.min
        return (datetime.fromisoformat(self.date_obs) - timedelta(hours=12)).date()

    @property
    def ao(self) -> bool:
        """Whether adaptive optics were in use."""
        return "AO" in self.mode.split("-")


@dataclass(frozen=True)
class _Rule:
    """Values of DPR that an exposure of a tag has."""

    tag: str
    catg: tuple[str, ...]
    #: words of ``DPR TYPE`` that must be there, and those that must not
    words: tuple[str, ...]
    without: tuple[str, ...] = ()
    #: whether there must be no other words
    exact: bool = False
    template: str = ""


_RULES = (
    _Rule("BIAS", ("CALIB",), ("BIAS",), exact=True),
    _Rule("DARK", ("CALIB",), ("DARK",), exact=True),
    _Rule("LINGAIN_LAMP_OFF", ("CALIB", "TECHNICAL"), ("BIAS", "DETCHECK")),
    _Rule("LINGAIN_LAMP_ON", ("CALIB", "TECHNICAL"), ("LINEARITY", "FLAT", "DETCHAR")),
    _Rule("AMPL", ("TECHNICAL", "CALIB"), ("FLAT", "LAMP", "THRUPUT")),
    _Rule("ILLUM", ("CALIB",), ("FLAT", "LAMP", "ILLUM"), template=r"MUSE_[wn]fm_cal_illum"),
    _Rule(
        "FLAT", ("CALIB",), ("FLAT", "LAMP"), ("ILLUM", "THRUPUT", "LINEARITY"), template=r"MUSE_[wn]fm_cal_specflat"
    ),
    _Rule("SKYFLAT", ("CALIB",), ("FLAT", "SKY")),
    _Rule("ARC", ("CALIB",), ("WAVE",), exact=True),
    _Rule("ARC_LSF", ("CALIB",), ("WAVE", "LSF")),
    _Rule("MASK", ("CALIB",), ("WAVE", "MASK")),
    _Rule("STD", ("CALIB",), ("STD",), exact=True),
    _Rule("ASTROMETRY", ("CALIB",), ("ASTROMETRY",), exact=True),
    _Rule("SKY", ("SCIENCE", "CALIB"), ("SKY",), exact=True),
    _Rule("OBJECT", ("SCIENCE",), ("OBJECT",), exact=True),
)


def raw_tag(catg: str, kind: str, tech: str = "IFU", template: str = "") -> tuple[str, str]:
    """Tag of a raw exposure.

    Parameters
    ----------
    catg, kind, tech : str
        ``ESO DPR CATG``, ``TYPE`` and ``TECH``; the last may be empty.
    template : str
        ``ESO TPL ID``; may be empty.

    Returns
    -------
    tag : str
        Empty if no rule fits.
    note : str
        Why it is of no use, if it is of none.

    Notes
    -----
    The rules are those of ``muse.oca`` of the pipeline 2.8.7.  The words of ``DPR TYPE`` are separated by commas.
    """
    if catg in IGNORED:
        return catg, f"ESO DPR CATG is {catg}"
    if tech and "IFU" not in tech.split(","):
        return "", f"ESO DPR TECH is {tech}, expected IFU"
    words = [word.strip() for word in kind.split(",")]
    note = f"no rule for ESO DPR CATG = {catg or 'nothing'}, ESO DPR TYPE = {kind or 'nothing'}"
    for rule in _RULES:
        if catg not in rule.catg or not set(rule.words) <= set(words) or set(rule.without) & set(words):
            continue
        if rule.exact and len(words) != len(rule.words):
            continue
        if rule.template and template and not re.fullmatch(f"{rule.template}.*", template):
            note = f"ESO DPR TYPE = {kind}, but ESO TPL ID is {template}, expected {rule.template}"
            continue
        return rule.tag, ""
    return "", note


def archive_stem(name: str) -> str:
    """Name of a file without the suffixes that the archive gives."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def classify(path: PathLike, header: Mapping[str, Any]) -> RawFile:
    """What a file is.

    Parameters
    ----------
    path : path-like
    header : mapping
        Of its primary HDU.

    Returns
    -------
    RawFile

    Raises
    ------
    InputError
        If it is not of MUSE, or a raw exposure without a time.
    """
    path = Path(path).absolute()

    def text(keyword: str) -> str:
        return str(header.get(keyword, "")).strip()

    def number(keyword: str) -> float | None:
        value = header.get(keyword)
        if value is None or isinstance(value, bool | str):
            if value is None:
                return None
            raise InputError(f"{path}: {keyword} = {value!r} found, expected a number")
        return float(value)

    category = text("ESO PRO CATG")
    if not category and not text("ESO DPR CATG") and text("OBJECT") in TAGS:
        # some tables of the archive have neither, but are called by what they are
        category = text("OBJECT")
    product = bool(category)
    instrument = text("INSTRUME")
    if (instrument or not product) and instrument != "MUSE":
        raise InputError(f"{path}: not of MUSE, INSTRUME is {instrument or 'not there'}")
    mode = text("ESO INS MODE").replace("NONAO", "NOAO")
    if product:
        tag, note = category, ""
    else:
        tag, note = raw_tag(text("ESO DPR CATG"), text("ESO DPR TYPE"), text("ESO DPR TECH"), text("ESO TPL ID"))
    date_obs = text("DATE-OBS")
    mjd = number("MJD-OBS")
    if date_obs:
        try:
            started = datetime.fromisoformat(date_obs)
        except ValueError:
            expected = "expected a time like 2014-12-08T02:48:56"
            raise InputError(f"{path}: DATE-OBS = {date_obs!r} found, {expected}") from None
        if mjd is None:
            mjd = (started - datetime(1858, 11, 17)).total_seconds() / 86400
    elif mjd is not None:
        date_obs = (datetime(1858, 11, 17) + timedelta(days=mjd)).isoformat(timespec="milliseconds")
    elif not product:
        raise InputError(f"{path}: neither DATE-OBS nor MJD-OBS, expected a raw exposure to have them")
    filter_name = text("ESO INS OPTI1 NAME")
    if filter_name:
        nominal: bool | None = filter_name.startswith("Blue")
    else:
        nominal = mode.endswith("-N") if mode else None
    field = text("ESO INS OPTI2 NAME")
    field = field if field in ("WFM", "NFM") else mode.partition("-")[0]
    arcfile = archive_stem(text("ARCFILE"))
    stem = archive_stem(path.name)
    channel = _CHANNEL.match(text("EXTNAME"))
    identifier = number("ESO OBS ID")
    curid = number("ESO DET READ CURID")
    lit = {
        name for i, name in LAMPS.items()
        if header.get(f"ESO INS LAMP{i} ST") is True and header.get(f"ESO INS SHUT{i} ST", True) is True
    }  # fmt: skip
    return RawFile(
        path=path,
        tag=tag,
        product=product,
        # products may have inherited that of an exposure
        name=stem if product or not arcfile else arcfile,
        mjd=mjd or 0.0,
        date_obs=date_obs,
        exptime=number("EXPTIME") or 0.0,
        mode=mode,
        nominal=nominal,
        field=field,
        curid=None if curid is None else int(curid),
        ra=number("RA"),
        dec=number("DEC"),
        posang=number("ESO INS DROT POSANG") or 0.0,
        drot_mode=text("ESO INS DROT MODE"),
        ob_name=text("ESO OBS NAME"),
        ob_id=None if identifier is None else int(identifier),
        target=text("ESO OBS TARG NAME") or text("OBJECT"),
        template=text("ESO TPL ID"),
        tpl_start=text("ESO TPL START"),
        expno=int(number("ESO TPL EXPNO") or 0),
        nexp=int(number("ESO TPL NEXP") or 0),
        lamps=tuple(sorted(lit)),
        temperature=number("ESO INS TEMP7 VAL"),
        ifus=(int(channel[1]),) if channel else (),
        note=note,
    )


def read_file(path: PathLike) -> RawFile:
    """Open a file once, and tell what it is.

    Raises
    ------
    InputError
        If it cannot be read, or is not of MUSE.
    """
    return classify(path, read_keywords(path, _KEYWORDS))


# ----------------------------------------------------------------------------------------- many files


def find_files(folders: Iterable[PathLike] | PathLike, *, recursive: bool = True) -> list[Path]:
    """FITS files in folders, sorted; hidden ones are left out, files that are named are taken.

    Raises
    ------
    InputError
        If there is no such file or folder.
    """
    if isinstance(folders, str | os.PathLike):
        folders = [folders]
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if folder.is_file():
            found[folder.absolute()] = None
            continue
        if not folder.is_dir():
            raise InputError(f"{folder}: no such file or folder, expected one with raw exposures")
        for path in walk(folder, recursive=recursive):
            if path.name.endswith(SUFFIXES + PACKED) and not path.name.startswith("."):
                found[path] = None
    return list(found)


def walk(folder: PathLike, *, recursive: bool = True) -> Iterator[Path]:
    """All files in a folder and in folders in it, sorted; links are followed, but no folder is visited twice.

    Hidden folders are left out, and the folders of products of a reduction unless it is `folder` itself.
    """
    top = os.path.abspath(folder)
    seen: set[tuple[int, int]] = set()
    for parent, below, names in os.walk(top, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen or (parent != top and FOLDER in below):
            below[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith(".")) if recursive else []
        for name in sorted(names):
            yield Path(parent, name)


def examine(
    folders: Iterable[PathLike] | PathLike, *, recursive: bool = True, cache: PathLike | None = None
) -> tuple[list[RawFile], list[tuple[Path, str]]]:
    """Look at all files of some folders.

    Parameters
    ----------
    folders : path-like or iterable of path-like
        Folders, or single files.
    recursive : bool
        Whether folders in them count.
    cache : path-like, optional
        JSON file in which to remember what was found; files of the same size and time are not opened again.

    Returns
    -------
    files : list of RawFile
        In the order of time, each exposure once; calibrations without time come first.
    problems : list of (Path, str)
        Files that are of no use, with the reason.

    Raises
    ------
    InputError
        If a folder is not there.
    """
    paths = find_files(folders, recursive=recursive)
    known = _load(cache)
    stamps = {path: stamp for path in paths if (stamp := _stamp(path)) is not None}
    problems = [(path, "the file is gone, or is a link that leads nowhere") for path in paths if path not in stamps]
    fresh = [path for path, stamp in stamps.items() if known.get(str(path), {}).get("stamp") != stamp]
    # files are opened by several threads at once, since slow disks and networks make them wait
    with ThreadPoolExecutor(8) as pool:
        for path, entry in zip(fresh, pool.map(_entry, fresh), strict=True):
            known[str(path)] = {"stamp": stamps[path], **entry}
    if cache is not None and fresh:
        _save(cache, known)
    files: dict[tuple[str, ...], RawFile] = {}
    for path in stamps:
        entry = known[str(path)]
        if "problem" in entry:
            problems.append((path, entry["problem"]))
            continue
        file = _from_json(path, entry["file"])
        key = (str(path.resolve()),) if file.product else (file.name, file.tag)
        if key in files:
            if path.resolve() != files[key].path.resolve():
                problems.append((path, f"the same exposure as {files[key].path}"))
            continue
        files[key] = file
    return sorted(files.values(), key=lambda f: (f.mjd, f.name, str(f.path))), problems


def scan(
    folders: Iterable[PathLike] | PathLike, *, recursive: bool = True, cache: PathLike | None = None
) -> list[RawFile]:
    """As `examine`, but files that are of no use are told in warnings."""
    files, problems = examine(folders, recursive=recursive, cache=cache)
    for path, reason in problems:
        log.warning("%s: left out: %s", path, reason)
    return files


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _entry(path: Path) -> dict[str, Any]:
    if path.name.endswith(PACKED):
        return {"problem": f"packed ({path.suffix}); unpack it, or pack it with fpack (.fits.fz)"}
    try:
        return {"file": _to_json(read_file(path))}
    except InputError as error:
        return {"problem": str(error).removeprefix(f"{path}: ")}


def _to_json(file: RawFile) -> dict[str, Any]:
    return {name: value for name, value in asdict(file).items() if name != "path"}


_TUPLES: Mapping[str, Callable[[Any], Any]] = {"lamps": tuple, "ifus": tuple}


def _from_json(path: Path, values: Mapping[str, Any]) -> RawFile:
    return RawFile(path=path, **{k: _TUPLES[k](v) if k in _TUPLES else v for k, v in values.items()})


def _load(cache: PathLike | None) -> dict[str, dict[str, Any]]:
    if cache is None:
        return {}
    try:
        content = json.loads(Path(cache).read_text())
        names = {f.name for f in fields(RawFile)} - {"path"}
        if content["version"] == _CACHE_VERSION and set(content["fields"]) == names:
            return dict(content["files"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: cannot be read (%s), headers are read anew", cache, error)
    return {}


def _save(cache: PathLike, known: Mapping[str, Any]) -> None:
    path = Path(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = sorted(f.name for f in fields(RawFile) if f.name != "path")
    with atomic_path(path, overwrite=True) as part:
        part.write_text(json.dumps({"version": _CACHE_VERSION, "fields": names, "files": known}) + "\n")
