"""Which profiles have something new to tell, and what is wrong with them; pure.

Every profile is judged by itself, also one that nobody uses: whoever wrote it learns it before the first workload does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from autoscaler.errors import ConfigError, Problem
from autoscaler.model.decision import Decision
from autoscaler.model.problems import ABSENT
from autoscaler.model.profile import parse_spec
from autoscaler.model.proposal import Allowed
from autoscaler.model.resolve import REQUEST_KEYS, Defaults, Owner, resolve
from autoscaler.model.snapshot import Snapshot
from autoscaler.model.steps import WriteStatus
from autoscaler.model.usage import WorkloadKey
from autoscaler.model.workload import Discovered, Manifest, ref_of
from autoscaler.report.compare import changed
from autoscaler.report.profile_status import Member, profile_status

Members = Mapping[WorkloadKey, list[int]]


def profile_problems(profile: Manifest) -> tuple[Problem, ...]:
    """Return everything that is wrong with a profile; amounts that it leaves out may come from those who use it."""
    try:
        resolve({}, {}, parse_spec(profile.get("spec") or {}), Defaults(), Owner())
    except ConfigError as error:
        return tuple(one for one in error.problems if not (one.path in REQUEST_KEYS and one.value == ABSENT))
    return ()


def profile_writes(
    snapshot: Snapshot, before: Snapshot | None, decisions: Mapping[int, Decision], allowed: Allowed
) -> Iterator[tuple[WorkloadKey, WriteStatus]]:
    """Yield the statuses of the profiles that changed, or of which a workload was rendered, where they differ.

    `decisions`: those rendered in this pass, by row.
    """
    members = _members(snapshot.discovered)
    known = _known(before.discovered) if before is not None else {}
    earlier = _members(before.discovered) if before is not None else {}
    workloads = snapshot.discovered.workloads
    for profile in snapshot.discovered.profiles:
        key, rows = key_of(profile), members.get(key_of(profile), [])
        is_same = known.get(key) == _said(profile) and len(rows) == len(earlier.get(key, ()))
        if is_same and not any(row in decisions for row in rows):
            continue
        told = [
            Member(workloads[row], decisions.get(row) or allowed.decision(row), _sizes(allowed, row)) for row in rows
        ]
        new = profile_status(profile, told, profile_problems(profile), snapshot.now)
        if changed(profile.get("status") or {}, new, snapshot.lost.get(profile["kind"], frozenset())):
            yield key, WriteStatus(ref_of(profile), new)


def key_of(profile: Manifest) -> WorkloadKey:
    """Return a profile's namespace and name."""
    metadata = profile.get("metadata") or {}
    return WorkloadKey(metadata.get("namespace", ""), metadata.get("name", ""))


def _sizes(allowed: Allowed, row: int) -> tuple[float, float]:
    compute, vram = allowed.fleet.device[row]
    return float(compute), float(vram)


def _members(discovered: Discovered) -> Members:
    members: dict[WorkloadKey, list[int]] = defaultdict(list)
    for row, workload in enumerate(discovered.workloads):
        if workload.config.profile:
            members[WorkloadKey(workload.key.namespace, workload.config.profile)].append(row)
    return members


def _known(discovered: Discovered) -> dict[WorkloadKey, Manifest]:
    return {key_of(profile): _said(profile) for profile in discovered.profiles}


def _said(profile: Manifest) -> Manifest:
    """Return what a status follows from, and the status: somebody may have taken it away."""
    return {key: profile.get(key) for key in ("spec", "status")} | {"uid": ref_of(profile).uid}
