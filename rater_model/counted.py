"""Words counts for messages: `1 file`, `2 files`."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Returns a number with its noun in the singular or plural.

    Args:
        number: The number.
        noun: Noun in the singular, with its adjectives.
        plural: Noun in the plural; by default an s is added to the singular.

    Example:
        >>> counted(1, "split"), counted(2000, "input file"), counted(0, "match", "matches")
        ('1 split', '2,000 input files', '0 matches')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def was_or_were(number: int) -> str:
    """Returns `was` for one, `were` for any other number."""
    return "was" if number == 1 else "were"


def is_or_are(number: int) -> str:
    """Returns `is` for one, `are` for any other number."""
    return "is" if number == 1 else "are"
