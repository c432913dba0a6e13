"""Ray Serve's own policy, with its delays and bounds, on the time that it is told. Runs in Ray's own environment, line by line.

First line: {"least", "most", "target", "upscale_delay_s", "downscale_delay_s"}; where one is absent, Ray's default. Then, per decision,
{"at", "ready", "wanted", "requests"}, requests being the mean of its look-back period; answered by {"wanted"}.
"""

import json
import sys
from types import SimpleNamespace

from ray.serve import autoscaling_policy as policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

stated = json.loads(sys.stdin.readline())
names = {"least": "min_replicas", "most": "max_replicas", "target": "target_ongoing_requests"}
config = AutoscalingConfig(**{names.get(name, name): value for name, value in stated.items()})
decide = policy._apply_autoscaling_config(policy.default_autoscaling_policy)
clock = SimpleNamespace(now=0.0)
policy.time = SimpleNamespace(time=lambda: clock.now)
state = {}
for line in sys.stdin:
    seen = json.loads(line)
    clock.now = seen["at"]
    context = AutoscalingContext(
        deployment_id=DeploymentID("chat"),
        deployment_name="chat",
        app_name=None,
        current_num_replicas=seen["ready"],
        target_num_replicas=seen["wanted"],
        running_replicas=[],
        total_num_requests=seen["requests"],
        total_queued_requests=None,
        aggregated_metrics=None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state=state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=clock.now,
        config=config,
    )
    wanted, state = decide(context)
    wanted = max(config.min_replicas, min(config.max_replicas, wanted))
    print(json.dumps({"wanted": wanted}), flush=True)
