"""The GPU benchmarks work at tiny sizes on a processor: when a card is lent there is no time to mend them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"))

import peak
import planner
import rig
import speed

JOB = ["--batches", "1", "--steps", "1", "--seconds", "0", "--tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Keeps the models between the tests."""
    return tmp_path_factory.mktemp("bench")


def rows(said: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.mark.filterwarnings("ignore")
def test_speed_prints_a_row_for_each_and_the_parts_of_a_step(folder, capsys) -> None:
    speed.main(["sdxl-lora", *JOB, "--folder", str(folder), "--rows", "ours", "kohya", "waits", "parts"])
    said = capsys.readouterr().out
    assert "failed" not in said
    assert [row["who"] for row in rows(said)] == ["ours", "kohya"]
    assert all(row["step_s"] > 0 for row in rows(said))
    assert "the whole step" in said and "not asked: there is no card" in said
    assert "reached" not in said, "a tiny model has no bar"


@pytest.mark.filterwarnings("ignore")
def test_a_whole_model_is_trained_by_ours_and_by_the_loop_that_stands_for_the_peers(folder) -> None:
    bench = rig.Bench(folder, tiny=True)
    assert speed.ours(bench, "sd1", 1, 1).step > 0
    speed.peer_step(bench, "sd1", 1, cached=False)()


@pytest.mark.filterwarnings("ignore")
def test_memory_is_measured_before_and_in_training(folder, capsys) -> None:
    peak.main(["sd1-defaults", "--one", "--steps", "1", "--tiny", "--folder", str(folder)])
    (found,) = rows(capsys.readouterr().out)
    assert found["job"] == "sd1-defaults" and found["before_gb"] > 0 and found["training_gb"] > 0


@pytest.mark.parametrize("job", peak.JOBS)
def test_the_settings_of_every_memory_row_are_settings(job, folder) -> None:
    from dreambooth.shared.config import settings_from

    bench = rig.Bench(folder, tiny=True)
    chosen = peak.JOBS[job]
    settings_from(bench.settings(chosen.family, **chosen.settings), where="test")


def test_a_row_that_failed_says_why_and_the_others_are_made(folder, capsys, monkeypatch) -> None:
    def no_room(*arguments, **options):
        raise RuntimeError("CUDA out of memory\nand more")

    pace = rig.Pace(0.5, 0.1)
    monkeypatch.setattr(speed, "ours", no_room)
    monkeypatch.setattr(speed, "compiled", lambda *arguments: pace)
    monkeypatch.setattr(rig, "free", lambda: None)
    monkeypatch.setattr(speed, "peer_step", lambda *arguments, **options: lambda: None)
    monkeypatch.setattr(rig, "pace", lambda *arguments, **options: pace)
    speed.measure(rig.Bench(folder, tiny=False), "sd1", 4, 1, speed.ROWS)
    said = capsys.readouterr().out
    assert said.count("failed: CUDA out of memory\n") == 2, "ours, and ours with another layout"
    assert [row["who"] for row in rows(said)] == ["diffusers", "kohya", "ours, blocks compiled"]


@pytest.mark.parametrize(("seconds", "verdict"), [(1.0, "not reached: 1.5"), (1.6, "(reached: 1.5")])
def test_a_row_says_whether_its_bar_is_reached(seconds, verdict, capsys) -> None:
    ours = rig.Pace(1.0, 0.1)
    speed.row("sd1", 1, "diffusers", rig.Pace(seconds, 0.1), ours, tiny=False)
    assert verdict in capsys.readouterr().out


def test_the_share_of_the_arithmetic_limit_is_that_of_the_table(capsys) -> None:
    """4 images of 2.41 TFLOP in 40.66 ms are a little more than 30% of 790 TFLOP/s."""
    speed.row("sd1", 4, "ours", rig.Pace(4 * 2.41 / 790 / 0.3001, 0.01), None, tiny=False)
    assert "30.0% of 790 TFLOP/s (reached: 30%)" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_the_planner_is_asked_and_its_run_measured(folder, capsys) -> None:
    job = json.dumps(["sd1", planner.FIXED | planner.ALONE, 1])
    planner.main(["--one", job, "--tiny", "--folder", str(folder)])
    (found,) = rows(capsys.readouterr().out)
    assert found["said"][1] > found["said"][0] > 0 and len(found["was"]) == 2 and found["fits"]
    refused = planner.ask(rig.Bench(folder, tiny=True), "sd1", {"vram_limit": 0.2}, 1)
    assert "the smallest setting needs about" in refused["failed"]


@pytest.mark.parametrize("family", planner.SETTINGS)
def test_what_the_planner_is_measured_with_are_settings(family, folder) -> None:
    from dreambooth.shared.config import settings_from

    bench = rig.Bench(folder, tiny=True)
    for changes in planner.SETTINGS[family]:
        settings_from(bench.settings(family, **planner.FIXED | changes), where="test")
