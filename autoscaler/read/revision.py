"""Which revision of a workload runs: a fingerprint of what it is made of, to notice when it is another one; pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from autoscaler.model.config import Configuration
from autoscaler.model.workload import EMPTY
from autoscaler.read.membership import Sharer
from autoscaler.read.owners import pod_template

UNKNOWN: Final = 0


def revision_of(sharers: Iterable[Sharer], config: Configuration) -> int:
    """Return a number that is another one once images, GPU model or the model's size are; UNKNOWN without images.

    Amounts and tuning don't count: changing them leaves what runs as it is.
    """
    images = {
        str(container["image"])
        for sharer in sharers
        if sharer.is_owner and not sharer.joins
        for container in (pod_template(sharer.manifest).get("spec") or EMPTY).get("containers") or ()
        if container.get("image")
    }
    if not images:
        return UNKNOWN
    parts = (*sorted(images), config.gpu_model.casefold(), str(config.model_size))
    return zlib.crc32("\n".join(parts).encode()) or 1
