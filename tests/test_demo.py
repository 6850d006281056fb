"""The demonstration, small."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from musedask import demo, open_cube
from musedask.cli import main
from musedask.errors import ComputeError
from musedask.sim import SimulatedSet


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo.run_demo(folder, memory_limit="100MB", size=demo.SMALL)


def _figures(text, label):
    line = next(line for line in text.splitlines() if label in line)
    return [float(v) for v in re.findall(r"(?<![\w-])[-+]?\d+\.?\d*(?:e-?\d+)?", line.split(label)[1])]


def test_leaves_cube_and_picture(finished):
    folder, text = finished
    assert str(folder / "demo.png") in text
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    cube = open_cube(folder / "mosaic.zarr")
    again = open_cube(folder / "DATACUBE_FINAL.fits")
    assert cube.flux.shape == again.flux.shape
    assert not (folder / "PIXTABLE_COMBINED.fits").exists()


def test_figures(finished):
    _, text = finished
    median, width, _, *_ = _figures(text, "(cube - truth)/sigma")
    # the small galaxy is hardly resolved, so that its peaks are smoothed a little
    assert abs(median) < 0.15
    assert 0.9 < width < 1.3
    line, _ = _figures(text, "H-alpha")
    assert line == pytest.approx(1.0, abs=0.08)
    total, found, missed, _false, share = _figures(text, "cosmic rays")[:5]
    assert total == found + missed
    assert found > 0.8 * total > 100
    assert share < 2e-3


def test_process_that_fails(tmp_path):
    with pytest.raises(ComputeError, match="musedask combine ended with status"):
        demo._run(["combine", str(tmp_path / "missing.fits"), "-o", str(tmp_path / "cube.zarr")])


def test_memory_of_a_process(tmp_path):
    watch, seconds = demo._run(["cube", "--help"])
    assert watch.peak > 5e6
    assert seconds > 0
    assert watch.processes == 1


def test_command_line(monkeypatch, tmp_path):
    seen = {}

    def run_demo(out_dir, **options):
        seen.update(options, out_dir=out_dir)
        return "figures"

    monkeypatch.setattr(demo, "run_demo", run_demo)
    result = CliRunner().invoke(main, ["demo", str(tmp_path), "--memory-limit", "200MB"])
    assert result.exit_code == 0
    assert result.output.endswith("figures\n")
    assert seen == {"out_dir": tmp_path, "memory_limit": "200MB", "cluster": None}


def test_stars_are_measured_as_simulated():
    """A shifted, fainter copy of the truth has the shift and the ratio that were put in."""
    y, x = np.mgrid[:60, :80]
    positions = np.array([20.0, 60.0]), np.array([30.0, 31.0])

    def image(shift, factor):
        spots = [np.exp(-((x - px - shift) ** 2 + (y - py) ** 2) / 8) for px, py in zip(*positions, strict=True)]
        return factor * 500 * sum(spots) + 3

    result = SimpleNamespace(white=image(0.1, 0.9), white_truth=image(0.0, 1.0))
    scene = SimpleNamespace(stars=[SimpleNamespace(flux=1.0), SimpleNamespace(flux=2.0)])
    stars = demo._measure_stars(result, scene, *positions, radius=6.0)
    assert [s[3] for s in stars] == [1.0, 2.0]
    for ratio, east, north, _ in stars:
        assert ratio == pytest.approx(0.9, rel=1e-3)
        assert east == pytest.approx(0.1, abs=0.01)
        assert north == pytest.approx(0.0, abs=0.01)


def test_galaxy_rotates():
    scene = demo.galaxy_scene(56.0)
    waves = [line.wave for line in scene.lines if line.wave < 10000 and 6560 < line.wave < 6590]
    assert min(waves) < demo._HALPHA - 1 and max(waves) > demo._HALPHA + 1
    values = scene.surface_brightness(np.zeros(3), np.array([0.0, 5.0, 25.0]), 6700.0)
    assert values[0] > values[1] > values[2] > 0


def test_scene_can_be_opened_again(finished):
    folder, _ = finished
    sim = SimulatedSet.open(folder / "exposures")
    assert len(sim.exposures) == 8
    seen = demo.galaxy_scene(demo.SMALL.extent).observed(lsf_sigma=sim.scene.lsf_sigma)
    assert sim.scene == seen and seen.lsf_sigma > 1
