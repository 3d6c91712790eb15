"""cluster.yaml, deploy/ and the Dockerfile: valid by their schemas, of the locked versions, at one with each other."""

import copy
import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config

from histill.config.load import load_config
from histill.config.pretrain_student import PretrainConfig

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
HOME = "/home/ray/histill"  # of the project, in the image
SPOT_NOTICE_S = 120  # of AWS


def locked(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def workers(cluster: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


@pytest.fixture
def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "deploy" / "rayjob.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture
def job(manifests: dict[str, Any]) -> dict[str, Any]:
    spec = manifests["RayJob"]["spec"]
    assert isinstance(spec, dict)
    return spec


@pytest.fixture
def pods(job: dict[str, Any]) -> dict[str, Any]:
    cluster = job["rayClusterSpec"]
    workers = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {
        "submitter": job["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "cpu": workers["spot-cpu"],
        "worker": workers["spot-gpu"],
    }


@functools.cache
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, in order."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in whole)]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in dockerfile() if name == instruction]


def copies() -> Iterator[tuple[list[str], str]]:
    """Sources and target of each COPY."""
    for rest in arguments("COPY"):
        *sources, target = [word for word in rest.split() if not word.startswith("--")]
        yield sources, target


def test_nodes_get_the_shared_memory_that_ray_works_out(cluster: dict[str, Any]) -> None:
    """One size for all nodes is too small for the large ones, whose object stores then go to disk."""
    options = [option for key in ("run_options", "head_run_options", "worker_run_options") for option in
               cluster["docker"].get(key, [])]  # fmt: skip
    assert options
    assert not [option for option in options if "shm" in option]


# One version, one image


def test_the_image_has_the_locked_ray_and_this_python() -> None:
    (base,) = arguments("FROM")
    assert base == f"rayproject/ray:{locked('ray')}-py311-${{VARIANT}}"
    assert "VARIANT=gpu" in arguments("ARG")


def test_clusters_of_both_kinds_run_that_image(
    cluster: dict[str, Any], job: dict[str, Any], pods: dict[str, Any]
) -> None:
    image = cluster["docker"]["image"]
    assert not {"head_image", "worker_image"} & set(cluster["docker"])
    assert {container["image"] for pod in pods.values() for container in pod["containers"]} == {image}
    assert image.endswith(f"/histill:{version()}-ray{locked('ray')}")
    assert f"docker build -t {image} ." in (ROOT / "Dockerfile").read_text()
    assert job["rayClusterSpec"]["rayVersion"] == locked("ray")


def test_the_autoscalers_boto3_fits_the_locked_botocore() -> None:
    assert locked("boto3") == locked("botocore")
    assert any(re.search(r"pip install .*\bboto3\b", command) for command in arguments("RUN"))
    assert f"pip install boto3=={locked('boto3')}`" in (ROOT / "cluster.yaml").read_text()  # for `ray up` itself


# cluster.yaml


def test_rays_own_validation_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    # the two steps that `ray up` takes before it talks to AWS
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_rays_own_validation_would_notice_a_mistake(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["head"]["resources"]["CPU"] = "eight"
    with pytest.raises(Exception, match="eight"):
        validate_config(prepare_config(cluster))


def test_nodes_install_nothing_beside_the_image(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(cluster)  # which adds Ray's own commands where there are none
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[key] == [], key


def test_every_node_may_use_the_bucket_by_a_role_of_its_own(cluster: dict[str, Any]) -> None:
    for name, node in cluster["available_node_types"].items():
        assert node["node_config"]["ImageId"].startswith("ami-"), name
        role = "histill-head" if name == cluster["head_node_type"] else "histill-worker"
        assert node["node_config"]["IamInstanceProfile"] == {"Name": role}, name
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}, name


def test_drivers_find_a_cpu_on_a_head_that_stays(cluster: dict[str, Any], pods: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] >= 1
    assert "InstanceMarketOptions" not in head["node_config"]
    assert pods["head"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    assert int(pods["head"]["containers"][0]["resources"]["limits"]["cpu"]) >= 1


def test_workers_are_spot_instances(workers: dict[str, Any], pods: dict[str, Any]) -> None:
    for name, node in workers.items():
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot", name
    for name in ("cpu", "worker"):
        assert pods[name]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert pods["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("asked", "rented"),
    [
        ([{"CPU": 1}] * 20, {"cpu": 3}),  # as ingesting, predicting and caching without GPUs do
        ([{"CPU": 6, "GPU": 1}] * 2, {"gpu_small": 2}),
    ],
)
def test_rays_autoscaler_rents_gpus_for_what_asks_for_them_alone(
    cluster: dict[str, Any], asked: list[dict[str, float]], rented: dict[str, int]
) -> None:
    none_failed = NodeAvailabilitySummary(node_availabilities={})
    score = functools.partial(_default_utilization_scorer, node_availability_summary=none_failed)
    types = cluster["available_node_types"]
    found, unmet = get_nodes_for(types, {"head": 1}, "head", cluster["max_workers"], asked, score)
    assert dict(found) == rented
    assert not unmet


def test_a_machine_without_a_gpu_is_not_asked_for_one(
    cluster: dict[str, Any], workers: dict[str, Any], pods: dict[str, Any]
) -> None:
    """Docker refuses to start a container with --gpus where there is none."""
    for name, node in workers.items():
        options = {**cluster["docker"], **node.get("docker", {})}["worker_run_options"]  # as Ray's autoscaler does
        assert ("--gpus all" in options) == ("GPU" in node["resources"]), name
    assert "nvidia.com/gpu" not in pods["cpu"]["containers"][0]["resources"]["limits"]
    assert "tolerations" not in pods["cpu"]


def test_pods_of_workers_differ_in_their_resources_alone(pods: dict[str, Any]) -> None:
    cpu, gpu = copy.deepcopy(pods["cpu"]), copy.deepcopy(pods["worker"])
    gpu.pop("tolerations")
    assert [pod["containers"][0].pop("resources") is not None for pod in (cpu, gpu)] == [True, True]
    assert cpu == gpu


def test_token_authentication_is_set_on_purpose(
    cluster: dict[str, Any], job: dict[str, Any], pods: dict[str, Any]
) -> None:
    options = cluster["docker"]["run_options"]
    assert "--env=RAY_AUTH_MODE=token" in options
    (path,) = [option.split("=", 2)[2] for option in options if "RAY_AUTH_TOKEN_PATH" in option]
    assert path in cluster["file_mounts"]

    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    for name in ("head", "cpu", "worker"):
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in pods[name]["containers"][0]["env"], name


def test_every_node_exports_its_metrics_where_prometheus_looks(cluster: dict[str, Any]) -> None:
    """KubeRay's default, for which the nodes' security group may be opened."""
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert ["--metrics-export-port=8080" in each for each in starts if "ray start" in each] == [True, True]


def test_both_clusters_grow_to_the_same_size_and_shrink_after_the_same_time(
    cluster: dict[str, Any], job: dict[str, Any]
) -> None:
    spec = job["rayClusterSpec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * cluster["idle_timeout_minutes"] > 0
    for group in spec["workerGroupSpecs"]:
        assert (group["minReplicas"], group["maxReplicas"]) == (0, cluster["max_workers"])


# deploy/rayjob.yaml


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without the leave to name fields that it does not know: Kubernetes drops them without a word."""
    below = {key: strict(value) for key, value in schema.get("properties", {}).items()}
    closed = {**schema, **({"properties": below} if below else {})}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            closed[key] = strict(schema[key])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="session")
def kuberay() -> jsonschema.Draft202012Validator:
    path = os.environ.get("HISTILL_RAYJOB_CRD")
    if not path:
        pytest.skip(
            "HISTILL_RAYJOB_CRD names no file; it is ray-operator/config/crd/bases/ray.io_rayjobs.yaml of a release of "
            "github.com/ray-project/kuberay, v1.5.1 or later."
        )
    definition = yaml.load(Path(path).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1"]
    closed = strict(schema)
    closed["properties"]["metadata"] = {"type": "object"}  # every object's, which Kubernetes itself knows
    return jsonschema.Draft202012Validator(closed)


def test_kuberays_schema_accepts_the_job(kuberay: jsonschema.Draft202012Validator, manifests: dict[str, Any]) -> None:
    faults = [f"{error.json_path}: {error.message}" for error in kuberay.iter_errors(manifests["RayJob"])]
    assert faults == []


def test_kuberays_schema_would_notice_a_misspelt_field(
    kuberay: jsonschema.Draft202012Validator, job: dict[str, Any], pods: dict[str, Any], manifests: dict[str, Any]
) -> None:
    job["rayClusterSpec"]["authOption"] = {"mode": "token"}
    pods["worker"]["containers"][0]["lifecycle"]["preStopp"] = {}
    assert len(list(kuberay.iter_errors(manifests["RayJob"]))) == 2


def test_the_operators_schemas_accept_the_pod_monitor_and_the_alerts() -> None:
    folder = os.environ.get("HISTILL_MONITORING_CRDS")
    if not folder:
        pytest.skip(
            "HISTILL_MONITORING_CRDS names no folder; it is example/prometheus-operator-crd of a release of "
            "github.com/prometheus-operator/prometheus-operator."
        )
    monitor = yaml.safe_load((ROOT / "deploy" / "prometheus" / "podmonitor.yaml").read_text())
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    rule = {"apiVersion": monitor["apiVersion"], "kind": "PrometheusRule", "metadata": {}, "spec": alerts}
    for document in (monitor, rule):
        definition = yaml.safe_load(Path(folder, f"monitoring.coreos.com_{document['kind'].lower()}s.yaml").read_text())
        (schema,) = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"]]
        closed = strict(schema)
        closed["properties"]["metadata"] = {"type": "object"}
        faults = jsonschema.Draft202012Validator(closed).iter_errors(document)
        assert [f"{fault.json_path}: {fault.message}" for fault in faults] == []


def test_the_entrypoint_is_a_job_with_keys_that_it_knows(job: dict[str, Any], pods: dict[str, Any]) -> None:
    words = shlex.split(job["entrypoint"])  # as the submitter's shell does
    assert shlex.split(subprocess.list2cmdline(words)) == words  # `ray job submit` joins them so, for another shell
    python, program, option, config, *overrides = words
    assert (python, program, option) == ("python", f"{HOME}/jobs/pretrain_student.py", "-c")
    run = load_config(PretrainConfig, config.replace(HOME, str(ROOT)), overrides)
    given = pods["worker"]["containers"][0]["resources"]["limits"]
    assert run.workers.gpus == float(given["nvidia.com/gpu"])
    assert run.workers.cpus < float(given["cpu"])


def test_the_cluster_ends_with_its_job(job: dict[str, Any]) -> None:
    assert job["shutdownAfterJobFinishes"] is True
    assert job["ttlSecondsAfterFinished"] <= 3600
    assert job["activeDeadlineSeconds"] > 0


def test_pods_have_no_more_rights_and_no_less_resources_than_they_need(
    manifests: dict[str, Any], job: dict[str, Any], pods: dict[str, Any]
) -> None:
    hardened = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert job["rayClusterSpec"]["autoscalerOptions"]["securityContext"] == hardened
    for name, pod in pods.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod.get("automountServiceAccountToken", True) is (name == "head"), name
        (container,) = pod["containers"]
        assert container["securityContext"] == hardened, name
        assert container["resources"]["requests"] == container["resources"]["limits"], name
    account = manifests["ServiceAccount"]["metadata"]
    assert {pods[name]["serviceAccountName"] for name in ("head", "cpu", "worker")} == {account["name"]}
    assert account["annotations"]["eks.amazonaws.com/role-arn"].endswith(":role/histill-worker")


def test_a_pod_on_a_lost_spot_node_saves_before_it_ends(pods: dict[str, Any]) -> None:
    command = pods["worker"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:-1] == ["python", "-m", "histill.cluster.drain"]
    assert int(command[-1]) < pods["worker"]["terminationGracePeriodSeconds"] < SPOT_NOTICE_S


# deploy/watch_spot.py


@pytest.fixture
def watch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("watch_spot", ROOT / "deploy" / "watch_spot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Metadata(BaseHTTPRequestHandler):
    """AWS' instance metadata, version 2, of a spot instance; `server.notice` says whether it is taken back."""

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 405, b"secret")

    def do_GET(self) -> None:
        allowed = self.headers["X-aws-ec2-metadata-token"] == "secret"
        there = self.path == "/latest/meta-data/spot/instance-action" and self.server.notice  # type: ignore[attr-defined]
        self._answer(200 if allowed and there else 404 if allowed else 401, b'{"action": "terminate"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def test_the_notice_of_aws_is_heard(watch: ModuleType) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        server.notice = False  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/latest"
        assert not watch.is_taken_back(url)
        server.notice = True  # type: ignore[attr-defined]
        assert watch.is_taken_back(url)
        server.shutdown()
    assert not watch.is_taken_back(url)  # nothing answers: no notice, and no error


def test_every_spot_worker_listens_for_the_notice(cluster: dict[str, Any], watch: ModuleType) -> None:
    starts = [command for command in cluster["worker_start_ray_commands"] if "watch_spot" in command]
    assert [f"python {HOME}/deploy/watch_spot.py" in command for command in starts] == [True]
    assert starts[0].endswith("&")
    assert watch.POLL_S + watch.NOTICE_S < SPOT_NOTICE_S


# The Dockerfile


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path from the build: the last line counts that matches it or a folder above it."""
    found = False
    parts = PurePosixPath(path)
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, str(each)) for each in (parts, *parts.parents)):
            found = not line.startswith("!")
    return found


def test_what_the_image_copies_is_there_and_let_through() -> None:
    sources = [source for sources, _ in copies() for source in sources]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", ".env", ".demo/s3", "tests/conftest.py", "jobs/__pycache__/a.pyc"]
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert ignored(path)


def test_the_image_is_not_run_by_root() -> None:
    *_, user = arguments("USER")
    assert user.partition(":")[0].isdigit()  # by name Kubernetes could not tell
    assert int(user.partition(":")[0]) > 0
    assert "root" not in arguments("USER")


def test_the_image_holds_no_secret() -> None:
    for rest in (*arguments("ENV"), *arguments("ARG")):
        assert not re.search("key|token|secret|passw|credential", rest, re.IGNORECASE), rest


def test_the_image_says_what_it_is() -> None:
    (labels,) = arguments("LABEL")
    assert f'org.opencontainers.image.version="{version()}"' in labels
    assert 'org.opencontainers.image.title="histill"' in labels


def test_the_image_installs_the_locked_versions_in_a_layer_that_code_does_not_touch() -> None:
    installs = [rest for name, rest in dockerfile() if name == "RUN" and "pip install" in rest]
    dependencies, project = installs
    assert "-c constraints.txt" in dependencies
    assert "--no-deps" in project
    assert all("--no-cache-dir" in install for install in installs)
    before = dockerfile()[: dockerfile().index(("RUN", dependencies))]
    (copied,) = [rest for name, rest in before if name == "COPY"]
    assert copied.endswith(" pyproject.toml constraints.txt ./")


EVERY_HELP = """
import pathlib, runpy, sys
import histill
for job in sorted(pathlib.Path("jobs").glob("*.py")):
    sys.argv = [str(job), "--help"]
    try:
        runpy.run_path(str(job), run_name="__main__")
    except SystemExit as end:
        assert not end.code, job
print(histill.__file__)
"""


def test_the_image_holds_what_every_job_needs_to_start(tmp_path: Path) -> None:
    for sources, target in copies():
        for source in sources:
            into = tmp_path / target / Path(source).name if target.endswith("/") else tmp_path / target
            into.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_file():
                shutil.copy(ROOT / source, into)
            else:
                shutil.copytree(ROOT / source, into, ignore=not_let_through)
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP],
        cwd=tmp_path,
        env={"PATH": os.defpath, "PYTHONPATH": str(tmp_path / "platform")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(tmp_path))
    assert done.stdout.count("usage:") == len(list((ROOT / "jobs").glob("*.py")))


def not_let_through(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if ignored((Path(folder) / name).relative_to(ROOT).as_posix())]
