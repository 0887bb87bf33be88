"""The configuration of scheduled batches: one YAML file, checked in full before any work begins.

    input: gs://crawl/{date}/*.jsonl.gz       # a glob or a list of globs; {date}: the batch's date
    rater: gs://models/rater
    reference: gs://curation/reference        # a scored run folder; default: the rater's own sample
    state: gs://curation/nightly/state        # which batch took which file, and what was published
    publish: gs://curation/nightly/published  # DATE/manifest.json appears here when a batch is done
    curate:                                   # flags of datarater curate, without their dashes
      keep_fraction: 0.5

The other sections have defaults: see `BatchConfig`. In any text, `${NAME}` is replaced by an
environment variable; `$${` is a literal `${`. `{date}` and `{date:%Y/%m/%d}` are replaced by the
batch's date, in `input` only. Relative paths start at the folder of the file, and `~` is the home
directory.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import re
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]

from datarater.pipelines.commands import flags, requests
from datarater.pipelines.errors import UsageError
from datarater.pipelines.graph.inputs import Patterns
from datarater.pipelines.graph.requests import ScoringRequest, SelectionRequest
from datarater.pipelines.run_folder import commits
from datarater.pipelines.runners.execution import Execution
from datarater.rater_model.command_line import near_miss
from datarater.rater_model.documents.files import (
    expand_home,
    local_path,
    open_file,
    split_on_commas,
)
from datarater.rater_model.documents.remote_file import WHOLE
from datarater.rater_model.documents.store_errors import one_line
from datarater.rater_model.plain_tokenizer import BYTES

_DATE = re.compile(r"\{date(?::([^{}]+))?\}")
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

# Flags of datarater curate that the batch sets itself, and where to set them instead.
_SET_BY_BATCH = {
    "input": "give `input` at the top level of the file",
    "input_list": "give `input` at the top level of the file; it may be a list",
    "rater": "give `rater` at the top level of the file",
    "reference": "give `reference` at the top level of the file",
    "output": "each batch has its own run folder, under `runs`",
    "name": "the selection is named after its rule",
    "max_rejected_fraction": "give limits.rejected_share",
}
# Rules that compare a batch with itself: drift would move the cutoff, and nobody would notice.
_WITHIN_A_BATCH = (
    "keep_count",
    "token_budget",
    "sample_tokens",
    "sample_count",
    "per",
    "source_weight",
    "min_per_source",
)


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses a key given twice instead of dropping one of its values."""

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
    """Limits that raise an alarm: a warning and exit code 4. None turns a limit off.

    Attributes:
        psi: Largest population stability index of the scores, compared with the reference's.
        ks: Largest Kolmogorov-Smirnov distance between the scores and the reference's.
        kept_share: Largest difference between a source's kept share and its kept share in the
            reference, in either direction.
        rejected_share: Largest share of rejected records.
        min_documents: Smallest number of scored documents. The default, 1, makes a night without
            files an alarm.
        on_alarm: `publish` the batch despite the alarm, or `hold` it back until somebody runs it
            with --accept_alarm.
    """

    psi: float | None = 0.25
    ks: float | None = 0.15
    kept_share: float | None = 0.2
    rejected_share: float | None = 0.05
    min_documents: int | None = 1
    on_alarm: str = "publish"


