"""moto's server in this process, behind a layer of our own.

The layer adds what moto 5.2 lacks: endpoints that take time to update and refuse a second change meanwhile, ``UpdateEndpoint``, quantiles of
CloudWatch, verdicts of IAM, the price list, Bedrock's provisioned throughput, capacity and quota that run out; and it refuses what moto allows
and Amazon does not, such as another type of an instance that runs. Everything else is moto's own.
"""

from __future__ import annotations

import copy
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest import mock
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from botocore.session import Session
from moto.autoscaling.models import autoscaling_backends
from moto.cloudwatch.models import CloudWatchBackend, Statistics, cloudwatch_backends
from moto.ec2.models import ec2_backends
from moto.moto_api._internal.models import moto_api_backend
from moto.sagemaker.models import sagemaker_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT, REGION = "123456789012", "eu-west-1"
_SERVICE = re.compile(r"Credential=[^/]+/\d+/[a-z0-9-]+/([a-z0-9-]+)/aws4_request")
#: Who tests are to Amazon, by the environment; nobody asks the machine itself.
IDENTITY = {
    "AWS_ACCESS_KEY_ID": "AKIAFLYBALL",
    "AWS_SECRET_ACCESS_KEY": "very-secret-key",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
_READS = ("Describe", "Get", "List", "Simulate")
Answer = tuple[str, str, bytes]
Start = Callable[..., Any]


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        pass


@dataclass(frozen=True)
class _Update:
    """What an endpoint is on its way to."""

    due: float
    config: str
    variants: list[dict[str, Any]]
    fails: bool = False


@dataclass
class FakeAws:
    """One account. Use with ``with``: one at a time, as moto keeps one world in a process."""

    update_s: float = 0.0
    """From a change of an endpoint until it serves."""
    stop_s: float = 0.0
    """From the stop of an instance until it is stopped; starting takes as long, and so do a group's new instances."""
    denied: set[str] = field(default_factory=set)
    """Actions as IAM names them: ``sagemaker:UpdateEndpoint``."""
    simulates: bool = True
    """Whether IAM may be asked for verdicts."""
    throttled: int = 0
    """So many of the next requests are refused for their rate."""
    lost: int = 0
    """So many of the next writes are done, and their answers lost."""
    quota: int = 10
    """Instances that one variant may have."""
    no_capacity: set[str] = field(default_factory=set)
    """Instance types of which there are none: EC2 refuses to start, SageMaker's update fails and rolls back."""
    prices: dict[str, float] = field(default_factory=dict)
    """US dollars an hour by instance type."""
    provisioned: list[dict[str, Any]] = field(default_factory=list)
    """Bedrock's provisioned throughput."""
    sent: list[tuple[str, str]] = field(default_factory=list)
    """Service and action of each request."""
    writes: list[tuple[str, str]] = field(default_factory=list)
    """Those that were let through and are no reads; a dry run is one."""
    now: Callable[[], float] = time.monotonic
    tells: Callable[[str, str, Mapping[str, str], str, float], float | None] | None = None
    """What CloudWatch tells instead of what was put: namespace, metric, dimensions, statistic, the interval's start."""
    history: list[tuple[float, dict[str, tuple[str, int]]]] = field(default_factory=list)
    """Since when the endpoint serves on which instances, by variant: type and count."""
    heard: Callable[[str, str, bool], None] | None = None
    """Told of each request: service, action, and whether it writes."""
    url: str = ""
    _updates: dict[str, _Update] = field(default_factory=dict)
    _moves: dict[str, tuple[float, str, int]] = field(default_factory=dict)
    """By instance: when it has the state that comes next."""
    _pending: dict[str, float] = field(default_factory=dict)
    """By instance of a group: when it is in service."""
    _seen: set[str] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> FakeAws:
        moto_api_backend.reset()
        moto = DomainDispatcherApplication(create_backend_app)

        def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
            with self._lock:
                return self._answer(environ, start, moto)

        statistic = _statistic(Statistics.get_statistics_for_type)
        self._patches = [
            mock.patch.object(Statistics, "get_statistics_for_type", statistic),
            mock.patch.object(CloudWatchBackend, "get_metric_data", _told(CloudWatchBackend.get_metric_data, self)),
        ]
        for patch in self._patches:
            patch.start()
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        for patch in self._patches:
            patch.stop()

    # -- what is there -------------------------------------------------------------------------------------------------

    def endpoint(self, name: str = "chat", variants: Mapping[str, tuple[str, int, float]] | None = None) -> str:
        """An endpoint by variants: instance type, instances, weight. Gives its configuration's name."""
        there = variants or {"AllTraffic": ("ml.g4dn.xlarge", 1, 1.0)}
        sagemaker = sagemaker_backends[ACCOUNT][REGION]
        stated = [
            {"VariantName": v, "ModelName": "model", "InstanceType": size, "InitialInstanceCount": count, "InitialVariantWeight": weight}
            for v, (size, count, weight) in there.items()
        ]  # fmt: skip
        if "model" not in sagemaker._models:
            role = f"arn:aws:iam::{ACCOUNT}:role/model"
            sagemaker.create_model("model", role, {"Image": "model"}, None, None, [])
        made = sagemaker.create_endpoint_config(
            endpoint_config_name=f"{name}-config",
            production_variants=stated,
            data_capture_config={},
            async_inference_config={},
            tags=[],
            kms_key_id="",
        )
        self.history.append((self.now(), {v: (size, count) for v, (size, count, _) in there.items()}))
        endpoint = sagemaker.create_endpoint(
            endpoint_name=name, endpoint_config_name=made.endpoint_config_name, tags=[]
        )
        endpoint.creation_time = endpoint.last_modified_time = datetime(2026, 1, 1)  # noqa: DTZ001  # as moto has times
        return str(made.endpoint_config_name)

    def variants(self, endpoint: str = "chat") -> dict[str, dict[str, Any]]:
        """An endpoint's variants as they are now."""
        self.settle()
        return {v["VariantName"]: v for v in self._endpoint(endpoint).production_variants}

    def config_of(self, endpoint: str = "chat") -> dict[str, Any]:
        self.settle()
        sagemaker = sagemaker_backends[ACCOUNT][REGION]
        name = self._endpoint(endpoint).endpoint_config_name
        found: dict[str, Any] = sagemaker.endpoint_configs[name].response_object
        return found

    def instance(self, size: str = "g4dn.xlarge", name: str = "chat") -> str:
        """An EC2 instance that runs."""
        ec2 = ec2_backends[ACCOUNT][REGION]
        image = next(iter(ec2.amis))
        tags = {"instance": {"Name": name}}
        made = ec2.run_instances(image, 1, "", [], instance_type=size, tags=tags, is_instance_type_default=False)
        return str(made.instances[0].id)

    def group(self, name: str, *, least: int, most: int, count: int, size: str = "g4dn.xlarge") -> None:
        """An Auto Scaling group with instances in service."""
        autoscaling = autoscaling_backends[ACCOUNT][REGION]
        client = _botocore("autoscaling", self.url)
        image = next(iter(ec2_backends[ACCOUNT][REGION].amis))
        client.create_launch_configuration(LaunchConfigurationName=f"{name}-lc", ImageId=image, InstanceType=size)
        client.create_auto_scaling_group(
            AutoScalingGroupName=name,
            LaunchConfigurationName=f"{name}-lc",
            MinSize=least,
            MaxSize=most,
            DesiredCapacity=count,
            AvailabilityZones=[f"{REGION}a"],
        )
        self._seen |= {i.instance.id for i in autoscaling.autoscaling_groups[name].instance_states}
        self.sent.clear()
        self.writes.clear()

    def policy(self, group: str, target: float) -> None:
        """A group's own autoscaling: by its mean use of the CPU."""
        tracked = {
            "TargetValue": target,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "ASGAverageCPUUtilization"},
        }
        _botocore("autoscaling", self.url).put_scaling_policy(
            AutoScalingGroupName=group,
            PolicyName="cpu",
            PolicyType="TargetTrackingScaling",
            TargetTrackingConfiguration=tracked,
        )
        self.writes.clear()

    def put(self, namespace: str, metric: str, at: float, values: Mapping[float, float], **dimensions: str) -> None:
        """Numbers of CloudWatch at one moment: how often each value was there."""
        cloudwatch = cloudwatch_backends[ACCOUNT][REGION]
        when = datetime.fromtimestamp(at, UTC).replace(tzinfo=None)
        named = [{"Name": k, "Value": v} for k, v in dimensions.items()]
        for value, times in values.items():
            for _ in range(round(times)):
                cloudwatch.put_metric_data(
                    namespace, [{"MetricName": metric, "Value": value, "Timestamp": when, "Dimensions": named}]
                )

    # -- time ----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """All that has come to its end by now."""
        now = self.now()
        with self._lock:
            for name, update in list(self._updates.items()):
                if now >= update.due:
                    self._land(name, update)
            ec2 = ec2_backends[ACCOUNT][REGION]
            for id_, (due, state, code) in list(self._moves.items()):
                if now >= due:
                    found = ec2.get_instance(id_)
                    found._state.name, found._state.code = state, code
                    del self._moves[id_]

    def _land(self, name: str, update: _Update) -> None:
        del self._updates[name]
        endpoint = self._endpoint(name)
        endpoint.endpoint_status = "InService"
        if update.fails:
            endpoint.failure_reason = (
                "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error."
            )
            return
        endpoint.failure_reason = None
        endpoint.endpoint_config_name = update.config
        endpoint.production_variants = update.variants
        for variant in update.variants:
            variant["CurrentInstanceCount"] = variant["DesiredInstanceCount"]
            variant["CurrentWeight"] = variant["DesiredWeight"]
        stated = sagemaker_backends[ACCOUNT][REGION].endpoint_configs[update.config].production_variants
        sizes = {v["VariantName"]: v["InstanceType"] for v in stated}
        served = {v["VariantName"]: (sizes[v["VariantName"]], int(v["CurrentInstanceCount"])) for v in update.variants}
        self.history.append((self.now(), served))

    def _endpoint(self, name: str) -> Any:
        found = sagemaker_backends[ACCOUNT][REGION].endpoints.get(name)
        if found is None:
            arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{name}"
            raise _Refused(400, "ValidationException", f'Could not find endpoint "{arn}".')
        return found

    # -- requests ------------------------------------------------------------------------------------------------------

    def _answer(self, environ: dict[str, Any], start: Start, moto: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        service, action, form = _request(environ, body)
        self.sent.append((service, action))
        dry = form.get("DryRun") == "true"
        write = not action.startswith(_READS) and not dry
        if self.heard is not None:
            self.heard(service, action, write)
        try:
            self._may(service, action)
            self.settle()
            status, kind, said = self._own(service, action, body, form, dry) or _passed(environ, moto)
            status, kind, said = self._after(service, action, form, (status, kind, said))
            if write and status.startswith("2"):
                self.writes.append((service, action))
                if self.lost:
                    self.lost -= 1
                    raise _Refused(503, "ServiceUnavailable", "the answer was lost")
        except _Refused as refused:
            status, kind, said = refused.answer(service)
        start(status, [("Content-Type", kind), ("Content-Length", str(len(said)))])
        return [said]

    def _may(self, service: str, action: str) -> None:
        name = f"{service}:{action}"
        if self.throttled:
            self.throttled -= 1
            raise _Refused(400, "ThrottlingException", "Rate exceeded")
        if name in self.denied:
            text = f"User: arn:aws:iam::{ACCOUNT}:user/flyball is not authorized to perform: {name} on resource: *"
            raise _Refused(
                403 if service == "ec2" else 400,
                "UnauthorizedOperation" if service == "ec2" else "AccessDeniedException",
                text,
            )

    def _own(self, service: str, action: str, body: bytes, form: Mapping[str, str], dry: bool) -> Answer | None:
        """The layer's own answer. None: it is moto's to answer."""
        match service, action:
            case "sagemaker", "UpdateEndpointWeightsAndCapacities":
                return self._scale(json.loads(body))
            case "sagemaker", "UpdateEndpoint":
                return self._update(json.loads(body))
            case "iam", "SimulatePrincipalPolicy":
                return self._simulate(form)
            case "pricing", "GetProducts":
                return self._products(json.loads(body))
            case "bedrock", "ListProvisionedModelThroughputs":
                return _json({"provisionedModelSummaries": self.provisioned})
            case "ec2", ("ModifyInstanceAttribute" | "StartInstances" | "StopInstances") if not dry:
                self._instance_may(action, form)
        return None

    def _after(self, service: str, action: str, form: Mapping[str, str], answer: Answer) -> Answer:
        """What moto answered, with what the layer knows better."""
        status, kind, said = answer
        if not status.startswith("2") or form.get("DryRun") == "true":
            return answer
        match service, action:
            case "sagemaker", "DescribeEndpoint":
                told = json.loads(said)
                update = self._updates.get(told["EndpointName"])
                if update is not None:
                    told["PendingDeploymentSummary"] = {
                        "EndpointConfigName": update.config,
                        "ProductionVariants": [
                            {k: v for k, v in one.items() if not k.startswith("Current")} for one in update.variants
                        ],
                    }
                return _json(told)
            case "ec2", "StopInstances":
                self._move(form["InstanceId.1"], ("stopping", 64), ("stopped", 80))
            case "ec2", "StartInstances":
                self._move(form["InstanceId.1"], ("pending", 0), ("running", 16))
            case "autoscaling", "DescribeAutoScalingGroups":
                return status, kind, self._groups(said)
        return answer

    # -- SageMaker -----------------------------------------------------------------------------------------------------

    def _scale(self, asked: Mapping[str, Any]) -> Answer:
        endpoint = self._settled(str(asked["EndpointName"]))
        variants = copy.deepcopy(endpoint.production_variants)
        by_name = {v["VariantName"]: v for v in variants}
        for one in asked["DesiredWeightsAndCapacities"]:
            if one["VariantName"] not in by_name:
                raise _Refused(
                    400,
                    "ValidationException",
                    f'The variant name(s) "{one["VariantName"]}" is/are not present within endpoint',
                )
            variant = by_name[one["VariantName"]]
            count = one.get("DesiredInstanceCount", variant["DesiredInstanceCount"])
            if count < 1:
                raise _Refused(400, "ValidationException", "DesiredInstanceCount must be at least 1")
            self._within(count)
            variant["DesiredInstanceCount"] = count
            variant["DesiredWeight"] = one.get("DesiredWeight", variant["DesiredWeight"])
        self._begin(endpoint, endpoint.endpoint_config_name, variants)
        for now, then in zip(endpoint.production_variants, variants, strict=True):  # wanted at once; serving later
            now["DesiredInstanceCount"], now["DesiredWeight"] = then["DesiredInstanceCount"], then["DesiredWeight"]
        return _json({"EndpointArn": endpoint.arn})

    def _update(self, asked: Mapping[str, Any]) -> Answer:
        endpoint = self._settled(str(asked["EndpointName"]))
        config = sagemaker_backends[ACCOUNT][REGION].endpoint_configs.get(asked["EndpointConfigName"])
        if config is None:
            raise _Refused(
                400, "ValidationException", f'Could not find endpoint configuration "{asked["EndpointConfigName"]}".'
            )
        variants = []
        for stated in config.production_variants:
            self._within(stated["InitialInstanceCount"])
            count, weight = stated["InitialInstanceCount"], stated.get("InitialVariantWeight", 1.0)
            variants.append(
                {"VariantName": stated["VariantName"], "DesiredInstanceCount": count, "DesiredWeight": weight}
            )
        none_left = any(v["InstanceType"].removeprefix("ml.") in self.no_capacity for v in config.production_variants)
        self._begin(endpoint, asked["EndpointConfigName"], variants, fails=none_left)
        return _json({"EndpointArn": endpoint.arn})

    def _settled(self, name: str) -> Any:
        endpoint = self._endpoint(name)
        if name in self._updates:
            raise _Refused(400, "ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".')
        return endpoint

    def _within(self, count: int) -> None:
        if count > self.quota:
            text = f"The account-level service limit for endpoint usage is {self.quota} Instances."
            raise _Refused(400, "ResourceLimitExceeded", text)

    def _begin(self, endpoint: Any, config: str, variants: list[dict[str, Any]], *, fails: bool = False) -> None:
        endpoint.endpoint_status = "Updating"
        self._updates[endpoint.endpoint_name] = _Update(self.now() + self.update_s, config, variants, fails)

    # -- EC2 -----------------------------------------------------------------------------------------------------------

    def _instance_may(self, action: str, form: Mapping[str, str]) -> None:
        id_ = form.get("InstanceId") or form["InstanceId.1"]
        found = ec2_backends[ACCOUNT][REGION].get_instance(id_)
        state = found._state.name
        wanted = {
            "StopInstances": ("running", "stopping", "stopped"),
            "StartInstances": ("stopped", "pending", "running"),
        }
        if state not in wanted.get(action, ("stopped",)):
            text = f"The instance '{id_}' is not in a state for {action} ({state})."
            raise _Refused(400, "IncorrectInstanceState", text)
        if action == "StartInstances" and found.instance_type in self.no_capacity:
            text = f"We currently do not have sufficient {found.instance_type} capacity in the Availability Zone you requested."
            raise _Refused(500, "InsufficientInstanceCapacity", text)

    def _move(self, id_: str, now: tuple[str, int], then: tuple[str, int]) -> None:
        found = ec2_backends[ACCOUNT][REGION].get_instance(id_)
        if self.stop_s:
            found._state.name, found._state.code = now
            self._moves[id_] = (self.now() + self.stop_s, *then)

    def _groups(self, said: bytes) -> bytes:
        """New instances of a group are pending for a while."""
        now, text = self.now(), said.decode()
        for group in autoscaling_backends[ACCOUNT][REGION].autoscaling_groups.values():
            for one in group.instance_states:
                id_ = one.instance.id
                since = self._pending.setdefault(id_, now + self.stop_s) if id_ not in self._seen else 0.0
                if now < since:
                    text = re.sub(
                        rf"(<InstanceId>{id_}</InstanceId>.*?<LifecycleState>)InService",
                        r"\1Pending",
                        text,
                        flags=re.DOTALL,
                    )
                else:
                    self._seen.add(id_)
        return text.encode()

    # -- IAM, prices ---------------------------------------------------------------------------------------------------

    def _simulate(self, form: Mapping[str, str]) -> Answer:
        if not self.simulates:
            raise _Refused(403, "AccessDenied", "not authorized to perform: iam:SimulatePrincipalPolicy")
        if not form["PolicySourceArn"].startswith("arn:aws:"):
            raise _Refused(400, "InvalidInput", "no ARN")
        names = [v for k, v in form.items() if k.startswith("ActionNames.member.")]
        rows = "".join(
            f"<member><EvalActionName>{escape(n)}</EvalActionName><EvalResourceName>*</EvalResourceName>"
            f"<EvalDecision>{'implicitDeny' if n in self.denied else 'allowed'}</EvalDecision></member>"
            for n in names
        )
        text = (
            '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><SimulatePrincipalPolicyResult>'
            f"<IsTruncated>false</IsTruncated><EvaluationResults>{rows}</EvaluationResults></SimulatePrincipalPolicyResult>"
            "<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></SimulatePrincipalPolicyResponse>"
        )
        return "200 OK", "text/xml", text.encode()

    def _products(self, asked: Mapping[str, Any]) -> Answer:
        """Prices as the list has them: texts of JSON, with numbers as texts."""
        filters = {f["Field"]: f["Value"] for f in asked["Filters"]}
        name = filters.get("instanceType") or filters.get("instanceName")
        if "regionCode" not in filters or name not in self.prices:
            return _json({"FormatVersion": "aws_v1", "PriceList": []})
        prices = [("On demand", f"{self.prices[name]:.10f}"), ("covered by a reservation", "0.0000000000")]
        rows = [
            {
                "product": {"attributes": {**filters}},
                "terms": {
                    "OnDemand": {
                        "a.b": {
                            "priceDimensions": {
                                "a.b.c": {"unit": "Hrs", "description": said, "pricePerUnit": {"USD": usd}}
                            }
                        }
                    }
                },
            }
            for said, usd in prices
        ]
        return _json({"FormatVersion": "aws_v1", "PriceList": [json.dumps(row) for row in rows]})


def _botocore(service: str, url: str) -> Any:
    """botocore's own client, for what is set up as anybody would."""
    session = Session()
    session.set_credentials(IDENTITY["AWS_ACCESS_KEY_ID"], IDENTITY["AWS_SECRET_ACCESS_KEY"])
    return session.create_client(service, region_name=REGION, endpoint_url=url)


class _Refused(Exception):
    """An error as Amazon's services word it."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message

    def answer(self, service: str) -> Answer:
        status = f"{self.status} Refused"
        told = f"<Code>{self.code}</Code><Message>{escape(self.message)}</Message>"
        if service == "ec2":
            text = f"<Response><Errors><Error>{told}</Error></Errors><RequestID>r</RequestID></Response>"
            return status, "text/xml", text.encode()
        if service in ("autoscaling", "iam", "sts"):
            text = f"<ErrorResponse><Error><Type>Sender</Type>{told}</Error><RequestId>r</RequestId></ErrorResponse>"
            return status, "text/xml", text.encode()
        return status, "application/x-amz-json-1.1", json.dumps({"__type": self.code, "message": self.message}).encode()


def _json(body: Mapping[str, Any]) -> Answer:
    return "200 OK", "application/x-amz-json-1.1", json.dumps(body).encode()


def _request(environ: Mapping[str, Any], body: bytes) -> tuple[str, str, dict[str, str]]:
    """Service, action and form of a request, in each of Amazon's protocols."""
    signed = _SERVICE.search(environ.get("HTTP_AUTHORIZATION", ""))
    if signed is None:
        raise AssertionError(f"{environ['PATH_INFO']}: a request that nobody signed")
    service, target = signed[1], environ.get("HTTP_X_AMZ_TARGET", "")
    service = {"monitoring": "cloudwatch"}.get(service, service)
    if target.startswith("AnyScale"):
        service = "application-autoscaling"
    if target:
        return service, target.rpartition(".")[2], {}
    operation = re.search(r"/operation/(\w+)$", environ["PATH_INFO"])
    if operation is not None:
        return service, operation[1], {}
    if environ["PATH_INFO"] == "/provisioned-model-throughputs":
        return service, "ListProvisionedModelThroughputs", {}
    form = {k: v[0] for k, v in parse_qs(body.decode()).items()}
    return service, form.get("Action", environ["PATH_INFO"]), form


def _passed(environ: dict[str, Any], moto: Any) -> Answer:
    """moto's answer."""
    told: list[str] = []
    kinds: list[str] = []

    def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        told.append(status)
        kinds.append(next((v for k, v in headers if k.lower() == "content-type"), "text/plain"))
        return lambda _data: None

    parts = moto(environ, start)
    try:
        said = b"".join(parts)
    finally:
        getattr(parts, "close", lambda: None)()
    return told[0], kinds[0], said


def _statistic(theirs: Callable[[Statistics, str], Any]) -> Callable[[Statistics, str], Any]:
    """moto's statistics, and quantiles: the value below which so many of the values lie."""

    def of(self: Statistics, stat: str) -> Any:
        if not re.fullmatch(r"p\d+(\.\d+)?", stat):
            return theirs(self, stat)
        values = sorted(self.metric_single_values_list)
        if not values:
            return None
        rank = min(len(values) - 1, int(len(values) * float(stat[1:]) / 100))
        return values[rank]

    return of


def _told(theirs: Callable[..., Any], aws: FakeAws) -> Callable[..., Any]:
    """moto's numbers, or those that a test tells."""

    def of(self: CloudWatchBackend, queries: Any, start_time: datetime, end_time: datetime, scan_by: str = "") -> Any:
        if aws.tells is None:
            return theirs(self, queries, start_time, end_time, scan_by or "TimestampAscending")
        begin, end = (moment.replace(tzinfo=UTC).timestamp() for moment in (start_time, end_time))
        results = []
        for query in queries:
            stat, metric = query["MetricStat"], query["MetricStat"]["Metric"]
            of = {d["Name"]: d["Value"] for d in metric["Dimensions"]}
            step = int(stat["Period"])
            moments = [begin + step * n for n in range(int((end - begin) // step))]
            told = [(at, aws.tells(metric["Namespace"], metric["MetricName"], of, stat["Stat"], at)) for at in moments]
            known = [(at, value) for at, value in told if value is not None]
            results.append(
                {
                    "id": query["Id"],
                    "label": metric["MetricName"],
                    "values": [value for _, value in known],
                    "timestamps": [datetime.fromtimestamp(at, UTC).replace(tzinfo=None) for at, _ in known],
                    "status_code": "Complete",
                }
            )
        return results

    return of
