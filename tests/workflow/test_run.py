"""Working off a graph: order, memory, failures, repetition."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from musedask.errors import PlanError, StoreError
from musedask.recipes import get_recipe
from musedask.workflow.run import BASE_MEMORY, Run, Settings
from musedask.workflow.state import State
from musedask.workflow.steps import Graph, Node, Ref, Step, replay


def raws(nights, tag, n=3):
    """Some raw frames of a type."""
    from astropy.io import fits

    kinds = {"BIAS": "BIAS", "FLAT": "FLAT,LAMP", "OBJECT": "OBJECT"}
    found = [p for p in sorted((nights / "raw").iterdir()) if fits.getheader(p)["ESO DPR TYPE"] == kinds[tag]]
    return [Ref(tag, path=path) for path in found[:n]]


@pytest.fixture
def make(nights, fake, tmp_path):
    """A small graph: bias and flat of two IFUs, and a standard that needs both; what it is run with."""

    def graph(**values):
        folder = tmp_path / "reduced" / "OB"
        bias = Step("OB/bias", "bias", folder, "bias", tuple(raws(nights, "BIAS")), get_recipe("muse_bias"),
                    ifus=(1, 2), engine="esorex", values=values.get("bias", {}))  # fmt: skip
        flat = Step("OB/flat", "flat", folder, "flat", (*raws(nights, "FLAT"), Ref("MASTER_BIAS", step="OB/bias")),
                    get_recipe("muse_flat"), ifus=(1, 2), engine="esorex", values=values.get("flat", {}))  # fmt: skip
        links = Step("OB/all/links", "dither_collect", folder / "all", "links", (Ref("TRACE_TABLE", step="OB/flat"),),
                     operation="link")  # fmt: skip
        return Graph([bias, flat, links])

    def run(g=None, **settings):
        state = State(tmp_path / "reduced")
        settings.setdefault("n_workers", 2)
        engine = Run(g or graph(), state, Settings(esorex=str(fake.path), **settings))
        with state.locked():
            return engine.execute()

    run.graph = graph
    run.folder = tmp_path / "reduced"
    return run


def test_products_have_their_names(make, fake):
    outcome = make()
    assert not outcome.failures
    folder = make.folder / "OB"
    names = {p.name for p in folder.glob("*.fits")}
    assert names >= {f"{tag}-0{i}.fits" for tag in ("MASTER_BIAS", "MASTER_FLAT", "TRACE_TABLE") for i in (1, 2)}
    assert {p.name for p in (folder / "all").glob("*.fits")} == {"TRACE_TABLE-01.fits", "TRACE_TABLE-02.fits"}
    assert (folder / "all/TRACE_TABLE-01.fits").samefile(folder / "TRACE_TABLE-01.fits")
    sof = (folder / "flat.sof").read_text().splitlines()
    assert sum(line.endswith(" MASTER_BIAS") for line in sof) == 2
    assert sum(line.endswith(" FLAT") for line in sof) == 3
    assert (folder / "flat-01.log").exists()
    assert not list((make.folder / ".musedask/scratch").iterdir())


def test_each_ifu_waits_for_its_own_only(make, fake):
    fake.fault("until muse_flat 1", "muse_bias", 2)
    assert not make().failures
    flat = next(c for c in fake.calls("muse_flat") if c["ifu"] == 1)
    assert [Path(p).name for p, tag in flat["frames"] if tag == "MASTER_BIAS"] == ["MASTER_BIAS-01.fits"]


def test_nothing_is_repeated(make, fake):
    make()
    fake.forget()
    outcome = make()
    assert not fake.calls() and all(d.reused for d in outcome.done.values())


def test_a_parameter_repeats_what_depends_on_it(make, fake):
    make()
    fake.forget()
    make(make.graph(flat={"edgefrac": 0.4}))
    assert {(c["recipe"], c["ifu"]) for c in fake.calls()} == {("muse_flat", 1), ("muse_flat", 2)}
    fake.forget()
    outcome = make(make.graph(bias={"ovscsigma": 20.0}, flat={"edgefrac": 0.4}))
    assert len(fake.calls("muse_bias")) == 2 and len(fake.calls("muse_flat")) == 2
    assert "ovscsigma" in outcome.done[Node("OB/bias", 1)].reason


def test_a_touched_file_repeats_nothing(make, fake, nights):
    make()
    fake.forget()
    path = raws(nights, "BIAS")[0].path
    os.utime(path)
    make()
    assert not fake.calls()


def test_a_damaged_product_is_made_again(make, fake):
    make()
    fake.forget()
    path = make.folder / "OB/MASTER_BIAS-01.fits"
    before = path.read_bytes()
    path.write_bytes(before[:-2880])
    make()
    # the flat field of the same bias need not be made again
    assert [(c["recipe"], c["ifu"]) for c in fake.calls()] == [("muse_bias", 1)]
    assert path.read_bytes() == before


def test_a_failed_ifu_stops_what_depends_on_it(make, fake):
    fake.fault("fail", "muse_bias", 2)
    outcome = make()
    assert [d.node for d in outcome.failures] == [Node("OB/bias", 2)]
    assert "the lamp was off" in outcome.failures[0].record.reason
    assert outcome.blocked == {n: [Node("OB/bias", 2)] for n in (Node("OB/flat", 2), Node("OB/all/links"))}
    assert outcome.done[Node("OB/flat", 1)].ok
    fake.fault("", "muse_bias", 2)
    fake.forget()
    assert not make().failures
    assert sorted((c["recipe"], c["ifu"]) for c in fake.calls()) == [("muse_bias", 2), ("muse_flat", 2)]


def test_without_a_failed_ifu(make, fake):
    fake.fault("fail", "muse_bias", 2)
    outcome = make(on_failed_ifu="drop")
    assert set(outcome.blocked) == {Node("OB/flat", 2)}
    assert {p.name for p in (make.folder / "OB/all").glob("*.fits")} == {"TRACE_TABLE-01.fits"}


def test_a_crash_is_tried_once_more(make, fake):
    fake.fault("once killed", "muse_bias", 1)
    assert not make().failures
    assert len(fake.calls("muse_bias")) == 3


@pytest.mark.parametrize("fault, text", [("killed", "SIGKILL"), ("nothing", "no MASTER_BIAS"), ("full", "No space")])
def test_faults(make, fake, fault, text):
    fake.fault(fault, "muse_bias", 1)
    outcome = make()
    assert text in outcome.failures[0].record.reason
    assert not (make.folder / "OB/MASTER_BIAS-01.fits").exists()
    assert (make.folder / "OB/MASTER_BIAS-02.fits").exists()


def test_memory_is_not_exceeded(make, fake):
    need = Run(make.graph(), State(make.folder), Settings(esorex=str(fake.path))).memory(Node("OB/bias", 1))
    fake.fault("wait 0.3", "muse_bias")
    make(memory_limit=BASE_MEMORY + int(1.5 * need), n_workers=4)
    times = sorted(c["time"] for c in fake.calls("muse_bias"))
    assert times[1] - times[0] > 0.29


def test_what_can_not_fit_is_refused(make, fake):
    run = Run(make.graph(), State(make.folder), Settings(esorex=str(fake.path), memory_limit=BASE_MEMORY + 10**8))
    with pytest.raises(PlanError, match=r"muse_.*the least that will do is"):
        run.check()


def test_two_runs_in_one_folder(make):
    state = State(make.folder)
    with state.locked(), pytest.raises(StoreError, match="another run is at work there"):
        make()
    assert not state.is_locked()


def test_journal(make, fake):
    fake.fault("fail", "muse_flat", 1)
    make()
    state = State(make.folder)
    events = {n: e["event"] for n, e in state.last_events().items()}
    assert events == {
        Node("OB/bias", 1): "done", Node("OB/bias", 2): "done", Node("OB/flat", 1): "failed",
        Node("OB/flat", 2): "done", Node("OB/all/links"): "blocked",
    }  # fmt: skip
    record = json.loads(state.record_path(Node("OB/bias", 1)).read_text())
    assert record["key"] and record["status"] == "done"


def test_no_esorex(make, fake, nights):
    shutil.move(fake.path, fake.path.with_name("other"))
    outcome = make()
    assert "no such program" in outcome.failures[0].record.reason


def test_replay():
    steps = [
        Step("a", "bias", Path("."), "a", (), operation="link"),
        Step("b", "flat", Path("."), "b", (Ref("X", step="a"),), operation="link"),
        Step("c", "flat", Path("."), "c", (), operation="link"),
        Step("d", "flat", Path("."), "d", (), operation="link"),
    ]
    seconds = {Node("a"): 2.0, Node("b"): 3.0, Node("c"): 4.0, Node("d"): 1.0}
    graph = Graph(steps)
    assert replay(graph, seconds, 1).elapsed == 10.0
    two = replay(graph, seconds, 2)
    assert (two.elapsed, two.critical_path, two.efficiency) == (5.0, 5.0, 1.0)
    assert replay(graph, seconds, 8).elapsed == 5.0


def test_cluster(make, fake):
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        state = State(make.folder)
        fake.fault("fail", "muse_flat", 1)
        with state.locked():
            outcome = Run(make.graph(), state, Settings(esorex=str(fake.path)), client=client).execute()
        assert [d.node for d in outcome.failures] == [Node("OB/flat", 1)]
        fake.fault("", "muse_flat", 1)
        fake.forget()
        with state.locked():
            outcome = Run(make.graph(), state, Settings(esorex=str(fake.path)), client=client).execute()
        assert not outcome.failures and [c["ifu"] for c in fake.calls()] == [1]


def test_interrupted(make, fake, monkeypatch):
    fake.fault("wait 30", "muse_bias", 2)
    started = time.monotonic()
    real = Run._finished

    def finished(self, node, result):
        real(self, node, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_finished", finished)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert time.monotonic() - started < 15
    monkeypatch.undo()
    fake.fault("", "muse_bias", 2)
    fake.forget()
    assert not make().failures
    assert ("muse_bias", 1) not in {(c["recipe"], c["ifu"]) for c in fake.calls()}


def test_memory_of_workers(make, fake, monkeypatch):
    """A call must fit a worker; on one machine it may have the shares of others, which wait meanwhile."""
    from musedask import compute

    def workers(*shares):
        return lambda client: {
            f"tcp://{host}:{k}": {"host": host, "nthreads": 1, "resources": {"MEMORY": size}}
            for k, (host, size) in enumerate(shares)
        }

    client = type("Client", (), {"nthreads": lambda self: {"a": 1}})()
    run = Run(make.graph(), State(make.folder), Settings(esorex=str(fake.path)), client=client)
    need = max(run.memory(node) for node in run.graph.nodes())
    monkeypatch.setattr(compute, "worker_info", workers(("one", 0.6 * need), ("one", 0.6 * need)))
    run.check()
    monkeypatch.setattr(compute, "worker_info", workers(("one", 0.4 * need), ("one", 0.4 * need)))
    with pytest.raises(PlanError, match=r"all workers have .* together"):
        run.check()
    monkeypatch.setattr(compute, "worker_info", workers(("one", 0.6 * need), ("two", 0.6 * need)))
    with pytest.raises(PlanError, match="the largest worker has"):
        run.check()
    monkeypatch.setattr(compute, "worker_info", workers(("one", 1.1 * need), ("two", 0.6 * need)))
    run.check()