@dataclasses.dataclass(frozen=True)
class Retention:
    """How long files are kept, in days before the newest published date. None keeps them forever.

    Attributes:
        scores_days: Days to keep the plans, scores and rejected records of the run folders.
        published_days: Days to keep the published documents and the rest of their run folders.
    """

    scores_days: int | None = None
    published_days: int | None = None


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """The content of a configuration file, with absolute paths and all defaults.

    Attributes:
        path: Path of the file.
        input: Globs of the input files, with or without `{date}`.
        rater: Path of the rater checkpoint.
        reference: Scored run folder or rater checkpoint whose score distribution is frozen.
        state: Path of the state folder.
        runs: Folder of the run folders; STATE/runs by default.
        publish: Folder where readers find the published batches.
        quiet_minutes: Age in minutes below which a file may still be being written; such files
            wait for the next batch.
        late_days: With `{date}` in `input`, the number of earlier dates to check. Late files of a
            date that has a batch join this batch. A date that was missed gets its own batch first.
            Dates before the first batch ever are not taken: the first batch reports those that
            have files, with the command that takes them. 0 looks at no earlier date.
        changed_files: What to do with files that changed after a batch took them: `tell` reports
            them once and then ignores them, `take` takes them again as a new version, `refuse`
            ends the command.
        limits: Limits that raise an alarm.
        retention: How long files are kept.
        curate: Flags of datarater curate, as words of a command line.
        beam: Flags of Beam, as words of a command line.
        beam_score: Flags of Beam for scoring, which replace those of the same names; scoring and
            selecting are then two jobs, such as one on GPUs and one on CPUs. None for one job.
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
    beam_score: tuple[str, ...] | None = None

    @property
    def is_dated(self) -> bool:
        """Whether the globs contain `{date}`, so that a file's path gives its date."""
        return any(_DATE.search(pattern) for pattern in self.input)

    def patterns(self, date: datetime.date) -> list[str]:
        """Returns the globs of a date."""
        return [
            _DATE.sub(lambda match: date.strftime(match[1] or "%Y-%m-%d"), pattern)
            for pattern in self.input
        ]

    def with_flag(self, name: str, value: str) -> BatchConfig:
        """Returns the configuration with another value of a flag of datarater curate."""
        return dataclasses.replace(self, curate=(*self.curate, f"--{name}={value}"))

    def score_command(self) -> str:
        """Returns the shell command that scores the reference as the batches are scored."""
        parser = argparse.ArgumentParser(add_help=False)
        flags.add_input_flags(parser)
        flags.add_scoring_flags(parser)
        shared = [
            word
            for word in self.curate
            if word.split("=")[0] in parser._option_string_actions  # not those of the selection
        ]
        words = ["--rater", self.rater, *shared, "--output", self.reference]
        return f"datarater score --input 'GLOB' {shlex.join(words)}"

    def batch_command(self, date: object, *more: str) -> str:
        """Returns the shell command that makes the batch of a date.

        Args:
            date: A date, or the name of a shell variable after a `$`.
            more: Further flags.
        """
        return " ".join(
            ["datarater batch --config", shlex.quote(self.path), "--as_of", f"{date}", *more]
        )

    def requests(self) -> tuple[ScoringRequest, SelectionRequest]:
        """Returns the requests of every batch; loads the rater to compute its digest.

        Each batch replaces the globs by its files, and `runs` by its run folder.

        Raises:
            UsageError: A flag is invalid; the message names the flag and the file.
            CurationError: The rater cannot be loaded.
        """
        args, execution = self._parse()
        requests.usable_path("state", self.state, execution)  # it contains the lists of files
        scoring = requests.scoring_of(args, execution, Patterns(self.input))
        return scoring, requests.selection_of(args, execution)

    def execution(self) -> Execution:
        """Returns the execution of a run, or of its selection; each run needs its own.

        Raises:
            UsageError: A flag is invalid; the message names the flag and the file.
            FlinkError: A Flink cluster does not answer, or has fewer slots than requested.
        """
        return self._parse()[1]

    def execution_of_scoring(self) -> Execution | None:
        """Returns the execution of scoring if it is a job of its own; None if it is not.

        Raises:
            UsageError: A flag is invalid; the message names the flag and the file.
            FlinkError: A Flink cluster does not answer, or has fewer slots than requested.
        """
        if self.beam_score is None:
            return None
        replaced = {word.partition("=")[0] for word in self.beam_score}
        kept = [word for word in self.beam if word.partition("=")[0] not in replaced]
        return self._parse([*kept, *self.beam_score])[1]

    def _parse(self, beam: Sequence[str] | None = None) -> tuple[argparse.Namespace, Execution]:
        has_threshold = any(word.startswith("--threshold=") for word in self.curate)
        given = argparse.Namespace(
            input=list(self.input),
            rater=[self.rater],
            output=self.runs,
            reference=None if has_threshold else self.reference,
        )
        parser = FlagParser(self.path)
        words = [*self.curate, *(self.beam if beam is None else beam)]
        args, beam_args = flags.parse(parser, words, given)
        return args, requests.execution_of(parser, args, beam_args)


