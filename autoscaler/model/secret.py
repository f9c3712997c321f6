"""A Secret's manifest to its values; pure. Nothing here, nor any error, shows a value."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from autoscaler.errors import ClusterError
from autoscaler.model.workload import EMPTY, Manifest


def secret_texts(manifest: Manifest) -> Mapping[str, str]:
    """Return the values by key: `data` decoded, and `stringData` (which only files have) over it.

    Raises:
        ClusterError: a value is not base64 of UTF-8 text.

    """
    metadata, texts = manifest.get("metadata") or EMPTY, {}
    for key, value in (manifest.get("data") or EMPTY).items():
        try:
            texts[str(key)] = base64.b64decode(str(value), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            place = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}"
            raise ClusterError(f"Secret {place}: data.{key} is not base64 of UTF-8 text") from None
    return texts | {str(key): str(value) for key, value in (manifest.get("stringData") or EMPTY).items()}
