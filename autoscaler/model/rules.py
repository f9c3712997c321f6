"""CEL rules of the custom resource definitions, as the API server accepts them within its cost budget."""

from __future__ import annotations

from typing import Any

Rule = dict[str, str]


def _absent(*paths: str) -> str:
    """Return a guard that is true when any of the dotted paths is missing; CEL fails on absent fields otherwise."""
    steps: list[str] = []
    for path in paths:
        parts = path.split(".")
        steps += [".".join(parts[: depth + 1]) for depth in range(len(parts))]
    return " || ".join(f"!has(self.{step})" for step in dict.fromkeys(steps))


def quantity_at_most(low: str, high: str) -> Rule:
    """Return the rule that one quantity is not more than another; both may be numbers or strings."""
    text = {path: f"string(self.{path})" for path in (low, high)}
    return {
        "rule": f"{_absent(low, high)} || quantity({text[low]}).compareTo(quantity({text[high]})) <= 0",
        "messageExpression": f"'{low} (' + {text[low]} + ') must not be more than {high} (' + {text[high]} + ')'",
        "fieldPath": f".{low}",
    }


def integer_at_most(low: str, high: str) -> Rule:
    """Return the rule that one integer is not more than another."""
    return {
        "rule": f"{_absent(low, high)} || self.{low} <= self.{high}",
        "message": f"{low} must not be more than {high}",
        "fieldPath": f".{low}",
    }


def one_form(form: str, *others: str) -> Rule:
    """Return the rule that a field excludes some others."""
    return {
        "rule": f"!has(self.{form}) || ({' && '.join(f'!has(self.{other})' for other in others)})",
        "message": f"use {form}, or {' and '.join(others)}, not both",
    }


def validations(*rules: Rule) -> dict[str, Any]:
    """Return the schema extension that carries the rules."""
    return {"x-kubernetes-validations": list(rules)}
