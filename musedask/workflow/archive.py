"""Which calibrations belong to an exposure by the archive: the XML files of CalSelector beside it.

An element ``association`` has ``mainFiles`` and ``associatedFiles``, the latter being associations again.  So a file
tells what the exposure needs, and what each of its calibrations needs in turn.
"""

from __future__ import annotations

import logging
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from .classify import RawFile, archive_stem, walk

log = logging.getLogger(__name__)

#: ends of the names of such files
KINDS = ("raw2raw", "raw2master")


@dataclass(frozen=True)
class Selection:
    """Files of one kind that something needs.

    Attributes
    ----------
    names : tuple of str
        Without suffixes.
    category : str
    match : str
        ``calib_plan`` if they are as near in time as they should be; may be empty.
    certified : bool
        Whether the archive has checked them.
    """

    names: tuple[str, ...]
    category: str
    match: str = ""
    certified: bool = True


@dataclass
class Archive:
    """What the archive says.

    Attributes
    ----------
    needs : dict of str to list of Selection
        By name of a frame, without suffix.
    problems : list of (Path, str)
        Files that could not be read, and what could not be understood.
    """

    needs: dict[str, list[Selection]] = field(default_factory=dict)
    problems: list[tuple[Path, str]] = field(default_factory=list)

    def needs_of(self, frame: RawFile) -> list[Selection]:
        """What a frame needs; empty if the archive says nothing of it."""
        return self.needs.get(frame.name) or self.needs.get(archive_stem(frame.path.name)) or []

    def add(self, path: Path, root: ET.Element) -> None:
        """Take over what a file says; what is known already is not changed."""
        for names, needs in _walk(root):
            for name in names:
                known = self.needs.setdefault(name, [])
                tags = {(s.category, s.names) for s in known}
                known += [s for s in needs if (s.category, s.names) not in tags and not _contradicts(s, known)]


def _contradicts(selection: Selection, known: Iterable[Selection]) -> bool:
    """Whether other files of its category are known already."""
    return any(s.category == selection.category and s.names != selection.names for s in known)


def find_xml(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """XML files of associations in folders, and in folders in them."""
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        parent = folder if folder.is_dir() else folder.parent
        for path in walk(parent):
            if path.name.lower().endswith(tuple(f"{kind}.xml" for kind in KINDS)):
                found[path] = None
    return list(found)


def read_archive(paths: Iterable[str | os.PathLike[str]]) -> Archive:
    """Read XML files of the archive.

    Damaged ones are told in warnings and in `Archive.problems`; calibrations are then chosen by the rules.
    """
    archive = Archive()
    for path in map(Path, paths):
        try:
            root = _read(path)
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            archive.problems.append((path, reason))
            log.warning("%s; calibrations are chosen by the rules", error)
            continue
        archive.add(path, root)
    return archive


def _read(path: Path) -> ET.Element:
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise InputError(f"{path}: cannot be read as XML: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    top = next((element for element in root.iter() if _name(element) == "association"), None)
    if top is None:
        raise InputError(f"{path}: element {_name(root)} found, expected an association of the archive")
    if not _files(top):
        raise InputError(f"{path}: no file in mainFiles, expected the exposure that it is about")
    return top


def _name(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2] if isinstance(element.tag, str) else ""


def _parts(element: ET.Element, name: str, child: str) -> list[ET.Element]:
    return [c for part in element if _name(part) == name for c in part if _name(c) == child]


def _attribute(element: ET.Element, name: str) -> str:
    """An attribute, whatever its namespace."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2].lower() == name.lower():
            return value.strip()
    return ""


def _files(association: ET.Element) -> list[tuple[str, str]]:
    """Names without suffixes, and categories."""
    found = []
    for file in _parts(association, "mainFiles", "file"):
        name = archive_stem(re.split(r"[/\\]", _attribute(file, "name") or (file.text or "").strip())[-1])
        if name:
            found.append((name, _attribute(file, "category") or _attribute(association, "category")))
    return found


def _walk(association: ET.Element) -> Iterator[tuple[list[str], list[Selection]]]:
    """Names of files, and what they need; then the same of what they need."""
    needs: list[Selection] = []
    branches = _parts(association, "associatedFiles", "association")
    for branch in branches:
        files = _files(branch)
        certified = _attribute(branch, "certified").lower() != "false"
        for category in dict.fromkeys(category for _, category in files):
            chosen = tuple(name for name, c in files if c == category)
            needs.append(Selection(chosen, category, _attribute(branch, "match"), certified))
    names = [name for name, _ in _files(association)]
    if needs:
        yield names, needs
    for branch in branches:
        yield from _walk(branch)


def archive_of(folders: Iterable[str | os.PathLike[str]]) -> Archive:
    """Read all XML files of associations in some folders."""
    return read_archive(find_xml(folders))

