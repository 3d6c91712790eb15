"""Use cases of those who keep the cluster running: check it, and send metrics that a server missed."""

from typing import TYPE_CHECKING, Any

from histill.api.configure import Given, configure
from histill.config.check_cluster import CheckConfig
from histill.config.sync_metrics import SyncConfig

if TYPE_CHECKING:
    from histill.preflight.results import Row
    from histill.registry.metric_spool import SyncReport


def check_cluster(config: Given = None, /, **keys: Any) -> "list[Row]":
    """Check the cluster before a long run: passed and failed checks, each failure with a fix.

    Ray, its token, the nodes' versions, code, clocks, disks and GPUs; and from the driver and every node, object
    storage and MLflow. It takes seconds, and leaves no file behind. Exit status 1 if anything failed; warnings do not
    count.

    Args:
        config: a `CheckConfig`, a YAML file or a mapping; None: the keys alone.
        **keys: keys of `CheckConfig` over `config`: `read` and `write` (addresses) and `workers`.

    Returns:
        A row for each check, with its state and what to do.

    Raises:
        InputError: a key is wrong.

    Examples:
        >>> rows = histill.check_cluster(read="s3://bucket/tiles", write="s3://bucket/runs")
        >>> [row for row in rows if row.state == "failed"]
        []
    """
    from histill.preflight import check

    return check.check_cluster(configure(CheckConfig, config, keys, source="check_cluster"))


def sync_metrics(config: Given = None, /, **keys: Any) -> "SyncReport":
    """Send metrics that could not be sent while the tracking server was unreachable.

    A run continues without its server, and sends held metrics when the server answers again. Those left at its end are
    spooled in the folder `_unsent` beside the runs; the next run there sends them, or this does.

    Args:
        config: a `SyncConfig`, a YAML file or a mapping; None: the keys alone.
        **keys: keys of `SyncConfig` over `config`: `unsent`, the folder.

    Returns:
        How many metrics of how many runs were sent, and what is left.

    Raises:
        InputError: no tracking server is configured, or it does not answer.

    Examples:
        >>> histill.sync_metrics(unsent="s3://bucket/runs/_unsent")
    """
    from histill.registry import metric_spool

    return metric_spool.sync_metrics(configure(SyncConfig, config, keys, source="sync_metrics"))
