"""Describes the documented public API of the installed vLLM: the manifest of universal calls.

Sorted, without addresses or values of this machine: two runs on one vLLM give the same text.
Imports vLLM: run by `make bindings`, and by a worker whose vLLM is not the manifest's.
"""

import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

MODULES: Final = (
    "vllm",
    "vllm.config",
    "vllm.engine.arg_utils",
    "vllm.exceptions",
    "vllm.inputs",
    "vllm.logprobs",
    "vllm.lora.request",
    "vllm.multimodal",
    "vllm.multimodal.inputs",
    "vllm.outputs",
    "vllm.pooling_params",
    "vllm.sampling_params",
    "vllm.sequence",
    "vllm.tokenizers",
    "vllm.v1.metrics.reader",
)
"""What vLLM documents for callers, and what its engine gives back."""

MAX_CLASS_METHODS: Final = 200
"""Of a class with more methods than this only its own are described, not those it inherits."""

ENGINES: Final = frozenset(
    {
        "vllm.entrypoints.llm.LLM",
        "vllm.v1.engine.llm_engine.LLMEngine",
        "vllm.v1.engine.async_llm.AsyncLLM",
        "vllm.v1.engine.core.EngineCore",
        "vllm.v1.engine.core_client.EngineCoreClient",
        "vllm.v1.executor.abstract.Executor",
        "vllm.engine.protocol.EngineClient",
    }
)
"""Classes that are engines, or parts of one: never made by a universal call."""

LIVE: Final = frozenset(
    {
        "cached_tokenizer_from_config",
        "get_current_vllm_config",
        "get_current_vllm_config_or_none",
        "get_layers_from_vllm_config",
        "initialize_ray_cluster",
        "set_current_vllm_config",
    }
)
"""Functions that hand out or change what the engine itself runs with: left out."""

Entry = dict[str, Any]

METHODS: Final = frozenset({"method", "classmethod", "staticmethod"})

_PLAIN = (bool, int, float, str)


def installed_version() -> str:
    """Return the version of the installed vLLM, as a manifest has it."""
    from vllm.version import __version__

    return str(__version__).partition("+")[0]


def describe(
    modules: Iterable[str] = MODULES,
    *,
    library: str = "vllm",
    max_class_methods: int = MAX_CLASS_METHODS,
) -> dict[str, Any]:
    """Describe the public names of modules.

    Args:
        modules: Which ones.
        library: Only what is defined in this package counts as its own.
        max_class_methods: See `MAX_CLASS_METHODS`.

    Returns:
        `vllm`, its version; `modules`: name → `doc` and `names`, each with the full name of what
        it stands for; `classes` and `functions` by full name.
    """
    scribe = _Scribe(library, max_class_methods)
    described = {name: scribe.module(name) for name in sorted(modules)}
    return {
        "vllm": installed_version() if library == "vllm" else "",
        "modules": described,
        "classes": dict(sorted(scribe.classes.items())),
        "functions": dict(sorted(scribe.functions.items())),
    }


def full_name(thing: Any) -> str:
    """Return module and qualified name of a class or function."""
    return f"{thing.__module__}.{thing.__qualname__}"


def is_engine(cls: type) -> bool:
    """Tell whether a class is an engine, or a part of one."""
    return any(full_name(base) in ENGINES for base in cls.__mro__)


