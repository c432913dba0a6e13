"""What Amazon's refusals mean: the error codes of its services, as one vocabulary of troubles."""

from __future__ import annotations

import re

from collectors.window import CollectError

#: Codes to kinds. What ends in one of them (``SageMaker.ThrottlingException``) is meant too.
_KINDS = {
    "denied": ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "NotAuthorized", "OptInRequired"),
    "credentials": (
        "AuthFailure", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidClientTokenId",
        "InvalidSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "RequestExpired",
        "SignatureDoesNotMatch", "UnrecognizedClientException",
    ),
    "throttled": (
        "RequestLimitExceeded", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
        "TooManyRequestsException", "LimitExceeded.Throttle",
    ),
    "quota": (
        "InstanceLimitExceeded", "LimitExceeded", "LimitExceededException", "MaxSpotInstanceCountExceeded", "ResourceLimitExceeded",
        "ServiceQuotaExceededException", "VcpuLimitExceeded",
    ),
    "capacity": ("InsufficientCapacity", "InsufficientHostCapacity", "InsufficientInstanceCapacity", "InsufficientReservedInstanceCapacity"),
    "conflict": (
        "ConcurrentUpdateException", "ConflictException", "IncorrectInstanceState", "IncorrectState", "OperationNotPermitted",
        "ResourceContention", "ResourceContentionFault", "ResourceInUse", "ResourceInUseException", "ScalingActivityInProgress",
    ),
    "missing": (
        "InvalidInstanceID.NotFound", "InvalidInstanceType", "NoSuchEntity", "ObjectNotFoundException", "ResourceNotFound",
        "ResourceNotFoundException",
    ),
}  # fmt: skip
_BY_CODE = {code: kind for kind, codes in _KINDS.items() for code in codes}
#: SageMaker has one code for all that is wrong, and says which in words.
_IN_PROGRESS = re.compile(
    r"cannot update in-progress|is in progress|currently being updated|in status \W?Updating", re.IGNORECASE
)
_NOT_THERE = re.compile(r"could not find|does not exist|not found", re.IGNORECASE)
_NO_CAPACITY = re.compile(r"insufficient capacity|unable to provision requested ml compute capacity", re.IGNORECASE)
_ACTION = re.compile(r"perform: ([a-z0-9-]+:[A-Za-z]+)")


class AwsError(CollectError):
    """Amazon refused or did not answer.

    ``kind``: conflict, quota, capacity, throttled, denied, credentials, invalid, missing, unreachable. ``code`` is Amazon's own.
    """

    def __init__(self, kind: str, detail: str, *, code: str = "", action: str | None = None) -> None:
        super().__init__(kind, detail)
        self.code = code
        self.action = action
        """The permission that lacks, as IAM names it."""


def refusal(what: str, code: str, message: str, status: int, region: str) -> AwsError:
    """Of an answer that is an error. ``what``: ``sagemaker:DescribeEndpoint``, for people."""
    kind = _BY_CODE.get(code.rpartition("#")[2])
    if code.startswith("Validation") or kind is None:
        kind = _by_words(message, status)
    action = _ACTION.search(message)
    detail = f"{what} in {region}: {code} ({status}): {' '.join(message.split())[:400]}"
    if kind == "denied":
        name = action[1] if action is not None else what
        return AwsError(
            kind, f"{detail}. Allow {name}: `flyball permissions` prints the policy", code=code, action=name
        )
    return AwsError(kind, detail, code=code)


def _by_words(message: str, status: int) -> str:
    if _IN_PROGRESS.search(message):
        return "conflict"
    if _NO_CAPACITY.search(message):
        return "capacity"
    if _NOT_THERE.search(message):
        return "missing"
    if status == 403:
        return "denied"
    if status == 429:
        return "throttled"
    return "unreachable" if status >= 500 else "invalid"
