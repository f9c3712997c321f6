"""Where the kubelet's sockets are, and what going wrong there is called. Imports no client, so it costs nothing."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Final

POD_RESOURCES: Final = Path("pod-resources/kubelet.sock")
"""Which container was given which device (PodResourcesLister v1), below the kubelet's folder."""
PODS: Final = Path("pods-api/pods-api.sock")
"""The pods of the node (Pods v1alpha1; on by default from Kubernetes 1.37 on), below the kubelet's folder."""


class KubeletError(Exception):
    """The kubelet can't be asked, refuses, or answers what can't be read."""


def why_absent(socket: Path) -> str:
    """Return "" where a socket is, else why it can't be asked."""
    try:
        mode = socket.stat().st_mode
    except FileNotFoundError:
        return f"{socket} is not there"
    except OSError as error:
        return str(error)
    return "" if stat.S_ISSOCK(mode) else f"{socket} is no socket"
