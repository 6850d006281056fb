"""The engine esorex, with a program that only says it is esorex: whatever goes wrong costs one IFU and is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from musedask import run_recipe
from musedask.calib.child import run_child
from musedask.calib.esorex import Messages, child_environment, command_line, find_installation, write_frames
from musedask.calib.provenance import read_record
from musedask.cli import main
from musedask.errors import InputError, OutputExistsError, RecipeError
from musedask.io.sof import Frame, read_sof
from musedask.recipes import get_recipe

from .toys import FakeEsorex, write_frame
from .toys import write_frames as raw_frames

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return raw_frames(tmp_path_factory.mktemp("raw") / "in", ifus=(1, 2, 3))


@pytest.fixture
def fake(tmp_path):
    find_installation.cache_clear()
    return FakeEsorex(tmp_path / "bin")


@pytest.fixture
def run(fake, frames, tmp_path):
    """Run muse_bias with the program that says it is esorex."""

    def call(**options):
        given = {"engine": "esorex", "esorex": str(fake.path), "output_dir": tmp_path / "out", **options}
        return run_recipe("muse_bias", given.pop("frames", frames), **given)

    return call


def left_over(folder):
    """What a run must not leave."""
    return [p.name for p in Path(folder).rglob("*") if p.name.startswith(".")]


def processes(*words):
    """Running processes whose command line or working directory has all the words."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if int(entry.name) != os.getpid() and all(w in f"{command} {where}" for w in map(str, words)):
            found.append(command)
    return found


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------- success


def test_products_logs_and_records(run, tmp_path):
    result = run()
    assert [(f.path.name, f.tag) for f in result] == [(f"MASTER_BIAS-0{i}.fits", "MASTER_BIAS") for i in (1, 2, 3)]
    assert all(f.path.exists() for f in result) and not result.failures
    assert result.select("MASTER_BIAS", 2) == [Frame(tmp_path / "out" / "MASTER_BIAS-02.fits", "MASTER_BIAS")]
    assert result.warnings == [f"IFU {i}: quadrant 1 of IFU 0{i} is warm" for i in (1, 2, 3)]
    assert not left_over(tmp_path / "out")
    for record in result.records:
        assert record.status == "done" and record.exit_status == 0 and record.peak_memory > 1e6
        assert "MUSE Instrument Pipeline" in Path(record.log).read_text()
        assert read_record(Path(record.log).with_suffix(".json")) == record
        assert record.versions["drs"] == "2.8.7" and record.versions["esorex"] == "3.13.6"


def test_every_parameter_is_given(run, fake):
    """No default of a configuration of the user's counts."""
    run(ifus=[2], ovscsigma=12.5, overscan="offset")
    arguments = (fake.folder / "arguments").read_text().split("\n")
    for p in get_recipe("muse_bias").parameters:
        assert any(a.startswith(f"--{p.name}=") for a in arguments), p.name
    assert "--nifu=2" in arguments and "--ovscsigma=12.5" in arguments and "--overscan=offset" in arguments


