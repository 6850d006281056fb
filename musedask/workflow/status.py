"""What of a reduction is done, running, failed, out of date, or still to be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..calib.engine import wanted_record
from ..errors import MusedaskError
from .cleanup import spared
from .operations import Operation
from .run import Run
from .state import is_current, remember_files
from .steps import Node, Step

if TYPE_CHECKING:
    from .reduce import Plan

Status = Literal["done", "running", "failed", "stale", "pending", "off"]


@dataclass(frozen=True)
class NodeStatus:
    """How far a node is.

    Attributes
    ----------
    node : Node
    step : Step
    status : str
        ``done``: nothing is to be done; ``stale``: it was done with other input or parameters, or what it needs is
        stale; ``pending``: it has not been done; ``off``: it is not among the steps to be done.
    reason : str
        Why it failed or is stale.
    seconds : float
        Time that its last call took [s].
    log : str or None
    """

    node: Node
    step: Step
    status: Status
    reason: str = ""
    seconds: float = 0.0
    log: str | None = None


def find_status(plan: Plan) -> list[NodeStatus]:
    """Status of each node; nothing is changed.

    Parameters
    ----------
    plan : Plan

    Returns
    -------
    list of NodeStatus
        In the order of the graph.
    """
    from .run import Done

    state = plan.state
    events = state.last_events() if state.is_locked() else {}
    run = Run(plan.graph, state, plan.settings)
    run.scratch = state.scratch
    _, without = spared(plan)
    found: dict[Node, NodeStatus] = {}
    for step in plan.graph:
        for node in step.nodes:
            record = state.record(node)
            seconds, log = (record.wall_time, record.log) if record else (0.0, None)

            def is_(status: Status, reason: str = "", n: Node = node, s: Step = step,
                    t: float = seconds, path: str | None = log) -> NodeStatus:  # fmt: skip
                return NodeStatus(n, s, status, reason, t, path)

            if not step.active:
                found[node] = is_("off")
                continue
            if events.get(node, {}).get("event") == "start":
                found[node] = is_("running")
                continue
            if record is None:
                found[node] = is_("pending")
                continue
            if not record.ok:
                found[node] = is_("failed", record.reason)
                continue
            if node in without:
                found[node] = is_("done")
                run.outcome.done[node] = Done(node, record, reused=True)
                continue
            old = [n for n in plan.graph.needs(node) if found[n].status != "done"]
            if old:
                found[node] = is_("stale", f"{old[0]} is {found[old[0]].status}")
                continue
            try:
                if step.operation == "mosaic":
                    reason = ""
                else:
                    job = run.job(node)
                    remember_files((*job.known, *record.inputs), node.ifu)
                    call = job.call
                    wanted = call.wanted_record() if isinstance(call, Operation) else wanted_record(call)
                    reason = is_current(record, wanted)
            except MusedaskError as error:
                reason = str(error)
            found[node] = is_("stale", reason) if reason else is_("done")
            run.outcome.done[node] = Done(node, record, reused=True)
    return list(found.values())


def table(statuses: Iterable[NodeStatus]) -> str:
    """Text: a line for each observing block, exposure and step, with the IFUs that are not done."""
    statuses = list(statuses)
    lines = [f"{'where':<44} {'step':<15} {'done':>9}  what is not"]
    by_step: dict[str, list[NodeStatus]] = {}
    for s in statuses:
        by_step.setdefault(s.node.step, []).append(s)
    for group in by_step.values():
        step = group[0].step
        where = step.id.rpartition("/")[0]
        done = sum(s.status == "done" for s in group)
        if all(s.status == "off" for s in group):
            lines.append(f"{where:<44} {step.name:<15} {'off':>9}")
            continue
        rest: dict[str, list[int | None]] = {}
        for s in group:
            if s.status != "done":
                rest.setdefault(s.status, []).append(s.node.ifu)
        texts = []
        for status, ifus in rest.items():
            numbers = [str(i) for i in ifus if i is not None]
            texts.append(status + (f" (IFU {', '.join(numbers)})" if numbers and len(numbers) < len(group) else ""))
        reasons = dict.fromkeys(s.reason for s in group if s.reason)
        more = ": " + "; ".join(list(reasons)[:2]) if reasons else ""
        lines.append(f"{where:<44} {step.name:<15} {f'{done}/{len(group)}':>9}  {', '.join(texts)}{more}")
    counts = Counter(s.status for s in statuses if s.status != "off")
    lines.append(", ".join(f"{n} {status}" for status, n in counts.items()) or "nothing to do")
    return "\n".join(line.rstrip() for line in lines)
