"""What `musedask.cluster_check` runs on workers.

It is sent to them as it stands, so that it also runs where musedask is missing or of another version: whatever is not
of the standard library is imported inside the functions.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import tempfile
import time
import zlib
from typing import Any

#: file systems that several machines may see
SHARED = (
    "nfs", "lustre", "gpfs", "mmfs", "beegfs", "fhgfs", "ceph", "panfs", "pvfs", "orangefs", "cifs", "smb", "afs",
    "glusterfs", "9p", "sshfs", "wekafs", "quobyte", "moosefs", "gfs2", "ocfs2", "virtiofs",
)  # fmt: skip


def probe(
    packages: tuple[str, ...], installed: tuple[str, ...], esorex: str | None, scratch: str | None,
    dask_worker: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """What a machine has: versions, esorex, scratch space, memory.

    Parameters
    ----------
    packages : tuple of str
        Modules that are imported for their versions.
    installed : tuple of str
        Packages of which only the version is looked up, since it takes long to import them.
    esorex : str or None
        Name or path of the program; None does not look for it.
    scratch : str or None
        Folder; None for that of the worker.
    dask_worker : distributed.Worker, optional
        Given by Dask.
    """
    found: dict[str, Any] = {
        "host": socket.gethostname(), "pid": os.getpid(), "uid": os.getuid(), "machine": platform.machine(),
        "python": platform.python_version(), "cpus": _cpus(), "folder": os.getcwd(),
        "versions": {name: _version(name, name in packages) for name in (*packages, *installed)},
    }  # fmt: skip
    if esorex is not None:
        found["esorex"] = _esorex(esorex)
    if scratch is None:
        scratch = getattr(dask_worker, "local_directory", None) or tempfile.gettempdir()
    found["scratch"] = _scratch(scratch)
    found["memory"] = _memory()
    return found


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(name: str, imported: bool) -> str:
    """Version of a package, or why it has none."""
    try:
        module = importlib.import_module(name) if imported else None
        return str(getattr(module, "__version__", None) or importlib.metadata.version(name))
    except ModuleNotFoundError:
        return "missing"
    except Exception as error:
        return f"broken ({type(error).__name__}: {error})"


def _esorex(program: str) -> dict[str, Any]:
    """Path, versions and recipes of esorex, or what is wrong with it."""
    path = shutil.which(program)
    if path is None:
        return {"error": f"{program}: not found"}
    try:
        from musedask.calib.esorex_info import Esorex

        asked = Esorex(program)
        version = re.search(r"version (\d[\w.]*)", asked.ask("--version"))
        recipes = asked.recipes()
        if version is None:
            return {"path": path, "error": f"{path}: does not tell its version"}
        pipeline = re.search(r"-- version (\S+)", asked.ask("--man-page", recipes[0])) if recipes else None
    except Exception as error:
        return {"path": path, "error": f"{path}: {type(error).__name__}: {error}"}
    return {
        "path": path, "version": version[1], "recipes": recipes, "pipeline": pipeline[1] if pipeline else "",
    }  # fmt: skip


def _scratch(folder: str) -> dict[str, Any]:
    """Space in a folder, whether it can be written to, and what kind of file system it is."""
    found: dict[str, Any] = {"path": folder, "writable": False, "free": 0, "filesystem": "", "shared": False}
    try:
        found["free"] = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"musedask")
            file.flush()
        found["writable"] = True
    except OSError as error:
        found["error"] = error.strerror or str(error)
    kind = _filesystem(folder)
    found |= {"filesystem": kind, "shared": any(name in kind for name in SHARED)}
    return found


def _filesystem(folder: str) -> str:
    """Type of the file system of a folder."""
    with contextlib.suppress(Exception):
        import psutil

        path = os.path.realpath(folder)
        best, kind = -1, ""
        for mount in psutil.disk_partitions(all=True):
            point = mount.mountpoint.rstrip("/")
            if (path == point or path.startswith(point + "/")) and len(point) >= best:
                best, kind = len(point), mount.fstype
        return kind
    return ""


def _memory() -> dict[str, int]:
    """Memory of the machine or the control group, whichever is less, and how much of the machine's is free."""
    total = free = 0
    with contextlib.suppress(Exception):
        import psutil

        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            total = min(total, int(file.read())) if total else int(file.read())
    return {"total": total, "free": free}


def clock() -> float:
    """Time of the machine [s]."""
    return time.time()


def look(
    wanted: list[dict[str, Any]], names: dict[str, str], patience: float, dask_worker: Any = None
) -> list[dict[str, Any]]:
    """Whether files are here as they are elsewhere.

    Parameters
    ----------
    wanted : list of dict
        ``path``; and ``token``, the path of a file, with its ``text``, to be answered by a file beside it; or the
        ``print`` of what is there.
    names : dict of str to str
        Name of the file in answer, by address of the worker; "" outside a cluster.
    patience : float
        How long a network file system may take to show what was written elsewhere [s].

    dask_worker : distributed.Worker, optional
        Given by Dask.

    Returns
    -------
    list of dict
        ``error`` of each, empty if all is well.
    """
    name = names[getattr(dask_worker, "address", "")]
    return [{"path": item["path"], "error": _look(item, name, patience)} for item in wanted]


def _look(item: dict[str, Any], name: str, patience: float) -> str:
    path = item["path"]
    if not os.path.exists(path):
        return "not there"
    if "token" not in item:
        return "" if fingerprint(path) == item["print"] else "other content"
    end = time.monotonic() + patience
    error = "another folder of this name: what was written there is not here"
    while True:
        try:
            with open(item["token"]) as file:
                if file.read() == item["text"]:
                    break
        except PermissionError as problem:
            return f"cannot be read: {problem.strerror}"
        except OSError:
            pass
        if time.monotonic() > end:
            return error
        time.sleep(min(0.2, patience / 5))
    try:
        answer = os.path.join(os.path.dirname(item["token"]), name)
        with open(answer, "w") as file:
            file.write(item["text"][::-1])
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        return f"cannot be written to: {problem.strerror}"
    return ""


def fingerprint(path: str) -> str:
    """Names and sizes in a folder, or size and both ends of a file."""
    try:
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                listed = sorted(f"{e.name} {e.stat().st_size if e.is_file() else ''}" for e in entries)
            return f"{len(listed)} files, {zlib.crc32(os.linesep.join(listed).encode())}"
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            crc = zlib.crc32(file.read(1 << 16))
            file.seek(max(0, size - (1 << 16)))
            return f"{size} bytes, {zlib.crc32(file.read(1 << 16), crc)}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
