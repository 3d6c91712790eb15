"""Wait until AWS takes this spot instance back, and let its Ray node take leave before that.

AWS gives notice two minutes ahead, at the instance's metadata service and nowhere else, and Ray does not look there.
cluster.yaml starts this beside Ray on every worker.
"""

import http.client
import os
import sys
import time
import urllib.request

METADATA = "http://169.254.169.254/latest"
POLL_S = 5.0
NOTICE_S = 90  # of the 120, for a last checkpoint

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this address


def is_taken_back(metadata: str = METADATA) -> bool:
    """Whether the notice is there."""
    try:
        token = _ask(f"{metadata}/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60", method="PUT")
        _ask(f"{metadata}/meta-data/spot/instance-action", "X-aws-ec2-metadata-token", token)
    except (OSError, http.client.HTTPException):  # 404 until it is there; after anything else the next time may tell
        return False
    return True


def _ask(url: str, header: str, value: str, method: str = "GET") -> str:
    request = urllib.request.Request(url, headers={header: value}, method=method)
    with _direct.open(request, timeout=2) as answer:
        return str(answer.read(), "ascii")


if __name__ == "__main__":
    while not is_taken_back():
        time.sleep(POLL_S)
    os.execv(sys.executable, [sys.executable, "-m", "histill.cluster.drain", str(NOTICE_S)])
