"""Serving certificates: read from files or made with the openssl command, judged, and taken into use while serving.

Neighbour: `shared` keeps a certificate of our own in a Secret, for all replicas.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from autoscaler.errors import AutoscalerError

DAY: Final = 86_400.0
VALID_DAYS: Final = 365
RENEW_BEFORE_SECONDS: Final = 120 * DAY
"""A third of its life: time enough for anybody to notice that renewing fails."""
OPENSSL_SECONDS: Final = 30.0


class CertificateError(AutoscalerError):
    """There is no certificate that can be served."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


class Certificates(Protocol):
    """Where the certificate to serve comes from."""

    async def current(self) -> Pair:
        """Return the certificate to serve now.

        Raises:
            CertificateError: there is none, or none that can be used.
            ClusterError: the cluster, where it is kept, can't be read or written.

        """
        ...


class FileCertificates:
    """A certificate and key that somebody else keeps fresh in files."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key

    async def current(self) -> Pair:
        """Return what the files hold."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Pair:
        try:
            return Pair(self._certificate.read_bytes(), self._key.read_bytes())
        except OSError as error:
            raise CertificateError(f"the serving certificate can't be read: {error}") from error


def new_context() -> ssl.SSLContext:
    """Return a server's context without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def take(context: ssl.SSLContext, pair: Pair) -> None:
    """Take a certificate into use for all connections from now on.

    Raises:
        CertificateError: it can't be used; what was in use before stays.

    """
    # A pair that does not fit together would leave the context with half of each.
    for tried in (new_context(), context):
        _load(tried, pair)


def expires_at(certificate: bytes, name: str) -> float | None:
    """Return when a self-signed certificate ends (seconds since the epoch); None if it is none for this DNS name."""
    context = new_context()
    try:
        context.load_verify_locations(cadata=certificate.decode("ascii"))
    except (ssl.SSLError, ValueError):
        return None
    found = context.get_ca_certs()
    if not found or ("DNS", name) not in found[0].get("subjectAltName", ()):
        return None
    return float(ssl.cert_time_to_seconds(str(found[0]["notAfter"])))


async def self_signed(name: str) -> Pair:
    """Make a certificate that is its own authority, for a DNS name or an IP address, valid VALID_DAYS.

    Raises:
        CertificateError: the openssl command is missing or failed.

    """
    with tempfile.TemporaryDirectory(prefix="certificate-") as folder:
        key, certificate = Path(folder, "tls.key"), Path(folder, "tls.crt")
        await _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            # The subject is at most 64 characters long; nobody reads it but in an error message.
            *("-days", str(VALID_DAYS), "-subj", f"/CN={name[:64]}", "-addext", f"subjectAltName={_kind(name)}:{name}"),
            *("-keyout", str(key), "-out", str(certificate)),
        )
        return Pair(certificate.read_bytes(), key.read_bytes())  # noqa: ASYNC240  two small files, just written


def _kind(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "DNS"
    return "IP"


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    with tempfile.TemporaryDirectory(prefix="certificate-") as folder:
        certificate, key = Path(folder, "tls.crt"), Path(folder, "tls.key")
        certificate.write_bytes(pair.certificate)
        key.touch(mode=0o600)
        key.write_bytes(pair.key)
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:  # also what ssl raises
            raise CertificateError(f"certificate and key can't be served: {error}") from error


async def _openssl(*arguments: str) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            "openssl", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise CertificateError(f"openssl can't be run ({error}): install it, or give cert_file and key_file") from error
    try:
        async with asyncio.timeout(OPENSSL_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise CertificateError(f"openssl made no certificate within {OPENSSL_SECONDS:g} s") from None
    if process.returncode != 0:
        text = said.decode(errors="replace").strip()[-500:]
        raise CertificateError(f"openssl made no certificate: {text}")
