"""Intermediate products are removed to save disk; never a raw file, never a final cube.

What was removed need not be made again for its own sake: a later run makes it only if something that needs it is to
be done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calib.engine import Call, choose_engine, wanted_record
from ..calib.provenance import CallRecord, package_versions
from ..compute import format_bytes
from ..errors import MusedaskError
from ..io.files import atomic_path
from ..io.fingerprint import fingerprint
from ..recipes import NATIVE
from .operations import Operation
from .state import State, difference, is_intact
from .steps import Graph, Node, Step

if TYPE_CHECKING:
    from .reduce import Plan

log = logging.getLogger("musedask")

#: what each switch of the section ``cleanup`` stands for: names of steps
PARTS = {
    "include_std": ("std_basic", "std_flux"),
    "include_combined": ("dither_collect", "exp_align"),
    "include_calibrations": (
        "bias", "dark", "flat", "wavecal", "lsf", "twilight", "astrometry", "sci_basic", "sky", "sci_post",
    ),
}  # fmt: skip
#: products of muse_scipost that are results in their own right
_RESULTS = ("DATACUBE_FINAL", "IMAGE_FOV")
#: what was removed, and which frames there were for each node then; in the folder of the state
_REMOVED = "removed.json"


@dataclass(frozen=True)
class Removal:
    """A file that may go.

    Attributes
    ----------
    path : Path
    step : Step
    size : int
        Disk that it takes, which is none if it is a second name of another file [bytes].
    """

    path: Path
    step: Step
    size: int


def removable(plan: Plan, parts: set[str] | None = None) -> list[Removal]:
    """Products that may be removed: those that calls are known to have made, of some parts.

    Parameters
    ----------
    plan : Plan
    parts : set of str, optional
        Keys of `PARTS`; default: those that the configuration names.

    Returns
    -------
    list of Removal
        Results (cubes, images) are not among them, nor is anything outside the folder of the products.
    """
    if parts is None:
        parts = {name for name in PARTS if getattr(plan.config.cleanup, name)}
    names = {step for part in parts for step in PARTS[part]}
    state, root = plan.state, plan.reduced.resolve()
    found: dict[Path, Removal] = {}
    for step in plan.graph:
        if step.name not in names:
            continue
        for node in step.nodes:
            record = state.record(node)
            for file in record.products if record is not None else ():
                path = Path(file.path)
                result = file.tag in _RESULTS and step.name in ("sci_post", "dither_collect")
                if result and not (step.name == "dither_collect" and "include_combined" in parts):
                    continue
                if path.resolve().is_relative_to(root) and path.is_file():
                    status = os.stat(path)
                    found[path] = Removal(path, step, status.st_size if status.st_nlink == 1 else 0)
    return list(found.values())


def cleanup(plan: Plan, state: State, parts: set[str] | None = None) -> int:
    """Remove intermediate products; a later run makes those again that it needs, see `spared`.

    Returns
    -------
    int
        Number of files.
    """
    found = removable(plan, parts)
    before = _removed(state)
    gone = {*before.get("files", ()), *(str(removal.path) for removal in found)}
    frames = {**before.get("frames", {}), **{n.key: _frames(plan.graph, n) for s in plan.graph for n in s.nodes}}
    with atomic_path(state.folder / _REMOVED, overwrite=True) as part:
        part.write_text(json.dumps({"files": sorted(gone), "frames": frames}, indent=1))
    for removal in found:
        removal.path.unlink(missing_ok=True)
    state.note("cleanup", files=len(found))
    if found:
        log.info("removed %d intermediate products, %s", len(found), format_bytes(sum(r.size for r in found)))
    return len(found)


def _removed(state: State) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((state.folder / _REMOVED).read_text())
        return found
    return {}


def _frames(graph: Graph, node: Node) -> str:
    """Paths and tags of what a node takes, as a short text."""
    text = json.dumps([(str(path), tag) for path, tag in graph.frames(node)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def spared(plan: Plan) -> tuple[Graph, dict[Node, CallRecord]]:
    """What need not be made again although products of it were removed.

    A step that is as it was is left out as long as nothing that is to be done needs what was removed of it.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    graph : Graph
        That of the plan, with such steps switched off.
    records : dict of Node to CallRecord
        Of the nodes of these.
    """
    state = plan.state
    removed = _removed(state)
    if not removed:
        return plan.graph, {}
    search = _Unchanged(plan, state, removed)
    needed: set[str] = set()
    off: dict[str, None] = {}
    for step in reversed(list(plan.graph)):
        if not step.active:
            continue
        parents = {ref.step for ref in step.inputs if ref.step is not None}
        if step.id not in needed and search.is_unchanged(step):
            off[step.id] = None
            continue
        needed |= {name for name in parents if not search.is_whole(plan.graph[name])}
        needed |= {name for name in parents if not search.is_unchanged(plan.graph[name])}
    graph = Graph((replace(s, active=s.active and s.id not in off) for s in plan.graph), plan.graph.refused)
    records = {node: search.records[node] for name in off for node in plan.graph[name].nodes}
    return graph, {node: record for node, record in records.items() if record is not None}


class _Unchanged:
    """Finds steps that are as they were when they were done, but for products that were removed."""

    def __init__(self, plan: Plan, state: State, removed: dict[str, Any]) -> None:
        self.records = {node: state.record(node) for step in plan.graph for node in step.nodes}
        self._plan = plan
        self._gone = set(removed["files"])
        self._given = removed["frames"]
        self._made = {f.path: f.checksum for r in self.records.values() if r is not None for f in r.products}
        self._known: dict[str, bool] = {}

    def is_unchanged(self, step: Step) -> bool:
        """Whether a step, and all before it, would give what it gave."""
        if step.id not in self._known:
            self._known[step.id] = not {step.name, step.id} & self._plan.settings.force and (
                all(self._is_unchanged(step, node) for node in step.nodes)
                and all(self.is_unchanged(self._plan.graph[r.step]) for r in step.inputs if r.step is not None)
            )
        return self._known[step.id]

    def is_whole(self, step: Step) -> bool:
        """Whether nothing of its products was removed."""
        records = [self.records[node] for node in step.nodes]
        return all(r is not None and all(os.path.exists(f.path) for f in r.products) for r in records)

    def _is_unchanged(self, step: Step, node: Node) -> bool:
        record = self.records[node]
        if record is None or not record.ok or self._given.get(node.key) != _frames(self._plan.graph, node):
            return False
        try:
            wanted = self._wanted(step, node)
            wanted.inputs = record.inputs
            if difference(record, wanted):
                return False
            for file in record.inputs:
                if file.path in self._made:
                    same = self._made[file.path] == file.checksum
                else:
                    status = os.stat(file.path)
                    same = (status.st_size, status.st_mtime_ns) == (file.size, file.mtime_ns)
                    same = same or fingerprint(file.path, node.ifu).checksum == file.checksum
                if not same:
                    return False
        except (MusedaskError, OSError):
            return False
        return all(
            is_intact(f, node.ifu) if os.path.exists(f.path) else f.path in self._gone for f in record.products
        )

    def _wanted(self, step: Step, node: Node) -> CallRecord:
        if step.operation == "mosaic":
            values = {k: v for k, v in step.values.items() if k != "products"}
            return CallRecord("muse_exp_combine", None, "native", values, versions=package_versions())
        if step.recipe is None:
            return Operation(step.operation, (), step.values, step.folder).blank_record()
        values = step.recipe.resolve(step.values)
        if node.ifu is not None:
            values["nifu"] = node.ifu
        call = Call(
            step.recipe, node.ifu, (), values, choose_engine(step.recipe, step.engine), step.folder, step.folder,
            step.stem, self._plan.state.scratch, executable=self._plan.settings.esorex,
            function=NATIVE.get(step.recipe.name, ""),
        )  # fmt: skip
        return wanted_record(call)
