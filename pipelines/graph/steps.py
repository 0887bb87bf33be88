"""The base of the steps that work for one launch."""

from __future__ import annotations

from typing import Generic, TypeVar

import apache_beam as beam

from datarater.pipelines.graph.requests import (
    DeduplicationRequest,
    ScoringRequest,
    SelectionRequest,
)
from datarater.pipelines.run_folder import lease

RequestT = TypeVar("RequestT", ScoringRequest, SelectionRequest, DeduplicationRequest)


class Step(beam.DoFn, Generic[RequestT]):
    """A step of a request, whose workers keep the leases of a job that runs elsewhere.

    Args:
        request: The request.
    """

    def __init__(self, request: RequestT):
        self._request: RequestT = request

    def setup(self) -> None:
        """Prepares the process."""
        for folder in self._request.kept_leases:
            lease.keep(folder, self._request.launch)
