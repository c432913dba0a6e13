"""Options of sources and systems that their pydantic models refuse, told to people."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError


def problems_of(error: ValidationError, model: type[BaseModel]) -> str:
    """Each field with what is wrong with it, and the fields that there are."""
    problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    return f"{problems} (known: {', '.join(model.model_fields)})"
