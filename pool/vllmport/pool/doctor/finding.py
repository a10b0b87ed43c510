"""What a check has found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: Which, in a word.
        level: "ok"; "warn": it works, within limits that `text` names; "fail": it does not.
        text: One sentence.
        remedy: What to do about it; empty where nothing is to be done.
    """

    name: str
    level: Literal["ok", "warn", "fail"]
    text: str
    remedy: str = ""


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", text)


def warn(name: str, text: str, remedy: str) -> Finding:
    """It works, within limits."""
    return Finding(name, "warn", text, remedy)


def fail(name: str, text: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(name, "fail", text, remedy)
