"""Calls of NVML, timed and counted, and what their errors mean.

A function that a driver or GPU does not have is asked for once; a device that fell off the bus is a `LostError`; a
driver that was reloaded is the source's to take up again. Neighbours: `source` is the source, `devices` and
`mig` ask.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

import pynvml

from agent.model.report import DurationRecorder, SourceStats
from agent.nvml.arrays import Arrays

CODES: Final[Mapping[int, str]] = {
    code: name.removeprefix("NVML_ERROR_").lower()
    for name, code in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(code, int)
}
LOST: Final = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_GPU_NOT_FOUND,
        pynvml.NVML_ERROR_INSUFFICIENT_POWER,
        pynvml.NVML_ERROR_IRQ_ISSUE,
    }
)
MISSING: Final = frozenset(
    {
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
RELOADED: Final = (pynvml.NVMLError_Uninitialized, pynvml.NVMLError_DriverNotLoaded)

# Not failures of the calls that return samples: nothing newer, or (the wrapper raises its success code) no rows.
_IDLE: Final = frozenset({pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS})
_NOT_THERE: Final = frozenset({pynvml.NVML_ERROR_NOT_FOUND})
QUIET: Final[Mapping[str, frozenset[int]]] = {
    "nvmlDeviceGetProcessUtilization": _IDLE,
    "nvmlDeviceGetSamples": _IDLE,
    "nvmlDeviceGetMigMode": frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED}),
    "nvmlDeviceGetMigDeviceHandleByIndex": _NOT_THERE,
    "nvmlSystemGetProcessName": _NOT_THERE,
}
"""Codes with which a call says that there is nothing to tell; they are counted as no error."""
_NOTHING: Final = object()


class LostError(Exception):
    """This device cannot be read now; the text says why."""


class UnansweredError(Exception):
    """A function that is there failed this time: what it would have told is not known, which is not "nothing"."""


class Asked(Protocol):
    """What calls are made on: a handle, and the names of what it was found not to have."""

    handle: Any
    missing: set[str]


class Calls:
    """Makes the calls of one source; counts since the start."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Take a clock in seconds."""
        self.dropped: Counter[str] = Counter()
        """Samples that were not believed, by reason."""
        self._clock = clock
        self._arrays = Arrays().calls
        self._durations: defaultdict[str, DurationRecorder] = defaultdict(DurationRecorder)
        self._errors: Counter[tuple[str, str]] = Counter()

    def call(self, name: str, *args: Any, quiet: Collection[int] = ()) -> Any:
        """Call NVML; count its time, and its error unless it only says that nothing happened, or is a `quiet` one.

        Raises:
            NVMLError: as NVML says.
        """
        started = self._clock()
        try:
            return (self._arrays.get(name) or getattr(pynvml, name))(*args)
        except pynvml.NVMLError as error:
            if error.value not in QUIET.get(name, ()) and error.value not in quiet:
                self._errors[name, CODES.get(error.value, str(error.value))] += 1
            raise
        finally:
            self._durations[name].observe(self._clock() - started)

    def ask(self, asked: Asked, name: str, *args: Any, feature: str = "", idle: Any = None) -> Any:
        """Call a function with a handle before its arguments; see `tell`."""
        return self.tell(asked, name, asked.handle, *args, feature=feature, idle=idle)

    def tell(self, asked: Asked, name: str, *args: Any, feature: str = "", idle: Any = None) -> Any:
        """Call a function; None when it can't tell, `idle` when it says that there is nothing to tell.

        Raises:
            LostError: the device is not there any more.
            NVMLError: the driver was reloaded.
        """
        feature = feature or name
        if feature in asked.missing:
            return None
        try:
            return self.call(name, *args)
        except RELOADED:
            raise
        except pynvml.NVMLError as error:
            if error.value in LOST:
                raise LostError(f"{name}: {CODES[error.value]}") from error
            if error.value in MISSING:
                asked.missing.add(feature)
            return idle if error.value in QUIET.get(name, ()) else None

    def insist(self, asked: Asked, name: str, *args: Any) -> Any:
        """Call as `ask` does, where silence must not pass for "nothing there"; None where the function is missing.

        Raises:
            UnansweredError: it failed this time.
        """
        answer = self.ask(asked, name, *args, idle=_NOTHING)
        if answer is None and name not in asked.missing:
            raise UnansweredError(f"{name} failed")
        return None if answer is _NOTHING else answer

    def stats(self) -> SourceStats:
        """Return the durations, errors and dropped samples since the start."""
        return SourceStats(
            calls={name: recorder.read() for name, recorder in self._durations.items()},
            errors=dict(self._errors),
            dropped=dict(self.dropped),
        )
