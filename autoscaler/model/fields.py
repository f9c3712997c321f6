"""Field types of the custom resources: how a value is read, and the exact schema that an API server accepts for it.

A parsed field holds the resolved value (TFLOPs, bytes, seconds, a plain ratio). The schema forms are those that pass
as structural: number-or-string has no `anyOf`, and contradicting limits shut out what a pattern cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from autoscaler.contract.keys import QoS
from autoscaler.model.config import Step
from autoscaler.model.quantity import (
    DURATION_ALLOWED,
    RATIO_ALLOWED,
    format_amount,
    format_duration,
    format_ratio,
    parse_amount,
    parse_duration,
    parse_ratio,
)
from autoscaler.model.resources import Resource

Schema = dict[str, Any]

QUANTITY_SCHEMA: Final[Schema] = {
    "x-kubernetes-int-or-string": True,
    "pattern": r"^\+?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$",
    "maxLength": 32,
    "minimum": 0,
}
RATIO_SCHEMA: Final[Schema] = {
    "x-kubernetes-preserve-unknown-fields": True,
    "pattern": r"^[0-9]+(\.[0-9]+)?%?$",
    "minimum": 0,
    "maximum": 1000,
    "maxLength": 16,
    "minItems": 1,
    "maxItems": 0,
    "minProperties": 1,
    "maxProperties": 0,
    "not": {"enum": [True, False]},
}
STEP_SCHEMA: Final[Schema] = {
    "x-kubernetes-int-or-string": True,
    "pattern": "^[1-9][0-9]*%?$",
    "maxLength": 8,
    "minimum": 1,
}
DURATION_SCHEMA: Final[Schema] = {
    "type": "string",
    "pattern": r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d|w))+$",
    "maxLength": 32,
}
FREE_OBJECT_SCHEMA: Final[Schema] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
INT32_MAX: Final = 2**31 - 1


Conflict = tuple[str, str, str]
"""Path below the object, value, and what is allowed."""


class Spec(BaseModel):
    """Base of everything a user writes: camelCase, immutable, strict, and unknown fields are errors."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield what is wrong between fields that are right one by one."""
        yield from ()

    @model_validator(mode="after")
    def _refuse_conflicts(self) -> Self:
        found = tuple(self.conflicts())
        if found:
            raise PydanticCustomError("conflicts", "fields contradict each other", {"found": found})
        return self


def _any(_: object) -> bool:
    return True


def _checked(parse: Callable[[object], Any], allowed: str = "", accept: Callable[[Any], bool] = _any) -> PlainValidator:
    """Return a validator that parses, then checks; `allowed` defaults to the parser's own words."""

    def validate(value: object) -> Any:
        try:
            parsed = parse(value)
        except ValueError as error:
            raise refusal(allowed or str(error)) from None
        if not accept(parsed):
            raise refusal(allowed)
        return parsed

    return PlainValidator(validate)


def more_than(
    low: tuple[str, float | None], high: tuple[str, float | None], resource: Resource | None
) -> Iterator[Conflict]:
    """Yield a conflict when the first of two (path, value) pairs is the larger; absent ones conflict with nothing.

    The values are amounts of `resource`, or plain numbers when it is None.
    """
    if low[1] is None or high[1] is None or low[1] <= high[1]:
        return
    small, large = (
        format_ratio(value) if resource is None else format_amount(resource, value) for value in (low[1], high[1])
    )
    yield low[0], small, f"at most {high[0]} ({large})"


def refusal(allowed: str) -> PydanticCustomError:
    """Return the error of a field validator; problems take their `allowed` text from it."""
    return PydanticCustomError("allowed", "{allowed}", {"allowed": allowed})


def _read_tflops(value: object) -> float:
    return parse_amount(Resource.COMPUTE, value)


def _read_bytes(value: object) -> int:
    return int(parse_amount(Resource.VRAM, value))


