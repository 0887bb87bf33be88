"""Runners: this machine, Flink, Dataflow and Prism."""
