"""SkyServe's own request-rate autoscaler, on the time that it is told. Runs in SkyPilot's own environment, line by line.

First line: {"least", "most", "target", "replicas"} and, where they are not SkyServe's defaults, {"upscale_delay_seconds",
"downscale_delay_seconds"}. Then, per decision, {"at", "arrived"}: requests since the last one; answered by {"wanted"}.
"""

import json
import sys
from types import SimpleNamespace

from sky.serve import autoscalers, constants, service_spec

stated = json.loads(sys.stdin.readline())
delays = {name: stated[name] for name in ("upscale_delay_seconds", "downscale_delay_seconds") if name in stated}
spec = service_spec.SkyServiceSpec(
    readiness_path="/health",
    initial_delay_seconds=1200,
    readiness_timeout_seconds=15,
    endpoint_probe_interval_seconds=10,
    lb_stream_timeout_seconds=120,
    min_replicas=stated["least"],
    max_replicas=stated["most"],
    target_qps_per_replica=stated["target"],
    **delays,
)
scaler = autoscalers.Autoscaler.from_spec("chat", spec)
scaler.target_num_replicas = stated["replicas"]  # a service that was scaled before
clock = SimpleNamespace(now=0.0)
autoscalers.time = SimpleNamespace(time=lambda: clock.now)
autoscalers.logger.disabled = True
every = constants.AUTOSCALER_DEFAULT_DECISION_INTERVAL_SECONDS
for line in sys.stdin:
    seen = json.loads(line)
    clock.now, n = seen["at"], seen["arrived"]
    scaler.collect_request_information({"timestamps": [clock.now - every * (1 - (i + 1) / n) for i in range(n)]})
    scaler._generate_scaling_decisions([])
    print(json.dumps({"wanted": scaler.get_final_target_num_replicas()}), flush=True)