class FlagParser(argparse.ArgumentParser):
    """A parser of the flags of `datarater curate` whose errors name the configuration file.

    Args:
        path: Path of the configuration file.
    """

    def __init__(self, path: str):
        super().__init__(prog="datarater batch", add_help=False, allow_abbrev=False)
        self._path = path
        flags.add_output_flag(self)
        flags.add_input_flags(self)
        flags.add_scoring_flags(self)
        flags.add_selection_flags(self)
        flags.add_local_flags(self)
        # The batch itself gives the input, the rater and the output.
        for action in self._actions:
            action.required = False
        # Nobody asked for a page with text of the corpus beside the published documents.
        self.set_defaults(report_texts=0)

    def error(self, message: str) -> NoReturn:
        """Raises a UsageError in place of ending the process."""
        raise UsageError(f"{self._path}: curate: {message}")

    def names(self) -> dict[str, argparse.Action]:
        """Returns the flags by name, without dashes."""
        return {
            flag.removeprefix("--"): action for flag, action in self._option_string_actions.items()
        }


# Reading the file.


class _Section:
    """A mapping of the file whose keys are taken one by one, so that unknown ones are left over.

    Args:
        path: Path of the file.
        name: Name of the section; "" for the whole file.
        values: The mapping; None for an empty one.
    """

    def __init__(self, path: str, name: str, values: Any):
        self._path, self._name = path, name
        if values is None:
            values = {}
        if not isinstance(values, Mapping):
            raise UsageError(f"{path}: {name or 'the file'} is not a mapping of keys to values")
        self.values = {str(key): value for key, value in values.items()}
        self._known: list[str] = []

    def _full_name(self, key: str) -> str:
        return f"{self._path}: {self._name}.{key}" if self._name else f"{self._path}: {key}"

    def take(self, key: str, read: Callable[[Any], Any], default: Any = dataclasses.MISSING) -> Any:
        """Returns the value of a key.

        Args:
            key: Name of the key.
            read: Function that checks and converts the value; raises ValueError with a predicate
                such as "is not a number".
            default: Value of a missing key; without a default the key is required.

        Raises:
            UsageError: The key is missing or its value is invalid; the message names file, section
                and key.
        """
        self._known.append(key)
        if key not in self.values:
            if default is dataclasses.MISSING:
                raise UsageError(f"{self._full_name(key)} is missing{self._suggestion(key)}")
            return default
        try:
            return read(self.values[key])
        except ValueError as error:
            raise UsageError(f"{self._full_name(key)}: {self.values[key]!r} {error}") from None

    def _suggestion(self, key: str) -> str:
        near = near_miss(key, self.values)
        return f"; is {near!r} a misspelling of it?" if near else ""

    def refuse_unknown(self) -> None:
        """Refuses keys that were not taken.

        Raises:
            UsageError: There is an unknown key; the message suggests a known one.
        """
        for key in self.values:
            if key not in self._known:
                near = near_miss(key, self._known)
                hint = (
                    f"did you mean {near}?"
                    if near
                    else f"the known keys are {', '.join(self._known)}"
                )
                raise UsageError(f"{self._full_name(key)}: unknown key; {hint}")


class _VariableError(ValueError):
    """An environment variable is not set."""


