"""The configuration of scheduled batches: one YAML file, every key of which is checked before any work begins.

    input: gs://crawl/{date}/*.jsonl.gz       # a glob, or a list of them; {date}: only files of the batch's own date
    rater: gs://models/rater
    reference: gs://curation/reference        # a scored run folder; left out: the rater's own reference sample
    state: gs://curation/nightly/state        # which batch took which file, and what was published
    publish: gs://curation/nightly/published  # DATE/manifest.json appears here when a batch is whole
    curate:                                   # flags of datarater curate, without their dashes
      keep_fraction: 0.5

The other sections have defaults: see `BatchConfig`. `${NAME}` stands for an environment variable in
any text ($${ for a literal one), `{date}` and `{date:%Y/%m/%d}` for the batch's date in `input`
alone. Relative paths start where the file lies.
"""

import argparse
import dataclasses
import datetime
import difflib
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]

from datarater.pipelines.commands import flags as options
from datarater.pipelines.commands.score import add_scoring_flags, scoring_request
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.run_folder.plan import INPUT_LIST
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model.documents.files import local_path, open_file

_DATE = re.compile(r"\{date(?::([^{}]+))?\}")
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NEAR = 0.7

# Flags of datarater curate that a batch sets by itself, and where else to say it.
_SET_BY_BATCH = {
    "input": "it stands at the top of the file",
    "rater": "it stands at the top of the file",
    "reference": "it stands at the top of the file",
    "output": "each batch has a run folder of its own, under `runs`",
    "name": "the selection is named by its rule",
    "max_rejected_fraction": "it is limits.rejected_share",
}
# What would hold a batch against itself: drift would move the cutoff, and nobody would see it.
_WITHIN_A_BATCH = ("keep_count", "token_budget", "per", "source_weight", "min_per_source")


class _Loader(yaml.SafeLoader):
    """YAML without the silent loss of a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What raises the alarm: a warning and exit code 4. None: no limit.

    Attributes:
        psi: population stability index of the scores against the reference's.
        ks: their Kolmogorov-Smirnov distance.
        kept_share: by how much any source's kept share may differ from the reference's, in either
            direction.
        rejected_share: rejected records as a share of all.
        on_alarm: `publish` the batch all the same, or `hold` it back until somebody has looked.
    """

    psi: float | None = 0.25
    ks: float | None = 0.15
    kept_share: float | None = 0.2
    rejected_share: float | None = 0.05
    on_alarm: str = "publish"


@dataclasses.dataclass(frozen=True)
class Retention:
    """How long files are kept, in days before the newest published date. None: for ever.

    Attributes:
        scores_days: plans, scores and rejected records of the run folders.
        published_days: the published documents, and all else of their run folders.
    """

    scores_days: int | None = None
    published_days: int | None = None


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """What a batch is told by its file.

    Attributes:
        path: the file.
        input: globs, maybe with `{date}`.
        rater: the rater checkpoint.
        reference: the scored run folder or rater checkpoint whose distribution of scores is frozen.
        state: the state folder.
        runs: the folder of the run folders; default: STATE/runs.
        publish: the folder that readers look at.
        quiet_minutes: a file that was modified less than so many minutes ago may still be being
            written: it is left to the next batch.
        late_days: with `{date}`: so many dates before the batch's own are looked at. Late files of
            a date that has its batch join this one; a date that was missed gets its own batch
            first. 0: none.
        changed_files: of files that changed after a batch took them: `tell` and leave them, `take`
            them again as a new version, or `refuse` to begin.
        limits: what raises the alarm.
        retention: how long files are kept.
        curate: the flags of datarater curate, as words.
        beam: the flags of Beam, as words.
    """

    path: str
    input: tuple[str, ...]
    rater: str
    reference: str
    state: str
    runs: str
    publish: str
    quiet_minutes: float
    late_days: int
    changed_files: str
    limits: Limits
    retention: Retention
    curate: tuple[str, ...]
    beam: tuple[str, ...]

    @property
    def is_dated(self) -> bool:
        """Whether a file's path says of which date it is."""
        return any(_DATE.search(pattern) for pattern in self.input)

    def patterns(self, date: datetime.date) -> list[str]:
        """The globs of a date."""
        return [
            _DATE.sub(lambda match: date.strftime(match[1] or "%Y-%m-%d"), pattern)
            for pattern in self.input
        ]

    def argv(self, output: str, inputs: str) -> list[str]:
        """The flags of `datarater curate` for one batch.

        Args:
            output: its run folder.
            inputs: the file that lists its inputs.
        """
        words = [
            f"--input={INPUT_LIST}{inputs}",
            f"--output={output}",
            f"--rater={self.rater}",
            *self.curate,
        ]
        if not any(word.startswith("--threshold=") for word in self.curate):
            words.append(f"--reference={self.reference}")
        return [*words, *self.beam]

    def requests(
        self, output: str, inputs: str
    ) -> tuple[ScoringRequest, SelectionRequest, Execution]:
        """What `datarater curate` makes of these flags; the rater is loaded to know its digest.

        Raises:
            UsageError: a flag is refused; the message names it and the file.
            CurationError: the rater cannot be loaded.
        """
        parser = FlagParser(self.path)
        args, execution = options.parse_run(parser, self.argv(output, inputs))
        selection = options.selection_request(args)
        return scoring_request(args, execution), selection, execution


