"""Several processes that train one rater together: how they start, agree and end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
import numpy as np

from datarater.meta_training.errors import ConfigError, first_line
from datarater.rater_model import exit_codes

# A status of a lost process, or the libraries' own words for it. The word "collective" is missing
# on purpose: a program that does not compile or does not fit into memory has it as well.
_LOST = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):|Gloo [\w -]+ failed: |gloo/transport/"
    r"|heartbeat timeout|Barrier failed"
    r"|remote process exited or there was a network error"  # NCCL's
)
_OUT_OF_MEMORY = re.compile(r"^RESOURCE_EXHAUSTED:")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_PATIENCE = 10  # seconds that a failing process waits for the others to leave with it


class LostProcessError(RuntimeError):
    """Another process of the run has ended or is out of reach, so this one cannot continue."""


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several that train together.

    Must be called before JAX is first used.

    Args:
        coordinator: HOST:PORT of process 0, "auto" where the cluster provides it (TPU pods, Slurm,
            Open MPI), or empty for a single process.
        processes: Number of processes; not used with "auto".
        process: Index of this process, from 0; not used with "auto".

    Raises:
        ConfigError: The numbers do not fit each other, the address is malformed, or no cluster
            provides them.
        LostProcessError: The others did not join in time.
    """
    if not coordinator:
        if processes != 1:
            raise ConfigError(
                f"--processes={processes} needs --coordinator=HOST:PORT, the same for all of them"
            )
        return

    if coordinator != "auto":
        _check_address(coordinator)
        if process >= processes:
            raise ConfigError(
                f"--process={process} must be below --processes={processes}: it counts from 0"
            )

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if coordinator == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(coordinator, processes, process)
    except jax.errors.JaxRuntimeError as error:
        raise LostProcessError(
            f"not all processes connected to {coordinator}: {first_line(error)}"
        ) from error
    except (ValueError, RuntimeError, LookupError) as error:
        reason, remedy = "JAX cannot start", ""
        if coordinator == "auto":
            reason = "JAX finds no cluster that provides the processes"
            remedy = "; give --coordinator=HOST:PORT --processes=N --process=I instead"
        raise ConfigError(
            f"--coordinator={coordinator}: {reason} ({first_line(error)}){remedy}"
        ) from error


def _check_address(coordinator: str) -> None:
    address = _ADDRESS.fullmatch(coordinator)
    if address is None or not 0 < int(address[1]) < 2**16:
        raise ConfigError(
            f"--coordinator={coordinator} must be HOST:PORT of process 0, such as host0:8476, or "
            "'auto' where the cluster provides it"
        )


@contextlib.contextmanager
def together() -> Iterator[dict[str, Any]]:
    """Makes the processes of a run leave a part of their startup together and in agreement.

    A process that fails within the block prints its own error; the others are notified, so that
    they do not wait for it. A single process leaves the block as it is.

    Yields:
        A dictionary for values that must be the same in all processes, by name; values are JSON and
        may be nested.

    Raises:
        LostProcessError: Another process failed; the message quotes its error.
        ConfigError: The processes differ; the message names where.
    """
    shared: dict[str, Any] = {}
    try:
        yield shared
    except SystemExit as leaving:  # by `end_process`, whose timer is already running
        gather_texts(json.dumps({"failed": first_line(leaving.__context__ or leaving)}))
        raise

    reports = [json.loads(text) for text in gather_texts(json.dumps({"same": shared}))]
    for number, report in enumerate(reports):
        if "failed" in report:
            raise LostProcessError(
                f"process {number} of {len(reports)} has ended: {report['failed']}"
            )
    if differences := list(_differences([report["same"] for report in reports])):
        raise ConfigError(
            f"the processes of this run differ: {'; '.join(differences)}. Start all of them with "
            "the same command and config, on the same data, with the same versions installed"
        )


def gather_texts(text: str) -> list[str]:
    """Returns the texts of all processes, in their order, once all have called this."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils  # here, since importing it takes a while

    own = np.frombuffer(text.encode("utf-8"), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray([own.size], np.int32))[:, 0]
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: own.size] = own
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode("utf-8") for row, length in zip(rows, lengths, strict=True)]


def _differences(values: Sequence[Any], name: str = "") -> Iterator[str]:
    """Yields a text for each leaf of nested dictionaries that is not the same in all processes."""
    first = values[0]
    other = next((number for number, value in enumerate(values) if value != first), None)
    if other is None:
        return
    if all(isinstance(value, dict) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            yield from _differences(
                [value.get(key) for value in values], f"{name}.{key}" if name else key
            )
    else:
        yield f"{name} is {first!r} in process 0, {values[other]!r} in process {other}"


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Ends this process with one line when JAX reports that another process is gone.

    At its end JAX would wait for the lost process, so this one leaves without waiting.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # jaxlib raises either when a dispatch fails
        if jax.process_count() == 1 or not is_lost_process(error):
            raise
        print(
            f"process {jax.process_index()} of {jax.process_count()}: another process of this run "
            f"has ended or cannot be reached, so this one ends too ({first_line(error)}). Start "
            "all of them again with the same workdir: the run resumes from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(exit_codes.FAILED)  # the same command resumes the run


def is_lost_process(error: BaseException) -> bool:
    """Returns whether an error means that another process is gone, not that this one failed."""
    text = str(error)
    return bool(_LOST.search(text)) and not _OUT_OF_MEMORY.search(text)


def end_process(code: int) -> NoReturn:
    """Ends this process with an exit code, whether or not the others of its run end too.

    At its end JAX waits for the others, which may be waiting for this process, and finally aborts
    with a code of its own. So the others get a short time to leave as well, and no more.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        deadline = threading.Timer(_PATIENCE, os._exit, (code,))
        deadline.daemon = True
        deadline.start()
    sys.exit(code)
