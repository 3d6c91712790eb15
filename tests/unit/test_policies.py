"""deploy/policies: what jobs and the autoscaler ask of AWS is allowed, and little else."""

import json
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
INPUTS = ("slides", "tiles", "teachers", "responses")
OUTPUTS = ("runs", "predictions", "reports")
BUCKET = "arn:aws:s3:::histill"
INSTANCE = "arn:aws:ec2:eu-central-1:000000000000:instance/i-0"
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def policy(name: str) -> list[dict[str, Any]]:
    loaded = json.loads((ROOT / "deploy" / "policies" / f"{name}.json").read_text())
    assert loaded["Version"] == "2012-10-17"
    statements = loaded["Statement"]
    assert isinstance(statements, list)
    return statements


def every(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def allows(
    statements: list[dict[str, Any]], action: str, resource: str, context: Mapping[str, str] | None = None
) -> bool:
    """Whether IAM would allow a request, by a policy that denies nothing."""
    return any(
        action in every(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in every(statement["Resource"]))
        and holds(statement.get("Condition", {}), context or {})
        for statement in statements
    )


def holds(condition: Mapping[str, Mapping[str, str | list[str]]], context: Mapping[str, str]) -> bool:
    return all(
        any(fnmatchcase(context[key], value) for value in every(values))
        if key in context
        else operator.endswith("IfExists")
        for operator, keys in condition.items()
        for key, values in keys.items()
    )


@pytest.mark.parametrize("name", ["data", "ingest", "autoscaler"])
def test_no_policy_allows_whatever_there_is(name: str) -> None:
    for statement in policy(name):
        assert statement["Effect"] == "Allow"
        assert not [action for action in every(statement["Action"]) if "*" in action], statement["Sid"]
        assert "*" not in every(statement["Resource"]) or statement["Condition"], statement["Sid"]


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"])
def test_jobs_read_inputs_and_keep_outputs(action: str) -> None:
    data = policy("data")
    for prefix in INPUTS:
        assert allows(data, action, f"{BUCKET}/{prefix}/x/y") is (action == "s3:GetObject"), prefix
    for prefix in OUTPUTS:
        assert allows(data, action, f"{BUCKET}/{prefix}/x/y"), prefix
    assert not allows(data, action, f"{BUCKET}/elsewhere/x")
    assert not allows(data, action, "arn:aws:s3:::another/runs/x")


def test_jobs_list_their_prefixes_and_are_told_that_something_is_missing() -> None:
    data = policy("data")
    for prefix in (*INPUTS, *OUTPUTS):
        assert allows(data, "s3:ListBucket", BUCKET, {"s3:prefix": f"{prefix}/first/"}), prefix
    for prefix in ("", "elsewhere/", "run"):
        assert not allows(data, "s3:ListBucket", BUCKET, {"s3:prefix": prefix}), prefix
    # S3 asks this of itself to choose between 404 and 403, and pyarrow to see that there is the bucket
    assert allows(data, "s3:ListBucket", BUCKET)


def test_tiles_and_responses_are_written_by_a_policy_of_their_own() -> None:
    for action in ("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"):
        for prefix in INPUTS:
            allowed = allows(policy("ingest"), action, f"{BUCKET}/{prefix}/x")
            assert allowed is (prefix in ("tiles", "responses")), (action, prefix)


def test_the_examples_keep_to_the_prefixes_of_the_policies() -> None:
    configs = "".join(path.read_text() for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml")))
    readme = (ROOT / "README.md").read_text()
    named = {*re.findall(r"s3://histill/(\w+)", configs), *re.findall(r"(?:s3://bucket|\$B)/(\w+)", readme)}
    mlflow = {"mlflow"}  # the MLflow server's own
    assert named - mlflow <= {*INPUTS, *OUTPUTS}
    assert {"tiles", "responses", "runs", "predictions"} <= named


def tags(of: str, cluster: str) -> dict[str, str]:
    return {f"aws:{of}Tag/ray-cluster-name": cluster}


def test_the_head_starts_spot_workers_of_its_cluster() -> None:
    autoscaler, own = policy("autoscaler"), tags("Request", CLUSTER["cluster_name"])
    region = CLUSTER["provider"]["region"]
    assert f":{region}:" in INSTANCE
    assert allows(autoscaler, "ec2:DescribeInstances", "*", {"aws:RequestedRegion": region})
    for name, node in CLUSTER["available_node_types"].items():
        asked = {"ec2:InstanceType": node["node_config"]["InstanceType"], "ec2:InstanceMarketType": "spot"}
        is_worker = name != CLUSTER["head_node_type"]
        assert allows(autoscaler, "ec2:RunInstances", INSTANCE, {**asked, **own}) is is_worker, name
        assert not allows(autoscaler, "ec2:RunInstances", INSTANCE, asked), name
        asked["ec2:InstanceMarketType"] = "on-demand"
        assert not allows(autoscaler, "ec2:RunInstances", INSTANCE, {**asked, **own}), name
    assert allows(autoscaler, "ec2:CreateTags", INSTANCE, {"ec2:CreateAction": "RunInstances", **own})
    assert not allows(autoscaler, "ec2:CreateTags", INSTANCE, own)


@pytest.mark.parametrize("action", ["ec2:CreateTags", "ec2:TerminateInstances"])
def test_the_head_touches_instances_of_its_cluster_alone(action: str) -> None:
    assert allows(policy("autoscaler"), action, INSTANCE, tags("Resource", CLUSTER["cluster_name"]))
    assert not allows(policy("autoscaler"), action, INSTANCE, tags("Resource", "another"))
    assert not allows(policy("autoscaler"), action, INSTANCE)


def test_the_head_makes_nothing_but_workers_of_them() -> None:
    profiles = [node["node_config"]["IamInstanceProfile"]["Name"] for node in CLUSTER["available_node_types"].values()]
    assert set(profiles) == {"histill-head", "histill-worker"}
    for role in (*profiles, "admin"):
        resource, service = f"arn:aws:iam::000000000000:role/{role}", {"iam:PassedToService": "ec2.amazonaws.com"}
        assert allows(policy("autoscaler"), "iam:PassRole", resource, service) is (role == "histill-worker"), role
