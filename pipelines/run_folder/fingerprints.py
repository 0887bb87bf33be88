"""Whether an input file is still what it was when the run was planned."""

from pipelines.errors import InputChangedError
from pipelines.ledger import SplitTask
from rater_model.documents import file_info


def check_fingerprint(task: SplitTask) -> None:
    """Refuses a file that is no longer what it was when the plan was made.

    Raises:
        InputChangedError: naming the file.
    """
    path = task.split.path
    try:
        now = file_info(path)
    except OSError as error:
        raise InputChangedError(f"the input {path} cannot be read any more: {error}") from error
    if now.fingerprint != task.fingerprint:
        raise InputChangedError(
            f"the input {path} has changed since the plan was made (fingerprint {task.fingerprint} then, "
            f"{now.fingerprint} now); curate it into a new run folder"
        )
