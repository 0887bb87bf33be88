"""Several processes that train one rater together."""

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

from datarater.meta_training.algorithm.mesh import PlacementError
from datarater.meta_training.errors import first_line
from datarater.rater_model import exit_codes

# A status that says so, or the libraries' own words for it; not the word "collective", which a
# program that does not compile or fit into memory bears as well.
_LOST = re.compile(
    r"^(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):|Gloo [\w -]+ failed: |gloo/transport/|heartbeat timeout|Barrier failed|"
    r"remote process exited or there was a network error"  # NCCL's
)
_OUT_OF_MEMORY = re.compile(r"^RESOURCE_EXHAUSTED:")
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):([0-9]{1,5})")
_PATIENCE = 10  # seconds that a process which has failed waits for the others to leave with it


class LostProcessError(RuntimeError):
    """Another process of the run has ended or cannot be reached, so that this one cannot go on."""


def join_processes(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several that train together; to be called before JAX is first used.

    Args:
        coordinator: HOST:PORT of process 0, "auto" where the cluster tells (TPU pods, Slurm, Open
            MPI), empty for a process by itself.
        processes: how many there are; not used with "auto".
        process: which one this is, from 0; not used with "auto".

    Raises:
        PlacementError: the numbers do not fit each other, it is not an address, or there is no
            cluster that tells.
        LostProcessError: the others did not come in time.
    """
    if not coordinator:
        if processes != 1:
            raise PlacementError(
                f"--processes={processes} needs --coordinator=HOST:PORT, the same for all of them"
            )
        return
    if coordinator != "auto":
        address = _ADDRESS.fullmatch(coordinator)
        if address is None or not 0 < int(address[1]) < 2**16:
            raise PlacementError(
                f"--coordinator={coordinator} must be HOST:PORT of process 0, such as host0:8476, or 'auto' where the "
                "cluster tells"
            )
        if process >= processes:
            raise PlacementError(
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
            f"the processes did not all meet at {coordinator}: {first_line(error)}"
        ) from error
    except (ValueError, RuntimeError, LookupError) as error:
        instead = (
            "; give --coordinator=HOST:PORT --processes=N --process=I instead"
            if coordinator == "auto"
            else ""
        )
        reason = (
            "JAX finds no cluster here that tells who trains together"
            if instead
            else "JAX cannot begin"
        )
        raise PlacementError(
            f"--coordinator={coordinator}: {reason} ({first_line(error)}){instead}"
        ) from error


@contextlib.contextmanager
def together() -> Iterator[dict[str, Any]]:
    """Lets the processes of a run leave a part of their start only together, and only where they agree.

    Where one leaves it by an error, that one has its own words to say; the others are told, so that
    they do not wait for it. Nothing to do in a process by itself.

    Yields:
        A dictionary for what must be the same in all of them, by name; values are JSON, nested as
        may be.

    Raises:
        LostProcessError: another process failed; the message has its words.
        PlacementError: the processes differ; the message names in what.
    """
    mine: dict[str, Any] = {}
    try:
        yield mine
    except SystemExit as leaving:  # by `end_process`, which has begun to count
        gather_texts(json.dumps({"failed": first_line(leaving.__context__ or leaving)}))
        raise
    everyone = [json.loads(text) for text in gather_texts(json.dumps({"same": mine}))]
    for number, found in enumerate(everyone):
        if "failed" in found:
            raise LostProcessError(
                f"process {number} of {len(everyone)} has ended: {found['failed']}"
            )
    if differences := list(_differences([found["same"] for found in everyone])):
        raise PlacementError(
            f"the processes of this run differ: {'; '.join(differences)}. Start all of them with the same command and "
            "config, on the same data, with the same versions installed"
        )


def gather_texts(text: str) -> list[str]:
    """Returns a text of every process, in their order, when all of them have come here."""
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
    """Yields, for each leaf of nested dictionaries that is not the same in all processes, who has what."""
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


def end_process(code: int) -> NoReturn:
    """Ends this process with a code, whether or not the others of its run end too.

    JAX waits at its end for the others, who may be waiting for this one, and at last aborts with a
    code of its own. So they have a moment to come along, and no more.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        alone = threading.Timer(_PATIENCE, os._exit, (code,))
        alone.daemon = True
        alone.start()
    sys.exit(code)


def is_lost_process(error: BaseException) -> bool:
    """Returns whether an error says that another process is gone, rather than that this one has failed."""
    text = str(error)
    return bool(_LOST.search(text)) and not _OUT_OF_MEMORY.search(text)


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Turns what JAX raises when another process is gone into one line and the end of this process.

    JAX would wait at its end for the process that is gone; so this one then ends without waiting.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # jaxlib raises what fails in a dispatch as either
        if jax.process_count() == 1 or not is_lost_process(error):
            raise
        print(
            f"process {jax.process_index()} of {jax.process_count()}: another process of this run has ended or cannot "
            f"be reached, so this one ends too ({first_line(error)}). Start all of them again with the same workdir: "
            "the run resumes from its last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(exit_codes.FAILED)  # resumable by the same command
