"""What a Flex Template's launcher runs: one of the commands, with the template's parameters as its flags.

The launcher calls this file by FLEX_TEMPLATE_PYTHON_PY_FILE and hands over the parameters as
`--name=value`, with flags of Beam's own (`--runner`, `--template_location`, ...) that make the
command build the job and leave it to Dataflow. DATARATER_TEMPLATE says which command,
DATARATER_SDK_IMAGE which image workers start from; both are set in the image (`deploy/Dockerfile`).
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from datarater.pipelines.commands import curate, score, select
from datarater.rater_model import exit_codes

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "curate": curate.main,
    "score": score.main,
    "select": select.main,
}
"""By template."""

REPEATED = ("--source_weight",)
"""Flags that a command takes several times; a template's parameter holds all the values, joined by commas."""


def flags(parameters: Sequence[str], sdk_image: str) -> list[str]:
    """A command's flags from what the launcher hands over.

    Args:
        parameters: `--name=value`.
        sdk_image: the image for workers where the parameters name none; empty for Beam's default.

    Returns:
        The flags. Parameters left empty are left out: the command's own defaults hold.
    """
    made = []
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if equals and not value:
            continue
        values = value.split(",") if name in REPEATED else [value]
        made += [f"{name}={each}" for each in values] if equals else [parameter]
    if sdk_image and not any(flag.partition("=")[0] == "--sdk_container_image" for flag in made):
        made.append(f"--sdk_container_image={sdk_image}")
    return made


def main(parameters: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the template's command.

    Args:
        parameters: `--name=value`.
        environment: where DATARATER_TEMPLATE and DATARATER_SDK_IMAGE are looked up.

    Returns:
        The command's exit code.
    """
    template = environment.get("DATARATER_TEMPLATE", "")
    if template not in COMMANDS:
        print(
            f"DATARATER_TEMPLATE: {template!r} is none of {', '.join(COMMANDS)}; build the image with "
            "--build-arg TEMPLATE=...",
            file=sys.stderr,
        )
        return exit_codes.WRONG_USAGE
    return COMMANDS[template](flags(parameters, environment.get("DATARATER_SDK_IMAGE", "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
