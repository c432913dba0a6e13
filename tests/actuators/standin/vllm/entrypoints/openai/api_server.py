"""A stand-in for vLLM's server in process tests: a real process with the same command line, health, models and a stream.

No model, no batching: it is here because starting, adopting, draining and killing real processes does not need one.
"""

import argparse
import http.server
import json
import os
import signal
import subprocess
import sys
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--fail-at-start", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--with-child", action="store_true")
    parser.add_argument("--health-after", type=float, default=0.0)
    return parser.parse_args()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200 if time.monotonic() - STARTED >= OPTIONS.health_after else 503, {})
        elif self.path == "/v1/models":
            self.answer(200, {"data": [{"id": OPTIONS.served_model_name}]})
        else:
            self.answer(200, {"pid": os.getpid(), "max_num_seqs": OPTIONS.max_num_seqs})

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(wanted["tokens"]):
            self.chunk(f"data: {OPTIONS.max_num_seqs} {number}\n\n".encode())
            time.sleep(wanted["every_s"])
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


STARTED = time.monotonic()
OPTIONS = arguments()
if __name__ == "__main__":
    sys.stdout.write(f"stand-in started with {sys.argv[1:]}\n")
    sys.stdout.flush()
    if OPTIONS.fail_at_start:
        sys.exit("ValueError: the stand-in was told to fail")
    if OPTIONS.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if OPTIONS.with_child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    http.server.ThreadingHTTPServer((OPTIONS.host, OPTIONS.port), Handler).serve_forever()