def test_environment(run, fake, monkeypatch):
    """Settings that change names and places do not reach the child; those of its recipes' whereabouts do."""
    for name, value in {
        "ESOREX_OUTPUT_DIR": "/nowhere", "ESOREX_SUPPRESS_PREFIX": "FALSE", "ESOREX_OUTPUT_READONLY": "TRUE",
        "ESOREX_PLUGIN_DIR": "/plugins", "MUSE_EXPERT_USER": "1", "LC_ALL": "de_DE", "OMP_NUM_THREADS": "64",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    result = run(ifus=[1], threads=3)
    lines = (fake.folder / "environment").read_text().split("\n")
    assert {"ESOREX_PLUGIN_DIR=/plugins", "MUSE_EXPERT_USER=1", "LC_ALL=C", "OMP_NUM_THREADS=3"} <= set(lines)
    assert [line for line in lines if line.startswith("ESOREX_")] == ["ESOREX_PLUGIN_DIR=/plugins"]
    assert result.records[0].environment["MUSE_EXPERT_USER"] == "1" and result.records[0].threads == 3


def test_only_frames_of_the_ifu(run, fake, frames, tmp_path):
    others = raw_frames(tmp_path / "more", 1, name="other", ifus=(2,))
    run(frames=[*frames, *others, Frame(frames[0].path, "SKY_LINES")])
    names = {i: [f.path.name for f in read_sof(fake.folder / f"frames-0{i}.sof")] for i in (1, 2)}
    assert names[1] == [f.path.name for f in frames]
    assert names[2] == [f.path.name for f in (*frames, *others)]


def test_paths_that_a_set_of_frames_cannot_hold(run, fake, tmp_path):
    odd = raw_frames(tmp_path / "a b$c#d", name="my bias", ifus=(1,))
    run(frames=odd)
    text = (fake.folder / "frames-01.sof").read_text()
    assert text.split("\n")[0] == "inputs/1/my_bias1.fits BIAS"


def test_links_point_to_the_frames(tmp_path):
    frame = write_frame(tmp_path / "my bias.fits", 1)
    write_frames(tmp_path, [Frame(frame, "BIAS")])
    assert (tmp_path / "inputs" / "1" / "my_bias.fits").resolve() == frame.resolve()


def test_scratch_on_another_disk(run, tmp_path, small_disk):
    result = run(scratch=small_disk("2m"))
    assert len(result) == 3 and not left_over(tmp_path)


def test_keep_scratch(run, tmp_path):
    run(ifus=[1], keep_scratch=True)
    (root,) = (tmp_path / "out").glob(".musedask-*")
    assert (next(root.glob("IFU-1.*")) / "frames.sof").exists()


def test_merge(run, tmp_path):
    result = run(merge=True)
    assert [f.path.name for f in result] == ["MASTER_BIAS.fits"]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.fits")) == ["MASTER_BIAS.fits"]
    assert result.select("MASTER_BIAS", 3) == list(result)
    record = read_record(Path(result.records[1].log).with_suffix(".json"))
    assert record.products[0].merged_into == str(tmp_path / "out" / "MASTER_BIAS.fits")


# -------------------------------------------------------------------------------------------- faults

FAULTS = {
    "fail": ['Required 3, found 2 input frames with tag "BIAS" with IFU 02', "status 255"],
    "nothing": ["status 0", "there is no MASTER_BIAS"],
    "truncated": ["MASTER_BIAS-02.fits", "truncated"],
    "unsigned": ["MASTER_BIAS-02.fits", "no CHECKSUM"],
    "killed": ["SIGKILL", "memory"],
    "crash": ["SIGSEGV"],
    "noise": ["something else is wrong", "status 3"],
    "hang": ["longer than 1 s"],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_ifu_fails_alone(fault, run, fake, tmp_path):
    """It is named with its reason and its log; all others are finished, and its older product stays as it was."""
    run()
    older = {i: (tmp_path / "out" / f"MASTER_BIAS-0{i}.fits").stat() for i in (1, 2, 3)}
    fake.mode(fault, 2)
    with pytest.raises(RecipeError) as caught:
        run(timeout=1 if fault == "hang" else None)
    text = str(caught.value)
    assert text.startswith("muse_bias failed for 1 of 3 IFUs, the others are finished:\n  IFU 2: "), text
    for word in FAULTS[fault]:
        assert word in text, text
    result = caught.value.result
    (failed,) = result.failures
    assert failed.ifu == 2 and failed.log in text and Path(failed.log).exists()
    assert read_record(Path(failed.log).with_suffix(".json")) == failed
    assert failed.status == ("timeout" if fault == "hang" else "failed")
    assert failed.signal == {"killed": 9, "crash": 11, "hang": 9}.get(fault)
    assert [f.path.name for f in result] == ["MASTER_BIAS-01.fits", "MASTER_BIAS-03.fits"]
    for i, before in older.items():
        after = (tmp_path / "out" / f"MASTER_BIAS-0{i}.fits").stat()
        assert (after.st_ino == before.st_ino) == (i == 2)
    assert not left_over(tmp_path / "out")
    assert not processes("sleep 4321", tmp_path)


def test_same_reason_is_told_once(run, fake):
    for ifu in (1, 2, 3):
        fake.mode("nothing", ifu)
    with pytest.raises(RecipeError, match=r"^muse_bias failed: IFUs 1-3: esorex ended with status 0, but there is no"):
        run()


def test_nothing_is_merged_if_an_ifu_is_missing(run, fake, tmp_path):
    fake.mode("fail", 2)
    with pytest.raises(RecipeError, match="IFU 2"):
        run(merge=True)
    names = sorted(p.name for p in (tmp_path / "out").glob("*.fits"))
    assert names == ["MASTER_BIAS-01.fits", "MASTER_BIAS-03.fits"]


def test_esorex_missing(run, tmp_path):
    with pytest.raises(RecipeError, match=r"no-such-esorex: no such program.*apt-get install esorex cpl-plugin-muse"):
        run(esorex="no-such-esorex")
    assert not list((tmp_path / "out").glob("*.fits")) and not left_over(tmp_path / "out")


def test_program_that_is_no_esorex(run):
    with pytest.raises(RecipeError, match="is that esorex"):
        run(esorex="/bin/true")


def test_recipes_not_installed(fake, frames, tmp_path):
    with pytest.raises(RecipeError, match=r"has no recipe muse_illum; the MUSE pipeline is not installed.*apt-get"):
        run_recipe(
            "muse_illum", [(frames[0].path, "ILLUMFLAT")], engine="esorex", esorex=str(fake.path), output_dir=tmp_path
        )


def test_other_version(run, fake):
    (fake.folder / "version").write_text("2.10.16")
    result = run()
    (text,) = [w for w in result.warnings if "pipeline" in w]
    assert text.startswith("IFUs 1-3: MUSE pipeline 2.10.16 found") and "2.8.7" in text
    assert result.records[0].versions["drs"] == "2.10.16"


def test_output_that_exists(run, tmp_path):
    run(ifus=[1])
    with pytest.raises(OutputExistsError, match=r"MASTER_BIAS-01\.fits"):
        run(overwrite=False)
    run(ifus=[2], overwrite=False)


@pytest.fixture
def small_disk(tmp_path):
    """Make a folder on a file system of a given size."""
    mounted = []

    def make(size):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("where", ["scratch", "output"])
def test_full_disk(where, run, tmp_path, small_disk):
    """Room for one product of three, or for none: the reason is told, no part of a product has its name."""
    if where == "scratch":
        # a folder of 4 kB and the frames leave no room for a product
        options = {"scratch": small_disk("20k")}
    else:
        options = {"output_dir": small_disk("60k"), "scratch": tmp_path / "work"}
    with pytest.raises(RecipeError, match=r"no space left on the disk|is truncated|No space left") as caught:
        run(n_workers=1, **options)
    folder = options.get("output_dir", tmp_path / "out")
    whole = list(folder.glob("*.fits"))
    assert len(whole) == len(caught.value.result) < 3
    assert all(p.stat().st_size == 28800 for p in whole)
    assert not left_over(folder)


# ------------------------------------------------------------------------------- interrupted and killed


def start(fake, frames, out, **options):
    """Run in a process of its own."""
    code = (
        # where tests run in the background, Ctrl-C is ignored, and children inherit that
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, json; from musedask import run_recipe\n"
        "frames, options = json.loads(sys.argv[1])\n"
        "run_recipe('muse_bias', frames, engine='esorex', **options)\n"
    )
    given = [[[str(f.path), f.tag] for f in frames], {"esorex": str(fake.path), "output_dir": str(out), **options}]
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(given)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_child_outlives_its_run(how, fake, frames, tmp_path):
    out = tmp_path / "out"
    fake.mode("hang")
    with start(fake, frames, out, n_workers=2) as process:
        wait_for(lambda: (fake.folder / "hangs-01").exists() and (fake.folder / "hangs-02").exists())
        assert processes("sleep 4321", tmp_path)
        process.send_signal(how)
        try:
            _, text = process.communicate(timeout=20)
        finally:
            process.kill()
    wait_for(lambda: not processes("sleep 4321", tmp_path), 5)
    assert process.returncode != 0
    assert not list(out.glob("*.fits"))
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in text
        assert not left_over(out)
        return
    # what a killed run has left is taken away by the next one
    assert left_over(out)
    fake.mode("good")
    run_recipe("muse_bias", frames, engine="esorex", esorex=str(fake.path), output_dir=out)
    assert not left_over(out)


def test_child_is_killed_with_its_children(tmp_path):
    script = tmp_path / "script"
    script.write_text("sleep 4322 & sleep 4322 & wait")
    ended = run_child(["sh", str(script)], cwd=tmp_path, env=os.environ, on_line=print, timeout=0.5)
    assert ended.stopped == "timeout"
    wait_for(lambda: not processes("sleep 4322", tmp_path), 5)


def test_child_that_does_not_exist(tmp_path):
    lines = []
    assert run_child(["/no/such/program"], cwd=tmp_path, env={}, on_line=lines.append).status == 127
    assert lines == ["/no/such/program: No such file or directory"]


def test_resources_of_the_child(tmp_path):
    code = "x = bytearray(150_000_000); sum(range(6_000_000))"
    ended = run_child([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, on_line=print)
    assert ended.status == 0 and 150e6 < ended.peak_memory < 400e6 and 0.02 < ended.cpu_time < 30


# ------------------------------------------------------------------------------------------ messages


SAID = """
[WARNING] esorex: Unable to open directory /usr/lib/cpl/plugins
01:08:06 [ INFO  ] muse_bias: MUSE Instrument Pipeline v2.8.7
01:08:06 [WARNING] muse_overscan: [tid=000] quadrant 1: strange
01:08:07 [WARNING] muse_overscan: [tid=001] quadrant 1: strange
01:08:06 [ ERROR ] muse_load: [tid=000] No raw images loaded for IFU 3
01:08:06 [ ERROR ] muse_dump: [tid=000] Dumping the 20 most recent error(s) out of a total of 42 errors:
01:08:06 [ ERROR ] muse_dump: [tid=000]   [42/42] 'Illegal output' (15) at muse_bias_compute:muse_bias.c:152
01:08:06 [ ERROR ] : [tid=000] Execution of recipe 'muse_bias' failed, status = -1
01:08:06 [WARNING] : [tid=000] Writing of output sof omitted due to previous errors
"""


def test_messages():
    messages = Messages()
    for line in SAID.splitlines():
        messages.add(line)
    assert messages.all_warnings() == ["quadrant 1: strange (2 times)"]
    assert messages.reasons() == ["No raw images loaded for IFU 3"]


def test_messages_of_the_error_state_only():
    messages = Messages()
    for line in SAID.splitlines()[-3:]:
        messages.add(line)
    assert messages.reasons() == ["[42/42] 'Illegal output' (15) at muse_bias_compute:muse_bias.c:152"]


def test_command_line():
    recipe = get_recipe("muse_wavecal")
    command = command_line("/usr/bin/esorex", recipe, recipe.resolve({"residuals": True, "sigma": 0.1}), "x.sof")
    place = command.index("muse_wavecal")
    assert command[0] == "/usr/bin/esorex" and command[-1] == "x.sof"
    assert all(c.startswith("--") for c in command[1:place] + command[place + 1 : -1])
    assert {"--residuals=true", "--sigma=0.1", "--resample=false"} <= set(command[place:])
    assert {"--output-dir=.", "--suppress-prefix=TRUE"} <= set(command[:place])


def test_threads_of_the_child():
    assert child_environment(5)["OMP_NUM_THREADS"] == "5"


# ------------------------------------------------------------------------------------- command line


def invoke(*args):
    """Exit status and output of ``musedask recipe run``."""
    result = CliRunner().invoke(main, ["recipe", "run", *(str(a) for a in args)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def test_command(fake, frames, tmp_path):
    sof = tmp_path / "bias.sof"
    sof.write_text("".join(f"{f.path} {f.tag}\n" for f in frames))
    out = tmp_path / "out"
    common = ["muse_bias", sof, "--engine", "esorex", "--esorex", fake.path, "--output-dir", out]
    code, text = invoke(*common, "--dry-run", "--nifu", 2, "--ovscsigma", 15)
    assert code == 0 and "1 IFU" in text and "--nifu=2" in text and "--ovscsigma=15.0" in text and "sof" in text
    assert not out.exists()
    code, text = invoke(*common, "--ifus", "1,3", "--merge")
    assert code == 0 and [p.name for p in out.glob("*.fits")] == ["MASTER_BIAS.fits"]
    assert "muse_bias: 2 of 2 done" in text and "warning: IFU 1: quadrant 1 of IFU 01 is warm" in text
    code, _ = invoke(*common, "--nifu=-1", "--merge=false")
    assert code == 0 and len(list(out.glob("MASTER_BIAS-*.fits"))) == 3
    assert "--merge=false" in (fake.folder / "arguments").read_text()
    fake.mode("fail", 2)
    code, text = invoke(*common)
    assert code == 1 and text.count("Error: ") == 1
    assert "Error: muse_bias failed for 1 of 3 IFUs, the others are finished:\n  IFU 2: Required 3, found 2" in text


@pytest.mark.parametrize(
    "args, code, word",
    [
        (["muse_bia", "x.sof"], 2, "muse_bias"),
        (["bias"], 2, "SOF"),
        (["bias", "x.sof"], 1, "x.sof: no such file"),
        (["bias", "x.sof", "--combine", "mode"], 1, "sigclip"),
        (["bias", "x.sof", "--ovscsigma", "many"], 1, "ovscsigma"),
        (["bias", "x.sof", "--merge=perhaps"], 1, "merge"),
        (["bias", "x.sof", "--nosuch", "1"], 2, "nosuch"),
        (["bias", "x.sof", "--engine", "fast"], 2, "native"),
    ],
)
def test_wrong_command(args, code, word):
    found, text = invoke(*args)
    assert found == code and word in text, text


def test_wrong_values(run):
    with pytest.raises(InputError, match="nifu"):
        run(nifu=25)
    with pytest.raises(InputError, match="no parameter nosuch"):
        run(nosuch=1)
    with pytest.raises(InputError, match="timeout"):
        run(timeout=0)
