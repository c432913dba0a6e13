"""What a vendor's folder offers beside its sources: what is there, what may be done, and how that was verified.

Registered in the entry-point group ``flyball.systems`` by the name that ``flyball discover`` takes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from collectors.clock import Clock
from collectors.http import HttpCall
from collectors.options import problems_of
from collectors.sessions import Sessions
from collectors.window import CollectError

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class DiscoveryContext:
    """What a vendor's discovery is given."""

    http: HttpCall
    clock: Clock
    sessions: Sessions
    options: Mapping[str, Any] = field(default_factory=dict)
    """Validated by ``System.options``."""


@dataclass(frozen=True, slots=True)
class DiscoveredEndpoint:
    """One endpoint that is there: as much of its entry in ``endpoints`` as the system tells."""

    name: str
    settings: Mapping[str, Any]
    """The entry, plain YAML: url, model, sources, actuator, shape. References to secrets, never secrets."""
    note: str = ""
    """For people: what could not be told, what owns it."""


@dataclass(frozen=True, slots=True)
class Permission:
    """One thing that Flyball must be allowed to do."""

    name: str
    """The vendor's own name of it: ``Microsoft.Insights/metrics/read``, ``patch deployments/scale``."""
    what_for: Literal["see", "change"]
    granted: bool | None
    """None: the system does not tell."""
    detail: str = ""
    """Where it is lacking: what was asked and answered."""


@dataclass(frozen=True, slots=True)
class Support:
    """What docs/systems.md says of a system."""

    title: str
    sees: Sequence[str]
    changes: Sequence[str]
    verified: Literal["real part", "official SDK", "recorded answers", "specification only"]
    how: str
    """In one line: what it was verified with."""


class System(Protocol):
    """One vendor or platform."""

    name: ClassVar[str]
    options: ClassVar[type[BaseModel]]
    """What ``flyball discover NAME --option key=value`` takes."""
    support: ClassVar[Support]

    def discover(self, context: DiscoveryContext) -> AsyncIterator[DiscoveredEndpoint]:
        """Every endpoint that can be seen. Raises CollectError."""

    async def permitted(self, context: DiscoveryContext, entry: Mapping[str, Any] | None) -> Sequence[Permission]:
        """Each permission with its verdict, for one endpoint's settings or for discovery alone. Raises CollectError."""

    def permissions(self) -> str:
        """The least role, policy or manifest, ready to be applied."""


def options_of(model: type[M], given: Mapping[str, Any], system: str) -> M:
    """What ``flyball discover SYSTEM`` was given. Raises CollectError ``settings`` with each problem and its field."""
    try:
        return model(**given)
    except ValidationError as error:
        raise CollectError("settings", f"{system}: {problems_of(error, model)}") from error
