"""Who may ask the agent what: bearer tokens judged by the API server, one review for who it is, one for what it may.

A token must be meant for this audience: one for the API server itself, stolen from any pod, opens nothing here. The
right is on a resource that only these reviews know: `quotas` of the group `agents.tensor-fusion.ai`, named after the
node, verbs get and update. When the API server can't be asked, nobody is let in.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agent.kubeapi import ApiError

AUDIENCE: Final = "tensor-fusion-agent"
GROUP: Final = "agents.tensor-fusion.ai"
RESOURCE: Final = "quotas"
REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
KEPT_SECONDS: Final = 30.0
"""A judgement holds so long: a right that was taken away ends then."""
KEPT_MOST: Final = 256
LONGEST_TOKEN: Final = 16_384


@dataclass(frozen=True, slots=True)
class Judgement:
    """Who asks, and the HTTP status of the refusal with its reason; status 200 lets in."""

    status: int
    user: str = ""
    reason: str = ""


class Reviewer(Protocol):
    """The API server, as far as it judges."""

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return a review, completed.

        Raises:
            ApiError: it can't be asked.
        """
        ...


class TokenAccess:
    """Judges bearer tokens for one node; `clock` is monotonic seconds."""

    def __init__(self, api: Reviewer, node: str, clock: Callable[[], float]) -> None:
        self._api, self._node, self._clock = api, node, clock
        self._kept: OrderedDict[tuple[bytes, str], tuple[float, Judgement]] = OrderedDict()

    async def judge(self, authorization: str, verb: str) -> Judgement:
        """Return whether the bearer of this Authorization header may do `verb` here."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > LONGEST_TOKEN:
            return Judgement(401, reason="a bearer token is needed")
        key = hashlib.sha256(token.encode()).digest(), verb
        kept = self._kept.get(key)
        if kept is not None and self._clock() - kept[0] < KEPT_SECONDS:
            return kept[1]
        try:
            judgement = await self._reviewed(token, verb)
        except ApiError as error:
            return Judgement(503, reason=f"nobody can be let in while the API server can't be asked: {error}")
        self._kept[key] = self._clock(), judgement
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT_MOST:
            self._kept.popitem(last=False)
        return judgement

    async def _reviewed(self, token: str, verb: str) -> Judgement:
        asked = {"spec": {"token": token, "audiences": [AUDIENCE]}}
        status = _status(await self._api.post(REVIEWS, asked))
        # Not authenticated may be None, and an API server that ignores audiences answers without any.
        if status.get("authenticated") is not True or AUDIENCE not in (status.get("audiences") or ()):
            return Judgement(401, reason=str(status.get("error") or f"the token is not for the audience {AUDIENCE}"))
        user = status.get("user") or {}
        name = str(user.get("username") or "")
        wanted = {"group": GROUP, "resource": RESOURCE, "verb": verb, "name": self._node}
        spec = {"user": name, "groups": user.get("groups"), "uid": user.get("uid"), "extra": user.get("extra")}
        spec = {key: value for key, value in spec.items() if value} | {"resourceAttributes": wanted}
        answer = _status(await self._api.post(ACCESS_REVIEWS, {"spec": spec}))
        if answer.get("allowed") is not True:
            return Judgement(403, name, f"{name} may not {verb} {RESOURCE}.{GROUP} {self._node!r}")
        return Judgement(200, name)


def _status(review: Mapping[str, Any]) -> Mapping[str, Any]:
    status = review.get("status")
    return status if isinstance(status, Mapping) else {}
