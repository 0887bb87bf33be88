"""Starts, describes or stops a Flink cluster on this machine: `python -m deploy.flink up`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.flink import cluster, supervisor
from deploy.flink.java import ClusterError


def _describe(running: cluster.Cluster, folder: Path) -> str:
    slots = running.task_managers * running.slots
    slots_each = "1 slot" if running.slots == 1 else f"{running.slots} slots"
    return (
        f"Flink is up: {running.task_managers} task managers with {slots_each} each, "
        f"http://{running.flink_master}\n"
        f"logs: {folder}/{supervisor.LOGS}\n"
        f"Submit a job with {slots} workers:\n\n"
        "  datarater curate --input 'crawl/*.jsonl.gz' --rater rater --output run "
        "--keep_fraction 0.5 \\\n"
        f"      {' '.join(running.flags())}\n\n"
        "To let FlinkRunner start its own job server, replace --job_endpoint with:\n\n"
        f"      --flink_job_server_jar={running.job_server_jar}\n"
    )


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deploy.flink", description=cluster.__doc__)
    parser.add_argument("action", choices=("up", "status", "down"))
    parser.add_argument(
        "--folder", type=Path, default=cluster.DEFAULT_FOLDER, help="default: %(default)s"
    )
    parser.add_argument(
        "--task_managers", type=int, default=2, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--slots",
        type=int,
        default=1,
        metavar="N",
        help="slots per task manager; default: %(default)s",
    )
    return parser.parse_args()


def main() -> int:
    """Runs the command; returns 0 if the cluster is then in the requested state, else 1."""
    args = _parse_arguments()
    try:
        if args.action == "down":
            print("Flink is down" if cluster.down(args.folder) else "no cluster was up")
            return 0

        if args.action == "up":
            started = cluster.up(args.folder, args.folder, args.task_managers, args.slots)
            print(_describe(started, args.folder))
            return 0

        running = cluster.read(args.folder.absolute())
        if running is None:
            print("no cluster is up; start one with `make flink`")
            return 1
        missing = running.missing()
        print(f"incomplete: {missing}" if missing else _describe(running, args.folder))
        return 1 if missing else 0
    except ClusterError as error:
        print(f"flink: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
