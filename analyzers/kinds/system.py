"""What an engine file can describe: a system to replay on, that says what may be changed of it and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from analyzers import strict
from analyzers.kinds.results import ReplayResult, ReplayTraffic, Result
from analyzers.money import Tariff, Unit, Usage
from analyzers.prediction import CannotPredict


class ReplaySystem(Protocol):
    """What a candidate is."""

    @property
    def kind(self) -> str: ...

    @property
    def heeds_timeout(self) -> bool:
        """Whether clients that give up are simulated."""
        ...

    @property
    def label(self) -> str | None:
        """What it is, in a few words, where the candidate's name does not say it."""
        ...

    @property
    def refused(self) -> CannotPredict | None:
        """Why nothing can be claimed for it."""
        ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def misfit(self) -> Mapping[str, float]:
        """What its calibration was off by, where that shows that it did not reach its data: logarithms by metric."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps it from being believed as it stands."""
        ...

    def changed(self, changes: Mapping[str, Any]) -> ReplaySystem:
        """With single settings changed, by their names. Raises ValueError."""
        ...

    def shape(self) -> dict[str, Any]:
        """As plain JSON."""
        ...

    def prices(self) -> dict[str, float]:
        """US dollars, by the names that they are given under."""
        ...

    def run(self, traffic: ReplayTraffic) -> ReplayResult: ...

    def cost_usd(self, result: Result) -> float | None:
        """None: a price that it takes is not known."""
        ...


@dataclass(frozen=True, kw_only=True)
class DescribedSystem:
    """A system whose engine file holds its dataclass's fields, and whose candidates change them. Prices are fields too."""

    kind: ClassVar[str]
    heeds_timeout: ClassVar[bool] = False
    refused: ClassVar[None] = None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Raises ValueError that names the field."""
        return strict.read(cls, data)

    @property
    def label(self) -> str:
        raise NotImplementedError

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def misfit(self) -> Mapping[str, float]:
        """None: it is as its file describes it."""
        return {}

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    def changed(self, changes: Mapping[str, Any]) -> Self:
        return self.read(strict.changed(type(self), strict.plain(self), changes))

    def shape(self) -> dict[str, Any]:
        return {name: value for name, value in strict.plain(self).items() if not name.startswith("usd_")}

    def prices(self) -> dict[str, float]:
        return {name: value for name, value in strict.plain(self).items() if name.startswith("usd_")}

    def run(self, traffic: ReplayTraffic) -> ReplayResult:
        raise NotImplementedError

    def cost_usd(self, result: Result) -> float | None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TokenPricedSystem(DescribedSystem):
    """Where tokens are paid for one by one, in US dollars per 1,000. Cached prompt tokens cost as others do unless priced apart."""

    usd_per_1k_input_tokens: float | None = None
    usd_per_1k_cached_input_tokens: float | None = None
    usd_per_1k_output_tokens: float | None = None

    def __post_init__(self) -> None:
        check_prices(self)
        if (self.usd_per_1k_input_tokens is None) != (self.usd_per_1k_output_tokens is None):
            raise ValueError("usd_per_1k_input_tokens and usd_per_1k_output_tokens: give both, or neither; 0 is free")

    def tokens_usd(self, used: Mapping[str, float], prefix: str = "") -> float | None:
        """Of ``prompt_tokens``, ``cached_prompt_tokens`` (of them) and ``output_tokens``, each with ``prefix`` before its name."""
        prompt, cached, output = (used[f"{prefix}{name}_tokens"] for name in ("prompt", "cached_prompt", "output"))
        if not prompt + output:
            return 0.0
        tariff = Tariff.of(
            {
                Unit.INPUT_1K: self.usd_per_1k_input_tokens,
                Unit.CACHED_INPUT_1K: self.usd_per_1k_cached_input_tokens,
                Unit.OUTPUT_1K: self.usd_per_1k_output_tokens,
            }
        )
        return tariff.cost(Usage(prompt_tokens=prompt, cached_prompt_tokens=cached, output_tokens=output)).usd


SCHEMA_VERSION = 1


def check_version(data: Mapping[str, Any]) -> None:
    """Raises ValueError on a file of another version than this program reads."""
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version: {version!r} is not known to this program, which reads {SCHEMA_VERSION}")


def check_prices(system: Any) -> None:
    """Raises ValueError on a price below 0."""
    for name, value in system.prices().items():
        if value < 0:
            raise ValueError(f"{name} must be US dollars, 0 or more, not {value}")
