"""A badge: what a trainer's GSPO is, in two words, drawn from its record."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

GREEN, AMBER, ORANGE = "#2e7d32", "#b26a00", "#bf4b1a"
_WIDTH = 6.6


def verdict(record: Mapping[str, Any]) -> tuple[str, str]:
    """The words and their colour: of the paper's objective as configured, then of the default."""
    if record["settings"]["faithful"] is None:
        return "no setting for the paper's loss", ORANGE
    if record["default"]["gspo_must"]["deviating"] == 0:
        return "the paper's, as it comes", GREEN
    causes = [cause for cause in record["claims"]["causes"] if cause["must"]]
    if not causes:
        return "the paper's, when configured", GREEN
    chosen = all(cause["reason"].startswith("by design: ") for cause in causes)
    return "when configured, with exceptions", AMBER if chosen else ORANGE


def badge(title: str, record: Mapping[str, Any]) -> str:
    """An SVG of 20 pixels height."""
    left, (right, colour) = f"GSPO · {title} {record['version']}", verdict(record)
    one, two = (round(_WIDTH * len(text) + 12) for text in (left, right))
    label = escape(f"{left}: {right}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{one + two}" height="20" role="img" aria-label="{label}">'
        f"<title>{label}</title>"
        f'<clipPath id="r"><rect width="{one + two}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{one}" height="20" fill="#3c4046"/>'
        f'<rect x="{one}" width="{two}" height="20" fill="{colour}"/></g>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="{one / 2:g}" y="14" textLength="{one - 12}">{escape(left)}</text>'
        f'<text x="{one + two / 2:g}" y="14" textLength="{two - 12}">{escape(right)}</text></g></svg>\n'
    )
