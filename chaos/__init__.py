"""Break servers, nodes and jobs, and check the results: `python -m chaos.faults`, `python -m chaos.kills`."""
