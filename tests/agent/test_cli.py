"""tf-agent as a process on loopback: it starts, serves, survives kills with its quotas, and ends cleanly."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from agent.record.capture import load_capture
from tests.agent import nvml_standin, scenes
from tests.agent.nvml_standin import NvmlStandIn
from tests.agent.scenes import GIB

COMMAND = (sys.executable, "-m", "agent")
ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 120.0
ANSWER_SECONDS = 60.0
SOUND = {"TERM": "dumb", "NO_COLOR": "1", "LD_LIBRARY_PATH": ""}

pytestmark = pytest.mark.integration


def tf_agent(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command, told = [*COMMAND, *map(str, arguments)], os.environ | SOUND | environment
    return subprocess.run(
        command, cwd=ROOT, env=told, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )


def until(said: str, condition):
    """Return the condition's first true result; fail when it stays false."""
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if result := condition():
                return result
        time.sleep(0.05)
    raise AssertionError(f"within {DEADLINE_SECONDS} s never: {said}")


class Running:
    """An agent process that has bound its port."""

    def __init__(self, directory: Path, *arguments: object, **environment: str) -> None:
        port_file = directory / "port"
        port_file.unlink(missing_ok=True)
        fixed = ("--listen", "127.0.0.1:0", "--port-file", port_file, "--state-dir", directory / "state")
        self.errors = (directory / "agent.log").open("w+")
        self.process = subprocess.Popen(
            [*COMMAND, "run", *map(str, (*fixed, *arguments))],
            cwd=ROOT, env=os.environ | SOUND | environment, stderr=self.errors, stdout=self.errors,
        )  # fmt: skip
        try:
            port = until("the port is bound", lambda: self.process.poll() is not None or port_file.read_text())
        except AssertionError:
            self.process.kill()
            raise
        assert self.process.poll() is None, self.log()
        self.url = f"http://127.0.0.1:{int(port)}"

    def log(self) -> str:
        return (Path(self.errors.name)).read_text()

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=ANSWER_SECONDS) as response:
            return response.read().decode()

    def send(self, method: str, path: str, body: object):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), method=method)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            return json.load(response)

    def devices(self) -> dict[str, dict]:
        return {worker["pod"]: worker["devices"][0] for worker in json.loads(self.get("/v1/quotas"))["workers"]}

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        self.process.wait(timeout=DEADLINE_SECONDS)
        self.errors.close()
        return self.process.returncode


@contextlib.contextmanager
def running(directory: Path, *arguments: object, **environment: str):
    agent = Running(directory, *arguments, **environment)
    try:
        yield agent
    finally:
        if agent.process.poll() is None:
            agent.end(signal.SIGKILL)


def document(limit_tflops: float = 77.0, generation: int = 1, uuid: str = "GPU-0", vram_limit: int = 16 * GIB) -> dict:
    amounts = {
        "tflops_request": 10,
        "tflops_limit": limit_tflops,
        "vram_request_bytes": GIB,
        "vram_limit_bytes": vram_limit,
    }
    worker = {"pod_uid": "uid-a", "namespace": "ns", "pod": "a", "workload": "a", "qos": "high", "container": "main"}
    return {
        "epoch": 1,
        "generation": generation,
        "node": "n1",
        "quotas": [worker | {"devices": [{"uuid": uuid, **amounts}]}],
    }


def test_it_ticks_serves_and_ends_cleanly_when_told_to(tmp_path):
    scenario = scenes.write(tmp_path, scenes.worker("a"), start=None)
    with running(tmp_path, "--simulate", scenario, "--tick", 0.05, TF_AGENT_RENDER_SECONDS="0") as agent:
        until("compute is counted", lambda: _compute_seconds(agent.get("/metrics")) > 0)
        assert agent.end() == 0
        assert "tick_seconds=0.05" in agent.log()
        assert "no authentication, so loopback only" in agent.log()
        assert "Traceback" not in agent.log()


def _compute_seconds(exposition: str) -> float:
    lines = [line for line in exposition.splitlines() if line.startswith("tensor_fusion_worker_compute_seconds_total{")]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_next_agent_has_the_same_quotas_in_force_and_the_workers_files_never_change(tmp_path, how):
    scenario = scenes.write(tmp_path, scenes.worker("a"))
    arguments = ("--simulate", scenario, "--lockstep", "--simulated-dir", tmp_path / "limits")
    with running(tmp_path, *arguments) as agent:
        agent.send("PUT", "/v1/quotas", document())
        before = agent.devices()
        agent.end(how)
    (file,) = (tmp_path / "limits").iterdir()
    written = file.stat().st_mtime_ns
    with running(tmp_path, *arguments) as agent:
        assert agent.devices() == before
        assert before["a"]["observed"]["tflops_limit"] == 77.0
        assert file.stat().st_mtime_ns == written


def test_simulated_time_advances_a_day_through_the_api(tmp_path):
    scenario = scenes.write(tmp_path, *(scenes.worker(name, "diurnal", parameters={}) for name in "ab"))
    with running(tmp_path, "--simulate", scenario, "--lockstep", "--tick", 60) as agent:
        answer = agent.send("POST", "/simulate/advance", {"to": 86400})
        assert (answer["at"], answer["ticks"]) == (86400, 1440)
        assert [worker["seconds"] for worker in answer["workers"]] == [86400, 86400]
        assert agent.end() == 0


