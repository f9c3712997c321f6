"""Why a figure is what it is: causes come from the estimators, verdicts from the guards.

Stored in fleet arrays as small integers (position in the enum), shown by name. Names are public: conditions, events
and metrics carry them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Cause(StrEnum):
    """What led an estimator to its figure."""

    UNCHANGED = "Unchanged"
    """The figure in force is inside the band."""
    RAISED = "Raised"
    """The estimate's lower line passed the figure in force."""
    EXCEEDED = "Exceeded"
    """Use passed the request, often enough in half an hour."""
    SURPLUS = "Surplus"
    """The estimate stayed below the figure in force for long enough."""
    SATURATED = "Saturated"
    """Use is clipped at the limit: demand is unknown, the limit probes upward."""
    OOM_SEEN = "OutOfMemory"
    """A worker ran out of memory."""
    IDLE = "Idle"
    """The workload idles and its service level lets its memory cool down."""
    LOAD = "Load"
    """Utilization of the limit is off its target."""
    NO_DATA = "NoData"
    """Nothing is known yet."""
    CRON = "CronRule"
    """A rule by the clock names the figure."""
    EXTERNAL = "ExternalScaler"
    """The owner's own scaler named the figure."""
    CRON_ENDED = "CronRuleEnded"
    """No rule by the clock is in force any more: back to the owner's figure."""
    VERTICAL_FIRST = "VerticalFirst"
    """Utilization is above its target, but limits can still grow, which comes first."""
    COVER_FIRST = "CoverFirst"
    """Fewer workers would do, but first their requests and limits must cover the load that they take over."""
    REVERTED = "Reverted"
    """The layer is off and its owner asked for the figures of before."""


class Verdict(StrEnum):
    """What the guards did with the wanted figure; PASSED means it may be applied as wanted."""

    PASSED = "Passed"
    LOW_CONFIDENCE = "LowConfidence"
    INITIAL_DELAY = "InitialDelay"
    STALE = "Stale"
    RECOMMEND_ONLY = "RecommendOnly"
    PAUSED = "Paused"
    REPLICAS_MANAGED_ELSEWHERE = "ReplicasManagedElsewhere"
    WITHIN_TOLERANCE = "WithinTolerance"
    STABILIZING = "Stabilizing"
    COOLING_DOWN = "CoolingDown"
    STEP_LIMITED = "StepLimited"
    LIVE_USE = "LiveUse"
    BOUND_LIMITED = "BoundLimited"
    CAPACITY_LIMITED = "CapacityLimited"
    QUOTA_LIMITED = "QuotaLimited"
    RATE_LIMITED = "RateLimited"
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    PODS_PENDING = "PodsPending"
    UNSUPPORTED_ISOLATION = "UnsupportedIsolation"
    DEDICATED_GPU = "DedicatedGPU"
    AGENT_UNREACHABLE = "AgentUnreachable"
    ROLLED_BACK = "RolledBack"
    CONFIG_INVALID = "ConfigInvalid"
    VERTICAL_FIRST = "VerticalFirst"
    REPLICAS_FIRST = "ReplicasFirst"
    LOAD_SPREADING = "LoadSpreading"
    GAVE_TO_HIGHER_QOS = "GaveToHigherQoS"
    ADOPTED = "Adopted"
    """Somebody else has just set the figure: it rests as it was set."""
    NOT_SCALABLE = "NotScalable"
    """Nobody can set the owner's replicas."""
    DISRUPTION_LIMITED = "DisruptionLimited"
    """A PodDisruptionBudget keeps so many replicas."""
    GANG_LIMITED = "GangLimited"
    """Fewer workers than the gang's minMembers are of no use."""


class News(StrEnum):
    """Events about objects rather than figures."""

    FIGURE_ADOPTED = "FigureAdopted"
    """Somebody else set a figure; it counts as the user's own from now on."""
    MISPLACED_KEY = "MisplacedKey"
    """One of our keys stands where nobody reads it."""
    MISSPELT_KEY = "MisspeltKey"
    """A key under our prefix is none, and looks like one."""
    OWNER_NOT_RECORDED = "OwnerNotRecorded"
    """A sharing owner could not be put on record: the object goes with the others."""


CAUSES: Final = tuple(Cause)
VERDICTS: Final = tuple(Verdict)
CAUSE_CODE: Final = {cause: code for code, cause in enumerate(CAUSES)}
VERDICT_CODE: Final = {verdict: code for code, verdict in enumerate(VERDICTS)}
