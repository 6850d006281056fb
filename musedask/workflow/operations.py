"""What a reduction does beside recipes: links, edited tables of the sky, merged products."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calib.provenance import CallRecord, FileRecord
from ..errors import InputError, MusedaskError
from ..io.files import atomic_path
from ..io.sky_products import write_lines, write_without_continuum
from ..io.sof import Frame
from .state import now


@dataclass(frozen=True)
class Operation:
    """One call of an operation; it can be sent to another process.

    Attributes
    ----------
    name : str
        Key of `OPERATIONS`.
    frames : tuple of Frame
    values : mapping of str to object
    output_dir : Path
    """

    name: str
    frames: tuple[Frame, ...]
    values: Mapping[str, Any]
    output_dir: Path
    ifu: None = None
    engine: str = field(default="native", init=False)

    def blank_record(self) -> CallRecord:
        """Record of a call that has not begun."""
        values = {k: v for k, v in self.values.items() if k != "products"}
        return CallRecord(f"musedask_{self.name}", None, self.engine, values, started=now())

    def wanted_record(self) -> CallRecord:
        """Record as far as the key depends on it."""
        record = self.blank_record()
        record.inputs = [FileRecord.of(frame) for frame in self.frames]
        return record

    def run(self) -> CallRecord:
        """Do it; no error comes out of here, the record tells."""
        record = self.blank_record()
        try:
            record = self.wanted_record()
            self.output_dir.mkdir(parents=True, exist_ok=True)
            made = OPERATIONS[self.name](self.frames, self.values, self.output_dir)
            record.products = [FileRecord.of(frame) for frame in made]
            record.status = "done"
        except MusedaskError as error:
            record.errors.append(str(error))
            record.status = "failed"
        except OSError as error:
            record.errors.append(f"{error.filename or self.output_dir}: {error.strerror or error}")
            record.status = "failed"
        record.ended = now()
        return record


def link(frames: Sequence[Frame], values: Mapping[str, Any], folder: Path) -> list[Frame]:
    """Give files a second name in a folder: a hard link, or a copy on another disk.

    Parameters
    ----------
    frames : sequence of Frame
    values : mapping
        ``names``: list of the new names, in the order of the frames; by default they keep theirs.  ``copy``: whether to
        copy in any case.
    folder : Path
    """
    names: Sequence[str] = values.get("names") or [frame.path.name for frame in frames]
    if len(names) != len(frames):
        raise InputError(f"{folder}: {len(frames)} files found for {len(names)} names")
    made = []
    for frame, name in zip(frames, names, strict=True):
        target = folder / name
        with atomic_path(target, overwrite=True) as temporary:
            temporary.unlink()
            _link(frame.path, temporary, copy=bool(values.get("copy")))
        made.append(Frame(target, frame.tag))
    return made


def _link(source: Path, target: Path, *, copy: bool) -> None:
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:
            # another disk, or one that has no links
            pass
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def zero_continuum(frames: Sequence[Frame], values: Mapping[str, Any], folder: Path) -> list[Frame]:
    """``SKY_CONTINUUM_zero.fits`` of a SKY_CONTINUUM: the first half of the modified sky subtraction.

    Method of Zeidler et al. (2019, AJ 158, 201), as MUSEreduce has it.
    """
    (source,) = [f.path for f in frames if f.tag == "SKY_CONTINUUM"]
    return [Frame(write_without_continuum(source, folder / "SKY_CONTINUUM_zero.fits"), "SKY_CONTINUUM")]


def keep_lines(frames: Sequence[Frame], values: Mapping[str, Any], folder: Path) -> list[Frame]:
    """The sky of the second pass, with the lines of some species only, and with the continuum that is given.

    Parameters
    ----------
    frames : sequence of Frame
        SKY_LINES, SKY_CONTINUUM and others, which are linked.
    values : mapping
        ``species`` and ``protect``, see `musedask.io.sky_products.write_lines`.
    folder : Path
    """
    made = []
    for frame in frames:
        if frame.tag == "SKY_LINES":
            ranges = [(float(a), float(b)) for a, b in values.get("protect", ())]
            path = write_lines(frame.path, folder / "SKY_LINES.fits", values["species"], ranges)
            made.append(Frame(path, frame.tag))
        else:
            made += link([frame], {"names": [f"{frame.tag}.fits"]}, folder)
    return made


def merge(frames: Sequence[Frame], values: Mapping[str, Any], folder: Path) -> list[Frame]:
    """Products of single IFUs in one file of each category, as ``--merge`` of the recipes; the single ones stay."""
    from ..io.merge import merge_products

    made = []
    for tag in dict.fromkeys(frame.tag for frame in frames):
        paths = [frame.path for frame in frames if frame.tag == tag]
        merge_products(paths, folder / f"{tag}.fits", overwrite=True)
        made.append(Frame(folder / f"{tag}.fits", tag))
    return made


#: what can be done, by name
OPERATIONS: dict[str, Callable[[Sequence[Frame], Mapping[str, Any], Path], list[Frame]]] = {
    "link": link,
    "zero_continuum": zero_continuum,
    "keep_lines": keep_lines,
    "merge": merge,
}
