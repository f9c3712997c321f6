"""Every knob of the agent, with its unit and why one would turn it. Flags win over TF_AGENT_* variables."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, PositiveFloat, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agent.enforce.orders import COMPUTE_ORDER, VRAM_ORDER
from agent.kubeapi import ACCOUNT, ApiAddress, in_cluster

LOOPBACK_NAMES: Final = ("localhost", "ip6-localhost")


class AgentSettings(BaseSettings):
    """How `tf-agent run` behaves."""

    model_config = SettingsConfigDict(env_prefix="TF_AGENT_", extra="forbid", frozen=True)

    node: str = ""
    """Name of the node, as Kubernetes has it; documents for another one are refused. A scenario names its own."""
    listen: str = "127.0.0.1:9400"
    """HOST:PORT of the API and the metrics; port 0 takes a free one. Other than loopback only with mutual TLS."""
    port_file: Path | None = None
    """Where to write the port that was bound, for who started the agent with port 0."""
    state_dir: Path = Path("/var/lib/tf-agent")
    """Keeps the desired quotas over a restart; belongs to this agent alone."""
    pods_file: Path | None = None
    """The pods of this node (JSON or YAML, read again when it changes); without it they are the kubelet's, else the
    API server's, and where neither tells, only documents name workers."""
    follow_pods: bool = True
    """Whether the API server is asked for the pods, which needs the right to list and watch them; where the kubelet
    tells them, it is not."""
    ask_kubelet: bool = True
    """Whether the node's kubelet is asked for pods and for the devices it gave them, where its sockets are."""
    kubelet_dir: Path = Path("/var/lib/kubelet")
    """Where they are: `pod-resources/kubelet.sock` and `pods-api/pods-api.sock` below it."""
    proc_root: Path = Path("/proc")
    """Where the host's processes are seen; another path when the host's /proc is mounted elsewhere."""
    gpu_table: Path | None = None
    """A table of FP16 TFLOPs by model in place of the built-in one, for models that it does not know."""
    backend: Literal["auto", "observe", "simulated"] = "auto"
    """What enforces quotas: whatever reaches a worker, nothing, or (with a scenario) simulated workers themselves."""
    compute_backends: Annotated[tuple[str, ...], NoDecode] = COMPUTE_ORDER
    """With `auto`: who may hold a worker to its TFLOPs, the best first; the first that reaches it does."""
    vram_backends: Annotated[tuple[str, ...], NoDecode] = VRAM_ORDER
    """With `auto`: who may hold a worker to its VRAM, the best first."""
    shrink_below_use: bool = False
    """Whether a VRAM limit may go below what is in use; the worker's next allocation fails then."""
    cgroup_root: Path = Path("/sys/fs/cgroup")
    """The host's cgroup v2 tree, where memory limits are kept; writable for `dmem`."""
    freeze: bool = False
    """Whether a worker of low or medium that nothing else limits may be stopped for seconds so that a higher level has
    its guarantee; probes of its container fail meanwhile."""
    tfshm_root: Path = Path("/run/tensor-fusion/shm")
    """Where TensorFusion's limiters share memory with the node."""
    hamicore_root: Path = Path("/usr/local/vgpu/containers")
    """Where HAMi-core's regions lie, a folder per container."""
    mps_root: Path = Path("/run/tensor-fusion/mps")
    """Where each worker's MPS daemon has its pipe folder, `<pod UID>_<container>`."""
    hamicore_sm_reload: bool = False
    """Whether the HAMi-core in use reads its SM limit again while a process runs; upstream's reads it once."""
    simulated_dir: Path | None = None
    """Where simulated workers that are processes of their own find their limits."""
    simulate: Path | None = None
    """A scenario of devices and workers to play instead of reading NVML."""
    lockstep: bool = False
    """With `simulate`: time stands still until POST /simulate/advance moves it."""
    tick_seconds: Annotated[PositiveFloat, Field(le=60)] = 0.5
    """Time between samples, and so between two divisions of a device: half a second lets a guarantee be back within
    one. Longer costs less; shorter gains little, for the driver itself samples once to six times a second."""
    watch_seconds: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Time between two looks at a device on which a worker is near its VRAM limit and its limiter goes by the use it is
    told: shorter lets a burst pass the limit by less. Looks take at most 3 % of the time. 0: none between ticks."""
    render_seconds: Annotated[float, Field(ge=0, le=60)] = 5.0
    """Least time between two renderings of the metrics, which cost more than a tick; 0 renders on each tick."""
    process_list_seconds: Annotated[PositiveFloat, Field(le=60)] = 3.0
    """Time between two full lists of GPU processes, which hold a lock of the driver for milliseconds; one comes sooner
    where a process is new or the device's memory grew."""
    tls_cert: Path | None = None
    """Certificate of the server (PEM); with `tls_key` the API is served by TLS."""
    tls_key: Path | None = None
    """Private key of the certificate (PEM)."""
    client_ca: Path | None = None
    """Authority (PEM) whose certificates clients must show: the authentication of the API."""
    token_review: bool = False
    """With TLS: bearer tokens are judged by the API server (TokenReview and SubjectAccessReview)."""
    api_url: str = ""
    """The API server that judges tokens and knows pods; empty: the one that the kubelet tells every pod."""
    api_token_file: Path = ACCOUNT / "token"
    """What is shown to it; read anew for each request."""
    api_ca_file: Path | None = ACCOUNT / "ca.crt"
    """Authority (PEM) of its certificate."""
    metrics_listen: str = ""
    """HOST:PORT of /metrics, /healthz and /readyz alone, in plain text: kubelet and most Prometheus servers have no
    client certificate. Nothing can be changed there. Empty: they are served with the API only."""

    @property
    def host(self) -> str:
        """Return the address to bind."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Return the port to bind, 0 for any."""
        return int(self.listen.rpartition(":")[2])

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """Return host and port of the metrics' own listener, None without one."""
        host, _, port = self.metrics_listen.rpartition(":")
        return (host.strip("[]"), int(port)) if self.metrics_listen else None

    @property
    def authenticated(self) -> bool:
        """Return whether clients must prove who they are."""
        with_tls = self.tls_cert is not None and self.tls_key is not None
        return with_tls and (self.client_ca is not None or self.token_review)

    @property
    def api(self) -> ApiAddress | None:
        """Return the API server, None where none is known."""
        url = self.api_url or in_cluster()
        return ApiAddress(url.rstrip("/"), self.api_token_file, self.api_ca_file) if url else None

    @field_validator("compute_backends", "vram_backends", mode="before")
    @classmethod
    def _listed(cls, value: Any, info: ValidationInfo) -> Any:
        names = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        allowed = COMPUTE_ORDER if info.field_name == "compute_backends" else VRAM_ORDER
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(allowed)}")
        return names

    @model_validator(mode="before")
    @classmethod
    def _backend_of_scenarios(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {"backend": "simulated", **data} if data.get("simulate") else data

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if not _is_address(self.listen):
            raise ValueError(f"listen is {self.listen!r}, must be HOST:PORT")
        if self.metrics_listen and not _is_address(self.metrics_listen):
            raise ValueError(f"metrics_listen is {self.metrics_listen!r}, must be HOST:PORT")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: give both or none")
        if self.client_ca is not None and self.tls_cert is None:
            raise ValueError("client_ca asks clients for certificates, which needs tls_cert and tls_key")
        if self.token_review and self.tls_cert is None:
            raise ValueError("token_review needs tls_cert and tls_key: a token in plain text is everybody's")
        if self.token_review and self.api is None:
            raise ValueError("token_review needs an API server to ask: give api_url outside of a cluster")
        if not self.authenticated and not _is_loopback(self.host):
            raise ValueError(
                f"listen is {self.listen!r}: without authentication only a loopback address may be bound;"
                " set tls_cert, tls_key and client_ca or token_review"
            )
        if not self.node and self.simulate is None:
            raise ValueError("node is not given: the name that Kubernetes has for this node")
        if self.lockstep and self.simulate is None:
            raise ValueError("lockstep needs a scenario to simulate")
        if self.lockstep and not _is_loopback(self.host):
            raise ValueError("lockstep is served on loopback only")
        return self


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host.strip("[]")) and port.isascii() and port.isdecimal() and int(port) <= 65535


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host in LOOPBACK_NAMES
