"""What the tests against a real MLflow server share."""

import pytest
from mlflow import MlflowClient

from histill.config.common import Tracking
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
