"""The pages say what is so: examples run, commands exist, generated parts are fresh, links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib
import pytest
from astropy.io import fits

import musedask
from musedask.cli import main

from .reference.support import write_wcs

ROOT = Path(__file__).resolve().parents[1]


def _load(path):
    spec = importlib.util.spec_from_file_location("docs_update", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


update = _load(ROOT / "docs" / "update.py")
PAGES = update.pages()
#: pages whose examples need cubes that no earlier example of theirs makes
NEEDS_CUBES = ("cubes.md",)


@dataclass
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    run: bool


def blocks(page):
    found = []
    lines = page.read_text().splitlines()
    start = language = None
    for number, line in enumerate(lines):
        if start is None and (match := re.match(r"```(\w*)", line)):
            start, language = number, match[1]
        elif start is not None and line.startswith("```"):
            before = lines[start - 1] if start else ""
            text = "\n".join(lines[start + 1 : number]) + "\n"
            found.append(Block(page, start + 1, language, text, not before.startswith("<!-- not run")))
            start = None
    assert start is None, f"{page}: a fence is not closed"
    return found


def commands(block):
    """Command lines of a console block: those after a ``$``, with their continuations."""
    found, current = [], None
    for line in block.text.splitlines():
        if current is not None:
            current += " " + line.strip()
        elif line.startswith("$ "):
            current = line[2:]
        if current is not None and current.endswith("\\"):
            current = current[:-1].rstrip()
        elif current is not None:
            found.append(current)
            current = None
    return found


def parse(command_line):
    """Parse a musedask command without running it: an unknown name, option or value raises."""
    _, *arguments = shlex.split(command_line)
    command = main
    while isinstance(command, click.Group):
        while arguments and arguments[0] in ("-v", "-q"):
            arguments.pop(0)
        name = arguments.pop(0) if arguments else ""
        # those of recipes are made when they are asked for
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise click.UsageError(f"no such command: {name!r}")
        command = found
    # with the names of the option for help, which a command keeps from the first time on
    command.make_context(command.name, arguments, parent=click.Context(main, **main.context_settings))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A tiny set of files of the names that the examples use."""
    folder = tmp_path_factory.mktemp("docs")
    sim = musedask.simulate_pixtables(
        folder, n_exposures=3, ifus=(12, 13), slices=12, wave_range=(6540, 6620), flux_scales=(1, 1.1, 0.95)
    )
    write_wcs(
        folder / "wcs.fits", size=(80, 40, 64), crval=(sim.ra, sim.dec), wave=("AWAV", 6540.0, 1.0, 1.25)
    )
    filters = fits.HDUList([fits.PrimaryHDU()])
    for name in ("SDSS_r", "Cousins_R"):
        columns = [
            fits.Column("lambda", "D", "Angstrom", array=[5600.0, 5700.0, 6900.0, 7000.0]),
            fits.Column("throughput", "D", array=[0.0, 0.9, 0.9, 0.0]),
        ]
        filters.append(fits.BinTableHDU.from_columns(columns, header=fits.Header([("EXTNAME", name)])))
    filters.writeto(folder / "filter_list.fits")
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    script = bin_folder / "musedask"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m musedask "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def cubes(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubes")
    musedask.combine(
        sorted(files.glob("PIXTABLE_REDUCED_*.fits")),
        folder / "mosaic.zarr",
        fits_output=folder / "DATACUBE_FINAL.fits",
        offset_list=files / "OFFSET_LIST.fits",
    )
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page, files, tmp_path, monkeypatch, request):
    todo = [b for b in blocks(page) if b.run and b.language in ("python", "console", "yaml")]
    if not todo:
        pytest.skip("no examples")
    for file in files.glob("*.fits"):
        shutil.copy(file, tmp_path)
    if page.name in NEEDS_CUBES:
        shutil.copytree(request.getfixturevalue("cubes"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(files / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    for block in todo:
        where = f"{page.name}, line {block.line}"
        if block.language == "yaml":
            # the first line is a comment with the name of the file
            Path(re.match(r"# (\S+)\n", block.text)[1]).write_text(block.text)
            continue
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                # says something of the machine
                warnings.filterwarnings("ignore", "Port 8787 is already in use")
                exec(compile(block.text, where, "exec"), names)
            continue
        for command in commands(block):
            if not command.startswith("musedask"):
                continue
            done = subprocess.run(
                ["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_exist(page):
    """Also those that are not run."""
    for block in blocks(page):
        if block.language == "console":
            assert commands(block), f"{page.name}, line {block.line}: no line starts with $"
            for command in commands(block):
                if command.startswith("musedask"):
                    parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_parts_are_fresh(page):
    text = page.read_text()
    assert update.updated(text) == text, "run: python docs/update.py (or make docs)"


def test_wrong_commands_are_noticed():
    with pytest.raises(click.UsageError):
        parse("musedask combine a.fits -o b.zarr --no-such-option")
    with pytest.raises(click.UsageError):
        parse("musedask cube mend a.fits")
    with pytest.raises(click.UsageError):
        parse("musedask combine a.fits -o b.zarr --resample cubic")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_every_page_is_linked():
    texts = "".join(page.read_text() for page in PAGES)
    for page in PAGES[1:]:
        assert f"{page.name})" in texts, f"no page links to {page.name}"


def test_make_targets_in_pages():
    """Targets of make that pages name are in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^(?:    |\$ )make ([\w-]+)", page.read_text(), flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page.name}: make {target}"


def test_architecture_lists_every_module():
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = set(re.findall(r"^ +(\w+\.py)", text, flags=re.MULTILINE))
    there = {path.name for path in (ROOT / "musedask").rglob("*.py")} - {"_version.py", "__main__.py"}
    assert listed == there


def test_version_in_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in text or f"## [{musedask.__version__}]" in text
