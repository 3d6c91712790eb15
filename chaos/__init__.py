"""Break servers, nodes and jobs, and check what comes out: `python -m chaos.faults`, `python -m chaos.kills`."""
