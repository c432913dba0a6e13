"""Amazon's troubles as an actuator's."""

from __future__ import annotations

from actuators.base import ActuatorError, Trouble
from collectors.aws.errors import AwsError

_TROUBLE = {
    "capacity": Trouble.CAPACITY,
    "conflict": Trouble.CONFLICT,
    "credentials": Trouble.DENIED,
    "denied": Trouble.DENIED,
    "missing": Trouble.DRIFT,
    "quota": Trouble.QUOTA,
    "throttled": Trouble.THROTTLED,
    "unreachable": Trouble.UNREACHABLE,
}


def actuator_error(error: AwsError) -> ActuatorError:
    """The same, in the words of actuators."""
    trouble = _TROUBLE.get(error.kind, Trouble.INVALID)
    again = 15.0 if trouble in (Trouble.CONFLICT, Trouble.THROTTLED) else None
    return ActuatorError(f"AWS_{error.kind.upper()}", error.detail, trouble=trouble, retry_after_s=again)
