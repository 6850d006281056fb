"""What a reduction consists of: steps, each a set of frames for a recipe, and what of it depends on what.

A step is one set of frames (SOF) in one folder.  A recipe that works on single IFUs makes a node of each IFU of it,
so that IFU 3 of the flat field waits for IFU 3 of the bias and for nothing else.  All of this is pure: it knows files
by name only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe import Recipe

#: steps in the order in which they come, as a user names them
STEPS = (
    "bias", "dark", "flat", "wavecal", "lsf", "twilight", "sci_basic", "std_basic", "std_flux", "astrometry", "sky",
    "sci_post", "dither_collect", "exp_align", "exp_combine",
)  # fmt: skip
#: recipe of each step that has one; its parameters may be given under the name of the step
STEP_RECIPES: Mapping[str, str] = {
    "bias": "muse_bias", "dark": "muse_dark", "flat": "muse_flat", "wavecal": "muse_wavecal", "lsf": "muse_lsf",
    "twilight": "muse_twilight", "sci_basic": "muse_scibasic", "std_basic": "muse_scibasic",
    "std_flux": "muse_standard", "astrometry": "muse_astrometry", "sky": "muse_create_sky", "sci_post": "muse_scipost",
    "exp_align": "muse_exp_align", "exp_combine": "muse_exp_combine",
}  # fmt: skip


@dataclass(frozen=True)
class Ref:
    """An input of a step: a file, or products of another step.

    Attributes
    ----------
    tag : str
        In the set of frames.
    path : Path or None
        The file.
    step : str or None
        Id of the step that makes it.
    product : str
        ``PRO CATG`` there, if it is not the tag.
    """

    tag: str
    path: Path | None = None
    step: str | None = None
    product: str = ""

    @property
    def category(self) -> str:
        """``PRO CATG`` of what is meant."""
        return self.product or self.tag


@dataclass(frozen=True)
class Step:
    """A set of frames and the recipe that takes it.

    Attributes
    ----------
    id : str
        Folder below that of the reduction, and stem: unique, and where to look.
    name : str
        One of `STEPS`.
    recipe : Recipe or None
        None for an operation of this package.
    operation : str
        ``link``, ``modify_sky`` or ``mosaic``; empty for a recipe.
    folder : Path
        Where the products go, with set of frames and logs.
    stem : str
        Name of these: ``flat`` for ``flat.sof`` and ``flat.log``.
    inputs : tuple of Ref
    values : mapping of str to object
        Parameters of the recipe that differ from its defaults, or those of the operation.
    ifus : tuple of int
        Those that have a node each; empty if all are done at once.
    ob, exposure, pointing : str
        What it belongs to, as far as it belongs to one.
    names : mapping of str to str
        Names of products that do not keep those of the recipe.
    engine : str
        ``esorex``, ``native`` or ``auto``.
    keep_sof : bool
        Whether a set of frames that is there is used as it is.
    active : bool
        Whether it is to be done; else its products are taken as they are.
    """

    id: str
    name: str
    folder: Path
    stem: str
    inputs: tuple[Ref, ...]
    recipe: Recipe | None = None
    operation: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    ifus: tuple[int, ...] = ()
    ob: str = ""
    exposure: str = ""
    pointing: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    engine: str = "auto"
    keep_sof: bool = False
    active: bool = True

    @property
    def what(self) -> str:
        """The recipe or the operation."""
        return self.operation if self.recipe is None else self.recipe.name

    @property
    def nodes(self) -> tuple[Node, ...]:
        """A node for each IFU, or one."""
        return tuple(Node(self.id, ifu) for ifu in self.ifus) if self.ifus else (Node(self.id),)

    def product_paths(self, tag: str, ifu: int | None = None) -> list[Path]:
        """Where products of a tag will be: those of all IFUs, or of one."""
        if self.recipe is None:
            return [self.folder / name for name, t in self.values.get("products", {}).items() if t == tag]
        product = self.recipe.product(tag)
        ifus: Sequence[int | None] = [ifu] if ifu in self.ifus else self.ifus or [None]
        names = [product.file_name(i) for i in (ifus if product.per_ifu else [None])]
        return [self.folder / self.names.get(name, name) for name in names]


@dataclass(frozen=True, order=True)
class Node:
    """What is done in one go: a step, or one IFU of it."""

    step: str
    ifu: int | None = None

    def __str__(self) -> str:
        return self.step if self.ifu is None else f"{self.step}, IFU {self.ifu}"

    @property
    def key(self) -> str:
        """As a name of files: of its record, for example."""
        return self.step.replace("/", "__") + ("" if self.ifu is None else f"-{self.ifu:02d}")


class Graph:
    """Steps, and what depends on what.

    Parameters
    ----------
    steps : iterable of Step
        In an order in which they can be done.
    refused : mapping of str to str, optional
        Exposures and pointings that cannot be done, with the reasons.

    Raises
    ------
    InputError
        If two have the same id, or one needs another that comes later or does not exist.
    """

    def __init__(self, steps: Iterable[Step] = (), refused: Mapping[str, str] | None = None) -> None:
        self.steps: dict[str, Step] = {}
        self.refused: dict[str, str] = dict(refused or {})
        for step in steps:
            self.add(step)

    def add(self, step: Step) -> Step:
        """Add a step whose inputs are there already."""
        if step.id in self.steps:
            raise InputError(f"{step.id}: two steps would write the same set of frames")
        for ref in step.inputs:
            if ref.step is not None and ref.step not in self.steps:
                raise InputError(f"{step.id}: needs {ref.category} of {ref.step}, which is no step")
        self.steps[step.id] = step
        return step

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Step:
        return self.steps[name]

    def nodes(self, *, active: bool = True) -> list[Node]:
        """All nodes of the steps that are to be done, or of all steps."""
        return [node for step in self for node in step.nodes if step.active or not active]

    def needs(self, node: Node) -> list[Node]:
        """Nodes that must be done before one, without those of steps that are not to be done."""
        step = self.steps[node.step]
        found: dict[Node, None] = {}
        for ref in step.inputs:
            if ref.step is None:
                continue
            other = self.steps[ref.step]
            if not other.active:
                continue
            same = node.ifu is not None and node.ifu in other.ifus
            for need in [Node(other.id, node.ifu)] if same else other.nodes:
                found[need] = None
        return list(found)

    def frames(self, node: Node) -> list[tuple[Path, str]]:
        """Paths and tags of what a node takes, by the names that products will have."""
        step = self.steps[node.step]
        found = []
        for ref in step.inputs:
            if ref.path is not None:
                found.append((ref.path, ref.tag))
            elif ref.step is not None:
                other = self.steps[ref.step]
                ifu = node.ifu if node.ifu in other.ifus else None
                found += [(path, ref.tag) for path in other.product_paths(ref.category, ifu)]
        return found

    def dependants(self, nodes: Iterable[Node]) -> set[Node]:
        """Nodes that need one of some nodes, directly or not."""
        users = self.users()
        found: set[Node] = set()
        todo = list(nodes)
        while todo:
            for user in users.get(todo.pop(), ()):
                if user not in found:
                    found.add(user)
                    todo.append(user)
        return found

    def users(self) -> dict[Node, list[Node]]:
        """Which nodes need each node."""
        users: dict[Node, list[Node]] = {}
        for node in self.nodes():
            for need in self.needs(node):
                users.setdefault(need, []).append(node)
        return users

    def urgency(self, seconds: Callable[[Node], float]) -> dict[Node, float]:
        """Time of the longest chain that begins with each node: what is on the critical path comes first [s]."""
        users = self.users()
        found: dict[Node, float] = {}
        for node in reversed(self.nodes()):
            found[node] = seconds(node) + max((found[user] for user in users.get(node, ())), default=0.0)
        return found


@dataclass(frozen=True)
class Replay:
    """What a run would take on some workers.

    Attributes
    ----------
    workers : int
    elapsed : float
        [s]
    critical_path : float
        Of the longest chain, less is not possible [s].
    work : float
        Of all nodes together [s].
    """

    workers: int
    elapsed: float
    critical_path: float
    work: float

    @property
    def efficiency(self) -> float:
        """Part of the time that the workers are busy."""
        return self.work / (self.elapsed * self.workers) if self.elapsed else 1.0


def replay(graph: Graph, seconds: Mapping[Node, float], workers: int, *, overhead: float = 0.0) -> Replay:
    """Run a graph on imagined workers, each of which does one node at a time, the most urgent first.

    Parameters
    ----------
    graph : Graph
    seconds : mapping of Node to float
        How long each takes.
    workers : int
    overhead : float
        Time from the end of a node to the start of those that need it [s].
    """
    def cost(node: Node) -> float:
        return seconds[node] + overhead

    urgency = graph.urgency(cost)
    users = graph.users()
    waits = {node: len(graph.needs(node)) for node in urgency}
    ready = [(-urgency[node], node.key, node) for node, n in waits.items() if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str, Node]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < workers:
            _, key, node = heapq.heappop(ready)
            heapq.heappush(running, (now + cost(node), key, node))
        now, _, node = heapq.heappop(running)
        for user in users.get(node, ()):
            waits[user] -= 1
            if waits[user] == 0:
                heapq.heappush(ready, (-urgency[user], user.key, user))
    return Replay(workers, now, max(urgency.values(), default=0.0), sum(map(cost, urgency)))
