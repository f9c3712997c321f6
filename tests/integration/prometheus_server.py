"""A real Prometheus on loopback, with its own data; it can be stopped and started again on the same data."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

READY_SECONDS = 300.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class PrometheusServer:
    """`targets` are `host:port` of /metrics on loopback; `url` is free and stays the same over restarts.

    A target that is new to Prometheus is scraped about five seconds after the start, whatever the interval.
    """

    folder: Path
    targets: Sequence[str] = ()
    scrape_interval: str = "1s"
    honor_labels: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    base_path: str = ""
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.base_path}"

    def start(self) -> None:
        """Start, and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps(self._config()))  # JSON is YAML
        with (self.folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    binary("prometheus"),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    "--storage.tsdb.retention.time=100y",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--log.level=warn",
                    f"--web.route-prefix={self.base_path or '/'}",
                ],
                stdout=log,
                stderr=log,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop, and return when it has; nothing happens when it does not run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(READY_SECONDS)
            self._process = None

    def _config(self) -> dict[str, object]:
        scrape = {"job_name": "tf-agent", "honor_labels": self.honor_labels}
        scrape |= {"static_configs": [{"targets": list(self.targets), "labels": dict(self.labels)}]}
        interval = {"scrape_interval": self.scrape_interval, "scrape_timeout": self.scrape_interval}
        return {"global": interval, "scrape_configs": [scrape] if self.targets else []}

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while True:
            log = self.folder / "prometheus.log"
            assert self._process.poll() is None, f"prometheus ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"prometheus is not ready: {log.read_text()[-2000:]}"
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)


@contextmanager
def prometheus_server(folder: Path, targets: Sequence[str] = (), **settings: object) -> Iterator[PrometheusServer]:
    """Run a Prometheus in a folder; the calling test is skipped where there is none."""
    require_prometheus()
    server = PrometheusServer(folder, targets, **settings)  # type: ignore[arg-type]
    try:
        server.start()
        yield server
    finally:
        server.stop()


def backfill(folder: Path, openmetrics: Path, longest_block: str = "162h") -> None:
    """Put samples in OpenMetrics text with timestamps under a server's data, before it starts."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    # Without longer blocks the whole text is parsed again for every two hours of it.
    command = [binary("promtool"), "tsdb", "create-blocks-from", f"--max-block-duration={longest_block}"]
    command += ["openmetrics", str(openmetrics), str(data)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


def require_prometheus() -> None:
    """Skip the calling test where Prometheus is not installed."""
    for name in ("prometheus", "promtool"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian and Ubuntu: the package prometheus)")


def binary(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found
