"""The allow-list: which modules, names and members universal calls may reach.

It is the manifest of the public API, and the modules that the configuration names. Of those any
public name counts that is defined in them. Imports nothing of what it lists.
"""

import importlib
import json
import types
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from typing import Any, Final

from vllmport.bridge.errors import NotAllowed, shown
from vllmport.worker.universal.introspect import describe, full_name, installed_version, is_engine

EMPTY: Final[Mapping[str, Any]] = {"modules": {}, "classes": {}, "functions": {}}
"""The manifest of an engine without a library."""

CONTAINERS: Final[Mapping[type, frozenset[str]]] = {
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
"""What may be asked of Python's own containers."""

CODE: Final = (
    type,
    types.BuiltinFunctionType,
    types.BuiltinMethodType,
    types.CodeType,
    types.FrameType,
    types.FunctionType,
    types.MethodType,
    types.MethodWrapperType,
    types.ModuleType,
    types.TracebackType,
    types.WrapperDescriptorType,
)
"""Kinds of objects that are no data: they are never handed out."""


def manifest_of_vllm() -> Mapping[str, Any]:
    """Return the manifest of the installed vLLM: the shipped one, or one made now.

    Another vLLM than the one the manifest was made from is looked through here, which takes
    seconds, once.
    """
    text = files("vllmport.worker.universal").joinpath("api.json").read_text(encoding="utf-8")
    shipped: Mapping[str, Any] = json.loads(text)
    return shipped if shipped["vllm"] == installed_version() else describe()


class AllowList:
    """Answers whether a step may be taken.

    Args:
        manifest: As `introspect.describe` makes it.
        modules: Names of further modules, their submodules included as far as their objects go.
    """

    def __init__(self, manifest: Mapping[str, Any], modules: Iterable[str] = ()) -> None:
        self._modules = manifest["modules"]
        self._members = {name: entry["members"] for name, entry in manifest["classes"].items()}
        self._own = tuple(modules)

    def first(self, module: str, name: str) -> Any:
        """Return what a name of a module stands for.

        Raises:
            NotAllowed: The module or the name is not on the list.
        """
        check_name(name)
        listed = self._modules.get(module)
        if listed is None and module not in self._own:
            raise refusal(module, f"the module {shown(module)} is not on the allow-list")
        if listed is not None and module not in self._own and name not in listed["names"]:
            raise refusal(name, f"{module} has no documented name {shown(name)}")
        try:
            thing = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as exc:
            raise refusal(name, f"there is no {shown(name)} in {module}: {exc}") from None
        if listed is None or name not in listed["names"]:
            self._check_origin(name, thing)
        return thing

    def member(self, thing: Any, name: str, view: type | None = None) -> Any:
        """Return an attribute of an object or a class.

        Args:
            thing: Whose.
            name: Which.
            view: A class of the manifest as which the object may be used, whatever it is.

        Raises:
            NotAllowed: The name is not on the list for what this is.
        """
        check_name(name)
        if isinstance(thing, type):
            check_no_engine(thing)
        if not self._may(thing, name, view):
            kind = full_name(thing if isinstance(thing, type) else type(thing))
            raise refusal(name, f"{shown(name)} of {kind} is not on the allow-list")
        try:
            return getattr(thing, name)
        except AttributeError as exc:
            raise refusal(name, f"there is no such attribute: {exc}") from None

    def knows(self, thing: Any, view: type | None = None) -> bool:
        """Tell whether an object is of a class on the list, and so may be iterated and indexed."""
        kinds = (*type(thing).__mro__, *(view.__mro__ if view else ()))
        return any(kind in CONTAINERS or self._lists(kind) for kind in kinds)

    def _may(self, thing: Any, name: str, view: type | None) -> bool:
        kinds = thing.__mro__ if isinstance(thing, type) else type(thing).__mro__
        for kind in (*kinds, *(view.__mro__ if view else ())):
            if name in CONTAINERS.get(kind, ()) or name in self._members.get(full_name(kind), ()):
                return True
            if self._is_own(kind.__module__) and name in vars(kind):
                return True
        # What an object was given when it was made.
        return name in getattr(thing, "__dict__", ()) and any(map(self._lists, kinds))

    def _lists(self, kind: type) -> bool:
        return full_name(kind) in self._members or self._is_own(kind.__module__)

    def _is_own(self, module: Any) -> bool:
        return any(module == own or str(module).startswith(f"{own}.") for own in self._own)

    def _check_origin(self, name: str, thing: Any) -> None:
        """Refuse what a configured module has only imported."""
        if isinstance(thing, CODE) and not self._is_own(getattr(thing, "__module__", None)):
            raise refusal(name, f"{shown(name)} comes from a module that is not on the allow-list")


def check_name(name: Any) -> None:
    """Refuse names that are none, or not public."""
    if not isinstance(name, str) or not name.isidentifier():
        raise refusal(str(shown(name)), f"{shown(name)} is no name")
    if name.startswith("_"):
        raise refusal(name, f"{shown(name)} is not public")


def check_no_engine(cls: type) -> None:
    """Refuse engines: `load` makes them."""
    if is_engine(cls):
        text = f"{full_name(cls)} is an engine: load a model instead"
        raise refusal(cls.__qualname__, text)


def check_handed_out(thing: Any) -> None:
    """Refuse results that are code."""
    if isinstance(thing, CODE):
        name = str(getattr(thing, "__name__", type(thing).__name__))
        raise refusal(name, f"a {type(thing).__name__} is no result: {shown(name)}")


def refusal(name: str, text: str) -> NotAllowed:
    """Make the error that names what was refused."""
    return NotAllowed(text, details={"name": name})


def allow_list(library: str, modules: Iterable[str]) -> Callable[[], AllowList]:
    """Return what makes the list when it is needed first, and keeps it."""
    made: list[AllowList] = []

    def make() -> AllowList:
        if not made:
            made.append(AllowList(manifest_of_vllm() if library == "vllm" else EMPTY, modules))
        return made[0]

    return make
