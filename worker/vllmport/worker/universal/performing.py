"""Does one universal call: finds what it means, step by step against the allow-list, and does it.

Pure Python around other people's objects: no threads, no messages.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vllmport.bridge.codec import Ref
from vllmport.bridge.errors import InvalidRequest, shown
from vllmport.bridge.universal import ROOT, Verb
from vllmport.worker.universal.allow import (
    CODE,
    AllowList,
    check_name,
    check_no_engine,
    refusal,
)
from vllmport.worker.universal.refs import Held, Refs
from vllmport.worker.universal.serialize import from_wire

MAX_STEPS = 32
"""Names in one dotted path."""


class Root(NamedTuple):
    """An object of the loaded engine.

    Attributes:
        make: Makes a copy for one session.
        view: The class as which it may be used, where it is not of one on the list.
    """

    make: Callable[[], Any]
    view: Callable[[], type] | None = None


class Performer:
    """Does the calls of one session.

    Args:
        allow: Returns the allow-list.
        roots: What the loaded engine offers, by name.
        refs: What the session holds.
    """

    def __init__(
        self, allow: Callable[[], AllowList], roots: Mapping[str, Root], refs: Refs
    ) -> None:
        self._allow = allow
        self._roots = roots
        self._refs = refs
        self._copies: dict[str, Held] = {}
        self._verbs: dict[str, Callable[[Mapping[str, Any]], Held]] = {
            Verb.CALL: self._call,
            Verb.GET: self._get,
            Verb.ATTR: self._attr,
            Verb.SET_ATTR: self._set_attr,
            Verb.METHOD: self._method,
            Verb.ITEM: self._item,
            Verb.ITERATE: self._iterate,
            Verb.RELEASE: self._release,
        }

    def perform(self, verb: str, args: Mapping[str, Any]) -> Held:
        """Do one call; what it gives may have to be awaited or iterated over.

        Raises:
            InvalidRequest: An argument is missing or of a wrong kind.
            NotAllowed: A step is not on the allow-list.
            SessionLost: A ref names nothing that the session holds.
        """
        self._refs.release(_numbers(args.get("released", ())))
        return self._verbs[verb](args)

    def forget(self) -> None:
        """Let go of the copies of the engine's objects."""
        self._copies.clear()

    # Verbs.

    def _call(self, args: Mapping[str, Any]) -> Held:
        return self._apply(self._found(args), args)

    def _get(self, args: Mapping[str, Any]) -> Held:
        return self._found(args)

    def _attr(self, args: Mapping[str, Any]) -> Held:
        return self._walk(self._ref(args), _steps(args))

    def _set_attr(self, args: Mapping[str, Any]) -> Held:
        *steps, last = _steps(args)
        held = self._walk(self._ref(args), steps)
        self._allow().member(held.thing, last, held.view)
        if isinstance(held.thing, CODE):
            raise refusal(last, "only objects have attributes that can be set")
        setattr(held.thing, last, from_wire(args.get("value"), self._refs))
        return Held(True)  # noqa: FBT003  # the result

    def _method(self, args: Mapping[str, Any]) -> Held:
        return self._apply(self._walk(self._ref(args), _steps(args)), args)

    def _item(self, args: Mapping[str, Any]) -> Held:
        held = self._ref(args)
        self._check_known(held, "item access")
        key = from_wire(args.get("key"), self._refs)
        try:
            return Held(held.thing[key])
        except (LookupError, TypeError) as exc:
            text = f"no item {shown(key)}: {type(exc).__name__}: {exc}"
            raise InvalidRequest.of("key", shown(key), text) from None

    def _iterate(self, args: Mapping[str, Any]) -> Held:
        held = self._ref(args)
        if not hasattr(held.thing, "__next__") and not hasattr(held.thing, "__anext__"):
            self._check_known(held, "iteration")
            return Held(iter(held.thing))
        return held

    def _release(self, args: Mapping[str, Any]) -> Held:
        self._refs.release(_numbers(args.get("refs", ())))
        return Held(None)

    # Inside.

    def _ref(self, args: Mapping[str, Any]) -> Held:
        ref = args.get("ref")
        if not isinstance(ref, Ref):
            raise InvalidRequest.of("ref", shown(ref), f"ref is a ref, not {shown(ref)}")
        return self._refs.find(ref)

    def _found(self, args: Mapping[str, Any]) -> Held:
        """Follow a dotted name from its module on."""
        module = args.get("module")
        if not isinstance(module, str):
            text = f"module is a name, not {shown(module)}"
            raise InvalidRequest.of("module", shown(module), text)
        first, *others = _steps(args)
        held = self._root(first) if module == ROOT else Held(self._allow().first(module, first))
        if isinstance(held.thing, type):
            check_no_engine(held.thing)
        return self._walk(held, others)

    def _root(self, name: str) -> Held:
        check_name(name)
        if name not in self._roots:
            known = ", ".join(sorted(self._roots))
            raise refusal(name, f"the engine offers no {shown(name)}; known: {known}")
        if name not in self._copies:
            root = self._roots[name]
            self._copies[name] = Held(root.make(), root.view() if root.view else None)
        return self._copies[name]

    def _walk(self, held: Held, steps: list[str]) -> Held:
        for name in steps:
            held = Held(self._allow().member(held.thing, name, held.view))
            if isinstance(held.thing, type):
                check_no_engine(held.thing)
        return held

    def _apply(self, held: Held, args: Mapping[str, Any]) -> Held:
        given, named = args.get("args") or (), args.get("kwargs") or {}
        if not isinstance(given, list | tuple) or not isinstance(named, dict):
            raise InvalidRequest("args is an array and kwargs a map")
        if not isinstance(held.thing, CODE) or not callable(held.thing):
            kind = type(held.thing).__name__
            raise InvalidRequest.of("name", shown(args.get("name")), f"a {kind} cannot be called")
        arguments = from_wire(list(given), self._refs)
        keywords = {str(key): from_wire(value, self._refs) for key, value in named.items()}
        return Held(held.thing(*arguments, **keywords))

    def _check_known(self, held: Held, what: str) -> None:
        if not self._allow().knows(held.thing, held.view):
            name = type(held.thing).__name__
            raise refusal(name, f"{what} of a {name} is not on the allow-list")


def _steps(args: Mapping[str, Any]) -> list[str]:
    """Split a dotted name; each part is checked where it is used."""
    name = args.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest.of("name", shown(name), f"name is a name, not {shown(name)}")
    steps = name.split(".")
    if len(steps) > MAX_STEPS:
        raise InvalidRequest.of("name", shown(name), f"a name has at most {MAX_STEPS} parts")
    return steps


def _numbers(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or not all(type(item) in (int, Ref) for item in value):
        raise InvalidRequest.of("refs", shown(value), "what is released are refs or their numbers")
    return [item.number if isinstance(item, Ref) else item for item in value]
