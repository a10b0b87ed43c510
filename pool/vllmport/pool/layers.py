"""Settings from several places, put on top of each other; remembers where each value came from.

Pure. Maps are merged key by key, however deep; anything else replaces what is below, `false` and
empty values too.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

DEFAULT = "default"
"""Where a value comes from that nobody gave."""

SECRET = ("hf_token", "token", "auth_token", "api_key", "password", "secret")
"""Keys whose values are shown to nobody, nor those of keys nearly like them, nor those of `env`."""

HIDDEN = "(hidden)"

_NEARLY = 0.75


class Layers:
    """A stack of settings.

    Attributes:
        merged: What holds.
        origins: Dotted path of each value that was given → the name of its layer.
    """

    def __init__(self) -> None:
        self.merged: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def put(self, name: str, settings: Mapping[str, Any]) -> None:
        """Put settings on top."""
        self.merged = merged(self.merged, settings)
        for path, _ in leaves(settings):
            inside = f"{path}."
            for other in [known for known in self.origins if known.startswith(inside)]:
                del self.origins[other]
            self.origins[path] = name


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return two maps as one."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both_maps = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both_maps else value  # type: ignore[arg-type]
    return result


def leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of everything that is no map, or an empty one."""
    for key, value in settings.items():
        path = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def shown_value(path: str, value: Any) -> str:
    """Return what people may see of a value."""
    parts = path.split(".")
    return HIDDEN if "env" in parts[:-1] or is_secret(parts[-1]) else repr(value)


def is_secret(name: str) -> bool:
    """Tell whether a key is one with a secret, be it misspelt."""
    return bool(difflib.get_close_matches(name.lower(), SECRET, 1, _NEARLY))
