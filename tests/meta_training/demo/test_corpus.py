from __future__ import annotations

import ast
import dataclasses
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datarater.meta_training.demo import corpus
from datarater.meta_training.demo.corpus import (
    MAX_CHARACTERS,
    MIN_CHARACTERS,
    DemoCorpus,
    Installation,
    Kind,
    Piece,
    build_demo_corpus,
    split_by_origin,
    word_shingles,
)
from datarater.meta_training.demo.corruption import text_to_bytes, unigram_distribution
from datarater.meta_training.demo.errors import NotOurFolderError, TooLittleTextError
from tests.support.shared_folders import made_once


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> DemoCorpus:
    """The corpus of this Python, made once (takes some seconds)."""
    # What is complete is used again.
    return build_demo_corpus(made_once(tmp_path_factory, "demo corpus", build_demo_corpus))


def read(folder: Path) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as file:
            documents.extend(json.loads(line) for line in file)
    return documents


@pytest.fixture(scope="module")
def pool(built: DemoCorpus) -> list[dict[str, Any]]:
    return read(built.output / "corpus")


@pytest.fixture(scope="module")
def held_out(built: DemoCorpus) -> list[dict[str, Any]]:
    return read(built.output / "heldout")


def test_documents_have_their_fields_and_unique_ids(
    pool: list[dict[str, Any]], held_out: list[dict[str, Any]]
) -> None:
    ids = set()
    for document in pool + held_out:
        assert set(document) == {"id", "text", "source", "kind"}
        assert all(isinstance(value, str) for value in document.values())
        assert document["text"].isascii()
        assert document["text"].strip()
        assert MIN_CHARACTERS <= len(document["text"]) <= MAX_CHARACTERS
        ids.add(document["id"])
    assert len(ids) == len(pool) + len(held_out)
    assert {document["kind"] for document in pool} == {kind.value for kind in Kind}
    assert {document["kind"] for document in held_out} == {"intact"}


def test_every_kind_has_the_very_same_lengths(pool: list[dict[str, Any]]) -> None:
    lengths = {
        kind: sorted(len(document["text"]) for document in pool if document["kind"] == kind)
        for kind in Kind
    }
    assert all(lengths[kind] == lengths[Kind.INTACT] for kind in Kind)


def test_there_is_enough_of_it(built: DemoCorpus) -> None:
    assert built.summary["pool"]["intact"]["characters"] > 500_000
    assert built.summary["held_out"]["intact"]["characters"] > 150_000


def test_the_pool_holds_nothing_of_the_held_out_documents(
    pool: list[dict[str, Any]], held_out: list[dict[str, Any]]
) -> None:
    assert not {d["id"].split("#")[0] for d in held_out} & {
        d["id"].split("#")[0] for d in pool if d["kind"] == "intact"
    }
    target: set[str] = set().union(*(word_shingles(document["text"]) for document in held_out))
    sharing = [
        document["id"]
        for document in pool
        if not target.isdisjoint(word_shingles(document["text"]))
    ]
    assert sharing == []


def test_damaged_copies_are_what_they_say(pool: list[dict[str, Any]]) -> None:
    by_number = {(d["kind"], d["id"].rsplit("-", 1)[1]): d["text"] for d in pool}
    intact = {number: text for (kind, number), text in by_number.items() if kind == "intact"}
    for number, text in intact.items():
        shuffled = by_number["shuffled", number]
        assert Counter(shuffled) == Counter(text)
        assert shuffled != text
        boilerplate = by_number["boilerplate", number]
        period = next(n for n in range(1, len(text) + 1) if boilerplate[n:] == boilerplate[:-n])
        assert period <= 121
    original_V = unigram_distribution(text_to_bytes(text) for text in intact.values())
    redrawn_V = unigram_distribution(
        text_to_bytes(by_number["redrawn", number]) for number in intact
    )
    assert np.abs(redrawn_V - original_V).sum() / 2 < 0.01


def test_code_loses_its_docstrings_and_nothing_else() -> None:
    source = (
        '"""Module."""\n# Notice.\nimport os\n\n\n\n\n'
        'class A:\n    """Class,\n    two lines."""\n\n    b = """kept"""  # kept too\n\n'
        '    async def c(self):\n        "Function."\n        return os\n'
    )
    module = corpus._Module("odd.py", source, ast.parse(source))
    assert corpus._code_only(module) == (
        'import os\n\nclass A:\n\n    b = """kept"""  # kept too\n\n'
        "    async def c(self):\n        return os"
    )


