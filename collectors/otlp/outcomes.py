"""How a request ended, by its ``error.type``: a status, a vendor's class of error, or anything else."""

from __future__ import annotations

import re
from typing import Literal

RequestOutcome = Literal["throttled", "rejected", "error"]

_THROTTLED = re.compile(r"429|.*rate_?limit.*|.*throttl.*|too_?many_?requests|resource_?exhausted", re.IGNORECASE)
_REJECTED = re.compile(
    r"4\d\d|.*(bad_?request|invalid_?request|authentication|permission_?denied|not_?found).*", re.IGNORECASE
)


def outcome(error_type: str | None) -> RequestOutcome | None:
    """None: it was served. 408 is the server's, or the way's, and so an error."""
    if error_type is None:
        return None
    if _THROTTLED.fullmatch(error_type):
        return "throttled"
    if error_type != "408" and _REJECTED.fullmatch(error_type):
        return "rejected"
    return "error"
