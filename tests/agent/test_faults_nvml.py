"""Every call of the driver fails in every way it is documented to, on one device of a node at work.

The calls are those that the agent's own text names, so that a new one is tried from its first day. What may go is what
the failing call alone could tell; nothing may be said that is not so, no other device may notice, and the figures come
back when the error ends.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pynvml
import pytest
import structlog

from agent.enforce.actuator import Part, Surroundings
from agent.enforce.chosen import ChosenBackend
from agent.enforce.dmem import REPAIR_SECONDS, DmemActuator
from agent.enforce.live import LastUse
from agent.enforce.transition import Enforcer
from agent.export.exporter import Exporter
from agent.gpus import load_gpu_table
from agent.loop import Agent, Parts
from agent.model.samples import SourceError, Worker
from agent.nvml.calls import MISSING, QUIET
from agent.nvml.source import NvmlSource
from agent.quotas.store import QuotaStore
from autoscaler.contract.keys import QoS
from autoscaler.contract.quota import DeviceQuota, QuotaDocument, QuotaStatus, WorkerQuota
from tests.agent.nvml_standin import GIB, SOURCE, Device, Error, Instance, NvmlStandIn, Process, Sample, State

SOURCE_TEXT = SOURCE.read_text()
ROOM = Path(__file__).parents[2] / "agent" / "nvml"
T0 = 1_700_000_000.0
CODES = {
    "uninitialized": 1,
    "not_supported": 3,
    "no_permission": 4,
    "not_found": 6,
    "insufficient_size": 7,
    "driver_not_loaded": 9,
    "timeout": 10,
    "gpu_is_lost": 15,
    "in_use": 19,
    "unknown": 999,
}
LINE = re.compile(r"^tensor_fusion_((?:worker|device)_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')
TIMED = re.compile(r"_(total|info|age_seconds|peak_bytes)$")
ALL, WHOLE, OTHER, DIVIDED, INSTANCE = -1, 0, 1, 2, 32
LIST_SECONDS, REPROBE_SECONDS, TICK_SECONDS = 2.0, 2.0, 1.5
"""Two ticks are longer than what is held, and bring the next list and the next look at what was lost."""
LOST = CODES["gpu_is_lost"]
RELOADED_CODES = {CODES["uninitialized"], CODES["driver_not_loaded"]}
GONE = {LOST, *RELOADED_CODES}
OF_NODE = {"nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlShutdown", "nvmlSystemGetDriverVersion"}
OF_LIMITS = {"nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMemoryLimits_v1", "nvmlDeviceSetMemoryLimits_v1"}
CODES_BY_NUMBER = {number: name for name, number in CODES.items()}
BEHIND = {
    "nvmlDeviceGetMemoryInfo": ("nvmlDeviceGetMemoryInfo_v2",),
    "nvmlDeviceGetUtilizationRates": ("nvmlDeviceGetSamples",),
}
"""What is asked first, so that the other is asked at all."""
SAID = {
    "nvmlDeviceGetProcessUtilization": {CODES["not_found"]},
    "nvmlDeviceGetSamples": {CODES["not_found"]},
    "nvmlDeviceGetMigDeviceHandleByIndex": {CODES["not_found"]},
    "nvmlSystemGetProcessName": {CODES["not_found"]},
    "nvmlDeviceGetMigMode": {CODES["not_supported"]},
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": {CODES["not_supported"]},
    "nvmlDeviceGetGraphicsRunningProcesses_v3": {CODES["not_supported"]},
}
"""What is an answer, and would be a lie of this driver: nobody active, no such slot, no MIG, no MPS."""
SIZES = {"nvmlDeviceGetNumGpuCores", "nvmlDeviceGetCudaComputeCapability"}
"""Without them from the start, an instance's share is that of its slices."""
Figures = dict[str, dict[tuple[str, str], float]]

DEVICES = (
    Device("GPU-a", "NVIDIA A40", 48 * GIB, 20 * GIB, 60),
    Device("GPU-b", "NVIDIA L4", 24 * GIB, 4 * GIB, 30),
    Device("GPU-c", "NVIDIA H100 80GB HBM3", 80 * GIB, mig=True, gpm=True, cores=132 * 128, capability=9),
)
OWNERS = {41: ("a", "GPU-a"), 42: ("b", "GPU-a"), 51: ("d", "GPU-b"), 61: ("e", "MIG-a"), 62: ("f", "MIG-b")}
PROCESSES = (
    Process(WHOLE, 40, 0, name="/usr/bin/nvidia-cuda-mps-server"),
    Process(WHOLE, 41, 6 * GIB, name="python"),
    Process(WHOLE, 42, 4 * GIB, kind="client"),
    Process(WHOLE, 43, 1 * GIB, kind="graphics"),
    Process(OTHER, 51, 4 * GIB),
    Process(INSTANCE, 61, 2 * GIB),
    Process(INSTANCE + 1, 62, 3 * GIB),
)
BUSY = ((WHOLE, 40, 20), (WHOLE, 41, 40), (WHOLE, None, 60), (OTHER, 51, 30), (OTHER, None, 30))


