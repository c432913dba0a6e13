"""Who Flyball is to Azure: a token of Microsoft Entra for each audience, by the ``azure-identity`` package, or one that is handed in.

Tokens are renewed before they end, and never logged. The package is the extra ``azure``; nothing else of the SDK is needed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from collectors.credentials import BearerToken, Credential
from collectors.window import CollectError

ARM_SCOPE = "https://management.azure.com/.default"
METRICS_SCOPE = "https://metrics.monitor.azure.com/.default"
#: A token that ends sooner than this is renewed.
_RENEW_S = 300.0


class AzureAccount(BaseModel):
    """How Azure is reached, and as whom. The fields of the source ``azure-monitor`` and of the system ``azure-ml`` alike."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    credential: Literal["default", "cli", "managed_identity", "workload_identity", "client_secret", "token"] = "default"
    """Who Flyball is. ``default`` tries the environment, a workload identity, a managed identity and the Azure CLI, in that order."""
    tenant: str | None = None
    """Tenant id, for ``client_secret`` and ``workload_identity``. Default: the environment's AZURE_TENANT_ID."""
    client_id: str | None = None
    """Application id; of a user-assigned identity, its client id. Default: the environment's AZURE_CLIENT_ID."""
    client_secret: SecretStr | None = None
    """For ``client_secret``: a reference to the secret, never the secret itself."""
    token: SecretStr | None = None
    """For ``token``: a bearer token for ARM that somebody else renews."""
    metrics_token: SecretStr | None = None
    """For ``token``: the one for https://metrics.monitor.azure.com. Default: ``token``."""
    arm_url: str = "https://management.azure.com"
    """Azure Resource Manager. Another one in sovereign clouds."""
    metrics_url: str = "https://{region}.metrics.monitor.azure.com"
    """Azure Monitor's batch address; ``{region}`` is replaced by the endpoint's."""
    arm_scope: str = ARM_SCOPE
    """What the token for ARM is asked for. Another one in sovereign clouds."""
    metrics_scope: str = METRICS_SCOPE
    """What the token for Azure Monitor is asked for."""
    poll_s: float = Field(default=60.0, ge=1)
    """Seconds between two readings of ARM's lists, which all endpoints of a subscription share."""

    @model_validator(mode="after")
    def _complete(self) -> AzureAccount:
        if (self.credential == "token") != (self.token is not None):
            raise ValueError("token: give it with `credential: token`, and only then")
        if self.credential == "client_secret" and not (self.tenant and self.client_id and self.client_secret):
            raise ValueError("credential client_secret needs tenant, client_id and client_secret")
        return self

    def key(self) -> tuple[str, ...]:
        """All that a client depends on, to share one."""
        secrets = [s.get_secret_value() if s else "" for s in (self.client_secret, self.token, self.metrics_token)]
        plain = [
            str(getattr(self, name))
            for name in AzureAccount.model_fields
            if not isinstance(getattr(self, name), SecretStr)
        ]
        return (*plain, str(hash(tuple(secrets))))

    def credentials(self) -> tuple[Credential, Credential]:
        """For ARM, and for Azure Monitor. Raises CollectError ``credentials`` where ``azure-identity`` is not installed."""
        if self.token is not None:
            return BearerToken(self.token), BearerToken(self.metrics_token or self.token)
        source = _identity(self)
        return EntraToken(source, self.arm_scope), EntraToken(source, self.metrics_scope)


class AccessToken(Protocol):
    """What ``azure-identity`` hands out."""

    @property
    def token(self) -> str: ...

    @property
    def expires_on(self) -> int:
        """Unix seconds."""


class TokenSource(Protocol):
    """What every credential of ``azure-identity`` is."""

    def get_token(self, *scopes: str) -> AccessToken: ...


class EntraToken:
    """A bearer token for one audience, asked for on a thread, and anew five minutes before it ends."""

    def __init__(self, source: TokenSource, scope: str, now: Callable[[], float] = time.time) -> None:
        self._source = source
        self._scope = scope
        self._now = now  # of the machine, and not the loop's clock: tokens end by the real time
        self._held: AccessToken | None = None
        self._lock = asyncio.Lock()

    async def headers(self, method: str, url: str, body: bytes) -> Mapping[str, str]:
        async with self._lock:
            if self._held is None or self._held.expires_on - self._now() < _RENEW_S:
                try:
                    self._held = await asyncio.to_thread(self._source.get_token, self._scope)
                except Exception as error:  # azure-identity names no common base, and its parts raise their own
                    said = " ".join(str(error).split())[:300]
                    raise CollectError("credentials", f"no token for {self._scope}: {said}") from error
        return {"authorization": f"Bearer {self._held.token}"}


def _identity(account: AzureAccount) -> TokenSource:
    try:
        from azure import identity
    except ImportError as error:
        text = "azure-identity is not installed: pip install 'flyball[azure]', or use `credential: token`"
        raise CollectError("credentials", text) from error
    who: dict[str, Any] = {"client_id": account.client_id} if account.client_id else {}
    tenant: dict[str, Any] = {"tenant_id": account.tenant} if account.tenant else {}
    made: TokenSource
    if account.credential == "cli":
        made = identity.AzureCliCredential(**tenant)
    elif account.credential == "managed_identity":
        made = identity.ManagedIdentityCredential(**who)
    elif account.credential == "workload_identity":
        made = identity.WorkloadIdentityCredential(**tenant, **who)
    elif account.credential == "client_secret":
        assert account.client_secret is not None
        made = identity.ClientSecretCredential(
            account.tenant, account.client_id, account.client_secret.get_secret_value()
        )
    else:
        chosen = {"managed_identity_client_id": account.client_id} if account.client_id else {}
        made = identity.DefaultAzureCredential(exclude_interactive_browser_credential=True, **chosen)
    return made
