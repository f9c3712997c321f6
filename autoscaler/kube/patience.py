"""How the cluster is followed: when a watch is given up, a list is made again, and how long after a failure."""

from __future__ import annotations

import os
import socket
import zlib
from dataclasses import dataclass

from autoscaler.settings import Settings


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, but for `seed`: what tells this process from others, so that they don't come all at once."""

    stale_seconds: float = 120.0
    """A kind that was not heard of for longer is not served any more."""
    resync_seconds: float = 3600.0
    """A kind is listed again after it, whatever its watch said: a safety net, as nothing is known to need it."""
    watch_seconds: float = 300.0
    """The server ends a watch after it; the next one begins where it ended."""
    silence_seconds: float = 90.0
    """A watch that says nothing is taken for dead, and begun again where it was: a server tells its position each 60
    to 75 s (bookmarks), but may leave that out for a kind of which nothing ever changed."""
    absent_seconds: float = 300.0
    """A kind that is not installed is looked for again."""
    vanished_seconds: float = 60.0
    """A kind that was there is believed to be gone when the server says so for so long: it may just be starting."""
    first_retry_seconds: float = 0.5
    longest_retry_seconds: float = 30.0
    catch_up_seconds: float = 10.0
    """A reader waits so long for what this controller wrote itself, and for a watch that is just lost."""
    owner_seconds: float = 2.0
    """A reader waits so long for the owner of a new object: their watches are not one."""
    seed: str = ""

    def retry_seconds(self, what: str, failures: int) -> float:
        """Return the pause after so many failures in a row: it doubles, and spreads over its upper half."""
        pause = min(self.first_retry_seconds * 2.0 ** min(failures - 1, 16), self.longest_retry_seconds)
        return pause * self.share(f"{what}/{failures}")

    def share(self, what: str) -> float:
        """Return a share of .5 to 1 that is always the same for this process and `what`."""
        return 0.5 + zlib.crc32(f"{self.seed}/{what}".encode()) / 2**33


def patience_of(settings: Settings) -> Patience:
    """Return what the settings say, with the name of this host and process for its seed."""
    return Patience(
        stale_seconds=settings.cluster_stale_seconds,
        resync_seconds=settings.cluster_resync_seconds,
        seed=f"{socket.gethostname()}/{os.getpid()}",
    )
