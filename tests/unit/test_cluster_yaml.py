"""cluster.yaml is one that `ray up` takes, and it runs the versions that are locked."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def locked(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_rays_own_validation_accepts_it(cluster: dict[str, Any]) -> None:
    # the two steps that `ray up` takes before it talks to AWS
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_rays_own_validation_would_notice_a_mistake(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["head"]["resources"]["CPU"] = "eight"
    with pytest.raises(Exception, match="eight"):
        validate_config(prepare_config(cluster))


def test_images_have_the_locked_ray_and_this_python(cluster: dict[str, Any]) -> None:
    assert cluster["docker"]["head_image"] == f"rayproject/ray:{locked('ray')}-py311-cpu"
    assert cluster["docker"]["worker_image"] == f"rayproject/ray:{locked('ray')}-py311-gpu"


def test_every_node_has_an_image_and_may_use_the_bucket(cluster: dict[str, Any]) -> None:
    for name, node in cluster["available_node_types"].items():
        assert node["node_config"]["ImageId"].startswith("ami-"), name
        assert node["node_config"]["IamInstanceProfile"], name


def test_drivers_find_a_cpu_on_a_head_that_stays(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] >= 1
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_spot_instances_with_gpus(cluster: dict[str, Any]) -> None:
    workers = {name: node for name, node in cluster["available_node_types"].items() if name != "head"}
    for name, node in workers.items():
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot", name
        assert node["resources"]["GPU"] >= 1, name


def test_token_authentication_is_set_on_purpose(cluster: dict[str, Any]) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    (path,) = [option.split("=", 2)[2] for option in options if "RAY_AUTH_TOKEN_PATH" in option]
    assert path in cluster["file_mounts"]


def test_the_autoscalers_boto3_fits_the_locked_botocore(cluster: dict[str, Any]) -> None:
    assert [f"boto3=={locked('botocore')}" in command for command in cluster["head_setup_commands"]] == [True]


def test_every_node_installs_the_locked_versions(cluster: dict[str, Any]) -> None:
    installs = [command for command in cluster["setup_commands"] if "pip install" in command]
    assert installs
    assert all("-c constraints.txt" in command for command in installs)
