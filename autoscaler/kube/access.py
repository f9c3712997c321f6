"""Where the API server is and as whom it is asked: a kubeconfig, or the pod's service account; tokens that change.

A pod's token is replaced on disk long before it expires: it is read again every minute, and at once when the server
does not know the one that was shown. A kubeconfig (tokenFile, exec) is read again in that case only.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kubernetes.aio import client, config
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from autoscaler.errors import ClusterError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
TOKEN_SECONDS: Final = 60.0
_TOKEN: Final = "BearerToken"  # noqa: S105  the name of a scheme


@dataclass(frozen=True, slots=True)
class Access:
    """A kubeconfig; without one the service account's folder, else the default kubeconfig. `environ` has the host."""

    kubeconfig: Path | None = None
    service_account: Path = SERVICE_ACCOUNT
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    monotonic: Callable[[], float] = time.monotonic

    @property
    def in_cluster(self) -> bool:
        """Whether the pod's service account is what will be used."""
        token = self.service_account / "token"
        return self.kubeconfig is None and bool(self.environ.get(HOST_VARIABLE)) and token.is_file()

    def namespace(self) -> str:
        """Return the pod's namespace, else that of the kubeconfig's context, else `default`, as kubectl does."""
        place = self.service_account / "namespace"
        if self.in_cluster and place.is_file():
            return place.read_text(encoding="utf-8").strip() or "default"
        try:
            _, active = config.list_kube_config_contexts(None if self.kubeconfig is None else str(self.kubeconfig))
        except (config.ConfigException, OSError, ValueError, TypeError):
            return "default"
        return str(active["context"].get("namespace") or "default")

    async def load(self, settings: client.Configuration) -> None:
        """Put address and credentials, as they are now, into the client's settings.

        Raises:
            ClusterError: there are none that can be used.

        """
        if self.kubeconfig is not None and not self.kubeconfig.is_file():
            raise ClusterError(f"no way to an API server: {self.kubeconfig} is not a file")
        try:
            if self.in_cluster:
                self._load_service_account(settings)
            else:
                place = None if self.kubeconfig is None else str(self.kubeconfig)
                await config.load_kube_config(place, client_configuration=settings)
        except (config.ConfigException, OSError, ValueError) as error:
            raise ClusterError(f"no way to an API server: {error}") from error

    def _load_service_account(self, settings: client.Configuration) -> None:
        token = self.service_account / "token"
        InClusterConfigLoader(
            token_filename=str(token),
            cert_filename=str(self.service_account / "ca.crt"),
            environ=self.environ,
            try_refresh_token=False,
        ).load_and_set(settings)
        settings.api_key[_TOKEN] = _bearer(token)
        settings.refresh_api_key_hook = _rereading(token, self.monotonic)


class Credentials:
    """What is shown to one API server, in `settings` of the client that shows it."""

    def __init__(self, access: Access, settings: client.Configuration) -> None:
        self._access, self._settings = access, settings
        self._renewing = asyncio.Lock()

    @property
    def shown(self) -> str:
        """The authorization that requests carry now; empty with client certificates."""
        return str(self._settings.api_key.get(_TOKEN) or "")

    async def renewed(self, refused: str) -> bool:
        """Read the credentials again, unless another request has; tell whether there are others than the refused.

        Raises:
            ClusterError: they can't be read.

        """
        async with self._renewing:
            if self.shown == refused:
                await self._access.load(self._settings)
        return self.shown != refused


def _rereading(token: Path, monotonic: Callable[[], float]) -> Callable[[client.Configuration], None]:
    """Return the hook that the client calls before each request."""
    read_at = monotonic()

    def hook(settings: client.Configuration) -> None:
        nonlocal read_at
        if monotonic() - read_at >= TOKEN_SECONDS:
            settings.api_key[_TOKEN] = _bearer(token)
            read_at = monotonic()

    return hook


def _bearer(token: Path) -> str:
    text = token.read_text(encoding="utf-8").strip()
    if not text:
        raise OSError(f"{token} is empty")
    return f"Bearer {text}"
