"""Runs that are killed, interrupted or changed go on where they were; nothing that is finished is done again."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from musedask.errors import RecipeError
from musedask.workflow.reduce import reduce


@pytest.fixture
def config(nights, fake, tmp_path):
    """Configuration of the block Field A, on one IFU."""
    return {
        "global": {
            "rootpath": str(tmp_path), "static_calib_path": str(nights / "static"), "using_ESO_calibration": False,
            "OB_list": ["Field A"],
        },
        "musedask": {"raw": [str(nights / "raw")], "esorex": str(fake.path), "engine": "esorex", "ifus": [1]},
    }  # fmt: skip


@pytest.fixture
def command(config, tmp_path):
    """Command that runs it in a process of its own."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "musedask", "reduce", str(path), "--n-workers", "2"]


def products(folder):
    """Contents of all products by name."""
    found = {}
    for path in sorted(folder.rglob("*.fits")):
        if ".musedask" not in path.parts:
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def names(calls):
    """What calls were for."""
    return [(c["recipe"], c["ifu"], sorted("/".join(Path(p).parts[-2:]) for p, _ in c["frames"])) for c in calls]


def test_killed_at_random_moments(command, config, fake, tmp_path):
    config["musedask"]["ifus"] = [1, 2]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (fake.folder / "seconds").write_text("0.02")
    reduced = tmp_path / "reduced"
    rng = random.Random(3)
    for _ in range(5):
        goal = len(fake.calls()) + rng.randint(1, 3)
        # Such that however fast the machine, the run is not over when it is killed: five times four calls are not all
        fake.gate(goal + 1)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(fake.calls()) < goal:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        assert process.poll() is None
        process.kill()
        process.wait()
    fake.gate()
    outcome = reduce(config, n_workers=2).outcome
    assert not outcome.failures
    total = sum(d.record.recipe.startswith("muse_") for d in outcome.done.values())
    # no more than the calls that ran when it was killed are done twice
    calls = names(fake.calls())
    assert 20 < total <= len(calls) <= total + 2 * 5
    assert len({json.dumps(c) for c in calls}) == total
    found = products(reduced)
    assert len(found) > 30
    # once more, without interruption, elsewhere
    config["musedask"]["reduced"] = str(tmp_path / "again")
    reduce(config, n_workers=2)
    assert products(tmp_path / "again") == found
    # what the killed runs left is gone
    assert not list(reduced.rglob(".*.part"))
    assert not list((reduced / ".musedask/scratch").iterdir())


def test_interrupted_by_the_user(command, fake, tmp_path):
    fake.fault("wait 60", "muse_flat")
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
         "from musedask.cli import main; sys.argv[0] = 'musedask'; main()", *command[3:]],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not fake.calls("muse_flat"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "finished work is kept" in text and "Traceback" not in text
    fake.fault("", "muse_flat")
    fake.forget()
    subprocess.run(command, check=True, capture_output=True)
    assert not fake.calls("muse_bias") and len(fake.calls("muse_flat")) == 1


def test_two_runs_at_once(command, fake):
    fake.gate(0)
    first = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not fake.calls("muse_bias"):
        assert first.poll() is None
        time.sleep(0.01)
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 1
    assert "another run is at work there" in second.stderr and str(first.pid) in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate()


def test_a_changed_parameter(config, fake):
    reduce(config)
    fake.forget()
    config["sky"] = {"fraction": 0.3}
    run = reduce(config)
    recipes = [c["recipe"] for c in fake.calls()]
    assert sorted(recipes) == sorted(["muse_create_sky", "muse_scipost", "muse_scipost", "muse_exp_align",
                                      "muse_exp_combine"])  # fmt: skip
    reasons = {d.reason for d in run.outcome.done.values() if d.record.recipe == "muse_create_sky"}
    assert reasons == {"parameters fraction 0.05, now 0.3"}
    fake.forget()
    config["exp_combine"] = {"weight": "none"}
    reduce(config)
    assert [c["recipe"] for c in fake.calls()] == ["muse_exp_combine"]


def test_a_touched_raw_file(config, fake, nights):
    reduce(config)
    fake.forget()
    for path in (nights / "raw").glob("*.fits"):
        os.utime(path)
    run = reduce(config)
    assert not fake.calls() and all(d.reused for d in run.outcome.done.values())


def test_a_failed_ifu_is_told(config, fake, tmp_path):
    config["musedask"]["ifus"] = [1, 2]
    fake.fault("fail", "muse_wavecal", 2)
    with pytest.raises(RecipeError, match=r"wavecal, IFU 2: the lamp was off.*wavecal-02\.log"):
        reduce(config)
    assert list(tmp_path.rglob("WAVECAL_TABLE-01.fits"))
    text = (tmp_path / "reduced/report/summary.txt").read_text()
    assert "wavecal, IFU 2" in text and "not done for that" in text


def test_a_worker_that_dies(config, fake):
    from distributed import Client, LocalCluster

    fake.fault("once wait 60", "muse_bias")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        where = client.run(os.getpid)

        def strike():
            """Kill the worker that runs the bias."""
            while not fake.calls("muse_bias"):
                time.sleep(0.02)
            busy = [address for address, tasks in client.processing().items() if tasks]
            os.kill(where[busy[0]], signal.SIGKILL)

        thread = threading.Thread(target=strike)
        thread.start()
        run = reduce(config, client=client, last="flat")
        thread.join()
        assert not run.outcome.failures
        assert len(fake.calls("muse_bias")) == 2


def test_an_exposure_without_a_calibration(config, fake, tmp_path):
    config["global"]["OB_list"] = []
    config["musedask"]["association"] = {"overrides": [{"category": "FLAT", "files": [], "obs": ["Field-B"]}]}
    with pytest.raises(RecipeError, match=r"not possible: Field-B/.*: no MASTER_FLAT found") as caught:
        reduce(config)
    run = caught.value.result
    assert not run.outcome.failures and len(run.products("DATACUBE_FINAL")) == 1
