"""What a metrics page is, by the names on it: whoever asks for one program's page and gets another's is told what it is and what to do.

Owns the table of signs, for all sources that read a page. Does no I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PageSign:
    """One program that is known by its names."""

    what: str
    """Whose page it is."""
    do: str
    """The next step of whoever wants to watch an endpoint there."""
    pattern: re.Pattern[bytes]
    """Found in its page, in a sample or in a comment of one."""
    source: str | None = None
    """The collector that reads the server behind this very address by it. None: there is none."""


def _names(names: str) -> re.Pattern[bytes]:
    return re.compile(rb"^(?:# (?:HELP|TYPE) )?(?:" + names.encode() + rb")", re.MULTILINE)


_PROBE = "No source reads it: measure from outside with `sources: {probe: {}}`"
_BEHIND = "It tells nothing of the engine: give the address of the engine behind it, or measure from outside with `sources: {probe: {}}`"
_PROXY = "It tells nothing of the engine: give the address of the engine behind it; `sources: {litellm: {}}` reads the proxy's own counts"
_BALANCER = "It tells nothing of the engine: give the address of the engine behind it; `sources: {haproxy: {}}` reads the balancer's own counts"
_SERVE = "It tells nothing of the engine: give the address of the engine behind it; `sources: {ray-serve: {}}` reads Serve's own counts"
_NOMAD = "It tells nothing of the engine: give the address of an allocation; `sources: {nomad: {}}` reads what Nomad knows of a job"

#: The most telling first: a page may have signs of several (a router that is a Python program).
SIGNS: tuple[PageSign, ...] = (
    PageSign(
        "vLLM's",
        "Read it with `sources: {vllm: {}}`",
        re.compile(rb'^vllm:\w+\{[^}\n]*model_name="', re.MULTILINE),
        source="vllm",
    ),
    PageSign(
        "the vLLM production stack's router, which has vLLM's names by server and no model_name label",
        "Read the vLLM servers behind it: the addresses in its `server` labels, each pod by `actuator: {system: kubernetes}`, "
        "or all of them through a Prometheus: `sources: {prometheus: {url: ..., preset: [vllm]}}`",
        re.compile(rb'^vllm:\w+\{[^}\n]*\bserver="|^(?:# (?:HELP|TYPE) )?vllm_router[:_]', re.MULTILINE),
    ),
    PageSign(
        "Ray's, which writes ray_vllm_ where vLLM writes vllm:",
        "Scrape it by a Prometheus that names them back (metric_relabel_configs: source_labels `[__name__]`, regex `ray_vllm[_:](.+)`, "
        "replacement `vllm:$1`, target_label `__name__`) and read that: `sources: {prometheus: {url: ..., preset: [vllm]}}`; "
        "or measure from outside with `sources: {probe: {}}`",
        _names("ray_vllm[_:]"),
    ),
    PageSign("SGLang's", "Read it with `sources: {sglang: {}}`", _names("sglang[:_]"), source="sglang"),
    PageSign("TGI's (Text Generation Inference)", "Read it with `sources: {tgi: {}}`", _names("tgi_"), source="tgi"),
    PageSign("llama.cpp's", "Read it with `sources: {llamacpp: {}}`", _names("llamacpp:"), source="llamacpp"),
    PageSign(
        "Dynamo's frontend or a worker of it",
        "No source reads Dynamo's own names. A vLLM or SGLang worker of it may have a metrics page of its own "
        "(`sources: {vllm: {url: ...}}`); otherwise measure from outside with `sources: {probe: {}}`",
        _names("dynamo_|nv_llm_"),
    ),
    PageSign(
        "Triton's",
        "Read it with `sources: {triton: {url: ...}}`; of a model on its vLLM backend, start it with `--metrics-config` so that vLLM's "
        "names are there too",
        _names("nv_(?:inference|gpu|cpu|model|energy|cache|pinned)"),
    ),
    PageSign("the LiteLLM proxy's", _PROXY, _names("litellm_")),
    PageSign("HAProxy's", _BALANCER, _names("haproxy_")),
    PageSign("Nomad's, of an agent", _NOMAD, _names("nomad_")),
    PageSign("Envoy's", _BEHIND, _names("envoy_")),
    PageSign("NGINX's", _BEHIND, _names("nginx_")),
    PageSign("Ray's, without any vLLM on it", _SERVE, _names("ray_")),
    PageSign(
        "TEI's (Text Embeddings Inference)",
        "Read it with `sources: {tei: {}}`",
        _names("te_(?:request|queue|embed|batch)"),
        source="tei",
    ),
    PageSign("LMDeploy's", _PROBE, _names("lmdeploy:")),
    PageSign("TensorRT-LLM's", _PROBE, _names("trtllm_")),
    PageSign(
        "DCGM's exporter, of the GPUs alone",
        "Give the engine's own address; the GPUs can be read through a Prometheus: `preset: [vllm, dcgm]`",
        _names("DCGM_FI_"),
    ),
    PageSign("the node exporter's, of a host", "Give the engine's own address", _names("node_(?:cpu|memory|load)")),
    PageSign(
        "a Prometheus-compatible store's own",
        "Ask it for the endpoint's series: `sources: {prometheus: {url: ...}}`",
        _names("prometheus_(?:tsdb|build_info|engine|http)|vm_(?:rows|http|app)|vmagent_"),
    ),
    PageSign(
        "some program's with a Prometheus client, and no engine's that is known",
        "Give the engine's own address, maybe another port; an unknown engine is measured from outside with `sources: {probe: {}}`",
        _names("python_|process_|go_|http_requests?_"),
    ),
)


def sign_of(page: bytes) -> PageSign | None:
    """Whose page it is; None where no name on it is known."""
    return next((sign for sign in SIGNS if sign.pattern.search(page)), None)


def told_apart(page: bytes, wanted: str) -> str:
    """A sentence for whoever wanted another program's page: whose it is, and the next step. wanted: ``vLLM's``."""
    sign = sign_of(page)
    if sign is not None and sign.what != wanted:
        return f"this page is {sign.what}. {sign.do}"
    return (
        f"the page has metrics, but none of {wanted}. Check the address; "
        "an engine that has no source here is measured from outside with `sources: {probe: {}}`"
    )
