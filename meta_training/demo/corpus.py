"""The demo's built-in corpus, made from real text that comes with every Python installation.

    python -m datarater.meta_training.demo.corpus --output=demo_output

Intact prose comes from pydoc's topics and from the docstrings of the standard library's modules,
which are parsed but never imported. For each intact document the pool contains copies of the same
length, so that length tells nothing: its bytes shuffled, its bytes redrawn from the corpus's
unigram distribution, boilerplate (a repeated sentence from license texts), and source code (intact,
but not prose).

The held-out target is intact prose that is not in the pool: it comes from other modules and topics,
and a document that shares 13 words in a row with a document of the pool is excluded.

The command writes `demo_output/corpus/*.jsonl.gz` (the pool), `demo_output/heldout/*.jsonl.gz` and,
last, `demo_output/corpus.json` (versions, counts, digests). A document has the fields `id`, `text`,
`source` (which kind of text it was made from) and `kind` (see `Kind`). The kind is for reading
results; training never sees it.

All text is ASCII. The same Python installation always produces the same bytes.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib
import inspect
import io
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from datarater.meta_training.demo.corruption import (
    bytes_to_text,
    replace_from_unigram,
    shuffle_within,
    text_to_bytes,
    unigram_distribution,
)
from datarater.meta_training.demo.errors import DemoError, NotOurFolderError, TooLittleTextError
from datarater.rater_model import exit_codes
from datarater.rater_model.atomic_files import replace_file
from datarater.rater_model.command_line import CommandParser

CORPUS_VERSION = 1
"""Incremented when the same installation would produce another corpus; older ones are remade."""

MIN_CHARACTERS = 200
MAX_CHARACTERS = 4000
POOL_CHARACTERS = 700_000
"""Maximum intact prose in the pool; each other kind has as much."""
HELD_OUT_CHARACTERS = 240_000
"""Maximum intact prose in the held-out target."""
HELD_OUT_SHARE = 0.25
"""Maximum share of all intact prose that is held out; applies to installations with little text."""
MIN_PROSE_CHARACTERS = 300_000
SHARED_WORDS = 13
"""A document that shares this many words in a row with the pool is not held out."""
BOILERPLATE_SENTENCES = 12
"""Fewer sentences are easier to learn; with 24 the demo's rater reached an AUC near 0.95."""
POOL_SHARDS = 4
HELD_OUT_SHARDS = 2
_SEED = 20_240_607
_TEMPORARY = ".corpus-tmp-"

_NOT_THE_LIBRARY = frozenset(
    {
        "__pycache__",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "pydoc_data",
        "encodings",
    }
)
# These are written by the build or by the machine's owner. They contain paths and differ between
# otherwise identical installations.
_LOCAL_MODULES = re.compile(
    r"_sysconfigdata|_sysconfig_vars|sitecustomize|usercustomize|__phello__"
)
_TO_ASCII = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": "--",
        "…": "...",
        "\u00a0": " ",
        "°": " degrees",
    }
)
_LEGAL = re.compile(
    r"licensed|rights reserved|copyright notice|warrant|damages|\bhereby\b"
    r"|written (consent|agreement)|terms and conditions",
    re.IGNORECASE,
)


class Kind(StrEnum):
    """What a document is. Used for reading results, never for training."""

    INTACT = "intact"
    """Prose as it was written."""
    SHUFFLED = "shuffled"
    """An intact document with all its bytes shuffled."""
    REDRAWN = "redrawn"
    """As long as an intact document, with bytes drawn from the intact documents' frequencies."""
    BOILERPLATE = "boilerplate"
    """A sentence of a license text, repeated to an intact document's length."""
    CODE = "code"
    """Source code without docstrings, cut to an intact document's length: intact, but not prose."""


DAMAGED_KINDS = (Kind.SHUFFLED, Kind.REDRAWN, Kind.BOILERPLATE)
"""Kinds that a rater should score below intact prose. Code is neither damaged nor prose."""