class FlagParser(argparse.ArgumentParser):
    """The flags of `datarater curate`; what is wrong with one is said of the configuration file.

    Args:
        path: the configuration file.
    """

    def __init__(self, path: str):
        super().__init__(prog="datarater batch", add_help=False, allow_abbrev=False)
        self._path = path
        options.add_output_flag(self)
        options.add_input_flags(self)
        add_scoring_flags(self)
        options.add_selection_flags(self)
        options.add_local_flags(self)

    def error(self, message: str) -> NoReturn:
        """Refuses a flag."""
        raise UsageError(f"{self._path}: curate: {message}")

    def names(self) -> dict[str, argparse.Action]:
        """The flags by name, without dashes."""
        return {
            flag.removeprefix("--"): action for flag, action in self._option_string_actions.items()
        }


# --- reading the file
# ---------------------------------------------------------------------------------


class _Section:
    """A mapping of the file, from which keys are taken one by one; what is left in the end is unknown.

    Args:
        path: the file.
        name: of the section; "" for the whole file.
        values: the mapping.
    """

    def __init__(self, path: str, name: str, values: Any):
        self._path, self._name = path, name
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise UsageError(f"{path}: {name or 'the file'} is not a mapping of keys to values")
        self._values = {str(key): value for key, value in values.items()}
        self._asked: list[str] = []

    def _key(self, key: str) -> str:
        return f"{self._path}: {self._name}.{key}" if self._name else f"{self._path}: {key}"

    def take(self, key: str, read: Callable[[Any], Any], default: Any = dataclasses.MISSING) -> Any:
        """The value of a key.

        Args:
            key: its name.
            read: checks and converts it; raises ValueError with what it should be.
            default: where it is not given; left out, it must be.

        Raises:
            UsageError: naming file, section and key.
        """
        self._asked.append(key)
        if key not in self._values:
            if default is dataclasses.MISSING:
                raise UsageError(f"{self._key(key)} is missing{self._meant(key)}")
            return default
        try:
            return read(self._values[key])
        except ValueError as error:
            raise UsageError(f"{self._key(key)}: {self._values[key]!r} is not {error}") from None

    def _meant(self, key: str) -> str:
        near = difflib.get_close_matches(key, self._values, 1, _NEAR)
        return f"; is {near[0]!r} meant to be it?" if near else ""

    def end(self) -> None:
        """Refuses keys that nobody asked for.

        Raises:
            UsageError: naming the key, and one that may be meant.
        """
        for key in self._values:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, 1, _NEAR)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._asked)}"
                raise UsageError(f"{self._key(key)}: there is no such key; {hint}")


