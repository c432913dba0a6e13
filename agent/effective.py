"""The settings as they are in force, defaults among them, for people to look at. What is secret, or may be, is masked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from agent import plugins
from agent.plugins import PluginError
from agent.settings import Settings

MASK = "**********"


def effective(settings: Settings, referred: Collection[str]) -> dict[str, Any]:
    """As JSON, and flat: each field by its path, with its value and whether it is the default.

    Secrets are pydantic's, which mask themselves; so is whatever holds what a reference stood for (``referred``), since that may be
    secret wherever it is. Of plugins' options only those are shown that the plugin declares and that are no secrets; of the database's
    address the password is left out.
    """
    told = _masked(settings.model_dump(mode="json"), [text for text in referred if text])
    told["database"] = sa.make_url(settings.database).render_as_string(
        hide_password=True
    )  # its other parts are no secrets
    for endpoint in told["endpoints"]:
        endpoint["sources"] = {
            name: _options(plugins.COLLECTORS, name, options) for name, options in endpoint["sources"].items()
        }
        actuator = endpoint["actuator"]
        actuator["options"] = _options(plugins.ACTUATORS, actuator["system"], actuator["options"])
    default = Settings.model_construct().model_dump(mode="json", warnings=False)
    sections = [
        {
            "name": name,
            "fields": [
                {"field": field, "value": value, "default": field in flat and flat[field] == value}
                for field, value in _flat(section, name)
            ],
        }
        for name, section in told.items()
        if name != "endpoints"
        for flat in [dict(_flat(default.get(name), name))]
    ]
    sections += [
        {
            "name": f"endpoint {e['name']}",
            "fields": [{"field": f, "value": v, "default": False} for f, v in _flat(e, "")],
        }
        for e in told["endpoints"]
    ]
    return {"schema_version": 1, "settings": told, "sections": sections}


def _masked(value: Any, referred: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(inner, referred) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner, referred) for inner in value]
    return MASK if isinstance(value, str) and any(text in value for text in referred) else value


def _options(group: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Declared, and no secret; anything else masked."""
    try:
        model = plugins.options_of(plugins.load(group, name))
    except PluginError:
        model = None
    known = {} if model is None else {f: "Secret" in str(info.annotation) for f, info in model.model_fields.items()}
    return {field: MASK if known.get(field, True) else value for field, value in options.items()}


def _flat(value: Any, at: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{at}.{key}" if at else str(key))]
    return [(at, value)]
