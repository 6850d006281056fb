"""Records of calls of recipes: what went in, what ran, what came out.

One JSON file for each call, beside its log.  `key` tells whether two calls are the same: it depends on contents, not
on paths and times, so that a finished call need not be repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import InputError
from ..io.files import atomic_path
from ..io.fingerprint import fingerprint
from ..io.sof import Frame

SCHEMA_VERSION = 1
#: versions that make a difference to the numbers, by engine
_DECIDING = {"esorex": ("esorex", "cpl", "drs"), "native": ("musedask", "numpy", "numba")}
#: environment variables that change what a recipe does, by how they begin; those of the reference that ours heed, too
_DECIDING_ENVIRONMENT = {"esorex": "MUSE_", "native": "MUSE_BASICPROC_SKIP_"}


@dataclass(frozen=True)
class FileRecord:
    """A file that a call read or made.

    Attributes
    ----------
    path : str
        Absolute.
    tag : str
    checksum : str
        Of its content, see `musedask.io.fingerprint`; empty if it could not be read.
    scope : str
        What of the file the checksum is of: ``file`` or ``CHANnn``.
    size : int
        [bytes]
    mtime_ns : int
        Time of the last change [ns].
    merged_into : str or None
        File of several IFUs that it became part of.
    """

    path: str
    tag: str
    checksum: str = ""
    scope: str = "file"
    size: int = 0
    mtime_ns: int = 0
    merged_into: str | None = None

    @classmethod
    def of(cls, frame: Frame, ifu: int | None = None) -> FileRecord:
        """Record of a frame; raises `InputError` if it cannot be read."""
        found = fingerprint(frame.path, ifu)
        path = os.fspath(frame.path.absolute())
        return cls(path, frame.tag, found.checksum, found.scope, found.size, found.mtime_ns)


@dataclass
class CallRecord:
    """What happened in one call of a recipe.

    Attributes
    ----------
    recipe : str
    ifu : int or None
    engine : str
        ``esorex`` or ``native``.
    parameters : dict of str to object
        All of them.
    status : str
        ``done``, ``failed``, ``timeout``, ``cancelled``, or ``running`` while it is none of these.
    inputs, products : list of FileRecord
    versions : dict of str to str
    environment : dict of str to str
        Variables that matter.
    threads : int
        That the call was given.
    command : list of str
        Of the child process, empty for the native engine.
    host : str
    started, ended : str
        UTC.
    wall_time, cpu_time : float
        [s]
    peak_memory : int
        Of the child process, or of this one since it started, if the engine is native [bytes].
    exit_status, signal : int or None
        Of the child process.
    warnings, errors : list of str
    log : str or None
        File of all messages.
    schema_version : int
    """

    recipe: str
    ifu: int | None
    engine: str
    parameters: dict[str, Any]
    status: str = "running"
    inputs: list[FileRecord] = field(default_factory=list)
    products: list[FileRecord] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    command: list[str] = field(default_factory=list)
    host: str = ""
    started: str = ""
    ended: str = ""
    wall_time: float = 0.0
    cpu_time: float = 0.0
    peak_memory: int = 0
    exit_status: int | None = None
    signal: int | None = None
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    log: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def ok(self) -> bool:
        """Whether the call did all it should."""
        return self.status == "done"

    @property
    def name(self) -> str:
        """The recipe, or the IFU where it works on one."""
        return self.recipe if self.ifu is None else f"IFU {self.ifu}"

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        return "; ".join(self.errors) or self.status

    def key(self) -> str:
        """Hash of all that the products depend on, see `call_key`."""
        return call_key(
            self.recipe, self.ifu, self.engine, self.parameters, self.versions, self.inputs, self.environment
        )


def call_key(
    recipe: str,
    ifu: int | None,
    engine: str,
    parameters: Mapping[str, Any],
    versions: Mapping[str, str],
    inputs: Sequence[FileRecord],
    environment: Mapping[str, str],
) -> str:
    """Hash of all that the products of a call depend on: 32 hexadecimal digits.

    Two calls have the same key if recipe, IFU, engine, the values of all parameters, the versions of the software
    that computes, the variables ``MUSE_*`` of the environment that it heeds, and the tags and contents of the inputs
    in their order are the same; names, places and times of files, threads and hosts do not matter.

    Parameters
    ----------
    recipe, ifu, engine, parameters, versions, inputs, environment
        As in `CallRecord`.

    Raises
    ------
    InputError
        If an input has no checksum.
    """
    unknown = [file.path for file in inputs if not file.checksum]
    if unknown:
        raise InputError(f"{unknown[0]}: its content is not known, so that the call has no key")
    heeded = _DECIDING_ENVIRONMENT.get(engine)
    content = {
        "recipe": recipe,
        "ifu": ifu,
        "engine": engine,
        # the IFU says it; to merge is done with finished products
        "parameters": {k: v for k, v in parameters.items() if k not in ("nifu", "merge")},
        "versions": {name: versions.get(name) for name in _DECIDING.get(engine, ())},
        "inputs": [[file.tag, file.checksum] for file in inputs],
        "environment": {k: v for k, v in environment.items() if heeded and k.startswith(heeded)},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def native_environment() -> dict[str, str]:
    """Variables of the environment that matter to native recipes."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(_DECIDING_ENVIRONMENT["native"])}


@lru_cache(maxsize=1)
def package_versions() -> dict[str, str]:
    """Versions of this package and of those that compute for it."""
    from importlib.metadata import version

    return {
        "musedask": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "numba", "astropy")},
    }


def write_record(path: str | os.PathLike[str], record: CallRecord) -> Path:
    """Write a record as JSON, with its key if all inputs could be read.

    Raises
    ------
    PlanError
        If the disk is full.
    """
    path = Path(path)
    content = asdict(record)
    content["key"] = record.key() if all(f.checksum for f in record.inputs) else None
    with atomic_path(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    return path


def read_record(path: str | os.PathLike[str]) -> CallRecord:
    """Read a record.

    Raises
    ------
    InputError
        If the file is missing, no record, or of another version of the schema.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise InputError(f"{path}: schema_version {version} found, expected {SCHEMA_VERSION}")
        content.pop("key", None)
        for name in ("inputs", "products"):
            content[name] = [FileRecord(**file) for file in content[name]]
        missing = [f.name for f in fields(CallRecord) if f.name not in content]
        if missing:
            raise InputError(f"{path}: is no record of a call, it has no {missing[0]}")
        return CallRecord(**content)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no record of a call: {error}") from error
