"""Files that a question names, as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.whatif.asked import BadQuestion

SCHEMA_VERSION = 1


def json_object(path: Path, what: str) -> Mapping[str, Any]:
    """The JSON object in a file. Raises BadQuestion; ``what`` is what the file should be."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadQuestion(f"{path}: cannot be read ({error.strerror}); name {what}") from error
    except (ValueError, RecursionError) as error:
        raise BadQuestion(f"{path}: is no JSON ({error}); name {what}") from error
    if not isinstance(data, dict):
        raise BadQuestion(f"{path}: expected a JSON object; name {what}")
    return data


def check_version(data: Mapping[str, Any]) -> None:
    """Raises ValueError on a file of another version than this program reads."""
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version: {version!r} is not known to this program, which reads {SCHEMA_VERSION}")
