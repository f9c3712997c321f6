"""Every knob of the controller, with its unit and why one would turn it. Flags win over TF_AUTOSCALER_* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from autoscaler.errors import ConfigError, Problem
from autoscaler.model import defaults

_S = TypeVar("_S", bound=BaseSettings)


class Settings(BaseSettings):
    """How `tf-autoscaler run` behaves."""

    model_config = SettingsConfigDict(env_prefix="TF_AUTOSCALER_", extra="forbid", frozen=True)

    interval_seconds: PositiveFloat = 60.0
    """Time between passes; a layer acts at most once per evaluationPeriod, so shorter only reacts sooner."""
    bin_seconds: PositiveFloat = 60.0
    """Width of the bins in which usage is learnt; the figures of the estimators are tuned for 60."""
    history_seconds: NonNegativeFloat = 8 * defaults.DAY
    """How far back the first pass reads: a week and what decays behind it."""
    scrape_interval_seconds: PositiveFloat = 15.0
    """How often Prometheus scrapes the agents; gaps and staleness are judged by it."""
    settle_seconds: NonNegativeFloat | None = None
    """Age at which a bin is taken to be complete in Prometheus; unset: one scrape and 5 s."""
    stale_seconds: PositiveFloat | None = None
    """Age of the newest bin from which nothing is decided; unset: max(3 scrapes, 2 min) behind the settled bin."""
    min_samples: PositiveInt = defaults.MIN_SAMPLES
    """Bins of history before anything but a shortage moves a figure."""
    changes_per_pass: PositiveInt = 100
    """Workloads that may move in one pass; spreads the changes after a restart with many off target."""

    vram_reserve: NonNegativeFloat = defaults.VRAM_RESERVE
    """Free VRAM that growing requests leave on a device, in standard deviations of its workers' bursts. Each .25 more
    halves the out-of-memory events of packed devices about once, and costs 4 to 10 % more devices."""
    replicas_need_room: bool = True
    """Whether replicas grow only by as many workers as the known GPUs have room for; false where a pod that waits
    brings a node (a cluster autoscaler)."""

    prometheus_url: str = ""
    """Base URL of Prometheus, with its path prefix if it has one."""
    prometheus_matcher: str = ""
    """Label matchers put into every selector, such as `cluster="a"`."""
    prometheus_token_file: Path | None = None
    """Bearer token, read anew for each query."""
    prometheus_ca_file: Path | None = None
    """Authority (PEM) of Prometheus' certificate."""
    prometheus_timeout_seconds: PositiveFloat = 60.0
    """One query may take this long."""

    cluster_dir: Path | None = None
    """A folder of manifests in place of an API server."""
    kubeconfig: Path | None = None
    """Kubeconfig of the cluster; unset: the service account of the pod, else the default kubeconfig."""
    cluster_stale_seconds: PositiveFloat = 120.0
    """A kind of object that the API server says nothing of for longer stops the passes: old is never taken for now.
    It speaks each 60 to 75 s, also when nothing changes; below 100 a healthy, quiet cluster can stop them."""
    cluster_resync_seconds: PositiveFloat = 3600.0
    """Time after which a kind of object is listed again, whatever its watch said; half to all of it, by kind."""
    kube_qps: PositiveFloat = 50.0
    """Requests a second to the API server, on average. 1,000 statuses that changed are written in 20 s at 50."""
    kube_burst: PositiveInt = 100
    """Requests that may go at once after a rest, above that average."""

    leader_elect: bool | None = None
    """Whether only the holder of the Lease acts; unset: in a cluster yes, elsewhere no. One pass takes no Lease."""
    lease_name: str = "tf-autoscaler"
    """Name of the Lease; controllers that share one take turns."""
    lease_namespace: str = ""
    """Namespace of the Lease; unset: the pod's own, else that of the kubeconfig's context."""
    lease_duration_seconds: PositiveInt = 15
    """A leader that is not seen to renew for so long is taken for dead; shorter fails over sooner, and wrongly
    where the API server is slow."""
    lease_renew_deadline_seconds: PositiveFloat = 10.0
    """A leader that could not renew for so long stops; what is left of the duration is for stopping."""
    lease_retry_seconds: PositiveFloat = 2.0
    """Time between renewals, and between looks while standing by."""

    agents: dict[str, str] = {}
    """Base URL of a node's agent by node name, where the template does not fit."""
    agent_url_template: str = "http://{node}:9400"
    """Base URL of every other node's agent; `{node}` is the node's name, `{ip}` the address of its agent's pod."""
    agent_namespace: str = ""
    """Namespace of the agents' pods, where `{ip}` is looked up."""
    agent_selector: str = "app.kubernetes.io/component=agent"
    """Label selector of the agents' pods."""
    agent_token_file: Path | None = None
    """Bearer token shown to the agents."""
    agent_ca_file: Path | None = None
    """Authority (PEM) of the agents' certificates."""
    agent_tls_name: str = ""
    """Name that the agents' certificates bear; unset: the host of the URL, which a pod's address can't be."""
    agent_client_cert: Path | None = None
    """Certificate (PEM) shown to agents that ask for one (mutual TLS)."""
    agent_client_key: Path | None = None
    """Private key (PEM) of that certificate."""
    agent_timeout_seconds: PositiveFloat = 10.0
    """An agent that takes longer to answer is away."""

    state_dir: Path | None = None
    """Where what was learnt is kept over a restart; unset: it is learnt again from Prometheus."""
    checkpoint_seconds: PositiveFloat = 600.0
    """Time between checkpoints."""
    forecast_fit_seconds: NonNegativeFloat = defaults.DAY
    """Time between fits of the forecast's model to the fleet's own history; 0: the model stays as it is."""
    listen: Annotated[str, Field(pattern=r"^.*:\d+$|^$")] = ""
    """HOST:PORT of /metrics, /healthz and /readyz; empty: not served."""

    @property
    def settled_seconds(self) -> float:
        """Return the age at which a bin is complete."""
        return self.scrape_interval_seconds + 5.0 if self.settle_seconds is None else self.settle_seconds

    @property
    def fresh_seconds(self) -> float:
        """Return the age of the newest bin's end up to which decisions are taken."""
        if self.stale_seconds is not None:
            return self.stale_seconds
        return max(3 * self.scrape_interval_seconds, 120.0) + self.bin_seconds + self.settled_seconds

    @model_validator(mode="after")
    def _one_cluster(self) -> Self:
        if self.cluster_dir is not None and self.kubeconfig is not None:
            raise ValueError("cluster_dir and kubeconfig exclude each other: give one")
        return self

    @model_validator(mode="after")
    def _one_leader(self) -> Self:
        if self.leader_elect and self.cluster_dir is not None:
            raise ValueError("leader_elect needs a cluster: a folder has no Leases")
        if not self.lease_duration_seconds > self.lease_renew_deadline_seconds > self.lease_retry_seconds:
            raise ValueError(
                "a Lease needs lease_duration_seconds > lease_renew_deadline_seconds > lease_retry_seconds"
            )
        return self

    @model_validator(mode="after")
    def _reachable_agents(self) -> Self:
        if (self.agent_client_cert is None) != (self.agent_client_key is None):
            raise ValueError("agent_client_cert and agent_client_key belong together: give both or none")
        if "{ip}" in self.agent_url_template and (self.cluster_dir is not None or not self.agent_namespace):
            raise ValueError("agent_url_template has {ip}: that needs a cluster, and agent_namespace")
        return self


def settings_of(given: dict[str, Any]) -> Settings:
    """Return the settings with these given by flags; what is None is left to the environment.

    Raises:
        ConfigError: with every value that is not allowed.

    """
    return loaded(Settings, given)


def loaded(kind: type[_S], given: dict[str, Any]) -> _S:
    """Return settings of a kind, as `settings_of` does.

    Raises:
        ConfigError: with every value that is not allowed.

    """
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, one["loc"])) or "settings", str(one["input"]), one["msg"])
            for one in error.errors()
        ]
        raise ConfigError(problems) from None
