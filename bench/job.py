"""What every section is told, and begins with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.results import Section
from bench.turns import Turns


@dataclass(frozen=True)
class Job:
    """What one section is to do.

    Attributes:
        folder: For logs.
        turns: Gives turns.
        rounds: How often everything is measured.
        only: Contenders to take; all if empty.
    """

    folder: Path
    turns: Turns
    rounds: int
    only: list[str] = field(default_factory=list)

    def takes(self, name: str) -> bool:
        """Tell whether this one takes part."""
        return not self.only or name in self.only

    def section(self, name: str, contenders: Mapping[str, str]) -> Section:
        """Begin a section with those that take part, of all its contenders."""
        return Section(name, {one: how for one, how in contenders.items() if self.takes(one)})
