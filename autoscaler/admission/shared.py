"""A certificate of our own, shared by all replicas in a Secret, and told to the API server; renewed in time.

Each look brings three things to agree: the Secret holds a certificate that is valid for long, `ca.crt` in it names what
may be served now (also the one before the last renewal, which other replicas still serve), and both webhook
configurations trust just that. Two replicas that renew at once are told apart by the Secret's version.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from autoscaler.admission.certificate import RENEW_BEFORE_SECONDS, CertificateError, Pair, expires_at, self_signed
from autoscaler.errors import ClusterError
from autoscaler.kube.client import KubeClient, StatusError
from autoscaler.kube.kinds import SECRET, ApiResource
from autoscaler.ports import Clock

log = structlog.get_logger(__name__)
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"
_GROUP: Final = "admissionregistration.k8s.io/v1"
CONFIGURATIONS: Final = (
    ApiResource(_GROUP, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", namespaced=False),
    ApiResource(_GROUP, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", namespaced=False),
)
_MANAGER: Final = {"fieldManager": "tensor-fusion-autoscaler-webhook"}
_CERTIFICATE, _KEY, _TRUSTED = "tls.crt", "tls.key", "ca.crt"


@dataclass(frozen=True, slots=True)
class Names:
    """Where everything is: Service, its namespace (of the Secret, too), Secret, both webhook configurations."""

    service: str
    namespace: str
    secret: str
    configurations: str

    @property
    def dns(self) -> str:
        """The name under which the API server calls."""
        return f"{self.service}.{self.namespace}.svc"


class SharedCertificates:
    """The certificate in the Secret; `clock` judges when it ends."""

    def __init__(self, client: KubeClient, names: Names, clock: Clock) -> None:
        self._client, self._names, self._clock = client, names, clock
        self._missing: set[str] = set()

    async def current(self) -> Pair:
        """Return the certificate to serve, once the API server trusts it."""
        secret = await self._secret()
        data = _data(secret)
        if self._is_due(data):
            secret = await self._renew(secret, data)
            data = _data(secret)
        for resource in CONFIGURATIONS:
            await self._trust(resource, data[_TRUSTED])
        return Pair(data[_CERTIFICATE], data[_KEY])

    async def _secret(self) -> Mapping[str, Any] | None:
        return await self._found(SECRET.path(self._names.namespace, self._names.secret))

    def _is_due(self, data: Mapping[str, bytes]) -> bool:
        if not all(data.get(name) for name in (_CERTIFICATE, _KEY, _TRUSTED)):
            return True
        end = expires_at(data[_CERTIFICATE], self._names.dns)
        return end is None or end - self._clock.now() < RENEW_BEFORE_SECONDS

    async def _renew(self, secret: Mapping[str, Any] | None, data: Mapping[str, bytes]) -> Mapping[str, Any]:
        pair = await self_signed(self._names.dns)
        before = data.get(_CERTIFICATE, b"")
        still_served = before if expires_at(before, self._names.dns) is not None else b""
        held = {_CERTIFICATE: pair.certificate, _KEY: pair.key, _TRUSTED: pair.certificate + still_served}
        name, namespace = self._names.secret, self._names.namespace
        metadata: dict[str, Any] = {"name": name, "namespace": namespace}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata}
        body["data"] = {key: base64.b64encode(value).decode("ascii") for key, value in held.items()}
        stored: Mapping[str, Any]
        try:
            if secret is None:
                stored = await self._client.request("POST", SECRET.path(namespace), _MANAGER, body)
            else:
                # A Secret's type can't be changed; everything else is ours.
                body["type"] = secret.get("type") or "Opaque"
                metadata |= {"resourceVersion": secret["metadata"]["resourceVersion"]}
                metadata |= {key: secret["metadata"][key] for key in _KEPT if key in secret["metadata"]}
                stored = await self._client.request("PUT", SECRET.path(namespace, name), _MANAGER, body)
        except StatusError as error:
            if error.status != 409:
                raise
            stored = await self._of_another_replica()
        else:
            log.info("certificate_made", secret=f"{namespace}/{name}", dns=self._names.dns)
        return stored

    async def _of_another_replica(self) -> Mapping[str, Any]:
        secret = await self._secret()
        if secret is None or self._is_due(_data(secret)):
            raise CertificateError(f"Secret {self._names.secret} was changed meanwhile, and holds no valid certificate")
        return secret

    async def _trust(self, resource: ApiResource, trusted: bytes) -> None:
        """Tell a webhook configuration what to trust, where it does not yet."""
        path = resource.path(name=self._names.configurations)
        found = await self._found(path)
        if found is None:
            if resource.kind not in self._missing:
                log.warning("no_webhook_configuration", kind=resource.kind, name=self._names.configurations)
            self._missing.add(resource.kind)
            return
        self._missing.discard(resource.kind)
        bundle = base64.b64encode(trusted).decode("ascii")
        differing = [
            {"name": one["name"], "clientConfig": {"caBundle": bundle}}
            for one in found.get("webhooks") or ()
            if (one.get("clientConfig") or {}).get("caBundle") != bundle
        ]
        if differing:
            await self._client.request("PATCH", path, _MANAGER, {"webhooks": differing}, STRATEGIC_MERGE_PATCH)
            log.info("authority_told", kind=resource.kind, webhooks=[one["name"] for one in differing])

    async def _found(self, path: str) -> Mapping[str, Any] | None:
        try:
            return await self._client.request("GET", path)
        except StatusError as error:
            if error.status == 404:
                return None
            raise


_KEPT: Final = ("labels", "annotations", "ownerReferences", "finalizers")


def _data(secret: Mapping[str, Any] | None) -> Mapping[str, bytes]:
    """Return a Secret's values; one that can't be read is as good as absent."""
    values = (secret or {}).get("data") or {}
    try:
        return {name: base64.b64decode(text, validate=True) for name, text in values.items()}
    except (binascii.Error, ValueError, TypeError) as error:
        raise ClusterError(f"the Secret of the webhook's certificate can't be read: {error}") from error