class _VariableError(ValueError):
    """An environment variable is not set."""


def _expanded(where: str, value: Any) -> Any:
    """A value with environment variables put in.

    Args:
        where: the keys that lead to it.
        value: of the file.

    Raises:
        _VariableError: one is not set.
    """
    if isinstance(value, list):
        return [_expanded(where, item) for item in value]
    if isinstance(value, dict):
        return {
            key: _expanded(f"{where}.{key}" if where else str(key), item)
            for key, item in value.items()
        }
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        if match[2] not in os.environ:
            raise _VariableError(f"{where}: the environment variable {match[2]} is not set")
        return os.environ[match[2]]

    return _VARIABLE.sub(variable, value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("text")
    return value


def _path_in(folder: str) -> Callable[[Any], str]:
    """Reads a path; a relative one starts at a folder."""

    def read(value: Any) -> str:
        text = _text(value)
        if _DATE.search(text):
            raise ValueError("free of {date}, which only input may hold")
        return _resolved(folder, text)

    return read


def _resolved(folder: str, path: str) -> str:
    local = local_path(path)
    if local is None or os.path.isabs(local):
        return path if local is None else local
    return f"{folder}/{local}" if local_path(folder) is None else os.path.join(folder, local)


def _globs_in(folder: str) -> Callable[[Any], tuple[str, ...]]:
    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, str | list) or not value:
            raise ValueError("a glob or a list of globs")
        globs = [_text(item) for item in ([value] if isinstance(value, str) else value)]
        parts = [part.strip() for text in globs for part in text.split(",") if part.strip()]
        for part in parts:
            if "{date" in _DATE.sub("", part):
                raise ValueError("right: write {date}, or {date:%Y/%m/%d} for another form")
        if len({bool(_DATE.search(part)) for part in parts}) > 1:
            raise ValueError("one thing: either every glob has {date} or none has")
        return tuple(_resolved(folder, part) for part in parts)

    return read


def _number(least: float, most: float) -> Callable[[Any], float | None]:
    def read(value: Any) -> float | None:
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not least <= value <= most
        ):
            raise ValueError(f"a number from {least:g} to {most:g}, or null for none")
        return float(value)

    return read


def _minutes(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError("a number of minutes, 0 for none")
    return float(value)


def _days(least: int) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        if value is None and least:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"a whole number of days, {least} at least"
                + (", or null for ever" if least else "")
            )
        return value

    return read


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(value)

    return read


def _words(where: str, flags: Mapping[str, Any]) -> tuple[str, ...]:
    """Flags as the words of a command line: `name: value`, a list for a flag given several times, true for one alone.

    Raises:
        UsageError: a value that no flag can have.
    """
    words = []
    for name, value in flags.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(f"--{name}")
            elif isinstance(item, str | int | float) and not isinstance(item, bool):
                words.append(f"--{name}={item}")
            else:
                raise UsageError(
                    f"{where}.{name}: {item!r} is not the value of a flag: text, a number, or true"
                )
    return tuple(words)


def _curate_words(path: str, values: Any) -> tuple[str, ...]:
    section = _Section(path, "curate", values)
    known = FlagParser(path).names()
    for name in known:
        if name not in _SET_BY_BATCH:
            section.take(name, lambda value: value, None)
    for name in section._values:
        if name in _SET_BY_BATCH:
            raise UsageError(f"{path}: curate.{name} is set by the batch: {_SET_BY_BATCH[name]}")
        if name in _WITHIN_A_BATCH:
            raise UsageError(
                f"{path}: curate.{name} chooses the best within each batch, however bad the batch; give keep_fraction "
                "or accept_batch, whose cutoff comes from the reference, or threshold"
            )
    section.end()
    return _words(f"{path}: curate", section._values)


