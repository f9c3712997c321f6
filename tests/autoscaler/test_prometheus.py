"""PrometheusHistory against a real Prometheus, and against one that fails in every way it can."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from autoscaler.contract import metrics
from autoscaler.errors import HistoryError
from autoscaler.model.resources import GIB, Resource
from autoscaler.model.usage import Usage, Window, WorkloadKey
from autoscaler.read.memory import MemoryHistory
from autoscaler.read.prometheus import PrometheusHistory, PrometheusSettings
from tests.integration.prometheus_server import PrometheusServer, backfill, prometheus_server

C, V = Resource.COMPUTE, Resource.VRAM
DAY = 1_700_006_400.0  # a midnight
START, END = DAY - 3600.0, DAY + 3600.0
SCRAPE = 15.0
STEADY, DYING, GAPPED, ODD = (WorkloadKey("ns", name) for name in ("steady", "dying", "gapped", "odd"))
DEATH, GAP, GAP_END = DAY - 1200.0 + 7.0, DAY + 1000.0, DAY + 1600.0


def labels_of(workload: str) -> str:
    values = ("ns", workload, f"{workload}-0", "c", "n", "G")
    return ",".join(f'{name}="{value}"' for name, value in zip(metrics.WORKER_LABELS, values, strict=True))


def lines_at(at: float) -> list[str]:
    """The exposition of one scrape of the story, as lines."""
    age = at - START
    lines = [
        f'{metrics.DEVICE_COMPUTE_CAPACITY.name}{{node="n",gpu_uuid="G"}} 300',
        f'{metrics.DEVICE_VRAM_TOTAL.name}{{node="n",gpu_uuid="G"}} {80 * GIB}',
    ]
    told = {
        "steady": (0.25 * age, 4 * GIB + age * 2**20),
        "dying": (0.5 * age, 2 * GIB),
        "gapped": (0.75 * age, 3 * GIB),
        "odd": (0.1 * age, "NaN" if age % 3600 < 1800 else "+Inf"),
    }
    for workload, (seconds, peak) in told.items():
        if (workload == "dying" and at > DEATH) or (workload == "gapped" and GAP < at < GAP_END):
            continue
        labels = labels_of(workload)
        lines += [
            f"{metrics.WORKER_COMPUTE_SECONDS.name}{{{labels}}} {seconds}",
            f"{metrics.WORKER_VRAM_PEAK.name}{{{labels}}} {peak}",
            f"{metrics.WORKER_EFFECTIVE_TFLOPS_LIMIT.name}{{{labels}}} 75",
            f"{metrics.WORKER_EFFECTIVE_VRAM_LIMIT.name}{{{labels}}} {20 * GIB}",
            f'{metrics.WORKER_OOM.name}{{{labels},source="exit"}} {int(age // 3000)}',
        ]
    return lines


SCRAPES = [START + 3.5 + SCRAPE * turn for turn in range(int((END - START) / SCRAPE))]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    folder = tmp_path_factory.mktemp("prometheus")
    text = folder / "history.om"
    text.write_text("".join(f"{line} {at}\n" for at in SCRAPES for line in lines_at(at)) + "# EOF\n")
    if_installed = PrometheusServer(folder)
    with prometheus_server(folder / "empty"):  # skips before the slower backfill
        backfill(if_installed.folder, text)
    with prometheus_server(folder) as running:
        yield running


@asynccontextmanager
async def reading(url: str, **settings: object) -> AsyncIterator[PrometheusHistory]:
    history = PrometheusHistory(PrometheusSettings(url, scrape_interval_seconds=SCRAPE, **settings))  # type: ignore[arg-type]
    try:
        yield history
    finally:
        await history.close()


def of(usage: Usage, key: WorkloadKey) -> int:
    return usage.keys.index(key)


async def test_prometheus_and_memory_tell_the_same_story(server):
    memory = MemoryHistory(SCRAPE, END - START)
    for at in SCRAPES:
        memory.ingest(at, "\n".join(lines_at(at)))
    async with reading(server.url) as history:
        for start, bins in ((DAY - 1260, 3), (DAY + 960, 20), (DAY - 600, 1)):
            window = Window(start, start + 60.0 * bins, 60.0)
            told, expected = await history.read(window), await memory.read(window)
            assert told.keys == expected.keys
            for name in ("peak", "total", "ceiling", "clipped", "ooms", "workers", "last_seen"):
                np.testing.assert_allclose(getattr(told, name), getattr(expected, name), rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("raw_seconds", [0.0, 1e9], ids=["on the grid", "raw samples"])
async def test_long_windows_tell_what_was_used_and_nothing_after_the_end_of_a_series(server, raw_seconds):
    window = Window(START + 600, END - 600, 60.0)
    async with reading(server.url, raw_seconds=raw_seconds, part_seconds=86_400.0) as history:
        usage = await history.read(window)
    steady, dying, gapped, odd = (of(usage, key) for key in (STEADY, DYING, GAPPED, ODD))
    assert usage.peak[C, steady] == pytest.approx(75, rel=1e-4)
    assert usage.clipped[C, steady].all()
    assert not usage.clipped[V, steady].any()
    # Memory grows by 1 MiB a second: the last scrape of a bin is its highest, 56.5 s to 11.5 s before its end.
    edges = window.start + 60 * np.arange(1, window.bins + 1)
    assert (abs(usage.peak[V, steady] / 2**20 - 4096 - (edges - START)) <= SCRAPE).all()
    first_dead = int(np.ceil((DEATH - window.start) / 60))
    assert usage.peak[C, dying, : first_dead - 1] == pytest.approx(150, rel=1e-4)
    assert np.isnan(usage.peak[:, dying, first_dead:]).all()
    assert (usage.workers[dying, first_dead:] == 0).all()
    gap = slice(int((GAP - window.start) // 60) + 1, int((GAP_END - window.start) // 60))
    assert np.isnan(usage.peak[:, gapped, gap]).all()
    assert usage.peak[C, gapped, gap.stop + 2 :] == pytest.approx(225, rel=1e-4)
    assert np.isnan(usage.peak[V, odd]).all()
    assert usage.peak[C, odd] == pytest.approx(30, rel=1e-4)
    assert usage.ooms[steady].sum() == 2
    assert END - 600 - usage.last_seen[steady] <= 60


async def test_a_window_over_midnight_is_read_in_two_parts(server):
    window = Window(START + 600, END - 600, 60.0)
    async with reading(server.url, raw_seconds=0.0) as history:
        assert [part.start for part in history.parts(window)] == [START + 600, DAY]
        parts = [await history.read(part) for part in history.parts(window)]
        whole = await history.read(window)
    np.testing.assert_allclose(whole.peak[C, of(whole, STEADY)], 75, rtol=1e-4)
    second = parts[1].peak[V, of(parts[1], STEADY)]
    np.testing.assert_array_equal(whole.peak[V, of(whole, STEADY), -parts[1].window.bins :], second)


async def test_a_matcher_narrows_every_query(server):
    async with reading(server.url, matcher='workload=~"steady|",gpu_uuid="G"') as history:
        assert (await history.read(Window(DAY - 60, DAY, 60.0))).keys == (STEADY,)


async def test_a_refused_expression_is_named_with_prometheus_own_reason(server):
    async with reading(server.url, matcher='workload="') as history:
        with pytest.raises(HistoryError, match=r"query .*workload.*HTTP 400: .*parse error"):
            await history.read(Window(DAY - 60, DAY, 60.0))


async def test_live_scrapes_under_a_base_path_are_read_and_read_again_after_a_restart(tmp_path):
    began = time.time()

    async def exposition(_: web.Request) -> web.Response:
        age = time.time() - began
        return web.Response(text="\n".join(lines_at(START + age)) + "\n")

    app = web.Application()
    app.router.add_get("/metrics", exposition)
    async with TestServer(app, host="127.0.0.1") as target:
        settings = {
            "honor_labels": False,
            "labels": {"namespace": "monitoring", "pod": "tf-agent-x"},
            "base_path": "/prom",
        }
        with prometheus_server(tmp_path, (f"127.0.0.1:{target.port}",), **settings) as live:
            async with reading(live.url) as history:
                usage = await poll(history)
                assert usage.peak[C, of(usage, STEADY)] == pytest.approx([75], rel=0.2)
                await asyncio.to_thread(live.stop)
                with pytest.raises(
                    HistoryError, match=r"query .*(ClientConnectorError|ClientOSError|ServerDisconnectedError)"
                ):
                    await history.read(usage.window)
                await asyncio.to_thread(live.start)
                again = await history.read(usage.window)
                assert again.keys == usage.keys
                np.testing.assert_allclose(again.peak[C], usage.peak[C])


async def poll(history: PrometheusHistory) -> Usage:
    """Read until the last four seconds were followed."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        now = time.time()
        usage = await history.read(Window(now - 5, now - 1, 4.0))
        if usage.keys and not np.isnan(usage.peak[C]).any():
            return usage
        await asyncio.sleep(0.2)
    raise AssertionError("nothing was scraped")


