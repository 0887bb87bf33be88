"""Generates the metadata of the Dataflow Flex Templates from the flags of the commands.

python -m tests.support.flex_templates     # writes deploy/dataflow/{curate,score,select}.json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from datarater import cli
from datarater.pipelines.commands import flags
from datarater.pipelines.selection.policy import Scope
from tests.support import ROOT
from tests.support.reference_tables import COMMANDS, parser_of

FOLDER = ROOT / "deploy" / "dataflow"
TEMPLATES = ("curate", "score", "select")
LEFT_OUT = ("local_workers", "dry_run", "worker_type", "worker_price")
"""Flags without a meaning on Dataflow, and those of `--dry_run`, which submits nothing."""
SEVERAL_TIMES = "Can be repeated."
"""Text of a flag's help that a template must reword, because a parameter has one value."""

_CLOUD_FOLDER = r"^(gs|s3)://[^,\n\r]+$"
# Commas separate inputs, except within braces, which may be nested once.
_BRACES = r"\{([^{}\n\r]|\{[^{}\n\r]*\})*\}"
_URL = rf"[a-z0-9+]+://([^,{{\n\r]|{_BRACES})+"
_DATASET = r"tfds:[a-zA-Z0-9_./+-]+(:[^,:\s{]+)*"
_SHARE = r"(0|1|0?\.[0-9]+|1\.0+|[0-9](\.[0-9]+)?[eE]-[1-9][0-9]?)"
_NUMBER = r"[0-9]+(\.[0-9]+)?([eE]-?[0-9])?"
_REGEXES = {
    # The launcher's machine is gone when the workers start, so no path may be local.
    "output": _CLOUD_FOLDER,
    # One without a name, then others: NAME=DIR.
    "rater": rf"{_CLOUD_FOLDER[:-1]}(,[A-Za-z_][A-Za-z0-9_]*=(gs|s3)://[^,\n\r]+)*$",
    "reference": _CLOUD_FOLDER,
    "input_list": _CLOUD_FOLDER,
    "tfds_data_dir": _CLOUD_FOLDER,
    "input": rf"^({_URL}|{_DATASET})(,({_URL}|{_DATASET}))*$",
    "output_tokenizer": r"^(byte|(gs|s3)://[^,\n\r]+)$",
    "keep_fraction": rf"^({_SHARE}|[1-9][0-9]*/[1-9][0-9]*)$",
    "discard_fraction": rf"^({_SHARE}|[1-9][0-9]*/[1-9][0-9]*)$",
    "keep_count": r"^[0-9]+$",
    "token_budget": r"^[0-9]+$",
    "threshold": rf"^-?{_NUMBER}$",
    "source_weight": rf"^[^,\n\r]+={_NUMBER}(,[^,\n\r]+={_NUMBER})*$",
}
_REGEXES_BY_TYPE: dict[Any, str] = {
    flags.whole_number: r"^0*[1-9][0-9]*$",
    flags.byte_count: r"^0*[1-9][0-9]* *([kKmMgG][iI]?)?[bB]?$",
    flags.fraction: f"^{_SHARE}$",
    flags.yes_or_no: "^(true|false)$",
    flags.amplification: r"^[1-9][0-9]{0,2}(\.[0-9]+)?$",
    flags.selection_name: f"^{flags._SELECTION_NAME.pattern}$",
    flags.integer: r"^-?[0-9]+$",
}
CHOICES_BY_TYPE: dict[Any, list[str]] = {flags.scope: [str(scope) for scope in Scope]}
"""Values of flags that check their choices themselves."""


def parameter(
    parser: argparse.ArgumentParser, action: argparse.Action, group: str
) -> dict[str, Any]:
    """Returns the metadata of a flag."""
    name = action.option_strings[-1].removeprefix("--")
    help_text = " ".join(parser._get_formatter()._expand_help(action).split())
    metadata: dict[str, Any] = {
        "name": name,
        "label": name.replace("_", " ").capitalize(),
        "helpText": help_text[:1].upper()
        + help_text[1:].replace(SEVERAL_TIMES, "Join several with commas."),
        "groupName": group,
        "isOptional": not action.required,
    }
    choices = action.choices or CHOICES_BY_TYPE.get(action.type)
    if choices:
        metadata["paramType"] = "ENUM"
        metadata["enumOptions"] = [
            {"value": str(choice), "label": str(choice)} for choice in choices
        ]
        return metadata
    metadata["paramType"] = "TEXT"
    regex = _REGEXES.get(name) or _REGEXES_BY_TYPE.get(action.type)
    if regex is not None:
        metadata["regexes"] = [regex]
    return metadata


def template(command: str) -> dict[str, Any]:
    """Returns the metadata of a command's template."""
    parser = parser_of(COMMANDS[command])
    parameters = []
    for group in parser._action_groups:
        title = (
            "Run"
            if group in (parser._optionals, parser._positionals)
            else str(group.title).capitalize()
        )
        for action in group._group_actions:
            if isinstance(action, argparse._HelpAction) or action.dest in LEFT_OUT:
                continue
            parameters.append(parameter(parser, action, title))
    return {
        "name": parser.prog,
        "description": cli.COMMANDS[command].summary,
        "parameters": parameters,
    }


def text(command: str) -> str:
    """Returns the content of a command's template file."""
    return json.dumps(template(command), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for command in TEMPLATES:
        (FOLDER / f"{command}.json").write_text(text(command), encoding="utf-8")
