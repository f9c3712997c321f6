"""The node without a GPU: demand meets limits, devices are full, and a run can be repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gpus import load_gpu_table
from agent.model.samples import SourceError
from agent.simulate.characters import CHARACTERS, DAY_SECONDS, DIVISORS
from agent.simulate.node import OOM_SOURCE, RESTART_SECONDS, Simulation
from agent.simulate.scenario import ScenarioError, load_scenario
from autoscaler.contract.quota import DeviceQuota
from tests.agent import scenes
from tests.agent.scenes import A100_TFLOPS, GIB

GPUS = load_gpu_table()


class Limits(dict):
    """Limits by worker name, steered by the test."""

    def __call__(self, worker, uuid):
        found = self.get(worker.pod)
        return found and DeviceQuota(uuid, 1.0, found[0], 2, found[1])


def simulation(tmp_path, *workers, limits=None, **changes) -> Simulation:
    return Simulation(scenes.scenario(tmp_path, *workers, **changes), Limits() if limits is None else limits, GPUS)


def steady(name: str, tflops: float, vram_bytes: int = 4 * GIB, **changes) -> dict:
    return scenes.worker(name, parameters={"noise_ratio": 0, "tflops": tflops, "vram_bytes": vram_bytes}, **changes)


def use(node_sample, index: int = 0):
    return [(round(p.compute_ratio * A100_TFLOPS, 6), p.vram_bytes) for p in node_sample.devices[index].processes]


def test_demand_under_the_limit_is_used_and_above_it_is_throttled(tmp_path):
    sim = simulation(tmp_path, steady("a", 10), steady("b", 60), limits=Limits(a=(40, 8 * GIB), b=(40, 8 * GIB)))
    sim.sample(0)
    assert use(sim.sample(10)) == [(10, 4 * GIB), (40, 4 * GIB)]
    assert list(sim.throttled().values()) == [False, True]
    a, b = sim.truth()
    assert (a.throttled_seconds, b.throttled_seconds) == (0, 10)
    assert (b.demand_tflops_seconds, b.used_tflops_seconds) == (600, 400)
    assert (b.limit_tflops_seconds, b.request_vram_byte_seconds, b.limit_vram_byte_seconds) == (400, 20, 80 * GIB)


def test_a_raised_limit_frees_the_worker_at_once(tmp_path):
    limits = Limits(a=(20, 8 * GIB))
    sim = simulation(tmp_path, steady("a", 60), limits=limits)
    assert use(sim.sample(0)) == [(20, 4 * GIB)]
    limits["a"] = (60, 8 * GIB)
    assert use(sim.sample(1)) == [(60, 4 * GIB)]
    assert list(sim.throttled().values()) == [False]


def test_a_full_device_is_shared_by_want_and_that_is_not_throttling(tmp_path):
    sim = simulation(tmp_path, steady("a", A100_TFLOPS), steady("b", A100_TFLOPS / 2))
    sim.sample(0)
    sample = sim.sample(10)
    assert use(sample) == [(round(A100_TFLOPS * 2 / 3, 6), 4 * GIB), (round(A100_TFLOPS / 3, 6), 4 * GIB)]
    assert sample.devices[0].compute_ratio == pytest.approx(1.0)
    assert set(sim.throttled().values()) == {False}
    assert [one.contended_seconds for one in sim.truth()] == [10, 10]


def test_memory_above_the_limit_kills_the_worker_for_a_while_and_is_counted(tmp_path):
    limits = Limits(a=(40, 3 * GIB))
    sim = simulation(tmp_path, steady("a", 10), limits=limits)
    assert use(sim.sample(0)) == []
    assert sim.ooms() == {("uid-a", "main", "GPU-0", OOM_SOURCE): 1}
    assert sim.throttled() == {("uid-a", "main", "GPU-0"): False}
    limits["a"] = (40, 8 * GIB)
    assert use(sim.sample(RESTART_SECONDS - 1)) == []
    assert use(sim.sample(RESTART_SECONDS)) == [(10, 4 * GIB)]
    assert sim.truth()[0].down_seconds == RESTART_SECONDS - 1
    assert sim.ooms() == {("uid-a", "main", "GPU-0", OOM_SOURCE): 1}


def test_a_restarted_worker_has_a_new_process_of_the_same_worker(tmp_path):
    limits = Limits()
    sim = simulation(tmp_path, steady("a", 10), limits=limits)
    first = sim.sample(0).devices[0].processes[0].pid
    limits["a"] = (40, 0)
    sim.sample(1)
    limits.clear()
    second = sim.sample(1 + RESTART_SECONDS).devices[0].processes[0].pid
    assert sim.worker_of(first) is None
    assert sim.worker_of(second).pod == "a"
    assert [one.pod for one in sim.workers()] == ["a"]


def test_on_a_full_device_the_one_that_allocates_last_dies_not_the_one_that_holds(tmp_path):
    growing = {"noise_ratio": 0, "vram_bytes": 30 * GIB, "growth_bytes_per_hour": GIB, "peak_vram_bytes": 60 * GIB}
    workers = (scenes.worker("g", "outgrower", parameters=growing), steady("s", 1, 40 * GIB))
    sim = simulation(tmp_path, *workers)
    sim.sample(0)
    sim.sample(10.5 * 3600)
    assert [one.ooms for one in sim.truth()] == [1, 0]
    assert sim.sample(10.5 * 3600 + 1).devices[0].vram_used_bytes == 40 * GIB


def test_a_step_triples_the_demand_at_its_time(tmp_path):
    step = {"noise_ratio": 0, "tflops": 10, "at_seconds": 100}
    sim = simulation(tmp_path, scenes.worker("a", "step", parameters=step))
    assert [use(sim.sample(at))[0][0] for at in (0, 99, 100, 5000)] == [10, 10, 30, 30]


def test_time_starts_at_the_first_sample_when_the_scenario_names_no_start(tmp_path):
    step = {"noise_ratio": 0, "tflops": 10, "at_seconds": 100}
    sim = simulation(tmp_path, scenes.worker("a", "step", parameters=step), start=None)
    assert [use(sim.sample(1_700_000_000 + at))[0][0] for at in (0, 99, 100)] == [10, 10, 30]
    assert sim.truth()[0].seconds == 100


def test_a_diurnal_service_peaks_at_its_hour_and_nightly_work_happens_at_night():
    diurnal, nightly = CHARACTERS["diurnal"], CHARACTERS["nightly"]
    quiet = {**diurnal.defaults, "noise_ratio": 0.0}
    by_hour = [diurnal.demand(hour * 3600, quiet, 1).tflops for hour in range(24)]
    assert by_hour.index(max(by_hour)) == 15
    assert max(by_hour) == pytest.approx(40)
    assert min(by_hour) == pytest.approx(5)
    busy = [hour for hour in range(24) if nightly.demand(hour * 3600 + 1, nightly.defaults, 1).tflops > 0]
    assert busy == [1, 2, 3, 4]


def test_bursts_come_as_often_as_their_chance_says():
    bursty = CHARACTERS["bursty"]
    slots = [bursty.demand(slot * 120 + 1, bursty.defaults, 7).tflops > 30 for slot in range(4000)]
    assert 0.22 < sum(slots) / len(slots) < 0.28


@given(st.sampled_from(sorted(CHARACTERS)), st.floats(0, 14 * DAY_SECONDS), st.integers(0, 2**40))
def test_any_demand_is_finite_not_negative_and_the_same_when_asked_again(name, at, seed):
    character = CHARACTERS[name]
    demand = character.demand(at, character.defaults, seed)
    assert 0 <= demand.tflops < 1000
    assert 0 <= demand.vram_bytes <= 20 * GIB
    assert character.demand(at, character.defaults, seed) == demand


def test_two_seeds_make_two_days_and_one_seed_makes_one(tmp_path):
    def day(seed: int) -> list:
        sim = simulation(tmp_path, scenes.worker("a", "bursty", seed=seed, parameters={}))
        return [use(sim.sample(at)) for at in range(0, 7200, 60)]

    assert day(1) == day(1)
    assert day(1) != day(2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"character": "chaotic"}, "character 'chaotic' is not one of steady"),
        ({"device": "GPU-9"}, "device 'GPU-9' is not one of GPU-0"),
        ({"parameters": {"tflop": 1}}, "no parameter 'tflop'"),
        ({"parameters": {"tflops": -1}}, "tflops is -1.0"),
        ({"qos": "urgent"}, "qos"),
        ({"vram": 1}, "vram"),
    ],
)
def test_a_broken_scenario_is_refused_with_what_is_wrong(tmp_path, change, said):
    with pytest.raises(ScenarioError, match=r"scenario\.json") as refused:
        scenes.scenario(tmp_path, scenes.worker("a", **change))
    assert said in str(refused.value)


@pytest.mark.parametrize("key", sorted(DIVISORS))
def test_a_length_of_zero_is_refused_where_something_is_divided_by_it(tmp_path, key):
    character = next(name for name, one in CHARACTERS.items() if key in one.defaults)
    with pytest.raises(ScenarioError, match=f"{key} must be over 0"):
        scenes.scenario(tmp_path, scenes.worker("a", character, parameters={key: 0}))


def test_a_scenario_lists_all_its_problems(tmp_path):
    twice = scenes.worker("a", character="chaotic")
    with pytest.raises(ScenarioError) as refused:
        scenes.scenario(tmp_path, twice, twice)
    assert "listed twice" in str(refused.value)
    assert "chaotic" in str(refused.value)


def test_a_missing_scenario_file_is_one_line(tmp_path):
    with pytest.raises(ScenarioError, match="No such file"):
        load_scenario(tmp_path / "none.yaml")


def test_a_yaml_scenario_is_read_like_json(tmp_path):
    (tmp_path / "s.yaml").write_text("node: n1\ndevices:\n- {uuid: G, model: A100, vram_bytes: 100}\nworkers: []\n")
    assert load_scenario(tmp_path / "s.yaml").devices[0].uuid == "G"


def test_a_model_that_the_table_does_not_know_cannot_be_simulated(tmp_path):
    (tmp_path / "s.yaml").write_text("node: n1\ndevices:\n- {uuid: G, model: Abacus, vram_bytes: 100}\nworkers: []\n")
    with pytest.raises(SourceError, match="Abacus"):
        Simulation(load_scenario(tmp_path / "s.yaml"), Limits(), GPUS)
