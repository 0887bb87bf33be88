"""Checks that hold for create-if-absent on every file system."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from datarater.pipelines.run_folder import commits


def check_that_one_writer_wins(folder: str) -> None:
    """Lets four writers commit different bytes at once, under five names."""
    for number in range(5):
        path = f"{folder}/{number}"
        gate = threading.Barrier(4)

        def commit(content: bytes, path: str = path, gate: threading.Barrier = gate) -> bool:
            gate.wait()
            return commits.commit_if_absent(path, content)

        contents = [bytes([65 + writer]) * 1000 for writer in range(4)]
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(commit, contents))
        assert sum(won) == 1
        assert commits.read_bytes(path) == contents[won.index(True)]
