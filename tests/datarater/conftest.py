"""Fixtures that tests of the public interface share with the integration tests."""

from tests.integration.conftest import rater

__all__ = ["rater"]