def read_config(path: str, beam_args: Sequence[str] = ()) -> BatchConfig:
    """Reads a configuration file.

    Args:
        path: the file, local or on any file system of fsspec.
        beam_args: flags of Beam from the command line, after those of the file.

    Raises:
        UsageError: the file cannot be read, or something in it is wrong: naming the key and what it
            should be.
    """
    commits.check_protocols("--config", path)
    try:
        with open_file(path) as file:
            values = _expanded("", yaml.load(file.read(), _Loader))
    except _VariableError as error:
        raise UsageError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"--config: {path} cannot be read: {error.strerror or error}") from error
    folder = os.path.dirname(
        path if local_path(path) is None else os.path.abspath(str(local_path(path)))
    )
    whole = _Section(path, "", values)
    place = _path_in(folder)
    rater = whole.take("rater", place)
    state = whole.take("state", place)
    config = BatchConfig(
        path=path,
        input=whole.take("input", _globs_in(folder)),
        rater=rater,
        reference=whole.take("reference", place, rater),
        state=state.rstrip("/"),
        runs=whole.take("runs", place, f"{state.rstrip('/')}/runs").rstrip("/"),
        publish=whole.take("publish", place).rstrip("/"),
        quiet_minutes=whole.take("quiet_minutes", _minutes, 10.0),
        late_days=whole.take("late_days", _days(0), 7),
        changed_files=whole.take("changed_files", _one_of("tell", "take", "refuse"), "tell"),
        limits=_limits(path, whole.take("limits", lambda value: value, None)),
        retention=_retention(path, whole.take("retention", lambda value: value, None)),
        curate=_curate_words(path, whole.take("curate", lambda value: value)),
        beam=(
            *_words(f"{path}: beam", _beam(path, whole.take("beam", lambda value: value, None))),
            *beam_args,
        ),
    )
    whole.end()
    _check_places(config)
    if config.is_dated and config.quiet_minutes and not config.late_days:
        raise UsageError(
            f"{path}: late_days: 0 would lose the files that quiet_minutes leaves to the next batch; give late_days: 1 "
            "or more, or quiet_minutes: 0"
        )
    kept = config.retention.published_days
    if config.is_dated and kept is not None and kept < config.late_days:
        raise UsageError(
            f"{path}: retention.published_days is less than late_days: a missed date that is made up for would be "
            "removed at once"
        )
    return config


def _limits(path: str, values: Any) -> Limits:
    section, default = _Section(path, "limits", values), Limits()
    limits = Limits(
        psi=section.take("psi", _number(0, 100), default.psi),
        ks=section.take("ks", _number(0, 1), default.ks),
        kept_share=section.take("kept_share", _number(0, 1), default.kept_share),
        rejected_share=section.take("rejected_share", _number(0, 1), default.rejected_share),
        on_alarm=section.take("on_alarm", _one_of("publish", "hold"), default.on_alarm),
    )
    section.end()
    return limits


def _retention(path: str, values: Any) -> Retention:
    section = _Section(path, "retention", values)
    retention = Retention(
        scores_days=section.take("scores_days", _days(1), None),
        published_days=section.take("published_days", _days(1), None),
    )
    section.end()
    return retention


def _beam(path: str, values: Any) -> dict[str, Any]:
    section = _Section(path, "beam", values)
    return section._values


def _check_places(config: BatchConfig) -> None:
    """Refuses folders that no file system can open, or that lie in each other's way.

    Raises:
        UsageError: naming the key.
    """
    for key in ("rater", "reference", "state", "runs", "publish"):
        commits.check_protocols(f"{config.path}: {key}", getattr(config, key))
    for pattern in config.input:
        commits.check_protocols(f"{config.path}: input", pattern)
    for key in ("state", "runs", "publish"):
        local = local_path(getattr(config, key))
        if local is not None and os.path.exists(local) and not os.path.isdir(local):
            raise UsageError(f"{config.path}: {key}: {local} is a file, give a folder")
    if len({config.state, config.runs, config.publish}) < 3:
        raise UsageError(f"{config.path}: state, runs and publish must be folders of their own")
