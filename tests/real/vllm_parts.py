"""A real vLLM server (CPU build) for tests: where it is installed, a tiny model with random weights, and its environment.

The model and its tokenizer are made on the spot by vLLM's own interpreter: nothing is downloaded. The tiny model's speed means nothing:
an iteration of it is mostly processes that wake each other. Where times are compared, take ``LARGER``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.actuators.support import free_port

MODEL_NAME = "tiny"
MAX_MODEL_LEN = 2048

#: Sizes of a model whose iterations are arithmetic (13 ms and more on one core), beside which scheduling, HTTP and the client are small.
LARGER: Mapping[str, int] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}

#: Environment of a replica: offline, one small KV cache, few threads.
ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}

#: Arguments of a replica beside its engine limits, by their vLLM names.
ARGUMENTS: Mapping[str, Any] = {
    "load_format": "dummy",
    "max_model_len": MAX_MODEL_LEN,
    "enforce_eager": True,
    "dtype": "bfloat16",
}

_MAKE_MODEL = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

folder = Path(sys.argv[1])
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
)
tokenizer.train_from_iterator(["the governor measures the engine and moves the valve"] * 50, trainer)
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
fast.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}assistant:"
fast.save_pretrained(folder)
config = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}
(folder / "config.json").write_text(json.dumps({**config, **json.loads(sys.argv[2])}))
"""


def vllm_python() -> str:
    """The interpreter that has vLLM. Skips the test, with what to do, where there is none."""
    own = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
    path = Path(os.environ.get("FLYBALL_TEST_VLLM_PYTHON") or own)
    if not path.exists():
        pytest.skip(f"no vLLM: {path} is missing; run .ci/install-vllm, or set FLYBALL_TEST_VLLM_PYTHON")
    return str(path)


def tiny_model(folder: Path, sizes: Mapping[str, int] | None = None) -> Path:
    """A folder with the model's config and tokenizer, made once for each ``folder``. ``sizes``: where they differ from the tiny ones."""
    model = folder / "tiny-model"
    if not (model / "config.json").exists():
        model.mkdir(parents=True, exist_ok=True)
        command = [vllm_python(), "-c", _MAKE_MODEL, str(model), json.dumps(dict(sizes or {}))]
        made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, timeout=300)
        assert made.returncode == 0, f"the tiny model could not be made:\n{made.stderr[-2000:]}"
    return model


def off_one_core(folder: Path) -> str:
    """vLLM's interpreter, kept off the first core: its processes wait for each other in loops that never sleep, and on two cores
    whatever watches them starves beside them for half a minute at a time. Two servers are slow so; for one it makes no difference."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return vllm_python()
    script = folder / "vllm-python"
    others = ",".join(map(str, cores[1:]))
    script.write_text(f'#!/bin/sh\nexec taskset -c {others} {shlex.quote(vllm_python())} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return str(script)


def vllm_options(folder: Path, sizes: Mapping[str, int] | None = None, **more: Any) -> dict[str, Any]:
    """Options of the system ``vllm-local`` that deploy the tiny model, or one of other ``sizes``."""
    return {
        "python": vllm_python(),
        "model": str(tiny_model(folder, sizes)),
        "served_model_name": MODEL_NAME,
        "args": dict(ARGUMENTS),
        "env": dict(ENVIRONMENT),
        "ready_timeout_s": 600.0,
        **more,
    }


@contextmanager
def serving(folder: Path, **more: Any) -> Iterator[str]:
    """A server of the tiny model, started as a user would, for as long as the block lasts. Gives its address; its log is ``vllm.log``.

    ``more``: vLLM's arguments beside ``ARGUMENTS``, by their names.
    """
    port = free_port()
    arguments = {"model": tiny_model(folder), "served_model_name": MODEL_NAME, "host": "127.0.0.1", "port": port}
    command = [vllm_python(), "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in {**arguments, **ARGUMENTS, **more}.items():
        command += [f"--{name.replace('_', '-')}", *(() if value is True else (str(value),))]
    log = folder / "vllm.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **ENVIRONMENT})
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(1)
        else:
            return
    raise AssertionError(f"vLLM did not come up:\n{log.read_text(errors='replace')[-2000:]}")
