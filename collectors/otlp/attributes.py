"""Attributes of resources, points and spans, taken by name: nothing else of them is ever looked at or kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

#: Longest text that a name or a tag may be.
_MOST = 256


class Attributes:
    """Of one resource, point or span."""

    __slots__ = ("values",)

    def __init__(self, given: Iterable[KeyValue]) -> None:
        self.values: Mapping[str, AnyValue] = {each.key: each.value for each in given}

    def has(self, *names: str) -> bool:
        return any(name in self.values for name in names)

    def text(self, *names: str) -> str | None:
        """Of the first name that is there with a text of the length of a name; a number as it is written. None: of none."""
        for name in names:
            value = self.values.get(name)
            kind = None if value is None else value.WhichOneof("value")
            if value is None or kind is None:
                continue
            if kind == "string_value" and 0 < len(value.string_value) <= _MOST:
                return value.string_value
            if kind == "int_value":
                return str(value.int_value)
        return None

    def number(self, *names: str) -> float | None:
        """Of the first name that is there with a finite number of 0 or more. None: of none."""
        for name in names:
            value = self.values.get(name)
            kind = None if value is None else value.WhichOneof("value")
            if value is None or kind not in ("int_value", "double_value"):
                continue
            number = float(value.int_value if kind == "int_value" else value.double_value)
            if math.isfinite(number) and number >= 0:
                return number
        return None
