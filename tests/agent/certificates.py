"""Certificates for loopback, made by openssl: each is its own authority."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command to make certificates"
)


def self_signed(folder: Path, name: str) -> None:
    """Write `<name>.pem` and `<name>.key`."""
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
    subprocess.run(["openssl", "req", "-x509", *options, *names], cwd=folder, check=True, capture_output=True)
