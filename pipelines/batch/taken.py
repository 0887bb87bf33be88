"""Finds which batches took a file, without reading the file lists of all batches every night.

The lists of `BLOCK_CLAIMS` claims in a row are compacted into one segment, those of as many
segments into a larger one, and so on while a segment has at most `max_rows` rows:

    STATE/taken/1-000003.parquet   claims 24 to 31, in the order of their entries
    STATE/taken/2-000000.parquet   claims 0 to 63

A segment is sorted by path, so that only the row groups are read whose range has a path that is
looked for. Its name and its content follow from the journal's first entries, which never change:
launches at the same time create the same segment, and one that is missing, because a launch was
killed or the folder is of an earlier version, is made by the next. Claims that were released are in
it too; their rows are left out when it is read.
"""

from __future__ import annotations

import bisect
import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datarater.pipelines.batch.journal import Claim, Journal
from datarater.pipelines.errors import CountsError
from datarater.pipelines.run_folder import commits

BLOCK_CLAIMS = 8
MAX_SEGMENT_ROWS = 2**19
_GROUP_ROWS = 2**14
_CLAIMS_KEY = b"datarater"
_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("claim", pa.int64(), nullable=False),
    ]
)


class TakenFiles:
    """The files that batches took, by path and fingerprint.

    Args:
        journal: Journal of the state folder, which was read.
        max_rows: Maximum number of rows of a segment that is made from smaller ones.
    """

    def __init__(self, journal: Journal, max_rows: int = MAX_SEGMENT_ROWS):
        self._journal = journal
        self._max_rows = max_rows
        state = journal.state
        self._valid = state.claims
        begun: dict[int, Claim] = {**state.released, **state.claims}
        self._claims = [(number, begun[number]) for number in sorted(begun)]
        self._there = {
            entry.path.rsplit("/", 1)[-1]
            for entry in commits.list_folder(f"{journal.folder}/taken")
        }

    def fingerprints(self, paths: Mapping[str, object]) -> dict[str, dict[str, str]]:
        """Returns the dates of the batches that took files, by path and then by fingerprint.

        The fingerprints of a path are in the order of the batches.

        Args:
            paths: The paths to look for; others are left out.
        """
        wanted = sorted(paths)
        taken: dict[str, dict[str, str]] = {}
        for rows in self._rows(wanted):
            for path, fingerprint, number in zip(
                *(rows.column(name).to_pylist() for name in _SCHEMA.names), strict=True
            ):
                if number in self._valid:
                    taken.setdefault(path, {})[fingerprint] = self._valid[number].date
        return taken

    def _rows(self, wanted: Sequence[str]) -> Iterator[pa.Table]:
        """Yields the rows of the wanted paths, from the largest segments that there can be."""
        first = 0
        while first < len(self._claims):
            level = 0
            while self._has_segment(level + 1, first):
                level += 1
            if level:
                with self._segment(level, first) as segment:
                    yield from _wanted_rows(segment, wanted)
            else:
                yield _filtered(self._list(first), wanted)
            first += BLOCK_CLAIMS**level

    def _has_segment(self, level: int, first: int) -> bool:
        """Reports whether a segment begins at a claim; makes it if it is missing."""
        size = BLOCK_CLAIMS**level
        if first % size or first + size > len(self._claims):
            return False
        if self._name(level, first) in self._there:
            return True

        # A segment is made from those of the level below.
        step = size // BLOCK_CLAIMS
        starts = range(first, first + size, step)
        if level > 1:
            if not all(self._has_segment(level - 1, start) for start in starts):
                return False
            with contextlib.ExitStack() as stack:
                parts = [stack.enter_context(self._segment(level - 1, s)) for s in starts]
                if sum(part.metadata.num_rows for part in parts) > self._max_rows:
                    return False
                tables = [part.read(use_threads=False) for part in parts]
        else:
            tables = [self._list(start) for start in starts]
        commits.commit_if_absent(self._path(level, first), self._content(level, first, tables))
        self._there.add(self._name(level, first))
        return True

    def _name(self, level: int, first: int) -> str:
        return f"{level}-{first // BLOCK_CLAIMS**level:06d}.parquet"

    def _path(self, level: int, first: int) -> str:
        return f"{self._journal.folder}/taken/{self._name(level, first)}"

    def _described(self, level: int, first: int) -> bytes:
        """Returns what identifies the claims of a segment."""
        claims = self._claims[first : first + BLOCK_CLAIMS**level]
        return orjson.dumps([[number, claim.inputs] for number, claim in claims])

    def _content(self, level: int, first: int, tables: Sequence[pa.Table]) -> bytes:
        """Returns the content of a segment: the rows of tables, sorted by path and claim."""
        rows = pa.concat_tables(tables).sort_by([("path", "ascending"), ("claim", "ascending")])
        rows = rows.replace_schema_metadata({_CLAIMS_KEY: self._described(level, first)})
        out = io.BytesIO()
        with pq.ParquetWriter(
            out,
            rows.schema,
            compression="zstd",
            use_dictionary=["claim"],
            write_statistics=["path"],
        ) as writer:
            writer.write_table(rows, row_group_size=_GROUP_ROWS)
        return out.getvalue()

    def _list(self, place: int) -> pa.Table:
        """Returns the rows of one claim, from the list of its files."""
        number, claim = self._claims[place]
        files = self._journal.inputs(claim)
        return pa.table(
            [
                [info.path for info in files],
                [info.fingerprint for info in files],
                [number] * len(files),
            ],
            schema=_SCHEMA,
        )

    @contextlib.contextmanager
    def _segment(self, level: int, first: int) -> Iterator[pq.ParquetFile]:
        """Opens a segment for the block.

        Raises:
            CountsError: It is damaged, or belongs to other claims.
        """
        path = self._path(level, first)
        with contextlib.ExitStack() as stack:
            try:
                segment = pq.ParquetFile(stack.enter_context(commits.open_committed(path)))
                described = (segment.schema_arrow.metadata or {}).get(_CLAIMS_KEY)
            except (OSError, pa.ArrowInvalid) as error:
                raise CountsError(f"{path} cannot be read ({error}); {_ADVICE}") from error
            if described != self._described(level, first):
                raise CountsError(f"{path} belongs to other entries of the journal; {_ADVICE}")
            yield segment


def _wanted_rows(segment: pq.ParquetFile, wanted: Sequence[str]) -> Iterator[pa.Table]:
    """Yields the rows of the wanted paths; reads only row groups that may have some."""
    for group in range(segment.metadata.num_row_groups):
        bounds = segment.metadata.row_group(group).column(0).statistics
        some = wanted
        if bounds is not None and bounds.has_min_max:
            low = bisect.bisect_left(wanted, bounds.min)
            some = wanted[low : bisect.bisect_right(wanted, bounds.max, low)]
        if some:
            yield _filtered(segment.read_row_group(group, use_threads=False), some)


_ADVICE = "remove it: it is made again from the lists of the batches"


def _filtered(rows: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """Returns the rows whose path is among the wanted ones."""
    return rows.filter(pc.is_in(rows["path"], value_set=pa.array(wanted, pa.string())))