def test_quotas_of_a_running_agent_are_shown_as_table_and_json(tmp_path):
    with running(tmp_path, "--simulate", scenes.write(tmp_path, scenes.worker("a")), "--lockstep") as agent:
        agent.send("PUT", "/v1/quotas", document())
        table = tf_agent("quotas", "--url", agent.url)
        assert table.returncode == 0
        assert "ns/a/main" in table.stdout
        assert "10.0/77.0" in table.stdout
        as_json = tf_agent("quotas", "--url", agent.url, "-o", "json")
        assert json.loads(as_json.stdout)["workers"][0]["devices"][0]["applied"] is True


def test_a_refused_document_leaves_the_process_and_its_quotas_alone(tmp_path):
    with running(tmp_path, "--simulate", scenes.write(tmp_path, scenes.worker("a")), "--lockstep") as agent:
        agent.send("PUT", "/v1/quotas", document(generation=2))
        with pytest.raises(urllib.error.HTTPError, match="409"):
            agent.send("PUT", "/v1/quotas", document(generation=1))
        assert agent.devices()["a"]["observed"]["tflops_limit"] == 77.0


def test_real_processes_behind_the_drivers_own_interface_get_their_limits(tmp_path):
    standin = NvmlStandIn(tmp_path)
    pid, uid = 4242, "8f2c1f0e-3a55-4c1b-9d0e-111122223333"
    process = tmp_path / "proc" / str(pid)
    process.mkdir(parents=True)
    (process / "stat").write_text(f"{pid} (python) S " + " ".join(["0"] * 18) + " 100 0\n")
    (process / "cgroup").write_text(f"0::/kubepods/burstable/pod{uid}/{'a' * 64}\n")
    annotations = {"tflops-request": "10", "tflops-limit": "20", "vram-request": "1Gi", "vram-limit": "4Gi"}
    pod = {
        "uid": uid, "namespace": "ns", "name": "a", "labels": {"tensor-fusion.ai/workload": "a"},
        "annotations": {f"tensor-fusion.ai/{key}": value for key, value in annotations.items()},
        "containers": [{"name": "main", "id": "a" * 64}],
    }  # fmt: skip
    (tmp_path / "pods.json").write_text(json.dumps([pod]))
    standin.write(
        nvml_standin.State(
            devices=(nvml_standin.Device("GPU-1", used_bytes=GIB),),
            processes=(nvml_standin.Process(0, pid, GIB, steady_percent=10),),
        )
    )
    paths = ("--pods-file", tmp_path / "pods.json", "--proc-root", tmp_path / "proc", "--simulated-dir", tmp_path / "l")
    options = ("--node", "n1", "--backend", "simulated", "--tick", 0.1)
    with running(tmp_path, *paths, *options, **standin.environment()) as agent:
        file = tmp_path / "l" / f"{uid}_main_GPU-1.json"
        until("the born limits reach the worker", lambda: json.loads(file.read_text())["tflops_limit"] == 20)
        body = document(30.0, uuid="GPU-1", vram_limit=8 * GIB)
        body["quotas"][0]["pod_uid"] = uid
        answer = agent.send("PUT", "/v1/quotas", body)
        assert answer["workers"][0]["devices"][0]["applied"] is True
        assert json.loads(file.read_text())["tflops_limit"] == 30
        body = body | {"generation": 2, "quotas": []}
        agent.send("PUT", "/v1/quotas", body)
        assert json.loads(file.read_text())["tflops_limit"] == 20
        (tmp_path / "pods.json").write_text("[]")
        until("the limits of the vanished worker are gone", lambda: not file.exists())


def test_probe_shows_devices_and_what_each_backend_can_do(tmp_path):
    standin = NvmlStandIn(tmp_path)
    standin.write(nvml_standin.State(devices=(nvml_standin.Device("GPU-1"),)))
    found = tf_agent("probe", "-o", "json", **standin.environment())
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert [device["uuid"] for device in answer["devices"]] == ["GPU-1"]
    assert answer["backends"]["observe"]["compute"] == "unsupported"
    assert "GPU-1" in tf_agent("probe", **standin.environment()).stdout


def test_probe_says_before_there_is_any_worker_that_the_driver_is_too_old_to_limit_memory(tmp_path):
    tree = tmp_path / "cgroup"
    (tree / "kubepods").mkdir(parents=True)
    (tree / "cgroup.controllers").write_text("cpu memory dmem\n")
    (tree / "kubepods" / "dmem.max").touch()
    functions = ("nvmlDeviceGetMemoryLimits_v1", "nvmlDeviceSetMemoryLimits_v1")
    told = {}
    for name, without in (("old", functions), ("new", ())):
        standin = NvmlStandIn(tmp_path, without=without)
        standin.write(nvml_standin.State(devices=(nvml_standin.Device("GPU-1"),)))
        found = tf_agent("probe", "-o", "json", TF_AGENT_CGROUP_ROOT=str(tree), **standin.environment())
        told[name] = {key: json.loads(found.stdout)["backends"]["dmem"][key] for key in ("vram", "reason")}
    assert told["old"] == {"vram": "unsupported", "reason": "the driver is older than r615"}
    assert told["new"] == {"vram": "next_alloc", "reason": ""}


