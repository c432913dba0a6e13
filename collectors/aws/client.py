"""One client for each account and region: botocore makes and signs the requests and reads the answers; Flyball's own HTTP client sends them.

botocore finds who Flyball is to Amazon by its usual chain (environment, profile, web identity, container, instance), renews it, and keeps it to
itself. It is made for threads, so each call has one of the client's own; what it sends comes back to the event loop, with the deadline and the
trust settings of everything else that Flyball sends. Nothing is retried here: whoever asks comes again.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from collectors.aws.errors import AwsError, refusal
from collectors.clock import Clock
from collectors.http import HttpAnswer, HttpCall
from collectors.sessions import Sessions

_TIMEOUT_S = 30.0
_MAX_BYTES = 32 << 20
#: Calls of one account that are under way at once.
_AT_ONCE = 8
#: After a refusal for the rate: Amazon does not say how long. Only that service is left alone.
_THROTTLED_S = 5.0
Body = Mapping[str, Any]


class AwsAccount(BaseModel):
    """Which region, and as whom."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    """The region. Default: botocore's own, from `AWS_REGION` or the profile."""
    profile: str | None = Field(default=None, min_length=1)
    """A profile of `~/.aws/config`, which may name a role to assume. Default: botocore's usual chain, from the environment to the instance's
    own role."""
    aws_url: str | None = Field(default=None, pattern=r"^https?://[^/\s]+$")
    """One address for all of Amazon's services, for a stand-in or a proxy. Default: each service's own."""

    @classmethod
    def of(cls, options: BaseModel) -> AwsAccount:
        """The account's part of options that hold more."""
        return cls(**{name: getattr(options, name) for name in AwsAccount.model_fields})