def small_python(library: Path) -> Installation:
    """Writes a standard library with just enough prose."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(2_000)]
    library.mkdir()
    for number in range(100):
        paragraphs = [" ".join(rng.choice(words, 80)) + "." for _ in range(7)]
        (library / f"module{number}.py").write_text(
            "# Copyright 2001 Nobody. All rights reserved for ever and ever.\n"
            + '"""'
            + "\n\n".join(paragraphs)
            + '"""\n'
            + "".join(f"name_{line} = {number}\n" for line in range(200))
        )
    return Installation(library, library, {})


def test_a_complete_corpus_is_used_again_and_a_changed_one_made_anew(tmp_path: Path) -> None:
    python, output = small_python(tmp_path / "library"), tmp_path / "demo"
    built = build_demo_corpus(output, python=python)
    assert built.made
    again = build_demo_corpus(output, python=python)
    assert not again.made
    assert again.summary == built.summary

    shard = sorted((output / "corpus").iterdir())[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    anew = build_demo_corpus(output, python=python)
    assert anew.made
    assert shard.read_bytes() == whole
    assert sorted(path.name for path in output.iterdir()) == ["corpus", "corpus.json", "heldout"]

    assert build_demo_corpus(output, python=python, version=1_000).made


@pytest.mark.slow
def test_the_same_python_gives_the_same_bytes(built: DemoCorpus, tmp_path: Path) -> None:
    assert build_demo_corpus(tmp_path).summary == built.summary
    for name in built.summary["files"]:
        assert (tmp_path / name).read_bytes() == (built.output / name).read_bytes()


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "precious.jsonl.gz").write_bytes(b"mine")
    with pytest.raises(NotOurFolderError, match="corpus contains something other"):
        build_demo_corpus(tmp_path)
    assert (tmp_path / "corpus" / "precious.jsonl.gz").read_bytes() == b"mine"


def test_an_installation_without_text_is_refused_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stripped = dataclasses.replace(Installation.running(), library=tmp_path / "nowhere")
    assert stripped.topics
    with pytest.raises(TooLittleTextError, match="libpython3-stdlib"):
        build_demo_corpus(tmp_path, python=stripped)
    assert corpus.main(["--output", str(tmp_path)], stripped) == 1
    assert "stripped" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_topics_and_licence_the_docstrings_do() -> None:
    source = (
        '# Copyright 2001 Nobody. All rights reserved for ever and ever.\n"""'
        + "Prose of some kind. " * 20
        + '"""'
    )
    module = corpus._Module("odd.py", source, ast.parse(source))
    nothing = Installation(Path("/nowhere"), Path("/nowhere"), topics={})
    assert [piece.origin for piece in corpus.gather_prose([module], nothing.topics)] == ["odd.py"]
    assert corpus.gather_boilerplate([module], nothing) == [
        "All rights reserved for ever and ever."
    ]


def test_prose_is_told_from_doctests_tables_and_grammar() -> None:
    assert corpus._is_prose("A sentence of prose, which says something about the world.")
    for paragraph in (
        ">>> print('a doctest is not prose at all')",
        "stmt ::= expression and other words in a row",
        "+-----+-----+ table of words and more words",
        "naïve words that are not all in ascii, alas",
        "x = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]",
        "Too short.",
    ):
        assert not corpus._is_prose(paragraph), paragraph


def test_no_origin_lies_on_both_sides_and_shared_text_is_not_held_out() -> None:
    rng = np.random.default_rng(5)
    words = [f"w{n}" for n in range(3_000)]
    prose = [
        Piece(
            f"module{i // 3}",
            " ".join(rng.choice(words, 60)) + (" shared" * 13 if i % 7 == 0 else ""),
            "docstrings",
        )
        for i in range(300)
    ]
    pool, held_out = split_by_origin(prose, rng)
    assert pool
    assert held_out
    assert not {piece.origin for piece in pool} & {piece.origin for piece in held_out}
    assert not any("shared" in piece.text for piece in held_out)