def _expand_variables(where: str, value: Any) -> Any:
    """Returns a value of the file with its environment variables replaced.

    Args:
        where: Keys that lead to the value, for messages.
        value: Text, list, mapping or any other value of the file.

    Raises:
        _VariableError: A variable is not set.
    """
    if isinstance(value, list):
        return [_expand_variables(where, item) for item in value]
    if isinstance(value, dict):
        return {
            key: _expand_variables(f"{where}.{key}" if where else str(key), item)
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
        raise ValueError("is not text")
    return value


def _path_in(folder: str) -> Callable[[Any], str]:
    """Returns a reader of paths that resolves relative ones against a folder."""

    def read(value: Any) -> str:
        text = _text(value)
        if _DATE.search(text):
            raise ValueError("contains {date}, which only input may contain")
        return _resolve(folder, text)

    return read


def _resolve(folder: str, path: str) -> str:
    local = local_path(path)
    if local is None:
        return path
    local = expand_home(local)
    if os.path.isabs(local):
        return local
    return f"{folder}/{local}" if local_path(folder) is None else os.path.join(folder, local)


def _globs_in(folder: str) -> Callable[[Any], tuple[str, ...]]:
    """Returns a reader of one glob or several that resolves relative ones against a folder."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, str | list) or not value:
            raise ValueError("is not a glob or a list of globs")
        texts = [_text(item) for item in ([value] if isinstance(value, str) else value)]
        globs = [glob for text in texts for glob in split_on_commas(text)]

        for glob in globs:
            if "{date" in _DATE.sub("", glob):
                raise ValueError(
                    "has a malformed date: write {date}, or {date:%Y/%m/%d} for another format"
                )
        if len({bool(_DATE.search(glob)) for glob in globs}) > 1:
            raise ValueError("mixes two kinds of globs: either every glob has {date} or none has")
        return tuple(_resolve(folder, glob) for glob in globs)

    return read


def _number(minimum: float, maximum: float) -> Callable[[Any], float | None]:
    def read(value: Any) -> float | None:
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not minimum <= value <= maximum:
            raise ValueError(
                f"is not a number from {minimum:g} to {maximum:g}, or null for no limit"
            )
        return float(value)

    return read


def _count(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError("is not a whole number, at least 1, or null for no limit")
    return value


def _minutes(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError("is not a number of minutes, at least 0")
    return float(value)


def _days(minimum: int) -> Callable[[Any], int | None]:
    """Returns a reader of days; null is allowed where 0 is not."""

    def read(value: Any) -> int | None:
        if value is None and minimum:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ValueError(
                f"is not a whole number of days, at least {minimum}"
                + (", or null for forever" if minimum else "")
            )
        return value

    return read


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return str(value)

    return read


def _words(where: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns flags as words of a command line.

    `name: value` is one flag, a list is a flag given several times, true is a flag without value.

    Args:
        where: File and section, for messages.
        values: Values by the flag's name.

    Raises:
        UsageError: A value cannot be the value of a flag.
    """
    words = []
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                words.append(f"--{name}")
            elif isinstance(item, str | int | float) and not isinstance(item, bool):
                words.append(f"--{name}={item}")
            else:
                raise UsageError(
                    f"{where}.{name}: {item!r} is not the value of a flag: give text, a number, "
                    "or true"
                )
    return tuple(words)


def _curate_words(path: str, folder: str, values: Any) -> tuple[str, ...]:
    """Returns the section `curate` as words, after checking the names of its flags.

    Args:
        path: Path of the configuration file.
        folder: Folder that relative paths start at.
        values: The section.

    Raises:
        UsageError: A flag is not one of a batch.
    """
    section = _Section(path, "curate", values)
    for name in FlagParser(path).names():
        if name not in _SET_BY_BATCH:
            section.take(name, lambda value: value, None)

    for name in section.values:
        if name in _SET_BY_BATCH:
            raise UsageError(f"{path}: curate.{name} is set by the batch: {_SET_BY_BATCH[name]}")
        if name in _WITHIN_A_BATCH:
            raise UsageError(
                f"{path}: curate.{name} chooses the best within each batch, however bad the batch; "
                "give keep_fraction or accept_batch, whose cutoff comes from the reference, or "
                "threshold"
            )
    section.refuse_unknown()
    if "rank_by" in section.values and "threshold" not in section.values:
        raise UsageError(
            f"{path}: curate.rank_by ranks by numbers that the scores of the reference cannot be "
            "compared with; give threshold, a cutoff of these numbers"
        )
    words = _words(f"{path}: curate", section.values)
    return tuple(_with_resolved_path(folder, word) for word in words)


def _with_resolved_path(folder: str, word: str) -> str:
    """Returns a flag whose value may be a relative path, resolved against a folder."""
    flag, _, value = word.partition("=")
    name, _, path = value.partition("=")
    if flag == "--join" and path:
        return f"{flag}={name}={_resolve(folder, path)}"
    is_path = flag == "--output_tokenizer" and value != BYTES
    is_file = flag == "--tokens_from" and commits.exists(_resolve(folder, value))  # or a column
    return f"{flag}={_resolve(folder, value)}" if is_path or is_file else word


def read_config(path: str, beam_args: Sequence[str] = ()) -> BatchConfig:
    """Reads a configuration file.

    Args:
        path: Path of the file, local or on any file system of fsspec.
        beam_args: Flags of Beam from the command line, which follow those of the file.

    Raises:
        UsageError: The file cannot be read, or a value is invalid; the message names the key and
            what it should be.
    """
    local = local_path(path)
    path = path if local is None else expand_home(local)
    values = _load(path)
    folder = os.path.dirname(os.path.abspath(path) if local_path(path) is not None else path)

    whole = _Section(path, "", values)
    read_path = _path_in(folder)
    # Other keys have defaults that come from these two.
    rater = whole.take("rater", read_path)
    state = whole.take("state", read_path).rstrip("/")
    config = BatchConfig(
        path=path,
        input=whole.take("input", _globs_in(folder)),
        rater=rater,
        reference=whole.take("reference", read_path, rater),
        state=state,
        runs=whole.take("runs", read_path, f"{state}/runs").rstrip("/"),
        publish=whole.take("publish", read_path).rstrip("/"),
        quiet_minutes=whole.take("quiet_minutes", _minutes, 10.0),
        late_days=whole.take("late_days", _days(0), 7),
        changed_files=whole.take("changed_files", _one_of("tell", "take", "refuse"), "tell"),
        limits=_limits(path, whole.take("limits", lambda value: value, None)),
        retention=_retention(path, whole.take("retention", lambda value: value, None)),
        curate=_curate_words(path, folder, whole.take("curate", lambda value: value)),
        beam=(*whole.take("beam", _words_of(path, "beam"), ()), *beam_args),
        beam_score=whole.take("beam_score", _words_of(path, "beam_score"), None),
    )
    whole.refuse_unknown()
    _check_paths(config)
    _check_days(config)
    return config


def _load(path: str) -> Any:
    """Returns the content of a file, with environment variables replaced.

    Raises:
        UsageError: The file cannot be read, is not YAML, or names a variable that is not set.
    """
    commits.check_protocols("--config", path)
    try:
        with open_file(path, in_order_to=WHOLE) as file:
            return _expand_variables("", yaml.load(file.read(), _Loader))
    except _VariableError as error:
        raise UsageError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {one_line(error, None)}") from error
    except OSError as error:
        raise UsageError(f"--config: {path} cannot be read: {error.strerror or error}") from error


def _limits(path: str, values: Any) -> Limits:
    section, default = _Section(path, "limits", values), Limits()
    limits = Limits(
        psi=section.take("psi", _number(0, 100), default.psi),
        ks=section.take("ks", _number(0, 1), default.ks),
        kept_share=section.take("kept_share", _number(0, 1), default.kept_share),
        rejected_share=section.take("rejected_share", _number(0, 1), default.rejected_share),
        min_documents=section.take("min_documents", _count, default.min_documents),
        on_alarm=section.take("on_alarm", _one_of("publish", "hold"), default.on_alarm),
    )
    section.refuse_unknown()
    return limits


def _retention(path: str, values: Any) -> Retention:
    section = _Section(path, "retention", values)
    retention = Retention(
        scores_days=section.take("scores_days", _days(1), None),
        published_days=section.take("published_days", _days(1), None),
    )
    section.refuse_unknown()
    return retention


def _words_of(path: str, section: str) -> Callable[[Any], tuple[str, ...]]:
    """Returns a reader of a section of flags of Beam."""
    return lambda values: _words(f"{path}: {section}", _Section(path, section, values).values)


def _check_paths(config: BatchConfig) -> None:
    """Refuses paths that no file system can open, and folders given for two purposes.

    Raises:
        UsageError: A path is unusable; the message names its key.
    """
    for key in ("rater", "reference", "state", "runs", "publish"):
        commits.check_protocols(f"{config.path}: {key}", getattr(config, key))
    for pattern in config.input:
        commits.check_protocols(f"{config.path}: input", pattern)
    for key in ("state", "runs", "publish"):
        local = local_path(getattr(config, key))
        if local is not None and os.path.exists(local) and not os.path.isdir(local):
            raise UsageError(f"{config.path}: {key}: {local} is a file; name a folder")
    if len({config.state, config.runs, config.publish}) < 3:
        raise UsageError(f"{config.path}: state, runs and publish must be three different folders")


def _check_days(config: BatchConfig) -> None:
    """Refuses numbers of days that would lose files or remove a batch as soon as it is made.

    Raises:
        UsageError: The numbers contradict each other.
    """
    if config.is_dated and config.quiet_minutes and not config.late_days:
        raise UsageError(
            f"{config.path}: late_days: 0 would lose the files that quiet_minutes leaves to the "
            "next batch; give late_days: 1 or more, or quiet_minutes: 0"
        )
    published_days = config.retention.published_days
    if config.is_dated and published_days is not None and published_days < config.late_days:
        raise UsageError(
            f"{config.path}: retention.published_days is less than late_days: the batch of a "
            "missed date would be removed as soon as it is made"
        )
