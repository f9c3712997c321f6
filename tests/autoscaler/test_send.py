"""Intents before quotas, failures that stay where they happen, and shrinks acknowledged before growth."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from autoscaler.apply.send import Batch, send
from autoscaler.contract import keys
from autoscaler.errors import ConflictError, NodeError, RefusedError
from autoscaler.model.decision import Field
from autoscaler.model.resources import GIB
from autoscaler.model.steps import Scale
from autoscaler.model.usage import WorkloadKey
from tests.autoscaler.apply_cases import KEY, NODE, Agent, Agents, amounts, decision, figure, worker, workload

LIMIT = Field.COMPUTE_LIMIT


class Writes:
    """A Cluster port that records writes in one shared diary, and fails for chosen objects."""

    def __init__(self, diary=None, failing=()) -> None:
        self.diary = [] if diary is None else diary
        self.failing = set(failing)

    async def read(self):
        raise AssertionError("sending reads nothing")

    async def write(self, write) -> None:
        if write.ref.name in self.failing or (write.ref.kind in self.failing):
            raise ConflictError(f"{write.ref.name} was changed")
        self.diary.append(write)

    async def close(self) -> None:
        return None


class Diary(Agents):
    """Agents that note every document in the diary that the cluster writes to, too."""

    def __init__(self, diary, *agents) -> None:
        super().__init__(*agents)
        self.diary = diary

    async def push(self, document):
        self.diary.append(document)
        return await super().push(document)


def batch_of(agents, *pairs, **more):
    return Batch(
        workloads=tuple(one for one, _ in pairs),
        decisions={one.key: decided for one, decided in pairs if decided is not None},
        nodes=agents.states(),
        epoch=more.pop("epoch", 1),
        **more,
    )


def limits_of(agent):
    return {entry.pod: entry.devices[0].tflops_limit for entry in agent.document.quotas}


async def test_intents_are_written_before_the_node_is_told():
    diary: list = []
    agents = Diary(diary, Agent())
    outcome = await send(batch_of(agents, (workload(), decision({LIMIT: 40.0}))), Writes(diary), agents)
    assert [type(entry).__name__ for entry in diary] == ["Annotate", "Annotate", "QuotaDocument"]
    assert limits_of(agents.by_node[NODE]) == {"chat-0": 40.0, "chat-1": 40.0}
    assert len(outcome.written[KEY]) == 2
    assert outcome.errors == {}
    assert outcome.nodes[NODE].quotas.generation == 1


async def test_a_worker_whose_intent_failed_keeps_the_quota_that_is_written():
    agents = Agents(Agent())
    batch = batch_of(agents, (workload(), decision({LIMIT: 40.0})))
    outcome = await send(batch, Writes(failing={"chat-0"}), agents)
    assert limits_of(agents.by_node[NODE]) == {"chat-0": 20.0, "chat-1": 40.0}
    assert "chat-0 was changed" in outcome.errors[KEY]


async def test_one_bad_workload_does_not_stop_the_others():
    agents = Agents(Agent())
    good = replace(workload((worker("sd-0"),)), key=WorkloadKey("prod", "sd"))
    bad = replace(workload((worker("bad-0", annotations=None),)), key=WorkloadKey("prod", "bad"))
    batch = batch_of(agents, (bad, decision({LIMIT: 40.0})), (good, decision({LIMIT: 40.0})))
    outcome = await send(batch, Writes(), agents)
    assert set(outcome.errors) == {bad.key}
    assert limits_of(agents.by_node[NODE]) == {"bad-0": 20.0, "sd-0": 40.0}


async def test_replicas_stop_at_the_first_failure_so_that_the_next_pass_decides_them_again():
    agents = Agents(Agent())
    cluster = Writes(failing={"Deployment"})
    outcome = await send(batch_of(agents, (workload(), decision({Field.REPLICAS: 3.0}))), cluster, agents)
    assert not [write for write in cluster.diary if isinstance(write, Scale)]
    assert KEY in outcome.errors


def shrink_and_grow(agents):
    """Worker a gives 8 GiB of memory to worker b, on one device of 24."""
    before = [(amounts(vram_gib=(16, 16)), "a"), (amounts(vram_gib=(8, 8)), "b")]
    giving, taking = (
        replace(workload((worker(name, held),), held), key=WorkloadKey("prod", name)) for held, name in before
    )
    shrink = decision(_vram(16, 8), held=amounts(vram_gib=(16, 16)))
    grow = decision(_vram(8, 16), held=amounts(vram_gib=(8, 8)))
    return (
        batch_of(agents, (giving, None), (taking, None)),
        lambda: batch_of(agents, (giving, shrink), (taking, grow)),
    )


def _vram(old, new):
    return {field: figure(field, old * GIB, new * GIB) for field in (Field.VRAM_REQUEST, Field.VRAM_LIMIT)}


async def test_growth_follows_a_shrink_that_was_acknowledged_in_the_same_pass():
    agents = Agents(Agent())
    first, second = shrink_and_grow(agents)
    await send(first, Writes(), agents)
    outcome = await send(second(), Writes(), agents)
    received = agents.by_node[NODE].received
    assert [[q.devices[0].vram_limit_bytes // GIB for q in document.quotas] for document in received] == [
        [16, 8],
        [8, 8],
        [8, 16],
    ]
    assert outcome.held == ()


async def test_growth_waits_while_a_shrink_hangs_and_follows_in_a_later_pass():
    agents = Agents(Agent())
    agent = agents.by_node[NODE]
    first, second = shrink_and_grow(agents)
    await send(first, Writes(), agents)
    agent.stuck = {"uid-a"}
    outcome = await send(second(), Writes(), agents)
    assert agent.received[-1].quotas[1].devices[0].vram_limit_bytes == 8 * GIB
    assert [held.pod_uid for held in outcome.held] == ["uid-b"]
    agent.stuck = set()
    agent.settle()
    outcome = await send(second(), Writes(), agents)
    assert agent.received[-1].quotas[1].devices[0].vram_limit_bytes == 16 * GIB
    assert outcome.held == ()


async def test_what_a_node_has_is_not_pushed_again():
    agents = Agents(Agent())
    await send(batch_of(agents, (workload(), None)), Writes(), agents)
    outcome = await send(batch_of(agents, (workload(), None), epoch=2), Writes(), agents)
    assert len(agents.by_node[NODE].received) == 1
    assert outcome.documents == {}


async def test_a_controller_killed_between_intent_and_push_is_completed_by_the_next():
    agents = Agents(Agent())
    await send(batch_of(agents, (workload(), None)), Writes(), agents)
    written = amounts((10.0, 40.0))
    await send(batch_of(agents, (workload(current=written), None), epoch=2), Writes(), agents)
    assert limits_of(agents.by_node[NODE]) == {"chat-0": 40.0, "chat-1": 40.0}
    assert (agents.by_node[NODE].document.epoch, agents.by_node[NODE].document.generation) == (2, 2)


@pytest.mark.parametrize(
    ("error", "text"), [(NodeError("timeout"), "away: timeout"), (RefusedError("too large"), "refused: too large")]
)
async def test_a_failing_agent_blocks_only_its_own_workers(error, text):
    away, well = Agent(node="node-2"), Agent()
    away.error = error
    agents = Agents(away, well)
    crew = (worker("chat-0"), worker("chat-1", node="node-2"))
    outcome = await send(batch_of(agents, (workload(crew), decision({LIMIT: 40.0}))), Writes(), agents)
    assert limits_of(well) == {"chat-0": 40.0}
    assert outcome.node_errors == {"node-2": text}
    assert outcome.nodes["node-2"].error == text
    assert outcome.nodes[NODE].reachable


async def test_a_dry_run_writes_and_pushes_nothing_but_shows_both():
    agents = Agents(Agent())
    cluster = Writes()
    outcome = await send(batch_of(agents, (workload(), decision({LIMIT: 40.0}))), cluster, agents, dry_run=True)
    assert cluster.diary == []
    assert agents.by_node[NODE].received == []
    assert outcome.written[KEY][0].annotations[keys.TFLOPS_LIMIT] == "40"
    assert outcome.documents[NODE][0].quotas[0].devices[0].tflops_limit == 40.0


async def test_quotas_of_a_workload_that_cannot_be_judged_stay_in_the_document():
    agents = Agents(Agent())
    await send(batch_of(agents, (workload(), None)), Writes(), agents)
    other = replace(workload((worker("sd-0"),)), key=WorkloadKey("prod", "sd"))
    await send(batch_of(agents, (other, None), keep=frozenset({KEY})), Writes(), agents)
    assert set(limits_of(agents.by_node[NODE])) == {"chat-0", "chat-1", "sd-0"}


async def test_a_worker_on_a_node_without_agent_is_held_with_the_reason():
    agents = Agents(Agent())
    crew = (worker("chat-0", node="bare"), worker("chat-1", node=""))
    outcome = await send(batch_of(agents, (workload(crew), None)), Writes(), agents)
    assert [held.reason for held in outcome.held] == [
        "DevicesUnknown: no agent on node bare",
        "DevicesUnknown: not on a node yet",
    ]


async def test_cancelling_between_two_documents_leaves_the_first_in_force_and_the_next_pass_finishes():
    class Hanging(Agents):
        hang_after = 2
        seen = asyncio.Event()

        async def push(self, document):
            if len(self.by_node[NODE].received) >= self.hang_after:
                self.seen.set()
                await asyncio.Event().wait()
            return await super().push(document)

    agents = Hanging(Agent())
    first, second = shrink_and_grow(agents)
    await send(first, Writes(), agents)
    task = asyncio.create_task(send(second(), Writes(), agents))
    await asyncio.wait_for(agents.seen.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [q.devices[0].vram_limit_bytes // GIB for q in agents.by_node[NODE].document.quotas] == [8, 8]
    agents.hang_after = 9
    await send(second(), Writes(), agents)
    assert [q.devices[0].vram_limit_bytes // GIB for q in agents.by_node[NODE].document.quotas] == [8, 16]


async def test_quotas_of_a_workload_that_held_still_are_made_once():
    agents, still = Agents(Agent()), workload()
    first = await send(batch_of(agents, (still, None)), Writes(), agents)
    second = await send(batch_of(agents, (still, None), kept=first.kept), Writes(), agents)
    assert second.documents == {}
    assert second.kept.settled[KEY] is first.kept.settled[KEY]


async def test_a_workload_read_anew_has_its_quotas_made_anew():
    agents = Agents(Agent())
    first = await send(batch_of(agents, (workload(), None)), Writes(), agents)
    grown = workload(current=amounts((10.0, 40.0)))
    await send(batch_of(agents, (grown, None), kept=first.kept), Writes(), agents)
    assert limits_of(agents.by_node[NODE]) == {"chat-0": 40.0, "chat-1": 40.0}


async def test_an_agent_that_lost_its_documents_is_told_again_what_it_was_known_to_have():
    agents, still = Agents(Agent()), workload()
    first = await send(batch_of(agents, (still, None)), Writes(), agents)
    reborn = Agents(Agent())
    await send(batch_of(reborn, (still, None), kept=first.kept), Writes(), reborn)
    assert limits_of(reborn.by_node[NODE]) == {"chat-0": 20.0, "chat-1": 20.0}


async def test_a_node_that_could_not_be_sent_everything_is_not_taken_for_one_that_has_it():
    agents = Agents(Agent())
    huge = workload(current=amounts(vram_gib=(4.0, 30.0)))
    outcome = await send(batch_of(agents, (huge, None)), Writes(), agents)
    assert outcome.held
    assert outcome.kept.told == {}


async def test_a_worker_whose_devices_only_its_node_knows_is_placed_anew_in_every_pass():
    agents, unplaced = Agents(Agent()), workload((worker(devices=()),))
    first = await send(batch_of(agents, (unplaced, None)), Writes(), agents)
    assert first.held[0].reason.startswith("DevicesUnknown")
    await send(batch_of(agents, (workload(), None)), Writes(), agents)
    outcome = await send(batch_of(agents, (unplaced, None), kept=first.kept), Writes(), agents)
    assert outcome.held == ()