class _Scribe:
    """Describes modules one after the other; classes and functions once, wherever they are named.

    Attributes:
        classes: What was found so far, by full name; `functions` as well.
    """

    def __init__(self, library: str, max_class_methods: int) -> None:
        self.classes: dict[str, Entry] = {}
        self.functions: dict[str, Entry] = {}
        self._library = library
        self._max = max_class_methods

    def module(self, name: str) -> Entry:
        """Describe one module: its public names and what each stands for."""
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", None)
        names = {}
        for public in sorted(set(exported if exported is not None else dir(module))):
            if public.startswith("_") or public in LIVE:
                continue
            thing = getattr(module, public, None)
            if exported is None and getattr(thing, "__module__", None) != name:
                continue  # it is somebody else's, imported for use
            target = self._take(thing)
            if target is not None:
                names[public] = target
        return {"doc": _first(module.__doc__), "names": names}

    def _take(self, thing: Any) -> str | None:
        """Describe what a name stands for; return its full name, "" for a plain value."""
        if inspect.isclass(thing) and self._is_own(thing):
            target = full_name(thing)
            if target not in self.classes:
                self.classes[target] = self._class(thing)
            return target
        if inspect.isfunction(thing) and self._is_own(thing):
            target = full_name(thing)
            self.functions[target] = _callable(thing)
            return target
        return "" if isinstance(thing, _PLAIN) else None

    def _is_own(self, thing: Any) -> bool:
        module = str(thing.__module__)
        return module == self._library or module.startswith(f"{self._library}.")

    def _class(self, cls: type) -> Entry:
        found = self._members(cls)
        methods = {name for name, member in found.items() if member["kind"] in METHODS}
        if len(methods) > self._max:
            for name in methods - vars(cls).keys():
                del found[name]
        entry: Entry = {
            "doc": "" if _is_made(cls) else _first(cls.__doc__),
            "parameters": _parameters(cls),
            "members": dict(sorted(found.items())),
        }
        return {**entry, "engine": True} if is_engine(cls) else entry

    def _members(self, cls: type) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for owner in reversed([base for base in cls.__mro__ if self._is_own(base)]):
            for name, kind in _annotations(owner).items():
                found[name] = {"kind": "field", "type": kind}
            for name, raw in vars(owner).items():
                if name.startswith("_") or (name in found and not callable(raw)):
                    continue
                entry = _member(raw)
                if entry is not None:
                    found[name] = entry
        return {name: entry for name, entry in found.items() if not name.startswith("_")}


def _annotations(owner: type) -> dict[str, str]:
    return {name: _type(kind) for name, kind in vars(owner).get("__annotations__", {}).items()}


def _member(raw: Any) -> Entry | None:
    """Describe what stands in a class; None for what is no business of callers."""
    match raw:
        case staticmethod() | classmethod():
            return {"kind": type(raw).__name__, **_callable(raw.__func__, bound=True)}
        case property():
            return {"kind": "property", "doc": _first(raw.__doc__)}
        case Enum() | bool() | int() | float() | str():
            return {"kind": "value"}
    if inspect.isfunction(raw):
        return {"kind": "method", **_callable(raw, bound=True)}
    if inspect.isdatadescriptor(raw) or hasattr(raw, "__get__"):
        return {"kind": "property", "doc": ""}
    return None


def _callable(function: Any, *, bound: bool = False) -> Entry:
    entry: Entry = {"doc": _first(function.__doc__), "parameters": _parameters(function)}
    if bound and entry["parameters"]:
        first = next(iter(entry["parameters"]))
        if first in ("self", "cls"):
            del entry["parameters"][first]
    gives = (
        (inspect.isasyncgenfunction, "async generator"),
        (inspect.iscoroutinefunction, "coroutine"),
        (inspect.isgeneratorfunction, "generator"),
    )
    for asks, what in gives:
        if asks(function):
            entry["gives"] = what
            break
    return entry


def _parameters(thing: Any) -> dict[str, Entry] | None:
    """Describe what a call takes, in its order; None where Python does not know."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (ValueError, TypeError):
        return None
    return {
        p.name: {
            "type": "Any" if p.annotation is p.empty else _type(p.annotation),
            "kind": p.kind.name.lower(),
            **({} if p.default is p.empty else {"default": _default(p.default)}),
        }
        for p in parameters
    }


def _default(value: Any) -> Any:
    """Write a default down; "…" for what is no plain value."""
    if isinstance(value, Enum):
        return value.value if isinstance(value.value, _PLAIN) else "…"
    return value if value is None or type(value) in _PLAIN else "…"


def _type(annotation: Any) -> str:
    """Write a type down; Any for what names this run of Python."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = " ".join(text.split())
    return "Any" if "0x" in text or "FieldInfo" in text or len(text) > 300 else text


def _is_made(cls: type) -> bool:
    """Tell documentation that a decorator wrote from a person's."""
    return (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def _first(text: str | None) -> str:
    """Return the first line of a documentation that says something."""
    words = " ".join(re.split(r"\n\s*\n", (text or "").strip(), maxsplit=1)[0].split())
    return re.split(r"(?<=[.:])\s", words, maxsplit=1)[0][:300]


def text_of(manifest: Mapping[str, Any]) -> str:
    """Return the one text that stands for a manifest."""
    import json

    return json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
