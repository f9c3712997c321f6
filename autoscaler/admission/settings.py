"""Every knob of `tf-autoscaler webhook`, with its unit and why. Flags win over TF_AUTOSCALER_WEBHOOK_* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Address = Annotated[str, Field(pattern=r"^.+:\d+$")]
_SELF_MADE: Final = ("service", "namespace")


class WebhookSettings(BaseSettings):
    """How `tf-autoscaler webhook` behaves."""

    model_config = SettingsConfigDict(env_prefix="TF_AUTOSCALER_WEBHOOK_", extra="forbid", frozen=True)

    listen: Address = "0.0.0.0:9443"
    """HOST:PORT of the admission requests, HTTPS; the API server must reach it."""
    metrics_listen: Address = "0.0.0.0:9090"
    """HOST:PORT of /metrics, /healthz and /readyz, HTTP."""
    kubeconfig: Path | None = None
    """Kubeconfig of the cluster; unset: the service account of the pod, else the default kubeconfig."""

    cert_file: Path | None = None
    """Serving certificate (PEM), as cert-manager and others mount it; unset: the webhook makes its own."""
    key_file: Path | None = None
    """Key of the certificate (PEM)."""
    certificate_seconds: PositiveFloat = 10.0
    """Time between looks at the certificate: at the files, or at the Secret and the webhook configurations."""
    service: str = ""
    """Name of the Service that leads here; the webhook's own certificate is for SERVICE.NAMESPACE.svc."""
    namespace: str = ""
    """Namespace of the Service and of the Secret."""
    secret: str = "tf-autoscaler-webhook-tls"  # noqa: S105  the name of a Secret
    """Secret in which the webhook's own certificate is kept, shared by its replicas."""
    configurations: str = "tf-autoscaler"
    """Name of the mutating and of the validating webhook configuration that are told the certificate's authority."""

    drain_seconds: NonNegativeFloat = 5.0
    """How long requests are still served after SIGTERM: until then the API server may not know that others serve."""

    @model_validator(mode="after")
    def _one_certificate(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or none")
        lacking = [name for name in _SELF_MADE if not getattr(self, name)]
        if self.cert_file is None and lacking:
            raise ValueError(f"without cert_file a certificate is made here: that needs {' and '.join(lacking)}")
        return self
