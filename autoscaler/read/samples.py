"""Raw samples of one metric over the whole fleet, as columns; and who a series belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import NamedTuple

import numpy as np

from autoscaler.model.usage import Floats, Ints


class Identity(NamedTuple):
    """What tells the series of a metric apart; the empty string where a label is absent.

    Labels of the scrape itself (instance, job) are left out on purpose: an agent that returns with another address
    goes on with the same workers.
    """

    namespace: str = ""
    workload: str = ""
    pod: str = ""
    container: str = ""
    node: str = ""
    gpu_uuid: str = ""
    source: str = ""


_LABELS = tuple((f"exported_{name}", name) for name in Identity._fields)


def identity_of(labels: Mapping[str, str]) -> Identity:
    """Return the identity in a series' labels; `exported_*` is the agent's label where the scrape's took its name."""
    # Interned, as most of a fleet's labels are the same few texts.
    return Identity._make([intern(labels.get(exported) or labels.get(name, "")) for exported, name in _LABELS])


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """S series with N samples in all, one series after the other, each in order of time.

    `owner` (N,): index of each sample's series in `identities`. `times` (N,): seconds since the epoch.
    """

    identities: tuple[Identity, ...]
    owner: Ints
    times: Floats
    values: Floats

    def plausible(self, highest: float) -> Samples:
        """Drop samples that are no measurement: NaN, infinite, negative, above `highest`. The series stay."""
        with np.errstate(invalid="ignore"):
            kept = (self.values >= 0) & (self.values <= highest)
        if kept.all():
            return self
        return Samples(self.identities, self.owner[kept], self.times[kept], self.values[kept])


def samples_of(series: Iterable[tuple[Identity, Floats, Floats]]) -> Samples:
    """Return series, each an identity with times and values of equal length, as one table."""
    parts = list(series)
    counts = [len(times) for _, times, _ in parts]
    return Samples(
        identities=tuple(identity for identity, _, _ in parts),
        owner=np.repeat(np.arange(len(parts)), counts),
        times=np.concatenate([times for _, times, _ in parts]) if parts else np.zeros(0),
        values=np.concatenate([values for _, _, values in parts]) if parts else np.zeros(0),
    )