def test_probe_says_what_a_device_does_not_tell(tmp_path):
    server = nvml_standin.Process(0, 40, name="/usr/bin/nvidia-cuda-mps-server", steady_percent=60)
    clients = tuple(nvml_standin.Process(0, pid, GIB, kind="client") for pid in (41, 42))
    ampere = nvml_standin.Device("GPU-2", "NVIDIA A100-SXM4-80GB", mig=True, capability=8)
    standin = NvmlStandIn(tmp_path)
    standin.write(
        nvml_standin.State(
            devices=(nvml_standin.Device("GPU-1", percent=60), ampere),
            processes=(server, *clients),
            instances=(nvml_standin.Instance("MIG-2", parent=1),),
        )
    )
    found = tf_agent("probe", "-o", "json", **standin.environment())
    told = {
        device["uuid"]: device["reason"]
        for device in json.loads(found.stdout)["devices"]
        if device.get("healthy", True)
    }
    assert told.keys() == {"GPU-1", "MIG-2"}
    assert "MPS" in told["GPU-1"]
    assert "GPM" in told["MIG-2"]


def test_a_recording_can_be_read_back_as_samples(tmp_path):
    scenario = scenes.write(tmp_path, scenes.worker("a"), start=None)
    done = tf_agent("record", "--simulate", scenario, "--seconds", 0.2, "--tick", 0.05, "--to", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stderr
    _, ticks = load_capture(tmp_path / "r.jsonl")
    assert len(ticks) >= 2
    assert ticks[0].sample.devices[0].processes[0].vram_bytes == 8 * GIB
    shown = tf_agent("probe", "--replay", tmp_path / "r.jsonl", "-o", "json")
    assert [device["uuid"] for device in json.loads(shown.stdout)["devices"]] == ["GPU-0"]


def test_a_recording_of_a_driver_holds_its_rows_and_whose_the_processes_were(tmp_path):
    standin = NvmlStandIn(tmp_path)
    busy = nvml_standin.Process(0, 41, GIB, steady_percent=30)
    standin.write(nvml_standin.State(devices=(nvml_standin.Device("GPU-1", percent=30),), processes=(busy,)))
    (tmp_path / "proc/41").mkdir(parents=True)
    (tmp_path / "proc/41/cgroup").write_text("0::/kubepods/x\n")
    to, proc = tmp_path / "r.jsonl", tmp_path / "proc"
    done = tf_agent(
        "record",
        "--seconds",
        1,
        "--tick",
        0.3,
        "--to",
        to,
        "--proc-root",
        proc,
        "--note",
        "a test",
        **standin.environment(),
    )
    assert done.returncode == 0, done.stderr
    header, ticks = load_capture(to)
    assert header.note == "a test"
    rows = [row for tick in ticks for row in tick.rows.get("GPU-1", ())]
    assert {(row.pid, row.sm_percent) for row in rows} == {(41, 30)}
    assert [tick.cgroups for tick in ticks] == [{41: "0::/kubepods/x\n"}] + [{}] * (len(ticks) - 1)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "--node", "n1", "--state-dir", "{tmp}"), 1, "NVML"),
        (("probe",), 1, "NVML"),
        (("record", "--seconds", 0), 1, "NVML"),
        (("probe", "--replay", "{tmp}/scenario.json"), 1, "is no capture"),
        (("run",), 2, "node is not given"),
        (("run", "--node", "n1", "--listen", "0.0.0.0:9400"), 2, "only a loopback address"),
        (("run", "--node", "n1", "--tick", -1), 2, "tick_seconds"),
        (("run", "--node", "n1", "--backend", "magic"), 2, "backend"),
        (("run", "--simulate", "{tmp}/none.yaml"), 1, "No such file"),
        (("run", "--simulate", "{tmp}/scenario.json", "--node", "n9", "--state-dir", "{tmp}"), 1, "'n9'"),
        (("run", "--simulate", "{tmp}/scenario.json", "--state-dir", "{tmp}/scenario.json"), 1, "state directory"),
        (("quotas", "--url", "http://127.0.0.1:1"), 1, "127.0.0.1:1"),
        (("run", "--no-such-option"), 2, "no-such-option"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_clear_line_and_an_exit_code(tmp_path, arguments, code, said):
    scenes.write(tmp_path, scenes.worker("a"))
    done = tf_agent(*(str(argument).replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path):
    scenario = scenes.write(tmp_path, scenes.worker("a"))
    with running(tmp_path, "--simulate", scenario, "--lockstep") as agent:
        taken = agent.url.removeprefix("http://")
        done = tf_agent("run", "--simulate", scenario, "--listen", taken, "--state-dir", tmp_path / "other")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("tf-agent: ")
        assert "Traceback" not in done.stderr
