"""Scheduled batches: many nights of everything that can happen, and some real nights."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datarater import read_scores
from datarater.pipelines.commands import batch, curate, outcome
from datarater.pipelines.run_folder import lease
from datarater.pipelines.run_folder.local_files import LocalFiles
from datarater.rater_model.checkpoint import save_rater
from datarater.rater_model.documents.files import file_info
from tests.support import ROOT, batches
from tests.support.corpora import as_lines, make_records
from tests.support.near_duplicates import ComparedCorpus
from tests.support.ranked_runs import write_table
from tests.support.raters import random_student

PLACES = ("journal", "inputs", "records", "runs", "published")


class KilledError(BaseException):
    """The launch is killed here."""


class Killer:
    """Kills a launch at a commit or removal in one folder, before or after it happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = ""
        self.left = 0
        self.after = False
        self.killed = 0
        self.launch = 0
        self.dead: set[str] = set()
        self.places: set[str] = set()
        self._watch(monkeypatch, os, "link")
        self._watch(monkeypatch, LocalFiles, "remove")
        # The leases of a killed launch belong to a process that is gone.
        monkeypatch.setattr(
            lease, "process_id", lambda: lease.Process("here", 1, str(self.launch), "")
        )
        monkeypatch.setattr(lease, "is_gone", lambda process: process.started in self.dead)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any) -> Any:
            self.left -= bool(self.place) and f"/{self.place}/" in args[-1]
            if self.left or not self.place:
                return real(*args)
            self.places.add(self.place)
            self.place = ""
            if self.after:
                real(*args)
            self.killed += 1
            self.dead.add(str(self.launch))
            raise KilledError

        monkeypatch.setattr(owner, name, watched)


@dataclasses.dataclass
class Crawler:
    """Writes input files, some late, some again, some changed, and remembers every version.

    Attributes:
        drift: Number of the night whose documents drift.
    """

    folder: Path
    rng: random.Random
    drift: int
    contents: dict[tuple[str, str], list[dict[str, str]]] = dataclasses.field(default_factory=dict)
    due: dict[int, list[Path]] = dataclasses.field(default_factory=dict)

    def bring(self, path: Path, rows: list[dict[str, str]]) -> None:
        batches.write(path, rows)
        self.contents[str(path), file_info(str(path)).fingerprint] = rows

    def night(self, number: int, date: str) -> None:
        """Writes the files that arrive between two nights."""
        for index in range(self.rng.randint(2, 4)):
            path = self.folder / "in" / date / f"{index}.jsonl"
            # The files of the night that drifts are never late.
            late = self.rng.random() < 0.2 and number != self.drift
            self.due.setdefault(number + self.rng.randint(1, 3) * late, []).append(path)

        for path in self.due.pop(number, []):
            mean = 1.0 if number == self.drift else 0.0
            rows = batches.documents(
                self.rng, f"{path.parent.name}/{path.stem}", self.rng.randint(90, 160), mean
            )
            self.bring(path, rows)

        # A few files are written again, with the same content or another.
        for (path_, _), rows in list(self.contents.items()):
            chance = self.rng.random()
            if chance < 0.004:
                self.bring(Path(path_), rows)
            elif chance < 0.006:
                self.bring(Path(path_), batches.documents(self.rng, f"{path_}-again-{number}", 40))


def check_all(folder: Path, crawler: Crawler) -> dict[str, dict[str, Any]]:
    """Checks that each file that ever arrived is in one batch, with its documents of that time."""
    records = batches.check_published(folder)
    taken: dict[str, str] = {}
    for record in records.values():
        rows = [
            json.loads(line) for line in Path(record["inputs"]["list"]).read_bytes().splitlines()
        ]
        assert len(rows) == record["inputs"]["files"]

        # Which documents the batch must keep, and which it has kept.
        expected: list[str] = []
        for row in rows:
            assert row["path"] not in taken, (
                f"{row['path']} is in {taken[row['path']]} and in {record['date']}"
            )
            taken[row["path"]] = record["date"]
            content = crawler.contents[row["path"], row["fingerprint"]]
            expected += [item["id"] for item in content if float(item["text"]) >= batches.CUTOFF]
        kept = [
            json.loads(line)["id"]
            for file in record["files"]
            for line in Path(file["path"]).read_text().splitlines()
        ]
        assert sorted(kept) == sorted(expected)
    assert set(taken) == {path for path, _ in crawler.contents}
    return records


