"""`python -m deploy.flink up|status|down`: a Flink cluster on this machine."""

import argparse
import sys
from pathlib import Path

from deploy.flink import cluster, supervisor
from deploy.flink.java import ClusterError


def _describe(found: cluster.Cluster, folder: Path) -> str:
    slots = found.task_managers * found.slots
    of_each = "1 slot" if found.slots == 1 else f"{found.slots} slots"
    return (
        f"Flink is up: {found.task_managers} task managers with {of_each} each, http://{found.flink_master}\n"
        f"logs: {folder}/{supervisor.LOGS}\n"
        f"Submit to it, with {slots} workers:\n\n"
        "  datarater-curate --input 'crawl/*.jsonl.gz' --rater rater --output run --keep_fraction 0.5 \\\n"
        f"      {' '.join(found.flags())}\n\n"
        "FlinkRunner with a job server of its own, in place of --job_endpoint:\n\n"
        f"      --flink_job_server_jar={found.job_server_jar}\n"
    )


def main() -> int:
    """Returns 0 where the cluster is as it was asked to be, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m deploy.flink", description=cluster.__doc__)
    parser.add_argument("action", choices=("up", "status", "down"))
    parser.add_argument(
        "--folder", type=Path, default=cluster.DEFAULT_FOLDER, help="default: %(default)s"
    )
    parser.add_argument(
        "--task_managers", type=int, default=2, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--slots", type=int, default=1, metavar="N", help="of each; default: %(default)s"
    )
    args = parser.parse_args()
    try:
        if args.action == "down":
            print("Flink is down" if cluster.down(args.folder) else "no cluster was up")
            return 0
        if args.action == "up":
            print(
                _describe(
                    cluster.up(args.folder, args.folder, args.task_managers, args.slots),
                    args.folder,
                )
            )
            return 0
        found = cluster.read(args.folder.absolute())
        if found is None:
            print("no cluster is up: make flink")
            return 1
        missing = found.missing()
        print(f"not whole: {missing}" if missing else _describe(found, args.folder))
        return 1 if missing else 0
    except ClusterError as error:
        print(f"flink: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
