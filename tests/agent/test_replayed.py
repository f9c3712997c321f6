"""Captures: what was recorded plays again, through windows and attribution, to the same figures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean

import pynvml
import pytest

from agent.attribute import attribute
from agent.model.samples import DeviceSample, NodeSample, SourceError
from agent.pods.directory import PodDirectory
from agent.pods.file import PodFile
from agent.record.capture import FORMAT, Captured, CaptureError, Recorder, load_capture
from agent.record.replayed import ReplayedSource
from agent.utilization import UtilizationWindow
from tests.agent import standin_capture
from tests.agent.standin_capture import FILE, LATE_TICKS, LOST_TICKS, T0, TICKS, percent

NOW = 1_800_000_000.0
PODS = f"""
- {{uid: {standin_capture.A}, namespace: team, name: server, labels: {{tensor-fusion.ai/workload: chat}},
   containers: [{{name: main, id: "containerd://{"a" * 64}"}}]}}
- {{uid: {standin_capture.B}, namespace: team, name: job, labels: {{tensor-fusion.ai/workload: train}},
   containers: [{{name: main, id: "containerd://{"b" * 64}"}}]}}
"""


@pytest.fixture(scope="module")
def ticks() -> tuple[Captured, ...]:
    return load_capture(FILE)[1]


def device(sample: NodeSample, uuid: str) -> DeviceSample:
    return next(one for one in sample.devices if one.uuid == uuid)


def test_the_synthetic_capture_is_what_its_maker_makes_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pynvml, "nvmlLib", pynvml.nvmlLib)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setenv("NVML_STANDIN_STATE", "")
    standin_capture.load_standin(tmp_path)
    standin_capture.make(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == FILE.read_text()
    assert "synthetic" in load_capture(FILE)[0].note


def test_the_recorded_rows_give_the_recorded_ratios_again(ticks):
    window = UtilizationWindow(Counter())
    for captured in ticks:
        shown = device(captured.sample, "GPU-a")
        now_us = round(captured.sample.at * 1e6)
        rows = captured.rows.get("GPU-a", ())
        ratios = window.take(rows, now_us, busy=bool(shown.compute_ratio))
        assert {p.pid: p.compute_ratio for p in shown.processes if p.compute_ratio} == ratios


def test_bad_rows_are_recorded_as_they_came_and_dropped_when_they_are_played(ticks):
    dropped: Counter[str] = Counter()
    window = UtilizationWindow(dropped)
    for captured in ticks:
        window.take(captured.rows.get("GPU-a", ()), round(captured.sample.at * 1e6), busy=True)
    assert dropped == {"future": 1, "over_100_percent": 1, "stale": 1}


def attributed(ticks: tuple[Captured, ...], directory: Path):
    """Play a capture through the real directory of processes; yield each tick's number, sample and attribution."""
    (directory / "pods.yaml").write_text(PODS)
    people = PodDirectory(directory, [PodFile(directory / "pods.yaml", "")])
    source, attribution = ReplayedSource(ticks), None
    for tick in range(len(ticks)):
        sample = source.sample(NOW + tick)
        for pid, text in source.cgroups().items():
            (directory / str(pid)).mkdir(exist_ok=True)
            (directory / str(pid) / "cgroup").write_text(text)
            (directory / str(pid) / "stat").write_text(f"{pid} (x) " + " ".join(["0"] * 30))
        attribution = attribute(sample, people, attribution)
        yield tick, sample, attribution


def test_a_played_capture_is_attributed_to_its_pods_within_a_point_of_what_they_did(ticks, tmp_path):
    used: dict[str, list[float]] = {"server": [], "job": []}
    for _, _, attribution in attributed(ticks, tmp_path):
        for use in attribution.uses:
            if use.uuid == "GPU-a":
                used[use.worker.pod].append(use.compute_ratio)
    server = fmean(percent(41, tick) + percent(42, tick) for tick in range(TICKS)) / 100
    job = fmean(percent(51, tick) for tick in range(TICKS)) / 100
    # Two ticks without news hold the figure before them; that is all that may differ.
    assert fmean(used["server"]) == pytest.approx(server, abs=0.01)
    assert fmean(used["job"]) == pytest.approx(job, abs=0.01)


