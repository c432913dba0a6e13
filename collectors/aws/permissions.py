"""What Flyball must be allowed to do in an account: the least IAM policy of each system, and which part of it an identity has.

IAM simulates what an identity may do, where it may be asked that (``iam:SimulatePrincipalPolicy``). Elsewhere reads are tried; whether a
change is allowed is then not known before it is done, but for EC2, whose every call has a dry run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from collectors.aws.client import AwsClient
from collectors.aws.errors import AwsError
from collectors.discovery import Permission

Action = tuple[str, Literal["see", "change"], str]
_SEE: tuple[Action, ...] = (
    ("cloudwatch:GetMetricData", "see", "read requests, latencies, machines"),
    ("ec2:DescribeInstanceTypes", "see", "know what an instance type is made of"),
    ("pricing:GetProducts", "see", "know what it costs; without it prices are yours to state"),
    ("iam:SimulatePrincipalPolicy", "see", "say which permission lacks; on this very role or user"),
)
ACTIONS: Mapping[str, tuple[Action, ...]] = {
    "sagemaker": (
        ("sagemaker:ListEndpoints", "see", "find endpoints"),
        ("sagemaker:DescribeEndpoint", "see", "read variants: instances, weights, state"),
        ("sagemaker:DescribeEndpointConfig", "see", "read instance types"),
        ("application-autoscaling:DescribeScalableTargets", "see", "know who owns the count"),
        ("application-autoscaling:DescribeScalingPolicies", "see", "know what it aims at"),
        *_SEE,
        ("sagemaker:UpdateEndpointWeightsAndCapacities", "change", "change counts and weights"),
        ("sagemaker:CreateEndpointConfig", "change", "state another instance type"),
        ("sagemaker:UpdateEndpoint", "change", "move to another instance type, and back"),
        ("application-autoscaling:RegisterScalableTarget", "change", "tune an autoscaler's bounds"),
    ),
    "ec2": (
        ("ec2:DescribeInstances", "see", "find instances, and read their type and state"),
        ("ec2:DescribeInstanceStatus", "see", "know whether one has come up"),
        ("autoscaling:DescribeAutoScalingGroups", "see", "read groups"),
        ("autoscaling:DescribePolicies", "see", "know who owns a group's count"),
        *_SEE,
        ("ec2:StopInstances", "change", "stop an instance, as its type cannot be changed while it runs"),
        ("ec2:ModifyInstanceAttribute", "change", "change the type"),
        ("ec2:StartInstances", "change", "start it again"),
        ("autoscaling:UpdateAutoScalingGroup", "change", "change a group's count or bounds"),
    ),
    "bedrock": (
        ("cloudwatch:ListMetrics", "see", "find the models that were called"),
        ("cloudwatch:GetMetricData", "see", "read requests, latencies, tokens"),
        ("bedrock:ListProvisionedModelThroughputs", "see", "see what throughput is bought"),
    ),
}


def policy(system: str) -> str:
    """The least policy, as ``aws iam create-policy --policy-document`` takes it."""

    def statement(name: str, what_for: str) -> dict[str, Any]:
        actions = [action for action, of, _ in ACTIONS[system] if of == what_for]
        return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": "*"}

    statements = [statement("FlyballSees", "see")]
    if any(of == "change" for _, of, _ in ACTIONS[system]):
        statements.append(statement("FlyballChanges", "change"))
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2) + "\n"


async def permitted(client: AwsClient, system: str, *, changes: bool) -> Sequence[Permission]:
    """Each action with its verdict. Raises ``AwsError`` where nobody knows who Flyball is."""
    identity = str((await client.call("sts", "GetCallerIdentity")).get("Arn"))
    wanted = [a for a in ACTIONS[system] if changes or a[1] == "see"]
    verdicts = await _simulated(client, identity, [action for action, *_ in wanted])
    found = []
    for action, what_for, why in wanted:
        granted = verdicts.get(action)
        if granted is None and what_for == "see":
            granted = await _tried(client, action)
        text = f"{identity} needs it to {why}" if granted is False else ""
        found.append(Permission(action, what_for, granted, text))
    return [_optional(one) for one in found]


def _optional(one: Permission) -> Permission:
    """What only adds comfort is no lack: without it a price or a verdict is unknown, and nothing else."""
    if one.granted is False and one.name in ("pricing:GetProducts", "iam:SimulatePrincipalPolicy"):
        return Permission(one.name, one.what_for, None, one.detail)
    return one


async def _simulated(client: AwsClient, identity: str, actions: Sequence[str]) -> Mapping[str, bool]:
    """What IAM says; nothing where it may not be asked, or the identity is none of IAM's."""
    try:
        rows = await client.items(
            "iam",
            "SimulatePrincipalPolicy",
            "EvaluationResults",
            PolicySourceArn=principal(identity),
            ActionNames=list(actions),
        )
    except AwsError:
        return {}
    return {str(r.get("EvalActionName")): r.get("EvalDecision") == "allowed" for r in rows}


def principal(identity: str) -> str:
    """The role behind a session: ``arn:aws:sts::1:assumed-role/flyball/i-1`` is ``arn:aws:iam::1:role/flyball``."""
    head, assumed, rest = identity.partition(":assumed-role/")
    if not assumed:
        return identity
    return head.replace(":sts:", ":iam:") + ":role/" + rest.partition("/")[0]


#: Reads that need no name of anything that is there.
_TRIES: Mapping[str, Mapping[str, Any]] = {
    "sagemaker:ListEndpoints": {"MaxResults": 1},
    "application-autoscaling:DescribeScalableTargets": {"ServiceNamespace": "sagemaker", "MaxResults": 1},
    "application-autoscaling:DescribeScalingPolicies": {"ServiceNamespace": "sagemaker", "MaxResults": 1},
    "cloudwatch:ListMetrics": {"Namespace": "AWS/Bedrock"},
    "ec2:DescribeInstances": {"MaxResults": 5},
    "ec2:DescribeInstanceStatus": {"MaxResults": 5},
    "ec2:DescribeInstanceTypes": {"MaxResults": 5},
    "autoscaling:DescribeAutoScalingGroups": {"MaxRecords": 1},
    "autoscaling:DescribePolicies": {"MaxRecords": 1},
    "bedrock:ListProvisionedModelThroughputs": {"maxResults": 1},
}


async def _tried(client: AwsClient, action: str) -> bool | None:
    """None: it cannot be tried without a name, or the answer is another than yes or no."""
    service, _, operation = action.partition(":")
    if action not in _TRIES:
        return None
    try:
        await client.call(service, operation, **_TRIES[action])
    except AwsError as error:
        return False if error.kind == "denied" else None
    return True
