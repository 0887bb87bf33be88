"""Traces a range of meta-steps with JAX's profiler, for XProf or Perfetto."""

from __future__ import annotations

import logging
from pathlib import Path

import jax
from ml_collections import ConfigDict

_LOG = logging.getLogger("datarater")


class Profiler:
    """Traces the meta-steps that a config names; as a context manager it ends an open trace.

    Args:
        config: Section `profile` of the config.
        folder: Folder of the traces; None if this process makes none.

    Example:
        >>> with Profiler(config.profile, workdir.profile) as profiler:  # doctest: +SKIP
        ...     profiler.before(step)
        ...     train_step()
        ...     profiler.after(step)
    """

    def __init__(self, config: ConfigDict, folder: Path | None) -> None:
        self._first, self._last, self._folder = config.first_step, config.last_step, folder
        self._tracing = False

    def ends_with(self, step: int) -> bool:
        """Returns whether a trace ends with a step, which must then be done before the next."""
        return bool(self._first and step == self._last)

    def before(self, step: int) -> None:
        """Begins the trace before its first step, or where a resumed run enters its range."""
        traced = self._first and self._first <= step <= self._last
        if self._folder is None or self._tracing or not traced:
            return
        jax.profiler.start_trace(self._folder)
        self._tracing = True

    def after(self, step: int) -> None:
        """Ends the trace once its last step is done."""
        if self.ends_with(step):
            self._end()

    def _end(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:  # a trace is no reason to lose a run
            _LOG.warning("the trace could not be written to %s: %s", self._folder, error)
            return
        _LOG.info("the trace is in %s", self._folder)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