def matrix(*series: tuple[dict[str, str], list[list[object]]]) -> str:
    result = [{"metric": labels, "values": values} for labels, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


LABELS = dict(zip(metrics.WORKER_LABELS, ("ns", "a", "a-0", "c", "n", "G"), strict=True))
WINDOW = Window(DAY - 60, DAY, 60.0)


@asynccontextmanager
async def scripted(answer) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server that answers each query with what `answer(request, form)` returns; with the requests it saw."""
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return await answer(request, await request.post())

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app, host="127.0.0.1") as running:
        yield str(running.make_url("")), seen


def saying(text: str, status: int = 200):
    async def answer(_request, _form) -> web.Response:
        return web.Response(text=text, status=status, content_type="application/json")

    return answer


VALID = matrix((LABELS, [[DAY - 30, "1"]]))


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("out of memory", 500, "HTTP 500: out of memory"),
        ('{"status":"error","errorType":"timeout","error":"query timed out"}', 503, "HTTP 503: query timed out"),
        ('{"status":"error","errorType":"execution","error":"too many samples"}', 200, "execution: too many samples"),
        ("<html>login</html>", 200, "not what Prometheus answers"),
        ("", 302, "HTTP 302"),
        ("", 200, "not what Prometheus answers"),
        (VALID[:-20], 200, "not what Prometheus answers"),
        ('{"status":"success"}', 200, "expected a matrix, got no data"),
        ('{"status":"success","data":{"resultType":"vector","result":[]}}', 200, "expected a matrix"),
        (VALID[:-1] + ',"warnings":["store 3 did not answer"]}', 200, "partial: store 3 did not answer"),
        (matrix((LABELS, [[DAY - 30, "many"]])), 200, "something else than numbers"),
        (matrix((LABELS, [[DAY - 30, "1"], [DAY - 15]])), 200, "not pairs"),
        (VALID.replace('"1"', "1"), 200, "not pairs"),
    ],
)
async def test_a_wrong_answer_is_an_error_that_names_query_and_cause(text, status, said):
    async with scripted(saying(text, status)) as (url, _), reading(url) as history:
        with pytest.raises(HistoryError) as raised:
            await history.read(WINDOW)
    assert str(raised.value).startswith("query")
    assert "tensor_fusion_" in str(raised.value)
    assert said in str(raised.value)


async def test_one_failed_metric_fails_the_whole_read():
    async def answer(_request, form) -> web.Response:
        return web.Response(text=VALID, status=500 if "throttled" in form["query"] else 200)

    async with scripted(answer) as (url, _), reading(url) as history:
        with pytest.raises(HistoryError, match=r"throttled_seconds_total.*HTTP 500"):
            await history.read(WINDOW)


async def test_a_body_that_ends_too_early_is_an_error():
    async def answer(request, _form) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(VALID))})
        await response.prepare(request)
        await response.write(VALID[:50].encode())
        request.transport.close()
        return response

    async with scripted(answer) as (url, _), reading(url) as history:
        with pytest.raises(HistoryError, match="ClientPayloadError"):
            await history.read(WINDOW)


async def test_a_prometheus_that_does_not_answer_is_given_up():
    released = asyncio.Event()

    async def answer(_request, _form) -> web.Response:
        await released.wait()
        return web.Response(text=VALID)

    async with scripted(answer) as (url, _), reading(url, timeout_seconds=0.2) as history:
        with pytest.raises(HistoryError, match=r"no answer within 0.2 s"):
            await history.read(WINDOW)
        released.set()


async def test_nothing_listening_is_an_error():
    async with reading("http://127.0.0.1:1") as history:
        with pytest.raises(HistoryError, match="ClientConnectorError"):
            await history.read(WINDOW)


async def test_nonsense_values_are_unknown_and_the_rest_is_used():
    values = [[DAY - 50, "NaN"], [DAY - 40, "-5"], [DAY - 30, "3.5e9"], [DAY - 20, "+Inf"], [DAY - 10, "1e40"]]

    async def answer(_request, form) -> web.Response:
        return web.Response(text=matrix((LABELS, values)) if "vram_peak" in form["query"] else matrix())

    async with scripted(answer) as (url, _), reading(url) as history:
        usage = await history.read(WINDOW)
    assert usage.peak[V, 0] == pytest.approx([3.5e9])
    assert usage.last_seen.tolist() == [DAY - 30]


async def test_each_metric_is_asked_once_for_the_fleet_and_the_fallback_only_when_needed():
    async with scripted(saying(matrix())) as (url, seen), reading(url) as history:
        await history.read(WINDOW)
    assert len(seen) == 10
    assert {(request.method, request.path) for request in seen} == {
        ("POST", "/api/v1/query"),
        ("POST", "/api/v1/query_range"),
    }
    asked: list[str] = []

    async def without_peak(_request, form) -> web.Response:
        asked.append(form["query"])
        nobody = any(name in form["query"] for name in ("vram_peak", "beyond_limit"))
        return web.Response(text=matrix() if nobody else VALID)

    async with scripted(without_peak) as (url, _), reading(url) as history:
        usage = await history.read(WINDOW)
    assert sum("vram_used_bytes" in query for query in asked) == 1
    assert usage.peak[V, 0].tolist() == [1]


async def test_credentials_headers_and_encoding_are_sent_and_a_new_token_is_picked_up(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("first\n")
    settings = {"token_file": token, "headers": {"X-Scope-OrgID": "gpu"}}
    async with scripted(saying(matrix())) as (url, seen), reading(url, **settings) as history:
        await history.read(WINDOW)
        assert {request.headers["Authorization"] for request in seen} == {"Bearer first"}
        assert {request.headers["Accept-Encoding"] for request in seen} == {"identity"}
        assert {request.headers["X-Scope-OrgID"] for request in seen} == {"gpu"}
        seen.clear()
        token.write_text("second\n")
        await history.read(WINDOW)
        assert {request.headers["Authorization"] for request in seen} == {"Bearer second"}


async def test_basic_credentials_are_sent(tmp_path: Path):
    (tmp_path / "password").write_text("secret\n")
    settings = {"username": "reader", "password_file": tmp_path / "password"}
    async with scripted(saying(matrix())) as (url, seen), reading(url, **settings) as history:
        await history.read(WINDOW)
    assert {request.headers["Authorization"] for request in seen} == {"Basic cmVhZGVyOnNlY3JldA=="}


@pytest.mark.parametrize("missing", ["token_file", "ca_file"])
async def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, missing: str):
    async with reading("https://127.0.0.1:1", **{missing: tmp_path / "absent"}) as history:
        with pytest.raises(HistoryError, match="absent" if missing == "token_file" else "No such file"):
            await history.read(WINDOW)