def _read_step(value: object) -> Step:
    allowed = 'a count of replicas such as 2, or a share of them such as "50%"; at least 1'
    if isinstance(value, str) and value.endswith("%") and value[:-1].isdecimal() and int(value[:-1]) > 0:
        return Step(parse_ratio(value), is_ratio=True)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(allowed)
    return Step(float(value))


def _write_step(step: Step) -> str | int:
    return f"{format_ratio(step.value * 100)}%" if step.is_ratio else int(step.value)


def _write_tflops(value: float) -> str:
    return format_amount(Resource.COMPUTE, value)


def _write_bytes(value: int) -> str:
    return format_amount(Resource.VRAM, value)


_RATIO_TEXT = PlainSerializer(format_ratio, return_type=str)
_DURATION_TEXT = PlainSerializer(format_duration, return_type=str)

Tflops = Annotated[
    float,
    _checked(_read_tflops),
    PlainSerializer(_write_tflops, return_type=str),
    WithJsonSchema(QUANTITY_SCHEMA),
]
Bytes = Annotated[
    int,
    _checked(_read_bytes),
    PlainSerializer(_write_bytes, return_type=str),
    WithJsonSchema(QUANTITY_SCHEMA),
]
Percent = Annotated[
    float,
    _checked(_read_tflops, "a share of the device in percent, above 0 and at most 100", lambda x: x <= 100),
    PlainSerializer(_write_tflops, return_type=str),
    WithJsonSchema(QUANTITY_SCHEMA),
]
Percentile = Annotated[
    float,
    _checked(parse_ratio, f"{RATIO_ALLOWED}, from 0 to 1", lambda x: 0 <= x <= 1),
    _RATIO_TEXT,
    WithJsonSchema(RATIO_SCHEMA),
]
Share = Annotated[
    float,
    _checked(parse_ratio, f"{RATIO_ALLOWED}, above 0 and at most 1", lambda x: 0 < x <= 1),
    _RATIO_TEXT,
    WithJsonSchema(RATIO_SCHEMA),
]
Margin = Annotated[
    float,
    _checked(parse_ratio, f"{RATIO_ALLOWED}, from 0 (none) to 1000", lambda x: 0 <= x <= 1000),
    _RATIO_TEXT,
    WithJsonSchema(RATIO_SCHEMA),
]
Ratio = Annotated[
    float,
    _checked(parse_ratio, f"{RATIO_ALLOWED}, above 0 and at most 1000", lambda x: 0 < x <= 1000),
    _RATIO_TEXT,
    WithJsonSchema(RATIO_SCHEMA),
]
Factor = Annotated[
    float,
    _checked(parse_ratio, f"{RATIO_ALLOWED}, from 1 to 1000", lambda x: 1 <= x <= 1000),
    _RATIO_TEXT,
    WithJsonSchema(RATIO_SCHEMA),
]
Period = Annotated[
    float,
    _checked(parse_duration, f"{DURATION_ALLOWED}, above 0", lambda x: x > 0),
    _DURATION_TEXT,
    WithJsonSchema(DURATION_SCHEMA),
]
Delay = Annotated[float, _checked(parse_duration), _DURATION_TEXT, WithJsonSchema(DURATION_SCHEMA)]
StepSize = Annotated[Step, _checked(_read_step), PlainSerializer(_write_step), WithJsonSchema(STEP_SCHEMA)]
QoSLevel = Annotated[
    QoS, Field(strict=False), WithJsonSchema({"type": "string", "enum": [level.value for level in QoS]})
]
Count = Annotated[int, Field(ge=1, le=INT32_MAX, json_schema_extra={"format": "int32"})]
CountOrZero = Annotated[int, Field(ge=0, le=INT32_MAX, json_schema_extra={"format": "int32"})]
FreeObject = Annotated[dict[str, Any], WithJsonSchema(FREE_OBJECT_SCHEMA)]
Text = Annotated[str, Field(max_length=253)]
Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Target = Literal["tflops", "compute", "vram", "all"]
ForecastName = Literal["auto", "linear", "seasonal-naive", "none"]
Isolation = Literal["shared", "soft", "hard", "partitioned"]
