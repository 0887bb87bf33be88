r"""Peak memory and time of planning millions of files that do not exist.

    python -m tests.benchmarks.plan_memory --files 1000000,10000000 --output /tmp/plans

Every number of files is planned in a process of its own: the listing is stored in chunks, which are
planned, and the plan is committed. Then the listing is compared with the plan, as when a run
resumes. Small files are not opened to be planned, so a file costs no more than its name.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tests.support.made_up_listing import plan_in_a_process


def main() -> None:
    """Measures and prints a line for each number of files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", default="1000000", help="numbers of files")
    parser.add_argument("--output", required=True, type=Path, help="folder for the plans")
    args = parser.parse_args()

    for files in (int(word) for word in args.files.split(",")):
        folder = args.output / f"plan-{files}"
        megabytes, seconds = plan_in_a_process(files, 0, str(folder))
        stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(
            f"{files:,} files: {megabytes:,.0f} MB added to the peak, {seconds:,.0f} s, a plan of "
            f"{stored / 1e6:,.0f} MB",
            flush=True,
        )
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
