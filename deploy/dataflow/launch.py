"""Runs a DataRater command for the launcher of a Dataflow Flex Template.

The launcher calls this file (FLEX_TEMPLATE_PYTHON_PY_FILE) with the template's parameters as
`--name=value`, plus flags of Beam (`--runner`, `--template_location`, ...) that make the command
build the job and hand it over to Dataflow. DATARATER_TEMPLATE names the command and
DATARATER_SDK_IMAGE the image of the workers; the image sets both (`deploy/Dockerfile`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from datarater.pipelines.commands import curate, score, select
from datarater.rater_model import exit_codes
from datarater.rater_model.documents.files import split_on_commas

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "curate": curate.main,
    "score": score.main,
    "select": select.main,
}
"""The command of each template."""

REPEATED = ("--join", "--join_key", "--rater", "--source_weight")
"""Flags that a command accepts several times. A parameter joins their values with commas.

Commas in the braces of a glob do not separate values.
"""


def flags(parameters: Sequence[str], sdk_image: str) -> list[str]:
    """Converts the launcher's parameters to the flags of a command.

    Args:
        parameters: Parameters of the form `--name=value`.
        sdk_image: Image of the workers if no parameter names one; empty for Beam's default.

    Returns:
        The flags, without empty parameters, so that the defaults of the command apply.
    """
    given = []
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if equals and not value:
            continue
        values = split_on_commas(value) if name in REPEATED else [value]
        given += [f"{name}={each}" for each in values] if equals else [parameter]
    if sdk_image and not any(flag.partition("=")[0] == "--sdk_container_image" for flag in given):
        given.append(f"--sdk_container_image={sdk_image}")
    return given


def main(parameters: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the command of the template.

    Args:
        parameters: Parameters of the form `--name=value`.
        environment: Environment variables with DATARATER_TEMPLATE and DATARATER_SDK_IMAGE.

    Returns:
        The exit code of the command.
    """
    template = environment.get("DATARATER_TEMPLATE", "")
    if template not in COMMANDS:
        print(
            f"DATARATER_TEMPLATE is {template!r}, not one of {', '.join(COMMANDS)}; "
            "build the image with --build-arg TEMPLATE=...",
            file=sys.stderr,
        )
        return exit_codes.WRONG_USAGE
    return COMMANDS[template](flags(parameters, environment.get("DATARATER_SDK_IMAGE", "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