@dataclass(frozen=True)
class Installation:
    """A Python installation, whose documentation becomes the corpus.

    Attributes:
        library: Folder of the standard library.
        prefix: Folder of the whole installation.
        topics: Texts of pydoc's topics by name; none if the distribution omits them.
    """

    library: Path
    prefix: Path
    topics: Mapping[str, str]

    @classmethod
    def running(cls) -> Installation:
        """Returns the installation of the running Python."""
        try:
            topics = dict(importlib.import_module("pydoc_data.topics").topics)
        except ImportError:
            topics = {}
        return cls(Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix), topics)


@dataclass(frozen=True, slots=True)
class Piece:
    """A document before it is assigned a kind.

    Attributes:
        origin: Topic or module that it comes from. Documents of one origin are never in both the
            pool and the held-out target.
        text: ASCII text.
        source: `topics`, `docstrings`, `sources` or `licences`.
    """

    origin: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class DemoDocument:
    """A document of the built-in corpus, as it is written.

    Attributes:
        id: Id, unique in the corpus.
        text: ASCII text.
        source: Kind of text that it was made from: `topics`, `docstrings`, `sources` or
            `licences`.
        kind: See `Kind`.
    """

    id: str
    text: str
    source: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class DemoCorpus:
    """A corpus on disk.

    Attributes:
        output: Folder that contains `corpus/`, `heldout/` and `corpus.json`.
        summary: Content of `corpus.json`.
        made: False if the corpus existed before.
    """

    output: Path
    summary: dict[str, Any]
    made: bool

    @property
    def pool_glob(self) -> str:
        """Glob of the pool's files."""
        return str(self.output / "corpus" / "*.jsonl.gz")

    @property
    def held_out_glob(self) -> str:
        """Glob of the held-out files."""
        return str(self.output / "heldout" / "*.jsonl.gz")


def build_demo_corpus(
    output: str | os.PathLike[str],
    say: Callable[[str], None] = lambda _: None,
    python: Installation | None = None,
    version: int = CORPUS_VERSION,
) -> DemoCorpus:
    """Makes the corpus, unless a complete one of this version and this Python exists.

    It is written to a temporary folder and then renamed; `corpus.json` comes last and makes the
    corpus complete. Files changed since are detected by their digests, and the corpus is remade.

    Args:
        output: Folder to write to; created if it does not exist.
        say: Called with each line of progress.
        python: Installation to take the text from; the running one if None.
        version: Version of the corpus.

    Returns:
        The corpus.

    Raises:
        TooLittleTextError: If the installation contains too little text.
        NotOurFolderError: If `corpus/` or `heldout/` contains files that were not written here.
        OSError: If the folder cannot be written.
    """
    output, python = Path(output), python or Installation.running()
    identity = {
        "corpus_version": version,
        "python": ".".join(map(str, sys.version_info[:3])),
        "standard_library": str(python.library),
    }
    summary = _complete_summary(output, identity)
    if summary is not None:
        return DemoCorpus(output, summary, made=False)
    for name in ("corpus", "heldout"):
        _check_ours(output / name)

    say("making the built-in corpus from this Python's documentation ...")
    pool, held_out = make_documents(python)

    output.mkdir(parents=True, exist_ok=True)
    for left_over in output.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=output))
    try:
        files = {}
        for name, shards, documents in (
            ("corpus", POOL_SHARDS, pool),
            ("heldout", HELD_OUT_SHARDS, held_out),
        ):
            (temporary / name).mkdir()
            for path, data in _shards(name, documents, shards):
                replace_file(temporary / path, data)
                files[path] = hashlib.sha256(data).hexdigest()
        summary = {
            **identity,
            "numpy": np.__version__,
            "pool": _counts(pool),
            "held_out": _counts(held_out),
            "content_digest": _content_digest([*pool, *held_out]),
            "files": files,
        }
        replace_file(temporary / "corpus.json", json.dumps(summary, indent=2).encode() + b"\n")

        # Without its corpus.json, a corpus that is being replaced is incomplete.
        (output / "corpus.json").unlink(missing_ok=True)
        for name in ("corpus", "heldout"):
            if (output / name).exists():
                shutil.rmtree(output / name)
            (temporary / name).rename(output / name)
        (temporary / "corpus.json").rename(output / "corpus.json")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return DemoCorpus(output, summary, made=True)


