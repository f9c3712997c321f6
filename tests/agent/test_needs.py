"""What each way to enforce takes from its host: one table, for the chart, the docs, and `tf-agent probe`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from agent.enforce.actuator import Surroundings
from agent.enforce.live import LastUse
from agent.enforce.needs import NEEDS, Holder, Needs, lacking, told
from agent.enforce.registry import ACTUATORS
from agent.holder import INITIAL_PID_NAMESPACE, read_holder
from agent.probing import places_of, probe_all
from autoscaler.contract.keys import Effect

ROOT = Path(__file__).parents[2]
NOBODY = Holder(1000, frozenset(), host_pids=False, writable=frozenset(), programs=frozenset())
DEFAULT = Surroundings(LastUse(), {}.get, {}.get, Path("/state"))
PLACES = places_of(DEFAULT)
CHART = yaml.safe_load((ROOT / "charts" / "tensor-fusion-autoscaler" / "files" / "backends.yaml").read_text())


def test_every_actuator_the_freezer_and_measuring_say_what_they_need() -> None:
    assert set(NEEDS) == {*ACTUATORS, "observe", "freeze"}


@pytest.mark.parametrize("name", [*ACTUATORS, "freeze"])
def test_the_chart_grants_what_the_agent_needs_and_no_more(name: str) -> None:
    needs, row = NEEDS[name], CHART["freeze"] if name == "freeze" else CHART["actuators"][name]
    assert (list(needs.capabilities), list(needs.driver)) == (row["capabilities"], row["driver"])
    assert [str(PLACES[needs.writes])] == [path["path"] for path in row["hostPaths"]]
    assert not any(path["readOnly"] for path in row["hostPaths"])
    of_auto = CHART["backends"]["auto"]
    assert of_auto["hostPID"] >= needs.host_pids
    assert (of_auto["runAsUser"] == 0) >= needs.root


@pytest.mark.parametrize("name", list(NEEDS))
def test_the_page_on_the_agent_names_all_of_it_in_its_row(name: str) -> None:
    page = (ROOT / "docs" / "agent.md").read_text()
    (row,) = re.findall(rf"^\| `(?:--)?{name}` \|.*$", page, re.MULTILINE)
    needs = NEEDS[name]
    place = {"cgroup_root": "cgroups writable"}.get(needs.writes) or str(PLACES.get(needs.writes, ""))
    words = [place, *needs.capabilities, *needs.programs, *(["user 0"] if needs.root else [])]
    assert [word for word in words if word not in row] == []


def test_who_has_nothing_lacks_everything_and_who_has_all_lacks_nothing() -> None:
    for needs in NEEDS.values():
        everything = Holder(
            0, frozenset(needs.capabilities), True, frozenset(PLACES.values()), frozenset(needs.programs)
        )
        assert lacking(needs, PLACES, NOBODY) == told(needs, PLACES)
        assert lacking(needs, PLACES, everything) == ()


def test_only_what_is_missing_is_named() -> None:
    needs = Needs(root=True, capabilities=("SYS_ADMIN",), writes="mps_root")
    holder = Holder(0, frozenset(), host_pids=False, writable=frozenset({PLACES["mps_root"]}), programs=frozenset())
    assert lacking(needs, PLACES, holder) == ("SYS_ADMIN",)


def test_a_process_is_asked_for_its_capabilities_its_pids_and_where_it_may_write(tmp_path: Path) -> None:
    ours, absent = tmp_path / "ours", tmp_path / "absent"
    ours.mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("Name:\ttf-agent\nCapEff:\t0000000000200000\n")

    holder = read_holder([ours, absent], ["sh", "no-such-program"], tmp_path)

    assert holder == Holder(
        os.geteuid(), frozenset({"SYS_ADMIN"}), host_pids=False, writable=frozenset({ours}), programs=frozenset({"sh"})
    )


def test_what_the_kernel_says_of_this_process_can_be_read() -> None:
    holder = read_holder([], [])
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("CapEff"))
    assert ("SYS_ADMIN" in holder.capabilities) == bool(int(line.split()[1], 16) & 1 << 21)
    assert holder.host_pids == (Path("/proc/self/ns/pid").stat().st_ino == INITIAL_PID_NAMESPACE)


def test_a_host_that_tells_nothing_gives_nothing(tmp_path: Path) -> None:
    holder = read_holder([], [], tmp_path / "nowhere")
    assert (holder.capabilities, holder.host_pids) == (frozenset(), False)


def test_probe_tells_of_the_freezer_whether_the_tree_is_of_version_2(tmp_path: Path) -> None:
    around = Surroundings(LastUse(), {}.get, {}.get, tmp_path, cgroup_root=tmp_path)
    assert probe_all(around)["freeze"].compute is Effect.UNSUPPORTED
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    found = probe_all(around)["freeze"]
    assert found.compute is Effect.IMMEDIATE
    assert f"{tmp_path} writable" in found.needs
    assert f"{tmp_path} writable" not in found.lacks
