"""Raw night to mosaic: configuration -> sorting -> graph -> run -> report."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import compute
from ..errors import InputError, RecipeError
from ..io.sof import Frame
from .config import Config, load_config
from .graph import build_graph
from .report import quality_table, summary, write_report
from .run import Done, Outcome, Run, Settings, write_step_sof
from .sorting import Sorted, folders, sort_raw
from .state import State
from .steps import STEPS, Graph, Node

if TYPE_CHECKING:
    import pandas as pd
    from distributed import Client

log = logging.getLogger("musedask")

PathLike = str | os.PathLike[str]


@dataclass
class Plan:
    """What a reduction will do.

    Attributes
    ----------
    config : Config
    reduced : Path
        Folder of the products.
    sorted : Sorted
        What goes with what.
    graph : Graph
    settings : Settings
    asked : dict
        What was asked for beside the configuration: ``engine``, ``first``, ``last``, ``ifus``.
    """

    config: Config
    reduced: Path
    sorted: Sorted
    graph: Graph
    settings: Settings
    asked: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> State:
        """What has been done."""
        return State(self.reduced)

    def write_sofs(self) -> None:
        """Write the sets of frames of all steps to be done, with the names that products will have."""
        for step in self.graph:
            if step.active and step.recipe is not None:
                write_step_sof(self.graph, step)

    def describe(self) -> str:
        """Text: each step with its folder, its recipe and parameters, its IFUs and frames."""
        lines = []
        for step in self.graph:
            if not step.active:
                continue
            ifus = f", IFUs {', '.join(map(str, step.ifus))}" if step.ifus else ""
            values = " ".join(f"{k}={v}" for k, v in step.values.items() if k not in ("products", "names"))
            lines.append(f"{step.id}: {step.what} ({step.engine}){ifus}" + (f" {values}" if values else ""))
            frames: dict[tuple[Path, str], None] = {}
            for node in step.nodes:
                frames |= dict.fromkeys(self.graph.frames(node))
            lines += [f"    {path} {tag}" for path, tag in frames]
        lines += [f"not possible: {label}: {reason}" for label, reason in self.graph.refused.items()]
        n = len(self.graph.nodes())
        lines.append(f"{sum(s.active for s in self.graph)} steps, {n} calls, products in {self.reduced}")
        return "\n".join(lines)


@dataclass
class Reduction:
    """A reduction that was run.

    Attributes
    ----------
    plan : Plan
    outcome : Outcome
    files : list of Path
        The report.
    """

    plan: Plan
    outcome: Outcome
    files: list[Path] = field(default_factory=list)

    def products(
        self, tag: str, *, ob: str | None = None, exposure: str | None = None, ifu: int | None = None
    ) -> list[Frame]:
        """Products of a category, those of the last step that makes it: of the pointing rather than of exposures.

        Parameters
        ----------
        tag : str
            ``PRO CATG``.
        ob, exposure : str, optional
            Only of this observing block, of this exposure.
        ifu : int, optional
        """
        found: dict[str, list[Frame]] = {}
        for node in self.plan.graph.nodes(active=False):
            step, done = self.plan.graph[node.step], self.outcome.done.get(node)
            if done is None or not done.ok or (ob and step.ob != ob) or (exposure and step.exposure != exposure):
                continue
            if ifu is not None and node.ifu not in (None, ifu):
                continue
            files = [Frame(Path(f.path), f.tag) for f in done.record.products if f.tag == tag]
            if files and (step.operation != "link" or step.name == "exp_combine"):
                found.setdefault(step.name, []).extend(files)
        last = max(found, key=STEPS.index, default=None)
        return found[last] if last else []

    @property
    def failures(self) -> list[Node]:
        """Nodes that failed."""
        return [done.node for done in self.outcome.failures]

    def summary(self) -> str:
        """What was made, what failed and why."""
        return summary(self.plan.graph, self.outcome)

    def quality(self) -> pd.DataFrame:
        """Keywords of quality control, see `musedask.workflow.report.quality_table`."""
        return quality_table(self.plan.graph, self.outcome)


def reduce(
    config: PathLike | Mapping[str, Any] | Config,
    *,
    client: Client | None = None,
    engine: str | None = None,
    first: str | None = None,
    last: str | None = None,
    force: Iterable[str] = (),
    n_workers: int | None = None,
    memory_limit: str | int | None = None,
    ifus: Iterable[int] | None = None,
    dry_run: bool = False,
) -> Reduction | Plan:
    """Reduce raw exposures to cubes, as a configuration says; what has been done before is not repeated.

    Parameters
    ----------
    config : path-like, mapping or Config
        Configuration: JSON, YAML or TOML, also that of MUSEreduce.
    client : distributed.Client, optional
        Where calls run; else the default client, else threads of this process.
    engine : {"auto", "esorex", "native"}, optional
        Instead of what the configuration says.
    first, last : str, optional
        Steps from and to which it goes, see `musedask.workflow.steps.STEPS`.
    force : iterable of str
        Steps that are repeated in any case.
    n_workers, memory_limit, ifus
        Instead of what the configuration says.
    dry_run : bool
        Only plan, and write the sets of frames.

    Returns
    -------
    Reduction, or Plan after a dry run

    Raises
    ------
    InputError
        If configuration or data are wrong, or no exposure has all calibrations that it cannot do without.
    PlanError
        If a call cannot keep to the memory limit.
    StoreError
        If another run is at work in the folder.
    RecipeError
        If calls failed or exposures lack a calibration; all that does not depend on them is done then, see
        `RecipeError.result`.
    """
    client = compute.resolve_client(client)
    plan = plan_reduction(
        config, client=client, engine=engine, first=first, last=last, force=force, n_workers=n_workers,
        memory_limit=memory_limit, ifus=ifus,
    )  # fmt: skip
    if dry_run:
        plan.write_sofs()
        return plan
    return execute(plan, client)


def plan_reduction(
    config: PathLike | Mapping[str, Any] | Config,
    *,
    client: Client | None = None,
    engine: str | None = None,
    first: str | None = None,
    last: str | None = None,
    force: Iterable[str] = (),
    n_workers: int | None = None,
    memory_limit: str | int | None = None,
    ifus: Iterable[int] | None = None,
) -> Plan:
    """Plan a reduction, see `reduce`; nothing is written but the cache of headers."""
    ifus = list(ifus) if ifus is not None else None
    if not isinstance(config, Config):
        config = load_config(Path(config) if isinstance(config, os.PathLike) else config)
    own = config.musedask
    found = sort_raw(config)
    wanted = set(force)
    unknown = sorted(wanted - set(STEPS))
    if unknown:
        raise InputError(f"step {unknown[0]!r} found, expected one of {', '.join(STEPS)}")
    graph = build_graph(
        found.associations, found.exposures, found.pointings, config, found.reduced,
        engine=engine or own.engine, first=first, last=last, ifus=ifus if ifus is not None else own.ifus,
    )  # fmt: skip
    limit = memory_limit if memory_limit is not None else own.memory_limit
    cores = config.global_.n_CPU if config.global_.n_CPU > 0 else compute.default_workers()
    settings = Settings(
        n_workers=n_workers or own.n_workers or cores,
        memory_limit=compute.parse_bytes(limit) if limit is not None else compute.default_memory_limit(client),
        threads=own.threads,
        timeout=own.timeout,
        esorex=own.esorex,
        scratch=Path(own.scratch) if own.scratch else None,
        force=frozenset(wanted),
        on_failed_ifu=own.on_failed_ifu,
    )
    asked = {"engine": engine, "first": first, "last": last, "ifus": list(ifus) if ifus is not None else None}
    return Plan(config, found.reduced, found, graph, settings, asked)


def execute(plan: Plan, client: Client | None = None) -> Reduction:
    """Do what was planned, see `reduce`."""
    from .cleanup import cleanup, spared
    from .mosaic import do_mosaic

    state = plan.state
    graph, before = spared(plan)
    run = Run(graph, state, plan.settings, client=client, mosaic=do_mosaic)
    if not plan.graph.nodes():
        raise InputError(
            f"{plan.reduced}: there is nothing to do: no science exposure is selected, or all steps are switched off"
        )
    run.check()
    for label, reason in graph.refused.items():
        log.warning("%s is not possible: %s", label, reason)
    with state.locked():
        log.info(
            "%d steps, %d calls, %s", sum(s.active for s in plan.graph), len(plan.graph.nodes()), _where(plan, client)
        )
        state.note("asked", **plan.asked)
        plan.sorted.write_statics()
        if plan.config.global_.auto_sort_data:
            plan.sorted.write_lists()
        outcome = run.execute()
        reduction = Reduction(plan, outcome)
        if graph.nodes():
            # of what was removed there is an earlier one
            reduction.files = write_report(plan.reduced / "report", plan.graph, outcome)
        outcome.done |= {node: Done(node, record, reused=True) for node, record in before.items()}
        if plan.config.cleanup.execute and not (outcome.failures or graph.refused):
            cleanup(plan, state)
    text = reduction.summary()
    if outcome.failures or graph.refused:
        raise RecipeError(text, reduction)
    log.info("%s", text)
    return reduction


def _where(plan: Plan, client: Client | None) -> str:
    limit = compute.format_bytes(plan.settings.memory_limit)
    if client is None:
        return f"{plan.settings.n_workers} at a time in {limit}"
    return f"on {client.scheduler.address}, in {limit}; dashboard {client.dashboard_link}"  # type: ignore[union-attr]


def plan_as_before(config: PathLike | Config) -> Plan:
    """Plan of the last run in the folder of a configuration: with what was asked for then."""
    if not isinstance(config, Config):
        config = load_config(Path(config) if isinstance(config, os.PathLike) else config)
    events = [e for e in State(folders(config)[1]).journal() if e["event"] == "asked"]
    asked: dict[str, Any] = events[-1] if events else {}
    return plan_reduction(
        config, engine=asked.get("engine"), first=asked.get("first"), last=asked.get("last"), ifus=asked.get("ifus")
    )


__all__ = ["Plan", "Reduction", "execute", "plan_as_before", "plan_reduction", "reduce"]
