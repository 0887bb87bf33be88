"""The language of a text, by py3langid: 139 languages, pure Python, with its model in the package.

A text in no language, such as a table of numbers, is `zxx`; one that is not recognized is `und`.
"""

from __future__ import annotations

import functools
from typing import Any

UNKNOWN = "und"
LANGUAGES_VERSION = 1
"""Raised whenever the same text would get another language."""

_CHARACTERS = 2000
_MIN_CONFIDENCE = 0.5


def language_of(text: str) -> str:
    """Returns the ISO 639 code of a text's language, from its first 2,000 characters.

    Example:
        >>> language_of("Der alte Mann ging langsam über die Straße zum Hafen.")
        'de'
    """
    code: str = _identifier().classify(text[:_CHARACTERS])[0]
    return code


@functools.cache
def _identifier() -> Any:
    # Takes a second to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=_MIN_CONFIDENCE
    )
