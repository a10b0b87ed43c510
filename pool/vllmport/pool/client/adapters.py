"""The adapters that a handle knows by name. Pure.

A name that is not here is sent as it is: the model's specification may know it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllmport.pool.client.requests import Lora


class Adapters:
    """Name → folder; each request carries both, so that any worker can load what it lacks."""

    def __init__(self) -> None:
        self._paths: dict[str, str] = {}

    def add(self, name: str, path: str) -> None:
        """Let a name stand for a folder."""
        self._paths[name] = path

    def remove(self, name: str) -> None:
        """Forget a name."""
        self._paths.pop(name, None)

    def resolve(self, given: Lora | Sequence[Lora]) -> Any:
        """Return what travels for an adapter, or for each of a list."""
        if isinstance(given, str):
            path = self._paths.get(given)
            return given if path is None else {"lora_name": given, "lora_path": path}
        if isinstance(given, Sequence) and not isinstance(given, Mapping):
            return [self.resolve(one) for one in given]
        return given
