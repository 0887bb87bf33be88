"""A worker process of a pool: Beam's harness, which runs the bundles that a task manager sends.

python -m deploy.flink.worker CONTROL_HOST:PORT WORKER_ID
"""

from __future__ import annotations

import logging
import os
import sys
import traceback

from apache_beam.runners.worker.sdk_worker import SdkHarness

from datarater.pipelines.run_folder import split_marks


def main() -> None:
    """Works until the task manager stops the worker or is gone."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s worker {sys.argv[2]}: %(message)s")
    split_marks.watch_launcher()
    code = 0
    try:
        SdkHarness(sys.argv[1], worker_id=sys.argv[2], state_cache_size=0).run()
    except Exception:
        traceback.print_exc()
        code = 1

    # Otherwise a thread would keep scoring its split for a task manager that is gone.
    os._exit(code)


if __name__ == "__main__":
    main()
