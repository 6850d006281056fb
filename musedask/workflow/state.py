"""What has been done: the lock of a run, its journal, and whether a call need not be repeated.

All of it is in the folder ``.musedask`` of the reduction: ``lock``, ``journal.jsonl`` with a line for each
event, ``records/`` with the record of the last call of each node.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..calib.provenance import CallRecord, FileRecord, call_key, read_record
from ..errors import InputError, StoreError
from ..io.fingerprint import Fingerprint, remember
from .steps import Node

#: folder of the state, in that of the reduction
FOLDER = ".musedask"


class State:
    """The folder of a reduction's state.

    Parameters
    ----------
    reduced : Path
        Folder of the reduction.
    """

    def __init__(self, reduced: Path) -> None:
        self.folder = reduced / FOLDER
        self.records = self.folder / "records"
        self.scratch = self.folder / "scratch"
        self._journal = self.folder / "journal.jsonl"
        self._lock = self.folder / "lock"

    def record_path(self, node: Node) -> Path:
        """File of the record of a node."""
        return self.records / f"{node.key}.json"

    def record(self, node: Node) -> CallRecord | None:
        """Record of the last call of a node, None if there is none that can be read."""
        return record_at(self.record_path(node))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away; the lock goes with the process, however it ends.

        Raises
        ------
        StoreError
            If another run is at work.
        """
        try:
            for folder in (self.folder, self.records, self.scratch):
                folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written to: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
                raise StoreError(
                    f"{self.folder.parent}: another run is at work there ({owner}); wait for it, or choose another "
                    "folder (musedask.reduced)"
                ) from None
            except OSError:
                # a file system without locks; the name of the owner has to do
                pass
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()} since {now()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    def is_locked(self) -> bool:
        """Whether a run is at work."""
        try:
            handle = os.open(self._lock, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            os.close(handle)
        return False

    def note(self, event: str, node: Node | None = None, **more: Any) -> None:
        """Add a line to the journal."""
        entry = {"time": now(), "event": event, **({"step": node.step, "ifu": node.ifu} if node else {}), **more}
        with contextlib.suppress(OSError), open(self._journal, "a") as file:
            # a full disk does not stop a run that makes room or fails by itself
            file.write(json.dumps(entry) + "\n")

    def journal(self) -> list[dict[str, Any]]:
        """All events; a line that was cut off by a crash does not count."""
        found = []
        with contextlib.suppress(OSError):
            for line in self._journal.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
        return found

    def last_events(self) -> dict[Node, dict[str, Any]]:
        """The last event of each node in the last run."""
        found: dict[Node, dict[str, Any]] = {}
        for entry in self.journal():
            if entry["event"] == "begin":
                found.clear()
            elif "step" in entry:
                found[Node(entry["step"], entry["ifu"])] = entry
        return found


def now() -> str:
    """Time in UTC, as in records."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def record_at(path: Path) -> CallRecord | None:
    """Record in a file, None if there is none that can be read."""
    try:
        return read_record(path)
    except InputError:
        return None


def remember_files(files: Iterable[FileRecord], ifu: int | None) -> None:
    """Contents that are known need not be read again as long as size and time are the same."""
    for file in files:
        if file.checksum:
            found = Fingerprint(file.checksum, file.scope, file.size, file.mtime_ns)
            remember(file.path, ifu, found)
            if file.scope == "file":
                # all of it was looked at, which is the same for any IFU
                remember(file.path, None, found)


def is_current(record: CallRecord, wanted: CallRecord) -> str:
    """Whether a call that was done is what is wanted now, and its products are still there.

    Parameters
    ----------
    record : CallRecord
        Of the call that was done.
    wanted : CallRecord
        Of one that has not begun, with inputs, versions and environment.

    Returns
    -------
    str
        Empty if it need not be repeated, else the reason.
    """
    if not record.ok:
        return f"it {'failed' if record.status == 'failed' else record.status}"
    reason = difference(record, wanted)
    if reason:
        return reason
    for file in record.products:
        if file.merged_into is None and not is_intact(file, record.ifu):
            return f"{file.path} is not what was made"
    return ""


def difference(record: CallRecord, wanted: CallRecord) -> str:
    """What differs between two calls as far as their products depend on it; empty if nothing does."""
    if key_of(record) == key_of(wanted):
        return ""
    if record.engine != wanted.engine:
        return f"engine {record.engine}, now {wanted.engine}"
    changed = [
        k for k in {**record.parameters, **wanted.parameters} if record.parameters.get(k) != wanted.parameters.get(k)
    ]
    if changed:
        return "parameters " + ", ".join(
            f"{k} {record.parameters.get(k)}, now {wanted.parameters.get(k)}" for k in changed
        )
    before = {(f.tag, f.checksum): f.path for f in record.inputs}
    after = {(f.tag, f.checksum): f.path for f in wanted.inputs}
    new = [Path(path).name for key, path in after.items() if key not in before]
    gone = [Path(path).name for key, path in before.items() if key not in after]
    if new or gone:
        return "inputs " + ", ".join([*(f"{name} new" for name in new[:3]), *(f"{name} gone" for name in gone[:3])])
    versions = [k for k in wanted.versions if record.versions.get(k) != wanted.versions[k]]
    if versions:
        return "versions " + ", ".join(f"{k} {record.versions.get(k)}, now {wanted.versions[k]}" for k in versions)
    return "order of inputs or environment"


def key_of(record: CallRecord) -> str:
    """Key of a call, empty if an input could not be read."""
    if any(not f.checksum for f in record.inputs):
        return ""
    # the order in which equal tags come makes no difference to what is computed but by rounding; it is kept
    return call_key(
        record.recipe, record.ifu, record.engine, record.parameters, record.versions, record.inputs, record.environment
    )


def is_intact(file: FileRecord, ifu: int | None = None) -> bool:
    """Whether a product is still what was made; its content is only read if size or time differ."""
    try:
        status = os.stat(file.path)
        if os.path.isdir(file.path):
            return True
        if (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns):
            return True
        from ..io.fingerprint import fingerprint

        return fingerprint(file.path, ifu).checksum == file.checksum
    except (OSError, InputError):
        return False