def make_documents(python: Installation) -> tuple[list[DemoDocument], list[DemoDocument]]:
    """Gathers the text of an installation and makes the pool and the held-out documents.

    Returns:
        The pool and the held-out documents, both in random order.

    Raises:
        TooLittleTextError: If the installation contains too little text.
    """
    rng = np.random.default_rng(_SEED)
    modules = list(_library_modules(python.library))
    prose = gather_prose(modules, python.topics)
    total = sum(len(piece.text) for piece in prose)
    if total < MIN_PROSE_CHARACTERS:
        raise TooLittleTextError(
            f"this Python installation ({python.prefix}) contains {total:,} characters of usable "
            f"documentation, but the built-in corpus needs {MIN_PROSE_CHARACTERS:,}. Its standard "
            "library seems to be stripped: install the full one (on Debian and Ubuntu the packages "
            "python3 and libpython3-stdlib), or train on a corpus of your own"
        )

    sentences = gather_boilerplate(modules, python)
    intact, held_out = split_by_origin(prose, rng, avoid=sentences)
    code = _code_windows(modules, [len(piece.text) for piece in intact], _shingles(held_out), rng)
    pool = list(_pool(intact, code, sentences, rng))
    target = [
        DemoDocument(f"{piece.origin}#held-out-{number}", piece.text, piece.source, Kind.INTACT)
        for number, piece in enumerate(held_out)
    ]
    return [pool[i] for i in rng.permutation(len(pool))], target