class AwsClient:
    """Raises ``AwsError`` and nothing else."""

    def __init__(self, account: AwsAccount, http: HttpCall, clock: Clock) -> None:
        """Raises ``AwsError`` ``credentials`` where botocore is not installed, or knows no such profile or no region."""
        try:
            import botocore.session
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise AwsError("credentials", "botocore is not installed: pip install 'flyball[aws]'") from error
        self.account = account
        self.clock = clock
        self._http = http
        self._threads = ThreadPoolExecutor(_AT_ONCE, "flyball-aws")
        self._lock = threading.Lock()
        self._here = threading.local()
        self._made: dict[tuple[str, str], Any] = {}
        self._not_before: dict[str, float] = {}
        try:
            self._session = botocore.session.Session(profile=account.profile)
            region = account.region or self._session.get_config_variable("region")
        except BotoCoreError as error:
            raise AwsError("credentials", f"profile {account.profile!r}: {error}") from error
        if not region:
            raise AwsError("credentials", "no region is known: set `region`, or AWS_REGION")
        self.region: str = region

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def call(self, service: str, operation: str, *, at: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One call by Amazon's own names: ``call("sagemaker", "DescribeEndpoint", EndpointName="chat")``. ``at``: another region."""
        found: dict[str, Any] = await self._in_thread(
            service, operation, at, lambda client, method: getattr(client, method)(**parameters)
        )
        found.pop("ResponseMetadata", None)
        return found

    async def items(
        self, service: str, operation: str, key: str, *, at: str | None = None, **parameters: Any
    ) -> list[Any]:
        """Every item of a list, page after page; ``key`` is where they stand in an answer."""

        def read(client: Any, method: str) -> list[Any]:
            pages = client.get_paginator(method).paginate(**parameters)
            return [item for page in pages for item in page.get(key) or ()]

        found: list[Any] = await self._in_thread(service, operation, at, read)
        return found

    def members(self, service: str, operation: str) -> frozenset[str]:
        """The names that a call of that service takes."""
        model = self._client(service, self.region).meta.service_model.operation_model(operation)
        return frozenset(model.input_shape.members)

    async def _in_thread(self, service: str, operation: str, at: str | None, work: Callable[[Any, str], Any]) -> Any:
        loop = asyncio.get_running_loop()
        region = at or self.region
        left_s = self._not_before.get(service, 0.0) - self.clock.monotonic()
        if left_s > 0:
            text = f"{service}:{operation} in {region}: its rate was exceeded; nobody is asked for {left_s:.0f} s"
            raise AwsError("throttled", text)
        try:
            return await asyncio.wrap_future(
                self._threads.submit(self._blocking, loop, service, operation, region, work), loop=loop
            )
        except AwsError as error:
            if error.kind == "throttled":
                self._not_before[service] = self.clock.monotonic() + _THROTTLED_S
            raise

    def _blocking(
        self,
        loop: asyncio.AbstractEventLoop,
        service: str,
        operation: str,
        region: str,
        work: Callable[[Any, str], Any],
    ) -> Any:
        from botocore import xform_name
        from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError

        self._here.loop = loop
        what = f"{service}:{operation}"
        try:
            return work(self._client(service, region), xform_name(operation))
        except ClientError as error:
            said, meta = error.response.get("Error") or {}, error.response.get("ResponseMetadata") or {}
            code, message = str(said.get("Code") or ""), str(said.get("Message") or "")
            raise refusal(what, code, message, int(meta.get("HTTPStatusCode") or 0), region) from None
        except (EndpointConnectionError, HTTPClientError) as error:
            raise AwsError("unreachable", f"{what}: {error}") from None
        except BotoCoreError as error:  # no credentials, or an answer that is none of Amazon's
            kind = "unreachable" if "Parse" in type(error).__name__ else "credentials"
            kind = "invalid" if "Validation" in type(error).__name__ else kind
            raise AwsError(
                kind, f"{what} at {self.account.aws_url or region}: {type(error).__name__}: {error}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # what botocore makes of garbage
            text = f"{what} at {self.account.aws_url or region}: {type(error).__name__}: the answer is none of Amazon's"
            raise AwsError("unreachable", text) from None

    def _client(self, service: str, region: str) -> Any:
        """botocore's, made once: loading a service's forms takes a tenth of a second or more."""
        from botocore.config import Config

        with self._lock:
            made = self._made.get((service, region))
            if made is None:
                config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, user_agent_extra="flyball")
                made = self._session.create_client(
                    service, region_name=region, endpoint_url=self.account.aws_url, config=config
                )
                made.meta.events.register(f"before-send.{made.meta.service_model.service_id.hyphenize()}", self._send)
                self._made[service, region] = made
            return made

    def _send(self, request: Any, **_: Any) -> Any:
        """botocore's hook: a signed request, from its thread, over the event loop. Raises botocore's own errors."""
        from botocore.awsrequest import AWSResponse
        from botocore.exceptions import EndpointConnectionError

        loop: asyncio.AbstractEventLoop = self._here.loop
        going = asyncio.run_coroutine_threadsafe(self._exchange(request), loop)
        try:
            answer = going.result(_TIMEOUT_S + 10)
        except (OSError, ValueError, TimeoutError) as error:
            going.cancel()
            raise EndpointConnectionError(endpoint_url=request.url, error=error) from error
        return AWSResponse(answer.url, answer.status, dict(answer.headers), _Body(answer.body))

    async def _exchange(self, request: Any) -> HttpAnswer:
        body = request.body or b""
        content = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else body.read()
        headers = {
            name: value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
            if name.lower() not in ("content-length", "expect")
        }
        return await self._http(
            request.method,
            request.url,
            headers=headers,
            content=content or None,
            timeout_s=_TIMEOUT_S,
            max_bytes=_MAX_BYTES,
        )


class _Body(io.BytesIO):
    """An answer's body as botocore reads one."""

    def stream(self, **_: Any) -> Any:
        yield self.read()


def shared(sessions: Sessions, account: AwsAccount, http: HttpCall, clock: Clock) -> AwsClient:
    """The one client of an account and a region. Raises ``AwsError`` ``credentials``."""
    return sessions.get(("aws", account), lambda: AwsClient(account, http, clock))
