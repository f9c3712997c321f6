"""AdmissionReview (admission.k8s.io/v1) in, answer out, as JSON; pure.

A mutation is a set of annotations; the patch that brings them in applies to every pod, because one that does not fails
the pod, whatever the failure policy says. Neighbours: `pods`, `birth` and `judge` make the answer, `server` serves it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from autoscaler.errors import AutoscalerError

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
REFUSED_CODE: Final = 422
"""Unprocessable: what the API server itself answers to a value that its schema does not allow."""

MAX_WARNINGS: Final = 10
MAX_WARNING_CHARACTERS: Final = 256
"""Longer ones are cut by the API server once all together pass 4 KiB."""


class MalformedReviewError(AutoscalerError):
    """What was sent is no AdmissionReview of version 1."""


@dataclass(frozen=True, slots=True)
class Review:
    """One question: may this object (JSON form) be created, or may it replace `old`?"""

    uid: str
    operation: str
    namespace: str
    name: str
    object: Any
    old: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said to it: refused with a message, or allowed with these annotations set; warnings either way."""

    refusal: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class _Request(msgspec.Struct, rename="camel"):
    uid: str
    operation: str
    namespace: str = ""
    name: str = ""
    object: Any = None
    old_object: Any = None


class _Envelope(msgspec.Struct, rename="camel"):
    api_version: str
    kind: str
    request: _Request


def parse_review(body: bytes) -> Review:
    """Return the question in a request's body.

    Raises:
        MalformedReviewError: it can't be read, or is of another version.

    """
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedReviewError(f"not an {KIND}: {error}") from error
    if (envelope.api_version, envelope.kind) != (API_VERSION, KIND):
        found = f"{envelope.kind} of {envelope.api_version}"
        raise MalformedReviewError(f"expected an {KIND} of {API_VERSION}, not {found[:120]}")
    asked = envelope.request
    if not asked.uid:
        raise MalformedReviewError(f"the {KIND} has no request.uid to answer to")
    return Review(asked.uid, asked.operation, asked.namespace, asked.name, asked.object, asked.old_object)


def render_answer(review: Review, answer: Answer) -> bytes:
    """Return the body of the answer to a question."""
    response: dict[str, Any] = {"uid": review.uid, "allowed": not answer.refusal}
    if answer.refusal:
        response["status"] = {"code": REFUSED_CODE, "reason": "Invalid", "message": answer.refusal}
    elif answer.annotations:
        patch = msgspec.json.encode(annotation_patch(review.object, answer.annotations))
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode("ascii")}
    if answer.warnings:
        told = tuple(dict.fromkeys(answer.warnings))[:MAX_WARNINGS]
        response["warnings"] = [_cut(warning) for warning in told]
    return msgspec.json.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def annotation_patch(manifest: Mapping[str, Any], annotations: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    """Return the JSON patch (RFC 6902) that sets these annotations on an object that has metadata."""
    root = "/metadata/annotations"
    # An empty object in front of those that are there would wipe them.
    absent = not isinstance(manifest["metadata"].get("annotations"), Mapping)
    first = [{"op": "add", "path": root, "value": {}}] if absent else []
    return [
        *first,
        *({"op": "add", "path": f"{root}/{_escaped(key)}", "value": text} for key, text in annotations.items()),
    ]


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WARNING_CHARACTERS else text[: MAX_WARNING_CHARACTERS - 1] + "…"
