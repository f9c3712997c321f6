"""Prometheus as a History: one fleet-wide query per metric and read, never one per workload.

Short windows are read as raw samples. Long ones are read on the grid of bins by `last_over_time` and `max_over_time`
over one bin: these know no look-back, so that a series that ended is absent from the next bin on, where a plain range
query would go on with its last value for five minutes.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import math
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from autoscaler.errors import HistoryError
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.read.answer import KnownLabels, points_in, reason_in, samples_in
from autoscaler.read.bins import Binned, gap_seconds, stacked
from autoscaler.read.readings import (
    DEVICE_MEMORY_SECONDS,
    FALLBACK,
    READINGS,
    Reading,
    Reduction,
    lacks_peak,
    reduced,
)
from autoscaler.read.series import joined, parts_of, usage_of
from autoscaler.settings import Settings

MOST_POINTS = 11_000
"""Prometheus refuses a range query with more points per series."""
EDGE_SECONDS = 0.001
"""A range selector of Prometheus 2 includes its left edge, which belongs to the bin before."""


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """How to reach Prometheus and how it scrapes the agents.

    `url` may carry a base path. `token_file` and `password_file` are read anew for each query, as they rotate.
    `matcher` is put between the braces of every selector, e.g. `cluster="a"`. Windows longer than `raw_seconds` are
    read on the grid, in parts of `part_seconds`.
    """

    url: str
    scrape_interval_seconds: float = 15.0
    timeout_seconds: float = 60.0
    matcher: str = ""
    token_file: Path | None = None
    username: str = ""
    password_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    raw_seconds: float = 7200.0
    part_seconds: float = 43200.0
    concurrent_queries: int = 2


@dataclass(frozen=True, slots=True)
class Query:
    """One request: the API's last path element and its form."""

    path: str
    form: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.path} {self.form['query']}"


def history_of(settings: Settings) -> PrometheusHistory:
    """Return the Prometheus that the controller's settings name."""
    return PrometheusHistory(
        PrometheusSettings(
            url=settings.prometheus_url,
            scrape_interval_seconds=settings.scrape_interval_seconds,
            timeout_seconds=settings.prometheus_timeout_seconds,
            matcher=settings.prometheus_matcher,
            token_file=settings.prometheus_token_file,
            ca_file=settings.prometheus_ca_file,
        )
    )


