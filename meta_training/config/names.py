"""Names of the training configs that the package ships.

Importing this module loads neither JAX nor ml_collections, so the command line can list the names.
"""

from __future__ import annotations

import os
from pathlib import Path

from datarater.meta_training.errors import ConfigError
from datarater.rater_model.command_line import near_miss

CONFIGS = Path(__file__).parents[1] / "configs"
"""Folder of the config files."""
DEFAULT_CONFIG = "default"
"""Name of the config that a run uses when none is given."""


def config_names() -> list[str]:
    """Returns the names of all shipped configs, the default first.

    Example:
        >>> "demo" in config_names()
        True
    """
    names = {path.stem for path in CONFIGS.glob("*.py") if not path.stem.startswith("_")}
    return [DEFAULT_CONFIG, *sorted(names - {DEFAULT_CONFIG})]


def config_path(config: str) -> str:
    """Returns the path of a config file, given a shipped config's name or a path.

    Args:
        config: Name, such as `pile`, or path of a Python file, where `~` is the home
            folder. Either may end with `:ARGUMENT`, a text that `get_config` is called with.

    Raises:
        ConfigError: It is neither the name of a shipped config nor an existing file.

    Example:
        >>> config_path("default").endswith("default.py")
        True
    """
    config, colon, argument = config.partition(":")
    if config in config_names():
        return f"{CONFIGS / config}.py{colon}{argument}"
    path = os.path.expanduser(config)
    if os.path.isfile(path):
        return path + colon + argument

    names = ", ".join(config_names())
    if os.path.exists(path):
        raise ConfigError(f"--config={config} is not a file; give a Python file or one of {names}")
    near = near_miss(config.removesuffix(".py"), config_names())
    suggestion = f" (did you mean {near}?)" if near else ""
    raise ConfigError(
        f"--config={config}: no config or file has this name{suggestion}; "
        f"give a Python file or one of {names}"
    )
