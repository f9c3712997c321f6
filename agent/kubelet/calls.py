"""Calls over the kubelet's unix sockets, by grpclib: pure Python on h2, a twelfth of grpcio's memory.

Each call makes a connection of its own, so that a kubelet that was restarted is met anew. Imported where a socket is.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from grpclib import exceptions
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality
from h2.exceptions import H2Error

from agent.kubelet.sockets import KubeletError

if TYPE_CHECKING:
    from collections.abc import Iterator

_WINDOW_BYTES: Final = 1 << 16
_FRUGAL: Final = Configuration(http2_connection_window_size=_WINDOW_BYTES, http2_stream_window_size=_WINDOW_BYTES)
"""The kubelet sends so much ahead of what was read, and no more: the library's own 4 MiB are memory for haste."""
_GARBAGE: Final = (DecodeError, UnicodeDecodeError, H2Error, struct.error, AssertionError, NotImplementedError)
"""What the client and the decoder raise at bytes that are no answer."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service: its path, and the classes of its messages."""

    path: str
    request: Any
    reply: Any


async def ask(socket: Path, method: Method, seconds: float) -> Any:
    """Return the answer to an empty request, within so many seconds.

    Raises:
        KubeletError: no answer, a refusal, or none that can be read.
    """
    with _told(socket):
        channel = Channel(path=str(socket), config=_FRUGAL)
        try:
            async with asyncio.timeout(seconds):
                async with channel.request(method.path, Cardinality.UNARY_UNARY, method.request, method.reply) as call:
                    await call.send_message(method.request(), end=True)
                    answer = await call.recv_message()
        finally:
            channel.close()
        if answer is None:
            raise KubeletError("it ended without an answer")
        return answer


async def follow(socket: Path, method: Method) -> AsyncGenerator[Any, None]:
    """Yield what is streamed in answer to an empty request; who reads says how long to wait, and closes it.

    Raises:
        KubeletError: it can't be begun, breaks off, is refused, or can't be read.
    """
    with _told(socket):
        channel = Channel(path=str(socket), config=_FRUGAL)
        try:
            async with channel.request(method.path, Cardinality.UNARY_STREAM, method.request, method.reply) as call:
                await call.send_message(method.request(), end=True)
                # Left before it is asked why the stream ended, so that a refusal is told in its own words.
                while (answer := await call.recv_message()) is not None:
                    yield answer
        finally:
            channel.close()
        raise KubeletError("it ended the stream")


@contextmanager
def _told(socket: Path) -> Iterator[None]:
    """Turn what can go wrong on a socket into one kind of error, in words."""
    try:
        yield
    except KubeletError as error:
        raise KubeletError(f"{socket}: {error}") from error
    except exceptions.GRPCError as error:
        raise KubeletError(f"{socket}: {error.status.name}: {error.message or 'no message'}") from error
    except TimeoutError as error:
        raise KubeletError(f"{socket}: no answer in time") from error
    except (exceptions.StreamTerminatedError, exceptions.ProtocolError, OSError) as error:
        raise KubeletError(f"{socket}: {error or type(error).__name__}") from error
    except _GARBAGE as error:
        raise KubeletError(f"{socket}: the answer can't be read: {error or type(error).__name__}") from error
