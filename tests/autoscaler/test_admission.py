"""Answers to admission requests: whatever comes, there is one, and every patch applies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.admission.metrics import AdmissionMetrics
from autoscaler.admission.pods import Surroundings, place_of
from autoscaler.admission.review import (
    MAX_WARNING_CHARACTERS,
    Answer,
    MalformedReviewError,
    Review,
    parse_review,
    render_answer,
)
from autoscaler.admission.server import (
    MAX_BODY_BYTES,
    MUTATE_PODS,
    VALIDATE_PODS,
    VALIDATE_PROFILES,
    Admission,
    admission_application,
    metrics_application,
)
from autoscaler.contract import keys
from tests.autoscaler.admission_cases import (
    ON,
    OWN,
    UID,
    around,
    moved_status,
    patched,
    pod,
    profile,
    question,
    review,
    tensor_fusion_workload,
)
from tests.autoscaler.apply_cases import NOW


def test_every_answer_carries_the_uid_and_warnings_stay_short():
    asked = review(pod())
    body = json.loads(render_answer(asked, Answer(refusal="no", warnings=("w" * 500, "w" * 500, *map(str, range(30))))))
    assert (body["apiVersion"], body["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    response = body["response"]
    assert (response["uid"], response["allowed"], response["status"]["message"]) == (UID, False, "no")
    assert len(response["warnings"]) == 10
    assert all(len(warning) <= MAX_WARNING_CHARACTERS for warning in response["warnings"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}',
        b'{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": {"uid": "a", "operation": "CREATE"}}',
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "", "operation": "CREATE"}}',
        b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": 7, "operation": "CREATE"}}',
    ],
)
def test_what_is_no_review_is_said_to_be_none(body):
    with pytest.raises(MalformedReviewError):
        parse_review(body)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
known = st.sampled_from([*OWN, *ON, keys.QOS, keys.WORKLOAD, keys.WORKLOAD_PROFILE, keys.AUTOSCALING_ORIGINAL, "x~/y"])
texts = st.sampled_from(["true", "false", "12", "4Gi", "high", "{}", '{"a":1}', "small", "", "x"]) | st.text(max_size=6)
annotation_maps = st.none() | st.dictionaries(known, texts, max_size=6) | json_values
pods = st.builds(
    lambda metadata, spec, extra: {"kind": "Pod", "metadata": metadata, "spec": spec, **extra},
    st.fixed_dictionaries(
        {"labels": st.just({keys.ENABLED: "true"}) | st.just({keys.WORKLOAD: "chat"}) | json_values},
        optional={
            "annotations": annotation_maps,
            "name": st.text(max_size=5) | json_values,
            "generateName": st.just("chat-"),
            "ownerReferences": st.lists(json_values, max_size=2) | json_values,
        },
    )
    | json_values,
    st.none() | st.fixed_dictionaries({"containers": st.lists(st.fixed_dictionaries({"name": texts}), max_size=2)}) | json_values,
    st.dictionaries(st.sampled_from(["status", "other"]), json_values),
)  # fmt: skip


@dataclass
class FixedLookup:
    """Surroundings that are always the same, at the place the pod says."""

    found: Surroundings = field(default_factory=around)

    async def around(self, pod):
        alone = {**pod, "metadata": {**pod["metadata"], "ownerReferences": []}}
        return replace(self.found, place=place_of(alone, ()))


@dataclass
class FixedClock:
    def now(self) -> float:
        return NOW


statuses = st.just(moved_status()) | st.fixed_dictionaries(
    {},
    optional={
        "conditions": st.lists(json_values, max_size=2) | json_values,
        "autoscaling": json_values
        | st.fixed_dictionaries({"lastScaleTime": texts, "current": json_values, "activeCronRule": json_values}),
    },
)


@settings(deadline=None)
@given(pods | json_values, statuses, st.sampled_from([MUTATE_PODS, VALIDATE_PODS, VALIDATE_PROFILES]), st.booleans())
def test_whatever_comes_is_answered_and_every_patch_applies(manifest, status, path, updating):
    workload = tensor_fusion_workload(status)
    admission = Admission(FixedLookup(around(workload)), FixedClock())
    text = json.dumps(question(manifest, "UPDATE" if updating else "CREATE", manifest if updating else None))
    asked = parse_review(text.encode())
    answer = asyncio.run(_ask(admission, path, asked))
    response = json.loads(render_answer(asked, answer))["response"]
    assert response["uid"] == UID
    made = patched(manifest, response)
    if path == MUTATE_PODS and answer.annotations:
        # What was there is still there, and what is there now needs no more.
        before = manifest["metadata"].get("annotations") or {}
        assert {**before, **answer.annotations} == made["metadata"]["annotations"]
        again = asyncio.run(_ask(admission, path, review(made)))
        assert again.annotations == {}


async def _ask(admission: Admission, path: str, asked: Review) -> Answer:
    return await admission.judges[path](asked)


# The servers.


@dataclass
class BrokenLookup:
    async def around(self, pod):
        raise RuntimeError("a defect")


async def ask(admission: Admission, path: str, body: bytes) -> tuple[int, str, str]:
    metrics = AdmissionMetrics()
    async with TestClient(TestServer(admission_application(admission, metrics, lambda: 0.0))) as client:
        answer = await client.post(path, data=body)
        return answer.status, await answer.text(), metrics.render().decode()


async def test_a_pod_is_sized_over_http_and_counted():
    named = question(pod(OWN | ON | {keys.WORKLOAD: "chat"}))
    status, text, metrics = await ask(Admission(FixedLookup(), FixedClock()), MUTATE_PODS, json.dumps(named).encode())
    assert status == 200
    assert (
        patched(named["request"]["object"], json.loads(text)["response"])["metadata"]["annotations"][keys.TFLOPS_LIMIT]
        == "24"
    )
    assert 'admission_requests_total{operation="mutate_pods",result="sized"} 1.0' in metrics
    assert 'admission_seconds_count{operation="mutate_pods"} 1.0' in metrics


async def test_malformed_large_and_unforeseen_questions_have_a_status_and_a_sentence():
    admission = Admission(BrokenLookup(), FixedClock())
    status, text, metrics = await ask(admission, MUTATE_PODS, b"{")
    assert (status, "AdmissionReview" in text) == (400, True)
    assert 'result="malformed"} 1.0' in metrics
    status, text, _ = await ask(admission, MUTATE_PODS, b"x" * (MAX_BODY_BYTES + 1))
    assert (status, str(MAX_BODY_BYTES) in text) == (413, True)
    status, text, metrics = await ask(admission, MUTATE_PODS, json.dumps(question(pod())).encode())
    assert (status, UID in text) == (500, True)
    assert 'result="failed"} 1.0' in metrics
    assert (await ask(admission, "/elsewhere", b"{}"))[0] == 404


async def test_an_update_of_a_pod_and_a_deletion_of_a_profile_are_not_judged():
    admission = Admission(BrokenLookup(), FixedClock())
    for path in (MUTATE_PODS, VALIDATE_PODS):
        status, text, _ = await ask(admission, path, json.dumps(question(pod(), "UPDATE", pod())).encode())
        assert (status, json.loads(text)["response"]) == (200, {"uid": UID, "allowed": True})
    _, text, _ = await ask(
        admission, VALIDATE_PROFILES, json.dumps(question(None, "DELETE", profile({"qos": 1}))).encode()
    )
    assert json.loads(text)["response"] == {"uid": UID, "allowed": True}


async def test_probes_say_why_nobody_should_be_sent_here():
    trouble = ["no certificate is served yet"]
    async with TestClient(TestServer(metrics_application(AdmissionMetrics(), lambda: trouble[0]))) as client:
        ready = await client.get("/readyz")
        assert (ready.status, await ready.text()) == (503, "no certificate is served yet\n")
        assert (await client.get("/healthz")).status == 200
        trouble[0] = ""
        assert (await client.get("/readyz")).status == 200
        assert "text/plain" in (await client.get("/metrics")).headers["Content-Type"]
