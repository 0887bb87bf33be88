"""Where a run works: on this machine, or on Flink, Dataflow or Prism."""
