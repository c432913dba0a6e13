"""Sizes of published models: the names as servers spell them, their parameters, and what of a mixture is read."""

from __future__ import annotations

import pytest

from analyzers.architecture import MODELS, Architecture, find_architecture


@pytest.mark.parametrize(
    ("name", "total_billions", "active_billions"),
    [
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.7, 12.9),
        ("Qwen/Qwen3-30B-A3B", 30.5, 3.3),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", 235, 22),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", 480, 35),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 80, 3),
        ("Qwen/Qwen3.5-397B-A17B", 397, 17),
        ("deepseek-ai/DeepSeek-V3-0324", 671, 37),
        ("deepseek-ai/DeepSeek-R1-0528", 671, 37),
        ("moonshotai/Kimi-K2-Instruct", 1000, 32),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 48, 3),
        ("openai/gpt-oss-120b", 117, 5.1),
        ("zai-org/GLM-4.5", 355, 32),
        ("zai-org/GLM-4.5-Air-FP8", 106, 12),
        ("zai-org/GLM-4.6", 355, 32),
        ("zai-org/GLM-4.7-Flash", 30, 3),
        ("zai-org/GLM-5", 744, 40),
        ("MiniMaxAI/MiniMax-M2.5", 230, 10),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 109, 17),
        ("meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8", 400, 17),
        ("baidu/ERNIE-4.5-21B-A3B-PT", 21, 3),
        ("baidu/ERNIE-4.5-300B-A47B-PT", 300, 47),
        ("stepfun-ai/Step-3.5-Flash", 196, 11),
    ],
)
def test_a_mixture_is_as_large_as_it_is_published(name: str, total_billions: float, active_billions: float) -> None:
    found = find_architecture(name)
    assert found is not None
    assert found.experts > found.experts_active > 0
    assert found.parameters / 1e9 == pytest.approx(total_billions, rel=0.06)
    assert found.parameters_active / 1e9 == pytest.approx(active_billions, rel=0.3)


def test_all_parameters_are_common_routed_or_the_input_embedding() -> None:
    for found in MODELS.values():
        embedding = found.vocabulary * found.hidden
        assert found.parameters_common + found.parameters_routed + embedding == found.parameters
        active = found.parameters_common + found.expert_share * found.parameters_routed
        assert active == pytest.approx(found.parameters_active, rel=1e-9)


def test_a_config_of_layers_with_and_without_a_growing_cache_is_read() -> None:
    config = {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
        "vocab_size": 151936, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "full_attention_interval": 4, "intermediate_size": 0,
    }  # fmt: skip
    found = Architecture.from_config(config)
    known = MODELS["qwen3-next-80b-a3b"]
    assert (found.parameters, found.kv_bytes_per_token()) == (known.parameters, known.kv_bytes_per_token())
    layered = {**config, "layer_types": ["linear_attention", "full_attention"] * 24}
    assert Architecture.from_config(layered).kv_bytes_per_token() == 2 * known.kv_bytes_per_token()
