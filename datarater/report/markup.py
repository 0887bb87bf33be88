"""Builds HTML as a tree, so that no text can become a tag or an attribute.

The tree is the standard library's; its serializer escapes all text and all attributes. Text becomes
visible (`datarater.report.visible`) as it enters the tree.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from datarater.report.visible import visible

Child = Element | str | None
_CLOSING_TAG = re.compile("</", re.IGNORECASE)


def element(
    tag: str, attributes: dict[str, str | float | None] | None = None, *children: Child
) -> Element:
    """Returns an element.

    Args:
        tag: Name of the tag.
        attributes: Attributes; those that are None are left out.
        *children: Elements and texts, in order; None adds nothing.
    """
    node = Element(tag)
    for name, value in (attributes or {}).items():
        if value is not None:
            node.set(name, visible(value) if isinstance(value, str) else number(value))

    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif child:
            _append_text(node, visible(child))
    return node


def style_sheet(css: str) -> Element:
    """Returns a `style` element, whose content is not escaped.

    Raises:
        ValueError: The content could close the element.
    """
    if _CLOSING_TAG.search(css):
        raise ValueError("a style sheet cannot contain </")
    node = Element("style")
    node.text = css
    return node


def document(root: Element) -> str:
    """Returns the HTML of a whole document."""
    text = ElementTree.tostring(root, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n"


def number(value: float) -> str:
    """Returns a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def _append_text(node: Element, text: str) -> None:
    if len(node):
        node[-1].tail = (node[-1].tail or "") + text
    else:
        node.text = (node.text or "") + text
