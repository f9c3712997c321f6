"""The command `tf-autoscaler webhook`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import structlog
import typer

from autoscaler.admission.settings import WebhookSettings
from autoscaler.settings import loaded


def webhook_command(prepare: Callable[[], None]) -> Callable[..., None]:
    """Return the command; `prepare` sets up what every long-running command needs."""

    def webhook(
        kubeconfig: Annotated[Path | None, typer.Option(help="Kubeconfig of the cluster.")] = None,
        listen: Annotated[str | None, typer.Option(help="HOST:PORT of the admission requests, HTTPS.")] = None,
        metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT of /metrics, /healthz and /readyz.")] = None,
        cert_file: Annotated[
            Path | None, typer.Option(help="Serving certificate, PEM; default: one of its own.")
        ] = None,
        key_file: Annotated[Path | None, typer.Option(help="Key of the certificate, PEM.")] = None,
    ) -> None:
        """Answer admission requests: pods are born at the recommended size, what can't be meant is refused.

        Every other knob is a TF_AUTOSCALER_WEBHOOK_* environment variable, see docs/admission.md.
        """
        given = {
            "kubeconfig": kubeconfig,
            "listen": listen,
            "metrics_listen": metrics_listen,
            "cert_file": cert_file,
            "key_file": key_file,
        }
        settings = loaded(WebhookSettings, given)
        prepare()
        shown = settings.model_dump(mode="json", exclude_none=True)
        structlog.get_logger("tf-autoscaler").info("starting", **shown)
        from autoscaler.admission.run import run_webhook  # the client costs a second and 60 MB to import

        asyncio.run(run_webhook(settings))

    return webhook
