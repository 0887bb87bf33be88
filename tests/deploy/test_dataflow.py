"""The Flex Templates match the commands, and their launcher runs the commands."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from fractions import Fraction
from typing import Any

import pytest
from google.cloud import dataflow_v1beta3
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datarater.pipelines.commands import flags
from datarater.pipelines.runners.choice import beam_flags
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.files import split_on_commas
from datarater.rater_model.documents.tfds import TFDS_PREFIX, DatasetName
from deploy.dataflow import launch
from tests.support.flex_templates import (
    CHOICES_BY_TYPE,
    FOLDER,
    LEFT_OUT,
    SEVERAL_TIMES,
    TEMPLATES,
    template,
    text,
)
from tests.support.reference_tables import COMMANDS, parser_of

PARSERS = {command: parser_of(COMMANDS[command]) for command in TEMPLATES}
ACTIONS: dict[str, dict[str, argparse.Action]] = {
    command: {
        action.option_strings[-1].removeprefix("--"): action
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    }
    for command, parser in PARSERS.items()
}
PARAMETERS: list[tuple[str, dict[str, Any]]] = [
    (command, parameter) for command in TEMPLATES for parameter in template(command)["parameters"]
]
WITH_REGEX = [
    pytest.param(command, parameter, id=f"{command}-{parameter['name']}")
    for command, parameter in PARAMETERS
    if "regexes" in parameter
]
# What a person would write, and what they would get wrong.
RIGHT = {
    "append": ["true", "false"],
    "output": ["gs://bucket/run", "s3://bucket/a b/run"],
    "input_list": ["gs://bucket/inputs.txt"],
    "rater": ["gs://bucket/rater", "gs://a/rater,second=s3://b/rater"],
    "reference": ["gs://bucket/run"],
    "input": [
        "gs://bucket/crawl/*.jsonl.gz",
        "gs://a/*.parquet,s3://b/*.warc.gz",
        "https://host/a.jsonl",
        "gs://bucket/crawl",
        "gs://bucket/part-{0,1}*.jsonl,gs://b/{train,valid{,-2}}.jsonl",
        "tfds:c4/en",
        "tfds:c4/en:3.0.1:train+validation,gs://bucket/a.jsonl",
    ],
    "tfds_data_dir": ["gs://bucket/datasets"],
    "max_record_bytes": ["1000000", "64MB", "16MiB", "1 GiB"],
    "max_zstd_window_bytes": ["2GiB"],
    "split_bytes": ["16MiB"],
    "output_shard_bytes": ["128MiB"],
    "output_tokenizer": ["byte", "gs://bucket/tokenizer.json"],
    "second_read_bytes": ["2GiB", "1000000"],
    "max_read_amplification": ["1", "4", "2.5"],
    "workers_to_fill": ["64"],
    "max_windows": ["256"],
    "max_sources": ["256"],
    "tokens_per_batch": ["65536"],
    "max_rejected_fraction": ["0", "1", "0.01", "1e-3"],
    "agreement": ["0", "1", "0.98"],
    "keep_fraction": ["0.5", "1/3", "1", ".25", "1e-3"],
    "keep_count": ["1000"],
    "token_budget": ["1000000000"],
    "threshold": ["-0.5", "1.25", "0"],
    "accept_batch": ["1024"],
    "sample_tokens": ["1000000000"],
    "sample_count": ["1000"],
    "max_copies": ["4"],
    "discard_fraction": ["0.75", "3/4"],
    "source_weight": ["wiki=2.0", "wiki=2.0,web=0.5"],
    "min_per_source": ["10"],
    "seed": ["0", "-7"],
    "name": ["keep-0.5"],
}
WRONG = {
    "append": ["yes", "True", ""],
    "output": ["run", "/mnt/run", "gs:/bucket/run"],
    "input_list": ["inputs.txt"],
    "rater": ["rater", "gs://a,gs://b"],
    "reference": ["run"],
    "input": ["*.jsonl", "/mnt/a.jsonl", "gs://a,b.jsonl", "tfds:", "tfds:c4,en", "gs://a/{b,c"],
    "tfds_data_dir": ["~/tensorflow_datasets", "/mnt/datasets"],
    "max_record_bytes": ["0", "-1", "64 megabytes"],
    "max_zstd_window_bytes": ["0"],
    "split_bytes": ["16MiBs", ""],
    "output_shard_bytes": ["0MiB"],
    "output_tokenizer": ["tokenizer.json", "bytes", "/mnt/tokenizer.json"],
    "second_read_bytes": ["0GiB", "a lot"],
    "max_read_amplification": ["0.5", "1000", "-4"],
    "workers_to_fill": ["0", "-1", "1.5"],
    "max_windows": ["0", "all"],
    "max_sources": ["0", "all"],
    "tokens_per_batch": ["64k"],
    "max_rejected_fraction": ["1.5", "-0.1", "1%"],
    "agreement": ["1.5", "-0.1", "98%"],
    "keep_fraction": ["1.5", "50%", "-0.5", "1/0"],
    "keep_count": ["-1", "1e6", "0.5"],
    "token_budget": ["1G"],
    "threshold": ["high", "--0.5"],
    "accept_batch": ["0"],
    "sample_tokens": ["1G", "0"],
    "sample_count": ["-1", "0"],
    "max_copies": ["0", "1.5"],
    "discard_fraction": ["1.5", "75%"],
    "source_weight": ["wiki", "wiki=", "=wiki"],
    "min_per_source": ["0"],
    "seed": ["0.5", "x"],
    "name": ["a/b", "-a", ""],
}


def accepts(command: str, name: str, value: str) -> bool:
    """Returns whether a command accepts a parameter as the launcher passes it."""
    action = ACTIONS[command][name]
    for flag in launch.flags([f"--{name}={value}"], ""):
        given = flag.partition("=")[2]
        try:
            parsed = action.type(given) if callable(action.type) else given
        except (argparse.ArgumentTypeError, ValueError):
            return False
        if action.choices is not None and parsed not in action.choices:
            return False
    return True


@pytest.mark.parametrize("command", TEMPLATES)
def test_the_files_are_those_of_the_commands(command: str) -> None:
    assert (FOLDER / f"{command}.json").read_text(encoding="utf-8") == text(command), (
        "run `make templates`"
    )


@pytest.mark.parametrize("command", TEMPLATES)
def test_every_flag_of_a_command_is_a_parameter_once(command: str) -> None:
    names = [parameter["name"] for parameter in template(command)["parameters"]]
    assert sorted(names) == sorted(set(ACTIONS[command]) - set(LEFT_OUT))
    assert all(re.fullmatch("[a-z][a-z_0-9]*", name) for name in names)
    assert not beam_flags() & {f"--{name}" for name in names}, (
        "the launcher's own flags would be mistaken for ours"
    )


@pytest.mark.parametrize(
    ("command", "parameter"), PARAMETERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_parameter_says_what_the_flag_says(command: str, parameter: dict[str, Any]) -> None:
    action = ACTIONS[command][parameter["name"]]
    assert parameter["isOptional"] is not action.required
    assert parameter["label"]
    assert parameter["helpText"]
    assert SEVERAL_TIMES not in parameter["helpText"]
    assert "%" not in parameter["helpText"], "a default that was not filled in"
    offered = [option["value"] for option in parameter.get("enumOptions", [])]
    choices = action.choices or CHOICES_BY_TYPE.get(action.type) or ()
    assert offered == [str(choice) for choice in choices]
    assert all(accepts(command, parameter["name"], value) for value in offered)


@pytest.mark.parametrize("command", TEMPLATES)
def test_dataflow_knows_every_field(command: str) -> None:
    metadata = dataflow_v1beta3.TemplateMetadata.from_json(
        json.dumps(template(command)), ignore_unknown_fields=False
    )
    assert len(metadata.parameters) == len(template(command)["parameters"])


def test_dataflow_would_refuse_a_field_that_it_does_not_know() -> None:
    with pytest.raises(Exception, match="isoptional"):
        dataflow_v1beta3.TemplateMetadata.from_json(
            '{"parameters": [{"isoptional": true}]}', ignore_unknown_fields=False
        )


def test_every_regex_is_tried() -> None:
    names = {parameter["name"] for _, parameter in PARAMETERS if "regexes" in parameter}
    assert names == set(RIGHT) == set(WRONG)


@pytest.mark.parametrize(("command", "parameter"), WITH_REGEX)
def test_a_regex_lets_right_values_through_and_stops_wrong_ones(
    command: str, parameter: dict[str, Any]
) -> None:
    name, (regex,) = parameter["name"], parameter["regexes"]
    assert regex.startswith("^")
    assert regex.endswith("$")
    for value in RIGHT[name]:
        assert re.fullmatch(regex, value), value
        assert accepts(command, name, value), value
    for value in WRONG[name]:
        assert not re.fullmatch(regex, value), value


@pytest.mark.parametrize("name", sorted(RIGHT))
@settings(max_examples=30)
@given(data=st.data())
def test_what_a_regex_lets_through_the_command_takes(name: str, data: st.DataObject) -> None:
    command, parameter = next(
        (command, found) for command, found in PARAMETERS if found["name"] == name
    )
    value = data.draw(
        st.from_regex(
            parameter["regexes"][0].replace("$", r"\Z"), alphabet=st.characters(max_codepoint=127)
        )
    )
    if name in ("keep_fraction", "discard_fraction"):  # that p/q is at most 1 no regex can say
        assume(Fraction(value) <= 1)
    assert accepts(command, name, value)


def regex_of_input() -> str:
    """Returns the regex of the parameter `input`."""
    return next(found["regexes"][0] for _, found in PARAMETERS if found["name"] == "input")


def test_the_pattern_of_input_admits_what_its_help_offers() -> None:
    (text_of_help,) = {found["helpText"] for _, found in PARAMETERS if found["name"] == "input"}
    offered = [f"gs://bucket/{glob}" for glob in re.findall(r"'([^']+)'", text_of_help)]
    (dataset,) = re.findall(r"tfds:\S+\]", text_of_help)
    assert dataset == "tfds:NAME[:VERSION][:SPLIT]"
    offered += ["tfds:c4/en", "tfds:c4/en:3.0.1", "tfds:c4/en:train", "tfds:c4/en:3.0.1:train"]
    assert len(offered) > 5
    for value in offered:
        assert re.fullmatch(regex_of_input(), value), value


@settings(max_examples=30)
@given(data=st.data())
def test_every_input_that_the_pattern_admits_is_a_url_or_a_dataset(data: st.DataObject) -> None:
    value = data.draw(
        st.from_regex(
            regex_of_input().replace("$", r"\Z"), alphabet=st.characters(max_codepoint=127)
        )
    )
    for part in split_on_commas(value):
        if part.startswith(TFDS_PREFIX):
            assert DatasetName.parse(part).name
        else:
            assert re.match("[a-z0-9+]+://", part), part


@pytest.mark.parametrize("command", TEMPLATES)
def test_a_flag_that_is_given_several_times_can_be_joined(command: str) -> None:
    several = {
        name
        for name, action in ACTIONS[command].items()
        if isinstance(action, argparse._AppendAction)
    }
    # One value of --input may contain several paths.
    assert several - {"input"} == {name.removeprefix("--") for name in launch.REPEATED} & set(
        ACTIONS[command]
    )


def test_the_launcher_runs_the_templates_that_there_are() -> None:
    assert set(launch.COMMANDS) == set(TEMPLATES)
    for command, main in launch.COMMANDS.items():
        module = importlib.import_module(f"datarater.pipelines.commands.{command}")
        assert main == module.main


def test_parameters_become_flags() -> None:
    given = [
        "--output=gs://a/run",
        "--name=",
        "--source_weight=wiki=2,web=0.5",
        "--labels={}",
        "--no_use_public_ips",
    ]
    assert launch.flags(given, "image:1") == [
        "--output=gs://a/run",
        "--source_weight=wiki=2",
        "--source_weight=web=0.5",
        "--labels={}",
        "--no_use_public_ips",
        "--sdk_container_image=image:1",
    ]


def test_signals_beside_the_score_pass_through_the_launcher() -> None:
    given = [
        "--input=gs://a/in",
        "--output=gs://a/run",
        "--keep_fraction=0.5",
        "--rater=gs://a/rater,second=gs://b/rater",
        "--join=lang=gs://a/{train,valid}-*.parquet,quality=gs://b/scores",
        "--join_key=lang=doc,quality=id",
        "--where=lang.language in ('en', 'de') and quality.score > 0",
        "--rank_by=0.7 * rater + 0.3 * second",
        "--tokens_from=quality.tokens",
        "--dedup=0.8",
    ]
    args, beam_args = flags.parse(PARSERS["curate"], launch.flags(given, ""))
    assert (args.rater, args.other_raters) == ("gs://a/rater", {"second": "gs://b/rater"})
    assert args.join == [
        ("lang", "gs://a/{train,valid}-*.parquet"),
        ("quality", "gs://b/scores"),
    ]
    assert args.join_key == [("lang", "doc"), ("quality", "id")]
    assert args.where == "lang.language in ('en', 'de') and quality.score > 0"
    assert args.rank_by == "0.7 * rater + 0.3 * second"
    assert (args.tokens_from, args.dedup) == ("quality.tokens", 0.8)
    assert beam_args == []


def test_the_launcher_s_own_flags_are_left_to_beam() -> None:
    ours = ["--output=gs://a/run", "--keep_fraction=0.5"]
    launcher_s = [
        "--runner=DataflowRunner",
        "--project=my-project",
        "--region=europe-west4",
        "--job_name=curate-1",
        "--temp_location=gs://a/temp",
        "--staging_location=gs://a/staging",
        "--template_location=gs://a/staging/template_launches/1/job_object",
        "--service_account_email=datarater-worker@my-project.iam.gserviceaccount.com",
        "--worker_machine_type=n2-standard-4",
        "--max_num_workers=10",
        "--labels=goog-dataflow-provided-template-type=flex",
    ]
    args, beam_args = flags.parse(PARSERS["select"], launch.flags([*launcher_s, *ours], "image:1"))
    assert args.output == "gs://a/run"
    assert beam_args == [*launcher_s, "--sdk_container_image=image:1"]
    assert {flag.partition("=")[0] for flag in beam_args} <= beam_flags()


def test_an_image_that_is_named_stands() -> None:
    given = ["--sdk_container_image=mine:2"]
    assert launch.flags(given, "image:1") == given
    assert launch.flags([], "") == []


@pytest.mark.parametrize("named", ["", "batch"])
def test_an_image_that_names_no_template_is_told_how_to_be_built(
    named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main([], {"DATARATER_TEMPLATE": named}) == exit_codes.WRONG_USAGE
    assert "--build-arg TEMPLATE=" in capsys.readouterr().err