def nights(
    number_of_nights: int, drift: int, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, int], set[str], dict[str, dict[str, Any]]]:
    """Lets nights pass, checks every batch, and returns what happened.

    Returns:
        How often each thing happened, the folders where launches were killed, and the records.
    """
    batches.save_plain_rater(tmp_path / "rater")
    # Dates whose files all come late have batches without files, which are no alarm here.
    config = batches.write_config(
        tmp_path, retention={"scores_days": 10}, limits={"min_documents": None}
    )
    rng, killer = random.Random(seed), Killer(monkeypatch)
    crawler = Crawler(tmp_path, random.Random(seed + 100), drift)
    dates = batches.dates_from("2026-01-01", number_of_nights)
    codes: dict[str, set[int]] = {}
    happened = dict.fromkeys(("killed", "twice", "at once", "skipped", "past"), 0)

    def run(date: str) -> int:
        command = functools.partial(batch.run, curate=batches.curate)
        argv = ["--config", str(config), "--as_of", date]
        return outcome.exit_code_of(batch.COMMAND, command, argv)

    def launch(date: str, kill: float = 0.0) -> int | None:
        killer.launch += 1
        killer.place = rng.choice(PLACES) if rng.random() < kill else ""
        killer.left = rng.randint(1, 12 if killer.place == "runs" else 2)
        killer.after = rng.random() < 0.5
        killed = killer.killed
        try:
            code = run(date)
        except KilledError:
            happened["killed"] += 1
            return None
        killer.place = ""
        assert killer.killed == killed
        codes.setdefault(date, set()).add(code)
        return code

    # Each night one of: nobody launches, two launch at once, or one launches and may be killed.
    skipped: list[str] = []
    for number, date in enumerate(dates, 1):
        crawler.night(number, date)
        if rng.random() < 0.1 and number not in (1, drift, number_of_nights):
            happened["skipped"] += 1
            skipped.append(date)
        elif rng.random() < 0.12 and number != drift:
            happened["at once"] += 1
            dates_now = [date, date if rng.random() < 0.5 else dates[number - 2]]
            with ThreadPoolExecutor(2) as pool:
                ended_with = list(pool.map(run, dates_now))
            assert set(ended_with) <= {0, 3, 4}
            assert launch(date) == 0
        else:
            ended = launch(date, kill=0.5)
            while ended is None and rng.random() < 0.6 + (number in (drift, number_of_nights)):
                ended = launch(date, kill=0.3)
            if ended is not None and rng.random() < 0.3:
                happened["twice"] += 1
                assert launch(date) == ended
        if skipped and rng.random() < 0.3:
            happened["past"] += 1
            launch(skipped.pop(0), kill=0.2)

    # The last late files arrive, and the dates that were skipped get their batches.
    for number in range(number_of_nights + 1, number_of_nights + 5):
        crawler.night(number, batches.dates_from(dates[-1], 5)[number - number_of_nights])
    published = {place.name for place in (tmp_path / "published").iterdir()}
    for date in [
        *(date for date in dates if date not in published),
        *batches.dates_from(dates[-1], 10),
    ]:
        launch(date)

    records = check_all(tmp_path, crawler)
    drifted = dates[drift - 1]
    assert [date for date, record in records.items() if record["alarms"]] == [drifted]
    assert codes[drifted] == {4}
    assert all(codes.get(date, {0}) == {0} for date in dates if date != drifted)
    assert "population stability index" in records[drifted]["alarms"][0]

    # The last ten days keep their scores, the others only their kept documents.
    for date, record in records.items():
        scored = (Path(record["run"]) / "scoring.json").exists()
        assert scored is (date >= dates[-1] and bool(record["files"])) or date >= dates[-9:][0]
    return happened, killer.places, records


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "happens"),
    [(0, {"killed", "twice", "at once"}), (3, {"killed", "twice", "skipped", "past"})],
)
def test_a_week_of_nights(
    seed: int, happens: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened, _, records = nights(7, 5, seed, tmp_path, monkeypatch)
    assert {name for name, count in happened.items() if count} == happens
    assert any(record["inputs"].get("late") for record in records.values())
    assert any(record["inputs"].get("changed") for record in records.values())


@pytest.mark.drill
def test_sixty_nights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    happened, places, records = nights(60, 40, 0, tmp_path, monkeypatch)

    # Everything that can happen did happen.
    assert all(count >= 2 for count in happened.values()), happened
    assert places == set(PLACES)
    assert any(record["inputs"].get("late") for record in records.values())
    assert any(record["inputs"].get("changed") for record in records.values())
    assert "they join this one" in capsys.readouterr().out


KILLED_AT = """
import os, signal, sys
from datarater.pipelines.commands import batch
left = int(sys.argv.pop(1))
real = os.link
def link(staged, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(staged, target)
os.link = link
sys.exit(batch.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_nights_of_the_real_command_killed_and_finished(
    rater: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that was killed keeps what curating its files with the same reference keeps."""
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "a.jsonl").write_bytes(as_lines(make_records(600, 50)))
    scored = ["--rater", str(rater), "--keep_fraction", "0.5"]
    reference = [
        "--input",
        str(tmp_path / "sample/*"),
        "--output",
        str(tmp_path / "reference"),
        *scored,
    ]
    assert curate.main(reference) == 0
    config = batches.write_config(
        tmp_path,
        rater=str(rater),
        reference="reference",
        curate={"keep_fraction": 0.5, "split_bytes": "8KB"},
        retention={"scores_days": 1},
    )
    dates = batches.dates_from("2026-01-01", 4)
    for number, date in enumerate(dates):
        folder = tmp_path / "in" / date
        folder.mkdir(parents=True)
        rows = make_records(150, number)
        if number == 3:
            rows = [{**row, "text": "!" * 9} for row in rows]
        (folder / "a.jsonl").write_bytes(as_lines(rows[:100]))
        (folder / "b.jsonl").write_bytes(as_lines(rows[100:]) + b"not json\n")

    def launch(date: str, kill: int = 0) -> int:
        argv = ["--config", str(config), "--as_of", date]
        if not kill:
            return batch.main(argv)
        command = [sys.executable, "-c", KILLED_AT, str(kill), *argv]
        return subprocess.run(command, capture_output=True, cwd=ROOT).returncode

    # Kill the second night at the claim and while scoring; the third night finishes it.
    assert launch(dates[0]) == 0
    for kill in (2, 8):
        assert launch(dates[1], kill) == -signal.SIGKILL
        assert not (tmp_path / "published" / dates[1]).exists()
    assert list((tmp_path / "state" / "runs").glob(f"{dates[1]}*"))
    capsys.readouterr()
    assert launch(dates[2]) == 0
    assert (
        f"batch {dates[1]} was begun but not published: it is finished first"
        in capsys.readouterr().out
    )

    # The fourth night drifts, which every launch reports.
    assert launch(dates[3]) == 4
    assert launch(dates[3]) == 4
    assert launch(dates[1]) == 0
    records = batches.check_published(tmp_path)
    assert [date for date, record in records.items() if record["alarms"]] == [dates[3]]
    assert "source 's0' keeps" in " ".join(records[dates[3]]["alarms"])
    for date, record in records.items():
        assert record["counts"]["read"] == 151
        assert (Path(record["run"]) / "scoring.json").exists() is (date >= dates[2])

    # Curate the killed night's files on their own.
    inputs = ["--input", str(tmp_path / "in" / dates[1] / "*"), "--output", str(tmp_path / "alone")]
    assert curate.main([*inputs, *scored, "--reference", str(tmp_path / "reference")]) == 0
    expected = [
        line
        for file in (tmp_path / "alone").glob("selections/*/kept/*")
        for line in file.read_bytes().splitlines()
    ]
    kept = [
        line
        for file in records[dates[1]]["files"]
        for line in Path(file["path"]).read_bytes().splitlines()
    ]
    assert sorted(kept) == sorted(expected)


