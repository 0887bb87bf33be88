from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datarater.rater_model.documents.records import FileInfo
from datarater.rater_model.documents.sorted_files import FileSorter


@given(st.lists(st.text(max_size=4)), st.integers(1, 9))
def test_files_come_sorted_and_each_path_once_however_few_fit_in_memory(
    paths: list[str], in_memory: int
) -> None:
    files = FileSorter(in_memory)
    for path in paths:
        files.add(FileInfo(path, len(path), f"print-{path}"))
    assert list(files.sorted()) == [
        FileInfo(path, len(path), f"print-{path}") for path in sorted(set(paths))
    ]
