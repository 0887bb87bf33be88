"""A Flink cluster on one machine, with Beam's job server and worker pools: `python -m deploy.flink up`."""