def _pool(
    intact: Sequence[Piece],
    code: Sequence[Piece],
    sentences: Sequence[str],
    rng: np.random.Generator,
) -> Iterator[DemoDocument]:
    """Yields each intact document followed by its copies of the same length."""
    unigram_V = unigram_distribution(text_to_bytes(piece.text) for piece in intact)
    for number, piece in enumerate(intact):
        bytes_L = text_to_bytes(piece.text)
        length = len(bytes_L)

        def named(
            kind: Kind, text: str, origin: str, source: str, number: int = number
        ) -> DemoDocument:
            return DemoDocument(f"{origin}#{kind}-{number}", text, source, kind)

        yield named(Kind.INTACT, piece.text, piece.origin, piece.source)

        shuffled_L = shuffle_within(bytes_L, 1.0, rng).astype(np.uint8)
        yield named(Kind.SHUFFLED, bytes_to_text(shuffled_L), piece.origin, piece.source)

        redrawn_L = replace_from_unigram(bytes_L, 1.0, unigram_V, rng).astype(np.uint8)
        yield named(Kind.REDRAWN, bytes_to_text(redrawn_L), piece.origin, piece.source)

        sentence = sentences[int(rng.integers(len(sentences)))] + " "
        repeated = (sentence * (length // len(sentence) + 1))[:length]
        yield named(Kind.BOILERPLATE, repeated, "licence", "licences")

        if number < len(code):
            yield named(Kind.CODE, code[number].text, code[number].origin, code[number].source)


# Gathering.


@dataclass(frozen=True, slots=True)
class _Module:
    """A source file of the standard library: its path in the library, its text and syntax tree."""

    name: str
    text: str
    tree: ast.Module


def _library_modules(library: Path) -> Iterator[_Module]:
    """Yields the standard library's source files that parse, sorted by path."""
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(
            name for name in folders if name not in _NOT_THE_LIBRARY and "-" not in name
        )
        for name in sorted(names):
            if not name.endswith(".py") or _LOCAL_MODULES.search(name):
                continue

            path = Path(folder) / name
            try:
                text = path.read_text(encoding="utf-8")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(text)
            except (OSError, SyntaxError, ValueError):
                # Some files among the modules are templates or samples of broken code.
                continue
            yield _Module(path.relative_to(library).as_posix(), text, tree)


def gather_prose(modules: Iterable[_Module], topics: Mapping[str, str]) -> list[Piece]:
    """Gathers documents of prose from pydoc's topics and from docstrings, each paragraph once.

    Args:
        modules: Modules of the standard library.
        topics: Texts of pydoc's topics by name.

    Returns:
        Pieces of MIN_CHARACTERS to MAX_CHARACTERS characters, in a fixed order.
    """
    seen: set[bytes] = set()
    pieces: list[Piece] = []
    for topic, text in sorted(topics.items()):
        pieces.extend(Piece(f"topic/{topic}", part, "topics") for part in _prose_pieces(text, seen))
    for module in modules:
        for docstring in _docstrings(module.tree):
            pieces.extend(
                Piece(module.name, part, "docstrings") for part in _prose_pieces(docstring, seen)
            )
    return pieces


def gather_boilerplate(modules: Iterable[_Module], python: Installation) -> list[str]:
    """Gathers sentences of boilerplate from Python's license and the notices in its sources.

    Args:
        modules: Modules of the standard library.
        python: Installation with the license.

    Returns:
        Up to BOILERPLATE_SENTENCES ASCII sentences, in a fixed order.

    Raises:
        TooLittleTextError: If there is no such sentence.
    """
    notices = []
    for path in (
        python.library / "LICENSE.txt",
        python.library / "LICENSE",
        python.prefix / "LICENSE.txt",
    ):
        if path.is_file():
            notices.append(path.read_text(encoding="utf-8", errors="replace"))
            break
    # Some distributions omit the license, but the notices at the top of source files say much the
    # same.
    notices.extend(
        "\n".join(
            line.lstrip("# ") for line in module.text.splitlines()[:40] if line.startswith("#")
        )
        for module in modules
    )

    sentences: dict[str, str] = {}
    for notice in notices:
        for sentence in re.split(r"(?<=[.;:])\s+|\n\s*\n", notice):
            sentence = " ".join(sentence.translate(_TO_ASCII).split())
            plain = sentence.isascii() and not re.search(r"@|://|--", sentence)
            if 20 <= len(sentence) <= 120 and plain and _LEGAL.search(sentence):
                sentences.setdefault(sentence.lower().rstrip(".;:"), sentence)
        if len(sentences) >= BOILERPLATE_SENTENCES:
            break
    if not sentences:
        raise TooLittleTextError(
            "this Python installation contains neither a license nor notices in its sources"
        )
    return list(sentences.values())[:BOILERPLATE_SENTENCES]


def split_by_origin(
    prose: Sequence[Piece], rng: np.random.Generator, avoid: Sequence[str] = ()
) -> tuple[list[Piece], list[Piece]]:
    """Splits prose into the pool's and the held-out documents, with no origin on both sides.

    Args:
        prose: The documents.
        rng: Random generator.
        avoid: Other texts of the pool; no held-out document shares SHARED_WORDS words in a row with
            them.

    Returns:
        The pool's documents and the held-out ones, both within their limits, with no SHARED_WORDS
        words in a row in common.
    """
    by_origin: dict[str, list[Piece]] = {}
    for piece in prose:
        by_origin.setdefault(piece.origin, []).append(piece)
    total = sum(len(piece.text) for piece in prose)
    max_held_out = min(HELD_OUT_CHARACTERS, int(total * HELD_OUT_SHARE))
    # An origin with a large part of the held-out text would make the target about one subject.
    max_origin = max_held_out // 10

    origins = list(by_origin)
    held_out: list[Piece] = []
    pool: list[Piece] = []
    taken = 0
    for i in rng.permutation(len(origins)):
        pieces = by_origin[origins[int(i)]]
        size = sum(len(piece.text) for piece in pieces)
        if taken < max_held_out and size <= max_origin:
            held_out.extend(pieces)
            taken += size
        else:
            pool.extend(pieces)

    pool = [pool[i] for i in rng.permutation(len(pool))]
    cumulative_N = np.cumsum([len(piece.text) for piece in pool])
    pool = pool[: int(np.searchsorted(cumulative_N, POOL_CHARACTERS, side="right"))]

    forbidden = _shingles([*pool, *(Piece("", text, "") for text in avoid)])
    held_out = [piece for piece in held_out if forbidden.isdisjoint(_shingles([piece]))]
    return pool, [held_out[i] for i in rng.permutation(len(held_out))]


def word_shingles(text: str) -> set[str]:
    """Returns all runs of SHARED_WORDS words in a text, in lower case; a shorter text is one run.

    Args:
        text: Any text.

    Returns:
        The runs, with words joined by spaces; empty for a text without words.
    """
    words = re.findall(r"\w+", text.lower())
    return {
        " ".join(words[start : start + SHARED_WORDS])
        for start in range(max(1, len(words) - SHARED_WORDS + 1))
        if words
    }


def _shingles(pieces: Iterable[Piece]) -> set[str]:
    return set().union(*(word_shingles(piece.text) for piece in pieces))


def _docstring_nodes(tree: ast.Module) -> Iterator[ast.Expr]:
    """Yields the statements that are docstrings, in the order of the source."""
    # Only statements are visited: expressions are most of a tree and contain no docstring.
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue

        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and body
        ):
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first

        for field in ("finalbody", "orelse", "handlers", "body"):
            waiting.extend(reversed(getattr(node, field, ())))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for statement in _docstring_nodes(tree):
        assert isinstance(statement.value, ast.Constant)
        yield inspect.cleandoc(str(statement.value.value))


def _prose_pieces(text: str, seen: set[bytes]) -> Iterator[str]:
    """Yields a text's new paragraphs of prose, joined to documents within the size limits.

    Args:
        text: Any text.
        seen: Digests of paragraphs that occurred before; those of the text are added.
    """
    piece = ""
    for paragraph in re.split(r"\n\s*\n", text.translate(_TO_ASCII)):
        paragraph = "\n".join(line.rstrip() for line in paragraph.strip("\n").splitlines())
        if not _is_prose(paragraph):
            continue
        digest = hashlib.sha256(" ".join(paragraph.split()).lower().encode()).digest()
        if digest in seen:
            continue
        seen.add(digest)

        if piece and len(piece) + 2 + len(paragraph) > MAX_CHARACTERS:
            yield from _within_size_limits(piece)
            piece = ""
        piece = f"{piece}\n\n{paragraph}" if piece else paragraph
    yield from _within_size_limits(piece)


def _within_size_limits(piece: str) -> Iterator[str]:
    piece = piece.strip()
    if MIN_CHARACTERS <= len(piece) <= MAX_CHARACTERS:
        yield piece


def _is_prose(paragraph: str) -> bool:
    """Returns whether a paragraph is sentences.

    Sentences are ASCII and mostly letters; doctests, tables, grammars and notices are not.
    """
    if (
        len(paragraph) < 30
        or not paragraph.isascii()
        or not paragraph.replace("\n", "").isprintable()
    ):
        return False
    if ">>>" in paragraph or "::=" in paragraph or "+--" in paragraph or "===" in paragraph:
        return False
    if re.search(r"copyright|all rights reserved|licensed", paragraph, re.IGNORECASE):
        return False
    letters = sum(character.isalpha() or character in " \n,.'" for character in paragraph)
    words = re.findall(r"[A-Za-z]{2,}", paragraph)
    return letters >= 0.85 * len(paragraph) and len(words) >= 5


def _code_windows(
    modules: Sequence[_Module],
    lengths: Sequence[int],
    forbidden: set[str],
    rng: np.random.Generator,
) -> list[Piece]:
    """Cuts code into windows of the given lengths.

    Args:
        modules: Modules to cut; each gives at most 6 windows, which do not overlap.
        lengths: Characters of each window.
        forbidden: Word shingles of the target, none of which a window may contain.
        rng: Random generator.

    Returns:
        The windows; fewer than lengths if the modules do not suffice.
    """
    order = rng.permutation(len(modules))
    windows: list[Piece] = []
    left = 0
    text, name, place = "", "", 0
    queue = iter(order)
    for length in lengths:
        while True:
            if left == 0 or place + length > len(text):
                i = next(queue, None)
                if i is None:
                    return windows
                name, text, place, left = modules[i].name, _code_only(modules[i]), 0, 6
                continue

            window = Piece(name, text[place : place + length], "sources")
            # The next window starts at the beginning of a line.
            end = text.find("\n", place + length)
            place = len(text) if end < 0 else end + 1
            left -= 1
            if window.text.strip() and forbidden.isdisjoint(word_shingles(window.text)):
                windows.append(window)
                break
    return windows


def _code_only(module: _Module) -> str:
    """Returns a module's source without docstrings, comments at the left margin and blank runs."""
    lines = module.text.splitlines()
    dropped: set[int] = set()
    for statement in _docstring_nodes(module.tree):
        dropped.update(range(statement.lineno - 1, statement.end_lineno or statement.lineno))

    kept = [
        line.rstrip()
        for i, line in enumerate(lines)
        if i not in dropped and not line.startswith("#")
    ]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).translate(_TO_ASCII).strip("\n")
    return text if text.isascii() else ""


