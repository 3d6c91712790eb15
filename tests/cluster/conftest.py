"""What the tests against real servers share."""

from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from histill.config.common import Tracking
from histill.local.ray_head import RayHead, ray_head
from histill.local.s3 import S3Server
from histill.local.tracking import TrackingServer


@pytest.fixture
def config(tracking: TrackingServer, request: pytest.FixtureRequest) -> Tracking:
    """The session's server, and an experiment of the test's own."""
    return Tracking(uri=tracking.uri, experiment=request.node.name)


@pytest.fixture
def client(tracking: TrackingServer) -> MlflowClient:
    """Of the session's server."""
    return MlflowClient(tracking.uri, tracking.uri)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A registered name of the test's own."""
    return str(request.node.name.partition("[")[0].replace("_", "-"))


@pytest.fixture(scope="session")
def head(s3: S3Server, tracking: TrackingServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A Ray head of 3 CPUs that asks for a token; its workers find S3, MLflow and a greeting."""
    env = {**s3.environment(), "MLFLOW_TRACKING_URI": tracking.uri, "GREETING": "hello"}
    with ray_head(tmp_path_factory.mktemp("head"), cpus=3, env=env, token_auth=True) as head:
        yield head