class PrometheusHistory:
    """The fleet's use as Prometheus recorded it."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._turns = asyncio.Semaphore(settings.concurrent_queries)
        # One answer more than there are queries, so that Prometheus works while an answer is parsed.
        self._held = asyncio.Semaphore(settings.concurrent_queries + 1)
        self._known = KnownLabels()
        self._workers = ""

    def only(self, key: WorkloadKey) -> PrometheusHistory:
        """Return the same history narrowed to the workloads of one name, in every namespace.

        Their namespace can't be asked for: where the scrape kept that label for itself, it has another name.
        """
        if self._session is None:
            self._session = self._connected()
        narrowed = copy.copy(self)
        narrowed._workers = f"workload={json.dumps(key.name)}"  # noqa: SLF001  a copy of its own
        return narrowed

    async def read(self, window: Window) -> Usage:
        """Return the fleet's use in a window.

        Raises:
            HistoryError: Prometheus is away, slow, refuses, or answers in part; nothing of the answer is used then.

        """
        parts = [await self._read_part(part) for part in self.parts(window)]
        return parts[0] if len(parts) == 1 else joined(window, parts)

    async def points(self, names: Iterable[str], at: float) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Return labels and value of every series of these metrics that is alive at a moment, by metric.

        Raises:
            HistoryError: as `read`.

        """
        found = {}
        for name in names:
            query = Query("query", {"query": self._selector(name), "time": _moment(at)})
            try:
                found[name] = points_in(await self._answer(query))
            except HistoryError as error:
                raise error if str(error).startswith(str(query)) else HistoryError(f"{query}: {error}") from error
        return found

    def parts(self, window: Window) -> tuple[Window, ...]:
        """Cut a window so that reading part by part holds no more than one part in memory."""
        longest = min(self._settings.part_seconds, (MOST_POINTS // 2) * window.step)
        return parts_of(window, longest) if self._is_long(window) else (window,)

    async def close(self) -> None:
        """Release connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _read_part(self, window: Window) -> Usage:
        binned = await self._read_metrics(READINGS, window)
        if lacks_peak(binned):
            binned |= await self._read_metrics((FALLBACK,), window)
        self._known.forget()
        return await asyncio.to_thread(usage_of, window, binned)

    async def _read_metrics(self, readings: Iterable[Reading], window: Window) -> dict[Reading, Binned]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {reading: group.create_task(self._read_metric(reading, window)) for reading in readings}
        except* HistoryError as failed:
            raise failed.exceptions[0] from None
        return {reading: task.result() for reading, task in tasks.items()}

    async def _read_metric(self, reading: Reading, window: Window) -> Binned:
        query = self._query(reading, window)
        async with self._held:
            async with self._turns:
                body = await self._answer(query)
            try:
                return await asyncio.to_thread(self._binned, reading, body, window)
            except HistoryError as error:
                raise HistoryError(f"{query}: {error}") from error

    def _binned(self, reading: Reading, body: bytearray, window: Window) -> Binned:
        gap = gap_seconds(self._settings.scrape_interval_seconds)
        return stacked([reduced(reading, samples, window, gap) for samples in samples_in(body, self._known)])

    def _query(self, reading: Reading, window: Window) -> Query:
        selector = self._selector(reading.name, "" if reading.reduction is Reduction.DEVICE else self._workers)
        if reading.reduction is Reduction.DEVICE:
            seconds = window.end - window.start + DEVICE_MEMORY_SECONDS
            return _range(f"last_over_time({selector}[{_duration(seconds)}])", window.end, window.end, window.step)
        around = gap_seconds(self._settings.scrape_interval_seconds) if reading.reduction.needs_neighbours else 0.0
        if self._is_long(window):
            function = "max_over_time" if reading.reduction is Reduction.HIGHEST else "last_over_time"
            # One point per bin, at its end; counters start at the window's left edge, and before it.
            start = window.start - math.floor(around / window.step) * window.step + (0.0 if around else window.step)
            expression = f"{function}({selector}[{_duration(window.step - EDGE_SECONDS)}])"
            return _range(expression, start, window.end, window.step)
        until = window.end + (self._settings.scrape_interval_seconds if around else 0.0)
        expression = f"{selector}[{_duration(until - window.start + around)}]"
        return Query("query", {"query": expression, "time": _moment(until)})

    def _selector(self, name: str, *matchers: str) -> str:
        inside = ",".join(filter(None, (self._settings.matcher, *matchers)))
        return name + (f"{{{inside}}}" if inside else "")

    def _is_long(self, window: Window) -> bool:
        return window.end - window.start > self._settings.raw_seconds

    async def _answer(self, query: Query) -> bytearray:
        url = f"{self._settings.url.rstrip('/')}/api/v1/{query.path}"
        try:
            if self._session is None:
                self._session = self._connected()
            # A redirect would turn the POST into a GET without its form.
            async with self._session.post(
                url, data=query.form, headers=self._authorization(), allow_redirects=False
            ) as response:
                body = bytearray()  # grows in place; the client's own read() would hold a large answer twice
                async for chunk in response.content.iter_any():
                    body += chunk
        except TimeoutError as error:
            raise HistoryError(f"{query}: no answer within {self._settings.timeout_seconds:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HistoryError(f"{query}: {type(error).__name__}: {error}") from error
        if response.status != 200:
            raise HistoryError(f"{query}: HTTP {response.status}: {reason_in(body)}")
        return body

    def _connected(self) -> aiohttp.ClientSession:
        tls = ssl.create_default_context(cafile=self._settings.ca_file) if self._settings.ca_file else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_seconds),
            # Compressing costs Prometheus six times what sending in the cluster does.
            headers={"Accept-Encoding": "identity", **self._settings.headers},
        )

    def _authorization(self) -> dict[str, str]:
        if self._settings.token_file:
            return {"Authorization": f"Bearer {_secret(self._settings.token_file)}"}
        if self._settings.password_file:
            pair = f"{self._settings.username}:{_secret(self._settings.password_file)}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        return {}


def _secret(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()


def _range(expression: str, start: float, end: float, step: float) -> Query:
    return Query("query_range", {"query": expression, "start": _moment(start), "end": _moment(end), "step": str(step)})


def _moment(seconds: float) -> str:
    return f"{seconds:.3f}"


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
