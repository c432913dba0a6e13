"""A cluster's ways in, its client, its lists, discovery and permissions, against the strict stand-in over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from agent.clock import VirtualClock
from agent.settings import EndpointSettings
from collectors.discovery import DiscoveredEndpoint, DiscoveryContext, Permission
from collectors.http import Http
from collectors.kubernetes import access as ways
from collectors.kubernetes import client as clients
from collectors.kubernetes.access import Access, ClusterSettings, access
from collectors.kubernetes.client import KubernetesClient, KubernetesError, refusal
from collectors.kubernetes.discover import _NEEDS, KubernetesSystem, role
from collectors.kubernetes.workloads import WorkloadId, inventory, quantity
from collectors.sessions import Sessions
from collectors.window import CollectError
from tests.actuators.test_kubernetes import HPA, SCALED_OBJECT
from tests.collectors.servers import certificate, serve
from tests.fakes.kubernetes import Cluster as FakeCluster
from tests.fakes.kubernetes import FakeKubernetes, manifest

TOKEN = "flyball-token"


@pytest.fixture
def fake() -> Iterator[FakeKubernetes]:
    server = FakeKubernetes(FakeCluster(VirtualClock().now))
    with server:
        yield server


@asynccontextmanager
async def context(fake: FakeKubernetes, **options: Any) -> AsyncIterator[DiscoveryContext]:
    http, sessions = Http(), Sessions()
    try:
        yield DiscoveryContext(http.call, VirtualClock(), sessions, {"server": fake.url, "token": TOKEN, **options})
    finally:
        await sessions.aclose()
        await http.aclose()


def discovered(fake: FakeKubernetes, **options: Any) -> list[DiscoveredEndpoint]:
    async def story() -> list[DiscoveredEndpoint]:
        async with context(fake, **options) as where:
            return [found async for found in KubernetesSystem().discover(where)]

    return asyncio.run(story())


def asked(fake: FakeKubernetes, story: Callable[[KubernetesClient], Coroutine[Any, Any, Any]]) -> Any:
    """What a client of the stand-in comes to."""

    async def whole() -> Any:
        async with context(fake) as where:
            cluster = ClusterSettings(server=fake.url, token=SecretStr(TOKEN))
            return await story(clients.shared(where.sessions, cluster, where.http, where.clock))

    return asyncio.run(whole())


# -- ways in -------------------------------------------------------------------------------------------------------------


def _kubeconfig(folder: Path, user: dict[str, Any], server: dict[str, Any] | None = None, **more: Any) -> Path:
    other = {"name": "other", "cluster": {"server": "https://other.invalid"}}
    path = folder / "config"
    named = [{"name": "ours", "context": {"cluster": "c", "user": "u", "namespace": "models"}},
             {"name": "second", "context": {"cluster": "other", "user": "u"}}]  # fmt: skip
    body = {
        "current-context": "ours",
        "contexts": named,
        "clusters": [{"name": "c", "cluster": {"server": "https://api.invalid:6443/", **(server or {})}}, other],
        "users": [{"name": "u", "user": user}],
        **more,
    }
    path.write_text(yaml.safe_dump(body))
    return path


def _headers(way: Access) -> dict[str, str]:
    return dict(asyncio.run(way.credential.headers("GET", "https://api.invalid", b"")))


def test_a_kubeconfigs_current_context_with_a_token(tmp_path: Path) -> None:
    path = _kubeconfig(tmp_path, {"token": "abc"})
    way = access(ClusterSettings(kubeconfig=path), VirtualClock())
    assert (way.server, way.namespace) == ("https://api.invalid:6443", "models")
    assert _headers(way) == {"authorization": "Bearer abc"}
    other = access(ClusterSettings(kubeconfig=path, context="second"), VirtualClock())
    assert (other.server, other.namespace) == ("https://other.invalid", "default")


def test_the_kubeconfig_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(_kubeconfig(tmp_path, {"token": "abc"})))
    assert access(ClusterSettings(), VirtualClock()).server == "https://api.invalid:6443"


def test_a_token_file_beside_the_kubeconfig_is_read_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    way = access(ClusterSettings(kubeconfig=_kubeconfig(tmp_path, {"tokenFile": "token"})), VirtualClock())
    assert _headers(way) == {"authorization": "Bearer first"}
    (tmp_path / "token").write_text("second\n")
    assert _headers(way) == {"authorization": "Bearer second"}


def test_the_command_of_a_kubeconfig_is_asked_once_and_again_when_its_token_is_old(tmp_path: Path) -> None:
    script = tmp_path / "plugin.py"
    script.write_text(
        "import json, os, pathlib\n"
        "count = pathlib.Path(os.environ['COUNT']); n = len(count.read_text()) if count.exists() else 0\n"
        "count.write_text('x' * (n + 1))\n"
        "info = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "status = {'token': f'token-{n + 1}', **({'expirationTimestamp': os.environ['END']} if 'END' in os.environ else {})}\n"
        "print(json.dumps({**info, 'status': status}))\n"
        "assert info['apiVersion'] == 'client.authentication.k8s.io/v1beta1'\n"
    )
    env = [{"name": "COUNT", "value": str(tmp_path / "count")}]
    user = {"exec": {"command": sys.executable, "args": [str(script)], "env": env,
                     "apiVersion": "client.authentication.k8s.io/v1beta1"}}  # fmt: skip
    clock = VirtualClock()
    way = access(ClusterSettings(kubeconfig=_kubeconfig(tmp_path, user)), clock)
    assert _headers(way) == _headers(way) == {"authorization": "Bearer token-1"}
    clock.set(clock.now() + 700.0)
    assert _headers(way) == {"authorization": "Bearer token-2"}
    end = datetime.fromtimestamp(clock.now() + 200.0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    env.append({"name": "END", "value": end})
    way = access(ClusterSettings(kubeconfig=_kubeconfig(tmp_path, user)), clock)
    assert _headers(way) == _headers(way) == {"authorization": "Bearer token-3"}
    clock.set(clock.now() + 150.0)
    assert _headers(way) == {"authorization": "Bearer token-4"}, "a minute before its end it is asked for anew"


@pytest.mark.parametrize("said", ["exit(1)", "print('no JSON')", "print('{}')", 'print(\'{"status": {"token": ""}}\')'])
def test_a_command_that_gives_no_token_is_named(said: str, tmp_path: Path) -> None:
    user = {"exec": {"command": sys.executable, "args": ["-c", said]}}
    way = access(ClusterSettings(kubeconfig=_kubeconfig(tmp_path, user)), VirtualClock())
    with pytest.raises(CollectError, match=r"gave (no|an empty) token") as refused:
        _headers(way)
    assert refused.value.kind == "credentials"


@pytest.mark.parametrize(
    ("server", "more", "said"),
    [
        ({"insecure-skip-tls-verify": True}, {}, "insecure-skip-tls-verify is refused"),
        ({}, {"current-context": "gone"}, "no entry of contexts is called 'gone'"),
        ({}, {"clusters": []}, "no entry of clusters is called 'c'"),
        ({}, {"users": None}, "no entry of users is called 'u'"),
        ({"certificate-authority": "gone.crt"}, {}, "gone.crt cannot be read as certificates"),
        ({"certificate-authority-data": "?"}, {}, "config: "),
        ({"certificate-authority-data": base64.b64encode(b"\xff\xfe").decode()}, {}, "config: "),
    ],
)
def test_a_kubeconfig_that_leads_nowhere_says_why(
    server: dict[str, Any], more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CollectError, match=said) as refused:
        access(ClusterSettings(kubeconfig=_kubeconfig(tmp_path, {"token": "t"}, server, **more)), VirtualClock())
    assert refused.value.kind == "credentials"


@pytest.mark.parametrize("content", [None, "[", "- 1", "\x00", "plain"])
def test_a_file_that_is_none_says_what_to_do(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CollectError, match="set `server` and `token_file`, name a kubeconfig, or run Flyball in a pod"):
        access(ClusterSettings(kubeconfig=path), VirtualClock())


def test_options_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="go with `server`"):
        ClusterSettings(token=SecretStr("t"))
    with pytest.raises(ValidationError, match="not both"):
        ClusterSettings(server="https://a", kubeconfig=tmp_path / "config")


def test_from_within_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with certificate(tmp_path) as (_, ca):
        ca.rename(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("pods-own")
    (tmp_path / "namespace").write_text("models\n")
    monkeypatch.setattr(ways, "_POD", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    way = access(ClusterSettings(), VirtualClock())
    assert (way.server, way.namespace) == ("https://[fd00::1]:6443", "models")
    assert _headers(way) == {"authorization": "Bearer pods-own"}
    assert way.tls is not None
    assert way.tls.verify_mode == ssl.CERT_REQUIRED


def test_over_tls_by_the_clusters_own_authority_and_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    with certificate(tmp_path) as (tls, cert):
        tls.load_verify_locations(cert)
        tls.verify_mode = ssl.CERT_REQUIRED
        written = base64.b64encode(cert.read_bytes()).decode()
        key = base64.b64encode((tmp_path / "key.pem").read_bytes()).decode()

        async def answer(_request: Any, writer: asyncio.StreamWriter) -> None:
            body = b'{"kind": "Namespace"}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

        async def reach(user: dict[str, Any], server: dict[str, Any]) -> Any:
            path = _kubeconfig(tmp_path, user, server)
            http = Http()
            client = KubernetesClient(
                access(ClusterSettings(kubeconfig=path), VirtualClock()), http.call, VirtualClock()
            )
            try:
                return await client.get("/api/v1/namespaces/default")
            finally:
                await client.aclose()
                await http.aclose()

        with serve(answer, tls) as served:
            place = {"server": served.url}
            by_data = {"client-certificate-data": written, "client-key-data": key}
            by_file = {"client-certificate": "cert.pem", "client-key": "key.pem"}
            trusted = {**place, "certificate-authority-data": written}
            for user in (by_data, by_file):
                assert asyncio.run(reach(user, trusted)) == {"kind": "Namespace"}
            with pytest.raises(KubernetesError):
                asyncio.run(reach(by_data, place))  # an authority that nobody named
            with pytest.raises(KubernetesError):
                asyncio.run(reach({}, trusted))  # nobody that the server knows


# -- quantities ----------------------------------------------------------------------------------------------------------

SUFFIXES = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": 1, "k": 10**3, "M": 10**6,
            "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
            "Pi": 2**50, "Ei": 2**60}  # fmt: skip


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(sorted(SUFFIXES)))
def test_every_quantity_is_the_number_that_it_says(whole: int, thousandths: int, suffix: str) -> None:
    exact = (whole + Fraction(thousandths, 1000)) * SUFFIXES[suffix]
    assert quantity(f"{whole}.{thousandths:03d}{suffix}") == pytest.approx(float(exact), rel=1e-12)


@given(st.text(max_size=8))
def test_a_text_is_a_finite_number_or_none(text: str) -> None:
    found = quantity(text)
    assert found is None or abs(found) < float("inf")


@pytest.mark.parametrize("text", ["", "Gi", "nan", "inf", "1_000", "1 Gi", "1gb", None, True, [], {}])
def test_what_is_no_quantity(text: Any) -> None:
    assert quantity(text) is None


def test_numbers_as_they_come() -> None:
    assert [quantity(q) for q in (2, 0.5, "1e3", "2E3", "1E")] == [2.0, 0.5, 1000.0, 2000.0, 1e18]


# -- the client ------------------------------------------------------------------------------------------------------------


def test_lists_come_page_after_page(fake: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_PAGE", 2)
    for i in range(5):
        fake.cluster.create("nodes", "", {"metadata": {"name": f"n{i}"}})

    async def story(client: KubernetesClient) -> list[str]:
        return [item["metadata"]["name"] async for item in client.items("/api/v1/nodes")]

    assert asked(fake, story) == [f"n{i}" for i in range(5)]
    assert len(fake.requests) == 3


def test_after_429_nobody_is_asked_before_the_time(fake: FakeKubernetes) -> None:
    fake.cluster.throttle_s = 7

    async def story(client: KubernetesClient) -> None:
        for _ in range(2):
            with pytest.raises(KubernetesError) as refused:
                await client.get("/api/v1/nodes")
            assert (refused.value.kind, refused.value.retry_after_s) == ("throttled", 7.0)
        assert len(fake.requests) == 1
        assert isinstance(client.clock, VirtualClock)
        client.clock.set(client.clock.now() + 8.0)
        assert (await client.get("/api/v1/nodes"))["items"] == []

    asked(fake, story)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (409, "the object has been modified", "conflict"),
        (403, "pods is forbidden: exceeded quota: gpus", "quota"),
        (403, "cannot list resource", "denied"),
        (401, "Unauthorized", "denied"),
        (404, "not found", "missing"),
        (422, "is invalid", "invalid"),
        (415, "unknown media type", "invalid"),
        (429, "too many requests", "throttled"),
        (410, "the provided continue parameter is too old", "unreachable"),
        (500, "etcd is away", "unreachable"),
        (503, "", "unreachable"),
    ],
)
def test_each_refusal_has_its_kind(status: int, message: str, kind: str) -> None:
    error = refusal("GET /x", status, {"message": message}, {"retry-after": "3"})
    assert error.kind == kind
    assert error.detail.startswith("GET /x: ")


def test_an_answer_that_is_no_json_and_a_server_that_is_not_there(tmp_path: Path) -> None:
    async def answer(_request: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")

    async def ask(url: str) -> None:
        http = Http()
        way = access(ClusterSettings(server=url), VirtualClock())
        with pytest.raises(KubernetesError):
            await KubernetesClient(way, http.call, VirtualClock()).get("/api")
        await http.aclose()

    with serve(answer) as served:
        asyncio.run(ask(served.url))
    asyncio.run(ask(served.url))  # it has gone


# -- lists -----------------------------------------------------------------------------------------------------------------


def test_a_thousand_questions_are_one_list_each(fake: FakeKubernetes) -> None:
    for i in range(20):
        fake.cluster.create("deployments", "default", manifest(f"chat-{i}", 1))
    fake.requests.clear()

    async def story(client: KubernetesClient) -> None:
        known = inventory(Sessions(), client)
        ids = [WorkloadId("default", "Deployment", f"chat-{i}") for i in range(20)]
        assert len(await asyncio.gather(*(known.workload(i) for i in ids))) == 20

    asked(fake, story)
    assert len(fake.requests) == 4  # deployments, scaled objects, autoscalers, pods


# -- discovery -------------------------------------------------------------------------------------------------------------


def test_what_serves_models_is_found_and_nothing_else(fake: FakeKubernetes) -> None:
    create = fake.cluster.create
    create("deployments", "default", manifest("by-image", 2))
    web = manifest("web", 1, gpus=0)
    web["spec"]["template"]["spec"]["containers"] = [
        {"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}]}
    ]
    create("deployments", "default", web)
    by_port = manifest("by-port", 1)
    by_port["spec"]["template"]["spec"]["containers"][0]["image"] = "registry.invalid/ours:1"
    by_port["spec"]["template"]["spec"]["containers"][0]["args"] = []
    create("statefulsets", "default", by_port)
    by_label = manifest("by-label", 1, gpus=0, **{"flyball.dev/endpoint": "yes"})
    by_label["spec"]["template"]["spec"]["containers"] = [{"name": "own", "image": "ours", "command": ["serve"]}]
    create("deployments", "other", by_label)
    by_command = manifest("by-command", 1, gpus=0)
    by_command["spec"]["template"]["spec"]["containers"] = [
        {"name": "own", "image": "ours", "command": ["vllm", "serve", "org/model-7b"]}
    ]
    create("deployments", "other", by_command)
    found = {f.name: f for f in discovered(fake)}
    assert set(found) == {"by-image", "by-port", "by-label", "by-command"}
    assert found["by-port"].settings["actuator"]["options"]["kind"] == "StatefulSet"
    assert found["by-image"].settings["model"] == "tiny"
    assert found["by-command"].settings["model"] == "org/model-7b"
    assert "no Service selects its pods" in found["by-image"].note
    assert {f.name for f in discovered(fake, namespace="other")} == {"by-label", "by-command"}
    assert fake.writes == []


def test_an_entry_is_an_endpoints_settings_and_holds_no_secret(fake: FakeKubernetes) -> None:
    fake.cluster.create("deployments", "default", manifest("chat", 2))
    service = {"metadata": {"name": "front"}, "spec": {"selector": {"app": "chat"}, "ports": [{"port": 80}]}}
    fake.cluster.create("services", "default", service)
    (found,) = discovered(fake)
    entry = EndpointSettings(**found.settings)
    assert (entry.url, entry.mode) == ("http://front.default.svc:80", "observe")
    options = found.settings["actuator"]["options"]
    assert options == {
        "namespace": "default",
        "kind": "Deployment",
        "name": "chat",
        "server": fake.url,
        "token": "${KUBERNETES_TOKEN}",
    }
    assert TOKEN not in json.dumps(found.settings)


def test_who_owns_what_is_noted(fake: FakeKubernetes) -> None:
    labels = {"argocd.argoproj.io/instance": "models"}
    fake.cluster.create("deployments", "default", manifest("chat", 2, **labels))
    fake.cluster.create("horizontalpodautoscalers", "default", HPA)
    (found,) = discovered(fake)
    assert "HorizontalPodAutoscaler chat sets the count" in found.note
    assert "argocd owns the manifest (models)" in found.note
    fake.cluster.create("scaledobjects", "default", SCALED_OBJECT)
    (found,) = discovered(fake)
    assert "ScaledObject chat sets the count" in found.note


def test_two_of_one_name_in_two_namespaces_are_two_entries(fake: FakeKubernetes) -> None:
    fake.cluster.create("deployments", "a", manifest("chat", 1))
    fake.cluster.create("deployments", "b", manifest("chat", 1))
    assert [f.name for f in discovered(fake)] == ["chat", "chat-b"]


def test_keda_and_leader_worker_sets_need_not_be_installed(fake: FakeKubernetes) -> None:
    fake.cluster.create("deployments", "default", manifest("chat", 2))
    group = manifest("large", 1)
    inner = group["spec"].pop("template")
    group["spec"]["leaderWorkerTemplate"] = {"size": 2, "workerTemplate": inner}
    fake.cluster.create("leaderworkersets", "default", group)
    assert [f.name for f in discovered(fake)] == ["chat", "large"]
    fake.cluster.installed.clear()
    assert [f.name for f in discovered(fake)] == ["chat"]


def test_options_that_are_none_are_named(fake: FakeKubernetes) -> None:
    with pytest.raises(CollectError, match=r"kubernetes: colour.*known: .*namespace"):
        discovered(fake, colour="red")


# -- permissions -----------------------------------------------------------------------------------------------------------


def _permitted(fake: FakeKubernetes, entry: dict[str, Any] | None) -> list[Permission]:
    async def story() -> list[Permission]:
        async with context(fake) as where:
            return list(await KubernetesSystem().permitted(where, entry))

    return asyncio.run(story())


def test_what_is_lacking_is_asked_of_the_server_and_named(fake: FakeKubernetes) -> None:
    fake.cluster.create("deployments", "default", manifest("chat", 2))
    (found,) = discovered(fake)
    options = {**found.settings["actuator"]["options"], "token": TOKEN}
    entry = {**found.settings, "actuator": {"system": "kubernetes", "options": options}}
    assert all(p.granted for p in _permitted(fake, entry))
    fake.cluster.denied = {("patch", "deployments/scale"), ("list", "nodes")}
    lacking = {(p.name, p.what_for, p.detail) for p in _permitted(fake, entry) if not p.granted}
    assert lacking == {
        ("patch deployments/scale.apps", "change", "in namespace default"),
        ("list nodes", "see", "in namespace default"),
    }
    names = {p.name for p in _permitted(fake, entry)}
    assert not any("statefulsets" in n or "leaderworkersets" in n for n in names), "not what it is not"
    assert {p.what_for for p in _permitted(fake, None)} == {"see"}
    assert fake.writes == []


def test_the_role_is_yaml_and_says_just_what_is_needed() -> None:
    made = list(yaml.safe_load_all(role()))
    assert [d["kind"] for d in made] == ["ClusterRole", "ServiceAccount", "ClusterRoleBinding"]
    granted = {
        (verb, group, resource)
        for rule in made[0]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    needed = {(verb, group, f"{resource}/{sub}" if sub else resource) for verb, group, resource, sub, _ in _NEEDS}
    assert needed <= granted
    assert {(g, r) for _, g, r in granted} == {(g, r) for _, g, r in needed}
    assert {verb for verb, _, _ in granted} == {"get", "list", "patch"}, (
        "nothing is created, deleted, or read of secrets"
    )


def test_kserve_and_knative_are_found_under_their_own_names_and_what_they_make_is_not(fake: FakeKubernetes) -> None:
    model = {"modelFormat": {"name": "huggingface"}, "args": ["--model_name=llama"]}
    predictor = {"minReplicas": 1, "maxReplicas": 3, "model": model}
    fake.cluster.create("inferenceservices", "prod", {"metadata": {"name": "llama"}, "spec": {"predictor": predictor}})
    made = manifest("llama-predictor-00001-deployment", 1)
    made["metadata"]["labels"] = {"serving.kserve.io/inferenceservice": "llama"}
    fake.cluster.create("deployments", "prod", made)
    spec = {
        "template": {"spec": {"containers": [{"name": "c", "image": "vllm/vllm-openai", "args": ["--model", "m"]}]}}
    }
    fake.cluster.create("ksvc", "prod", {"metadata": {"name": "by-knative"}, "spec": spec})
    fake.cluster.create(
        "ksvc",
        "prod",
        {"metadata": {"name": "shop"}, "spec": {"template": {"spec": {"containers": [{"image": "shop"}]}}}},
    )
    found = {
        f.name: f
        for f in discovered(fake, namespace="prod")
        if f.settings["actuator"]["options"]["kind"] not in ("Deployment", "StatefulSet")
    }
    assert set(found) == {"llama", "by-knative"}
    assert not [f for f in discovered(fake, namespace="prod") if "predictor" in f.name]
    assert found["llama"].settings["url"] == "http://llama.prod.example.com"
    assert found["llama"].settings["actuator"]["options"]["kind"] == "InferenceService"
    assert found["by-knative"].settings["model"] == "m"


def test_only_who_serves_by_kserve_needs_its_permissions(fake: FakeKubernetes) -> None:
    held = {
        "kind": "InferenceService",
        "name": "llama",
        "namespace": "default",
        "server": fake.url,
        "token": "flyball-token",
    }
    entry = {"actuator": {"options": held}}
    names = {p.name for p in _permitted(fake, entry)}
    assert {"list inferenceservices.serving.kserve.io", "patch inferenceservices.serving.kserve.io"} <= names
    assert not [n for n in names if "knative" in n or "deployments" in n]