def test_a_played_capture_adds_up_on_every_device_and_the_hosts_own_is_unattributed(ticks, tmp_path):
    for tick, sample, attribution in attributed(ticks, tmp_path):
        for rest in attribution.unattributed:
            whole = device(sample, rest.uuid)
            uses = [use for use in attribution.uses if use.uuid == rest.uuid]
            assert sum(use.vram_bytes for use in uses) + rest.vram_bytes == whole.vram_used_bytes
            if whole.compute_ratio is not None:
                total = sum(use.compute_ratio for use in uses) + rest.compute_ratio
                assert whole.compute_ratio - 1e-9 <= total <= whole.compute_ratio * 1.05 + 1e-9
        on_a = next(rest for rest in attribution.unattributed if rest.uuid == "GPU-a")
        assert tick in LATE_TICKS or on_a.compute_ratio == pytest.approx(0.1)


def test_a_lost_gpu_and_a_late_driver_play_as_they_were(ticks, tmp_path):
    for tick, sample, attribution in attributed(ticks, tmp_path):
        # Probed again only some ticks after it was lost, so it may come back a little later than it did.
        if tick in LOST_TICKS:
            assert not device(sample, "GPU-b").healthy
            assert all(rest.uuid != "GPU-b" for rest in attribution.unattributed)
        age = sample.at - device(sample, "GPU-a").sampled_at
        assert age == pytest.approx(LATE_TICKS.index(tick) + 1 if tick in LATE_TICKS else 0)
        assert device(sample, "MIG-c").healthy


def test_the_only_worker_of_a_mig_instance_has_the_use_that_gpm_tells(ticks, tmp_path):
    for tick, _, attribution in attributed(ticks, tmp_path):
        (use,) = (use for use in attribution.uses if use.uuid == "MIG-c")
        assert use.worker.pod == "job"
        assert use.compute_ratio == (None if tick == 0 else pytest.approx(0.3))


def test_a_capture_plays_at_its_own_pace_whatever_the_ticks_and_ends(ticks):
    slow = ReplayedSource(ticks)
    shown = [slow.sample(NOW + second) for second in (0.0, 0.4, 3.0, TICKS - 1.0)]
    recorded = [ticks[0], ticks[0], ticks[3], ticks[-1]]
    for sample, then in zip(shown, recorded, strict=True):
        assert device(sample, "GPU-a").processes == device(then.sample, "GPU-a").processes
    assert shown[2].at == NOW + 3.0
    with pytest.raises(SourceError, match="ended"):
        slow.sample(NOW + TICKS + 1)


def test_rows_move_with_the_time_that_they_are_played_at(ticks):
    source = ReplayedSource(ticks)
    source.sample(NOW)
    assert {row.at_us for row in source.rows()["GPU-a"]} == {round(NOW * 1e6)}


def test_a_source_without_rows_or_processes_to_look_up_is_recorded_too():
    class Bare:
        def sample(self, now):
            return NodeSample(now, (DeviceSample(0, "GPU-a", "L4", now, 1),))

        def close(self):
            pass

    assert Recorder(Bare()).take(T0) == Captured(Bare().sample(T0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no capture"),
        (b'{"format": "tf-agent capture 9"}', "tf-agent capture 9"),
        (f'{{"format": "{FORMAT}"}}\n'.encode(), "holds no tick"),
        (f'{{"format": "{FORMAT}"}}\n{{"sample": 1}}\n'.encode(), "line 2"),
    ],
)
def test_a_file_that_cannot_be_played_says_why(tmp_path, content, said):
    (tmp_path / "c.jsonl").write_bytes(content)
    with pytest.raises(CaptureError, match=said):
        load_capture(tmp_path / "c.jsonl")
