"""A real llama-server of Debian's in a folder of its own (`.ci/install-llamacpp`), with a model of random weights that is written here."""

from __future__ import annotations

import os
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.actuators.support import free_port
from tests.real.conftest import REFUSED

ROOTFS = Path(os.environ.get("FLYBALL_TEST_LLAMACPP") or Path(__file__).parents[2] / ".llamacpp")
_WIDTH, _LAYERS, _HEADS, _INNER, _CONTEXT = 64, 2, 4, 128, 2048
#: Types of GGUF's values, and of a token.
_UINT32, _FLOAT32, _STRING, _ARRAY, _INT32 = 4, 6, 8, 9, 5
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6


class RunningLlama:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"


@contextmanager
def llama_server(*arguments: str) -> Iterator[RunningLlama]:
    """Skips where it is not installed, or may not be run."""
    program = ROOTFS / "usr/bin/llama-server"
    if os.geteuid() != 0:
        pytest.skip(f"{REFUSED}: only root may use chroot")
    if not program.exists():
        pytest.skip(f"no llama-server: {program} is missing; run .ci/install-llamacpp, or set FLYBALL_TEST_LLAMACPP")
    (ROOTFS / "tiny.gguf").write_bytes(tiny_model())
    port = free_port()
    words = [
        "chroot",
        str(ROOTFS),
        "llama-server",
        "-m",
        "/tiny.gguf",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *arguments,
    ]
    log = ROOTFS / "server.log"
    with log.open("wb") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, cwd="/", start_new_session=True)
    try:
        running = RunningLlama(port)
        end = time.monotonic() + 60
        while not _healthy(running.url):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < end, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def tiny_model() -> bytes:
    """A GGUF of version 3: two layers of Llama, one token for each byte. Format: ggml's docs/gguf.md."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (_STRING, "llama"),
        "general.name": (_STRING, "tiny"),
        "llama.context_length": (_UINT32, _CONTEXT),
        "llama.embedding_length": (_UINT32, _WIDTH),
        "llama.block_count": (_UINT32, _LAYERS),
        "llama.feed_forward_length": (_UINT32, _INNER),
        "llama.attention.head_count": (_UINT32, _HEADS),
        "llama.attention.head_count_kv": (_UINT32, _HEADS),
        "llama.attention.layer_norm_rms_epsilon": (_FLOAT32, 1e-5),
        "llama.rope.dimension_count": (_UINT32, _WIDTH // _HEADS),
        "llama.vocab_size": (_UINT32, len(tokens)),
        "tokenizer.ggml.model": (_STRING, "llama"),
        "tokenizer.ggml.tokens": (_ARRAY, (_STRING, tokens)),
        "tokenizer.ggml.scores": (_ARRAY, (_FLOAT32, [0.0] * len(tokens))),
        "tokenizer.ggml.token_type": (_ARRAY, (_INT32, kinds)),
        "tokenizer.ggml.unknown_token_id": (_UINT32, 0),
        "tokenizer.ggml.bos_token_id": (_UINT32, 1),
        "tokenizer.ggml.eos_token_id": (_UINT32, 2),
    }
    shapes = {"token_embd": (len(tokens), _WIDTH), "output_norm": (_WIDTH,), "output": (len(tokens), _WIDTH)}
    for layer in range(_LAYERS):
        own = {"attn_norm": (_WIDTH,), "ffn_norm": (_WIDTH,), "ffn_down": (_WIDTH, _INNER)}
        own |= dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (_WIDTH, _WIDTH))
        own |= dict.fromkeys(("ffn_gate", "ffn_up"), (_INNER, _WIDTH))
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    rng = np.random.default_rng(7)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys))
    head += b"".join(
        _text(name) + struct.pack("<I", kind) + _value(kind, value) for name, (kind, value) in keys.items()
    )
    data = b""
    for name, shape in shapes.items():
        dimensions = shape[::-1]  # ggml counts from the innermost
        head += _text(f"{name}.weight") + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}QIQ", *dimensions, 0, len(data))
        values = np.ones(shape) if len(shape) == 1 else rng.normal(0, 0.2, shape)
        data += _padded(values.astype("<f4").tobytes())
    return _padded(head) + data


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind == _ARRAY:
        of, items = value
        return struct.pack("<IQ", of, len(items)) + b"".join(_value(of, item) for item in items)
    return struct.pack({_UINT32: "<I", _FLOAT32: "<f", _INT32: "<i"}[kind], value)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 32)
