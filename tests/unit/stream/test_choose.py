"""Who decodes: the workers, or a cluster whose other nodes have CPUs to spare."""

import pytest

from histill.config.runs import Data
from histill.stream.ray_data.choose import count_free_cpus, decodes_in_cluster

pytestmark = pytest.mark.unit

NODES = [
    {"NodeID": "a", "Labels": {"pool": "cpu", "ray.io/node-id": "a"}},
    {"NodeID": "b", "Labels": {"ray.io/node-id": "b"}},
    {"NodeID": "c", "Labels": {"pool": "cpu"}},
]
FREE = {"a": {"CPU": 3.5, "memory": 1.0}, "b": {"CPU": 8.0}, "d": {"CPU": 100.0}}


@pytest.mark.parametrize(("labels", "cpus"), [({}, 11.5), ({"pool": "cpu"}, 3.5), ({"pool": "gpu"}, 0.0)])
def test_only_nodes_with_the_labels_count(labels: dict[str, str], cpus: float) -> None:
    assert count_free_cpus(NODES, FREE, labels) == cpus


@pytest.mark.parametrize(("decode", "cluster"), [("worker", False), ("cluster", True), ("auto", False)])
def test_without_a_cluster_workers_decode_unless_told_otherwise(decode: str, cluster: bool) -> None:
    data = Data.model_validate({"tiles": "t", "decode": decode})
    assert decodes_in_cluster(data, workers=1, smaller=True, elastic=False) is cluster
