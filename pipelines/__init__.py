"""The Beam pipelines that score a corpus and select from it.

Every document is accounted for, and a run resumes wherever it stopped.
"""

from datarater.pipelines.runners.logs import quieten_import

quieten_import()  # before any module of this package imports Beam