def names_in_the_room() -> set[str]:
    """Return every function of the library that the agent's own text asks for."""
    found = set()
    for path in ROOM.glob("*.py"):
        found |= set(re.findall(r'"(nvml[A-Z]\w+)"|pynvml\.(nvml[A-Z]\w+)\(', path.read_text()))
    return {one or other for one, other in found}


@cache
def symbols_of(name: str) -> frozenset[str]:
    """Return the functions of the C library behind one of the wrapper's."""
    text = inspect.getsource(inspect.unwrap(getattr(pynvml, name)))
    own = frozenset(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', text))
    others = set(re.findall(r"\b(nvml[A-Z]\w+)\(", text)) - {name}
    return own.union(*(symbols_of(other) for other in others))


NAMES = {symbol: name for name in sorted(names_in_the_room()) for symbol in symbols_of(name)}


class Card:
    """A node with a whole GPU that MPS shares, a second one, and one that is divided; time moves by ticks."""

    def __init__(self, root: Path, standin: NvmlStandIn) -> None:
        self.at, self.ticks, self.standin = T0, 0, standin
        self.errors: tuple[Error, ...] = ()
        self.devices = DEVICES
        self.source = NvmlSource(LIST_SECONDS, REPROBE_SECONDS)
        self.crew = {name: Worker(f"uid-{name}", "ns", name, "main", "load", QoS.HIGH) for name, _ in OWNERS.values()}
        live_use, gpus = LastUse(), load_gpu_table()
        self.leaves(root)
        around = Surroundings(
            live_use, live_use.tflops_of, live_use.index_of, root / "state",
            cgroup_of=lambda worker: f"/kubepods/pod-{worker.pod}/main",
            memory_limits=self.source.memory_limits(), cgroup_root=root / "cgroup",
        )  # fmt: skip
        backend = ChosenBackend({Part.VRAM: [DmemActuator(around)]}, live_use)
        parts = Parts(
            self.source, self, Enforcer(backend), live_use, QuotaStore(root / "state"), Exporter(gpus, 0.0), gpus,
            source_stats=self.source.stats,
        )  # fmt: skip
        self.agent = Agent("n1", parts)

    def leaves(self, root: Path) -> None:
        for name in self.crew:
            leaf = root / "cgroup" / "kubepods" / f"pod-{name}" / "main"
            leaf.mkdir(parents=True)
            for folder in (leaf, leaf.parent, leaf.parent.parent):
                (folder / "dmem.max").touch()
        (root / "cgroup" / "cgroup.controllers").write_text("dmem\n")

    def workers(self) -> tuple[Worker, ...]:
        return tuple(self.crew.values())

    def worker_of(self, pid: int) -> Worker | None:
        return self.crew[OWNERS[pid][0]] if pid in OWNERS else None

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.at, self.ticks = self.at + TICK_SECONDS, self.ticks + 1
            clock = self.ticks * 1_000_000
            instances = (
                Instance("MIG-a", DIVIDED, 7, 16, 1, 10 * GIB, 2 * GIB, clock // 2, clock),
                Instance("MIG-b", DIVIDED, 2, 60, 3, 40 * GIB, 3 * GIB, clock // 4, clock),
            )
            samples = tuple(Sample(device, pid, round(self.at * 1e6), percent) for device, pid, percent in BUSY)
            self.standin.write(State(self.devices, PROCESSES, samples, self.errors, instances))
            self.agent.tick(self.at)

    def try_tick(self, *, is_fatal: bool = False) -> None:
        """Tick, where the driver may be away as a whole."""
        try:
            self.tick()
        except SourceError:
            assert is_fatal

    def put(self, generation: int, more: int = 0) -> QuotaStatus:
        quotas = []
        for name, uuid in OWNERS.values():
            if not uuid.startswith("MIG"):
                device = DeviceQuota(uuid, 1.0, 10.0, GIB, (8 + more) * GIB)
                quotas.append(WorkerQuota(f"uid-{name}", "ns", name, "load", QoS.HIGH, (device,), "main"))
        answer = self.agent.put(QuotaDocument(1, generation, "n1", tuple(quotas)), self.at)
        assert isinstance(answer, QuotaStatus)
        return answer

    def figures(self) -> Figures:
        """Return what /metrics tells now that does not run with time, by device, then by name and pod."""
        found: Figures = {}
        for name, labels, value in LINE.findall(self.page()):
            if not TIMED.search(name):
                told = dict(LABEL.findall(labels))
                found.setdefault(told["gpu_uuid"], {})[name, told.get("pod", "")] = float(value)
        return found

    def page(self) -> str:
        return self.agent.exposition(openmetrics=False).decode()

    def counted(self, symbol: str) -> dict[str, int]:
        """Return the errors that /metrics counts for a function of the library, by code."""
        pattern = rf'^tensor_fusion_agent_nvml_errors_total{{call="{NAMES[symbol]}",code="(\w+)",node="n1"}} (\S+)$'
        return {code: int(float(count)) for code, count in re.findall(pattern, self.page(), re.MULTILINE)}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NvmlStandIn]:
    standin = NvmlStandIn(tmp_path)
    standin.take_place(monkeypatch)
    with structlog.testing.capture_logs():
        yield standin


@pytest.fixture
def card(tmp_path: Path, library: NvmlStandIn) -> Iterator[Card]:
    card = Card(tmp_path, library)
    yield card
    card.errors = ()
    card.tick()
    card.agent.close()


def at_work(card: Card) -> Card:
    card.tick(2)
    card.put(1)
    card.tick(2)
    return card


def test_the_node_at_work_asks_for_every_function_that_the_agents_text_names(card: Card) -> None:
    at_work(card).agent.close()
    assert set(card.source.stats().calls) == names_in_the_room()


def failing(symbol: str, code: int, place: int) -> tuple[Error, ...]:
    return tuple(Error(name, code, place) for name in (symbol, *BEHIND.get(symbol, ())))


def places_of(symbol: str) -> tuple[int, ...]:
    """Return the devices a function may be asked of, or all for one that is asked of none."""
    return (ALL,) if f'enter("{symbol}", -1)' in SOURCE_TEXT else (WHOLE, DIVIDED, INSTANCE)


def concerned(place: int, code: int) -> set[str]:
    """Return the devices that may tell less: the one that fails, and whoever is lost with it."""
    if place == INSTANCE and code not in GONE:
        return {"MIG-a"}
    return {ALL: {"GPU-a", "GPU-b", "MIG-a", "MIG-b"}, WHOLE: {"GPU-a"}}.get(place, {"MIG-a", "MIG-b"})


def untrue(card: Card, truth: Figures, may_lack: set[str]) -> list[object]:
    """Return every figure that is told and is not so, and what others do not tell any more."""
    told = card.figures()
    wrong: list[object] = [(uuid, "is no device") for uuid in told.keys() - truth.keys()]
    for uuid, figures in truth.items():
        found = told.get(uuid, {})
        wrong += [(uuid, key, figures.get(key), value) for key, value in found.items() if value != figures.get(key)]
        wrong += [(uuid, key, "is gone") for key in figures.keys() - found.keys() if uuid not in may_lack]
    return wrong


def fail(card: Card, symbol: str, code: int, place: int, truth: Figures, *, anew: bool) -> bool:
    """Let a call fail for some ticks, from the first one on if `anew`; return whether it was asked for at all."""
    before = card.counted(symbol)
    card.errors = failing(symbol, code, place)
    if anew:
        card.source.close()
    for number in range(2):
        card.try_tick(is_fatal=place == ALL and code in RELOADED_CODES)
        # Whoever takes the driver up again has one sample of GPM, and needs two.
        others = {"MIG-a", "MIG-b"} if (anew or code in RELOADED_CODES) and number == 0 else set()
        lies = untrue(card, truth, concerned(place, code) | others)
        assert [one for one in lies if not (anew and symbol in SIZES and "tflops" in str(one))] == [], (code, place)
    card.errors = ()
    now = card.counted(symbol)
    name = CODES_BY_NUMBER[code]
    if code not in QUIET.get(NAMES[symbol], ()):
        assert {key for key in now if now[key] != before.get(key)} <= {name}
    return now != before


@pytest.mark.parametrize("symbol", sorted(NAMES.keys() - OF_NODE - OF_LIMITS))
def test_a_call_that_fails_costs_what_it_alone_can_tell_and_nothing_else(card: Card, symbol: str) -> None:
    at_work(card)
    truth, tried = card.figures(), 0
    for place in places_of(symbol):
        anew = False
        # Only a driver that is taken up again is asked for what it said it did not have: such an answer comes last.
        for code in sorted(set(CODES.values()) - SAID.get(symbol, set()), key=lambda one: one in MISSING):
            was_asked = fail(card, symbol, code, place, truth, anew=anew)
            if not was_asked and not anew:
                anew = True
                was_asked = fail(card, symbol, code, place, truth, anew=anew)
            if not was_asked and place != ALL and code not in GONE:
                break  # It is not asked of such a device.
            tried += was_asked
            if code in MISSING:
                card.source.close()
            card.tick(3)
            assert untrue(card, truth, set()) == [], (code, place)
    assert tried >= 7


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("symbol", sorted(OF_NODE))
def test_a_driver_that_fails_as_a_whole_is_one_error_and_all_is_as_before_when_it_answers(
    card: Card, symbol: str, code: int
) -> None:
    truth = at_work(card).figures()
    card.errors = failing(symbol, code, ALL)
    card.source.close()
    card.try_tick(is_fatal=symbol != "nvmlShutdown")
    card.source.close()
    card.errors = ()
    card.tick(3)
    assert untrue(card, truth, set()) == []
    assert card.counted(symbol).keys() == {CODES_BY_NUMBER[code]}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
@pytest.mark.parametrize("symbol", sorted(OF_LIMITS))
def test_a_memory_limit_that_the_driver_does_not_take_is_told_and_counted_and_set_when_it_does(
    card: Card, symbol: str, code: int
) -> None:
    at_work(card)
    card.errors = failing(symbol, code, ALL if symbol == "nvmlDeviceGetHandleByUUID" else WHOLE)
    card.at += REPAIR_SECONDS  # Now and then it is looked at what is in force.
    card.tick()
    told = limits(card.put(2, more=1))
    refused = {"a", "b", "d"} if symbol == "nvmlDeviceGetHandleByUUID" else {"a", "b"}
    taken = {"a", "b", "d"} if symbol == "nvmlDeviceGetMemoryLimits_v1" else {"a", "b", "d"} - refused
    assert {name for name, (limit_gib, _) in told.items() if limit_gib == 9} == taken
    assert all("pod-" in reason for name, (_, reason) in told.items() if name not in taken)
    card.tick()
    assert CODES_BY_NUMBER[code] in card.counted(symbol)
    card.errors = ()
    card.tick(2)
    assert {limit_gib for limit_gib, _ in limits(card.put(3, more=2)).values()} == {10}


def limits(status: QuotaStatus) -> dict[str, tuple[float, str]]:
    """Return the VRAM limit in force in GiB, and what is said of it, by worker of an undivided GPU."""
    told = {one.pod: one.devices[0] for one in status.workers if one.pod in {"a", "b", "d"}}
    return {name: ((one.observed.vram_limit_bytes or 0) / GIB, one.reason) for name, one in told.items()}


def test_a_lost_gpu_takes_the_series_of_its_workers_along_and_nobody_elses(card: Card) -> None:
    truth = at_work(card).figures()
    for place, own in ((WHOLE, {"GPU-a"}), (DIVIDED, {"MIG-a", "MIG-b"})):
        card.errors = (Error("nvmlDeviceGetMigMode", LOST, place), Error("nvmlDeviceGetMemoryInfo_v2", LOST, place))
        card.tick(3)
        assert card.figures() == {uuid: told for uuid, told in truth.items() if uuid not in own}
        assert not re.search("|".join(f'gpu_uuid="{uuid}"' for uuid in own), card.page())
        card.errors = ()
        card.tick(4)
        assert card.figures() == truth


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_criticise_in_the_page_of_a_node_with_mig_errors_and_an_unknown_model(
    card: Card,
) -> None:
    card.devices = (*DEVICES, Device("GPU-x", "NVIDIA X9000", 12 * GIB, GIB, 10))
    at_work(card)
    card.errors = (Error("nvmlDeviceGetSamples", CODES["timeout"], WHOLE),)
    card.tick(2)
    page = card.page()
    done = subprocess.run(
        ["promtool", "check", "metrics"], check=False, input=page.encode(), capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert {'gpu_uuid="MIG-a"', 'gpu_uuid="GPU-x"', 'code="timeout"'} <= set(re.findall(r'\w+="[^"]*"', page))
    assert not re.search(r'compute_capacity_tflops\{.*"GPU-x"', page)