@pytest.mark.slow
def test_a_night_keeps_what_joined_labels_and_near_duplicates_leave(tmp_path: Path) -> None:
    """With a rater that needs no compiler: a table of n-grams."""
    save_rater(tmp_path / "rater", random_student())
    date = "2026-01-01"
    records = [
        *make_records(40, 0),
        *({**row, "id": f"copy-{row['id']}"} for row in make_records(20, 0)),
    ]
    batches.write(tmp_path / "in" / date / "a.jsonl", records)
    labels = [
        {"id": row["id"], "language": "en" if n % 3 else "fr"} for n, row in enumerate(records)
    ]
    write_table(tmp_path, "labels", [labels], id=pa.string(), language=pa.string())
    config = batches.write_config(
        tmp_path,
        limits={"psi": None, "ks": None},
        curate={
            "threshold": -100,
            "dedup": 0.8,
            "join": "labels=labels-*.parquet",
            "where": "labels.language == 'en'",
            "output_format": "scores",
        },
    )
    assert batch.main(["--config", str(config), "--as_of", date]) == 0

    record = json.loads((tmp_path / "published" / date / "manifest.json").read_bytes())
    run = Path(record["run"])
    compared = ComparedCorpus.of(run, run / "duplicates/similarity-0.8")
    compared.check()
    assert len(compared.rows) >= 20
    language = {json.dumps(row["id"]): row["language"] for row in labels}
    keys = {(row["file"], row["position"]): row["key"] for row in read_scores(run).to_pylist()}
    expected = sorted(place for place in compared.left() if language[keys[place]] == "en")
    kept = [row for file in record["files"] for row in pq.read_table(file["path"]).to_pylist()]
    assert sorted((row["path"], row["position"]) for row in kept) == expected
    counts = record["counts"]
    assert (counts["read"], counts["kept"]) == (60, len(expected))
    assert counts["read"] == counts["kept"] + counts["dropped"] + counts["rejected"]