# Writing.


def _complete_summary(output: Path, identity: Mapping[str, object]) -> dict[str, Any] | None:
    """Returns the summary of a complete, unchanged corpus of this identity, or None."""
    try:
        summary = json.loads((output / "corpus.json").read_bytes())
        files = dict(summary["files"])
        same_identity = all(summary.get(key) == value for key, value in identity.items())
        present = {
            path.relative_to(output).as_posix()
            for name in ("corpus", "heldout")
            for path in (output / name).iterdir()
        }
        if not same_identity or present != set(files):
            return None
        for name, digest in files.items():
            if hashlib.sha256((output / name).read_bytes()).hexdigest() != digest:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(summary)


def _check_ours(folder: Path) -> None:
    """Refuses to replace a folder with files that this module does not write."""
    if not folder.exists() and not folder.is_symlink():
        return
    ours = re.compile(rf"{folder.name}-\d{{5}}-of-\d{{5}}\.jsonl\.gz")
    if (
        folder.is_symlink()
        or not folder.is_dir()
        or not all(ours.fullmatch(path.name) for path in folder.iterdir())
    ):
        raise NotOurFolderError(
            f"{folder} contains something other than the built-in corpus; move it away or give "
            "another --output"
        )


def _shards(
    name: str, documents: Sequence[DemoDocument], count: int
) -> Iterator[tuple[str, bytes]]:
    for shard in range(count):
        buffer = io.BytesIO()
        # A fixed time and no name in the header, so that the same text always gives the same bytes.
        with gzip.GzipFile(
            filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0
        ) as stream:
            for document in documents[shard::count]:
                stream.write(json.dumps(asdict(document)).encode() + b"\n")
        yield f"{name}/{name}-{shard:05d}-of-{count:05d}.jsonl.gz", buffer.getvalue()


