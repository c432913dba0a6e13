"""Which endpoint something is of: by the sender's token, then by its resource, its service's name, or its model."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from collectors.otlp.attributes import Attributes


@dataclass(frozen=True, slots=True)
class OtlpRoute:
    """What one endpoint takes."""

    endpoint: str
    model: str | None
    resource: Mapping[str, str]
    """Attributes of the resource that must all be there with these values. Empty: by name or model."""
    token: SecretStr | None
    tenant: str | None = None
    """The attribute that tells whose request it is."""

    def allows(self, bearer: str, trusted: bool) -> bool:
        """Whether who shows this token may send to it; without a token of its own, whoever is on this host alone."""
        if self.token is None:
            return trusted
        return hmac.compare_digest(bearer.encode(), self.token.get_secret_value().encode())


class RouteError(Exception):
    """It belongs to no endpoint, or to several."""


def allowed(routes: Iterable[OtlpRoute], headers: Mapping[str, str], trusted: bool) -> list[OtlpRoute]:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    shown = bearer.strip() if scheme.lower() == "bearer" else ""
    return [route for route in routes if route.allows(shown, trusted)]


def routed(routes: Sequence[OtlpRoute], resource: Attributes, models: Sequence[str]) -> OtlpRoute:
    """The one endpoint of a point or a span that names these models (asked for, answered by; none: not told).

    What names another model than an endpoint's is not its own. Raises RouteError.
    """
    open_to = [r for r in routes if not models or r.model is None or r.model in models]
    chosen = [r for r in open_to if r.resource and all(resource.text(k) == v for k, v in r.resource.items())]
    if not chosen:
        unbound = [r for r in open_to if not r.resource]
        service = resource.text("service.name")
        chosen = [r for r in unbound if r.endpoint == service] or [r for r in unbound if r.model in models]
        if not chosen and len(routes) == 1:
            chosen = unbound
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise RouteError(
            "no endpoint takes it: name the service as the endpoint, or set sources.otlp.resource or model"
        )
    raise RouteError(f"{len(chosen)} endpoints would take it: set sources.otlp.resource of each")
