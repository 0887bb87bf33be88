"""A Flink cluster on one machine, with Beam's job server and worker pools.

Start it with `python -m deploy.flink up`.
"""