def _counts(documents: Iterable[DemoDocument]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for document in documents:
        of_kind = counts.setdefault(document.kind.value, {"documents": 0, "characters": 0})
        of_kind["documents"] += 1
        of_kind["characters"] += len(document.text)
    return dict(sorted(counts.items()))


def _content_digest(documents: Iterable[DemoDocument]) -> str:
    """Returns a digest of the documents, which does not depend on the compressor's version."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(asdict(document)).encode() + b"\n")
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None, python: Installation | None = None) -> int:
    """Makes the corpus from the command line; returns the exit code.

    Args:
        argv: Arguments of the command; those of the process if None.
        python: Installation to take the text from; the running one if None.
    """
    parser = CommandParser(
        "python -m datarater.meta_training.demo.corpus",
        "Makes the demo's corpus from the text that comes with this Python installation.",
        "python -m datarater.meta_training.demo.corpus --output=demo_output",
        takes_beam_flags=False,
    )
    parser.add_argument(
        "--output",
        default="demo_output",
        metavar="DIR",
        help="Folder to write to. Default: %(default)s.",
    )
    options = parser.parse_args(argv)

    try:
        corpus = build_demo_corpus(Path(options.output).expanduser(), print, python)
    except (DemoError, OSError) as error:
        print(f"demo corpus: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, DemoError) else exit_codes.FAILED

    for side, glob in (("pool", corpus.pool_glob), ("held_out", corpus.held_out_glob)):
        for kind, of_kind in corpus.summary[side].items():
            documents, size = of_kind["documents"], of_kind["characters"]
            print(f"{side:9s} {kind:12s} {documents:6,d} documents {size:10,d} bytes")
        print(f"          {glob}")
    return exit_codes.DONE


if __name__ == "__main__":
    sys.exit(main())
