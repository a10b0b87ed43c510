"""Write down what the installed vLLM takes: `manifest/vllm.json`.

Engine arguments, parameters of calls, adapters, and the methods of `vllm.LLM`, each with its type,
default and first words of documentation. Sorted, so that two runs on one vLLM are byte-identical.

Without options it writes the manifest, `--output FILE` writes it elsewhere; `--check` fails if it
differs from the one that is there; `--against FILE` says what changed since the one in FILE.
"""

import argparse
import dataclasses
import inspect
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).parents[1] / "manifest" / "vllm.json"

PLAIN = {str: "str", int: "int", float: "float", bool: "bool", Any: "Any", type(None): "None"}
GENERIC = {list: "list", dict: "dict", set: "list", tuple: "list", frozenset: "list"}

# Set by the engine or by this project, never by a caller.
INTERNAL = {
    "model",  # an argument of its own
    "output_kind",
    "output_text_buffer_length",
    "skip_clone",
    "requires_token_ids",
    "late_interaction_params",
}

Entry = dict[str, Any]

REQUIRED = object()


def manifest() -> dict[str, Any]:
    """Describe the installed vLLM as plain data."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, PoolingParams, SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams
    from vllm.version import __version__

    return {
        "vllm": __version__.partition("+")[0],
        "engine": _described(_dataclass_fields(AsyncEngineArgs), _engine_docs()),
        "sampling": _described(_struct_fields(SamplingParams), _attribute_docs(SamplingParams)),
        "pooling": _described(_struct_fields(PoolingParams), _attribute_docs(PoolingParams)),
        "structured_outputs": _described(
            _dataclass_fields(StructuredOutputsParams), _attribute_docs(StructuredOutputsParams)
        ),
        "beam_search": _described(
            _struct_fields(BeamSearchParams), _attribute_docs(BeamSearchParams)
        ),
        "lora": _described(_struct_fields(LoRARequest), _attribute_docs(LoRARequest)),
        "methods": dict(sorted(_methods(LLM))),
    }


def text_of(data: Mapping[str, Any]) -> str:
    """Return the one text that stands for a manifest."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say line by line what differs between two manifests."""
    lines = [] if old["vllm"] == new["vllm"] else [f"vllm: {old['vllm']} -> {new['vllm']}"]
    for section in (name for name in new if name != "vllm"):
        before, after = old.get(section, {}), new[section]
        for name in sorted(before.keys() | after.keys()):
            if name not in after:
                lines.append(f"{section}: {name} removed")
            elif name not in before:
                lines.append(f"{section}: {name} added ({after[name].get('type', 'method')})")
            else:
                lines += [
                    f"{section}: {name}: {key} {before[name].get(key)!r} -> {value!r}"
                    for key, value in after[name].items()
                    if before[name].get(key) != value
                ]
    return lines


# Fields.


def _dataclass_fields(cls: Any) -> Iterable[tuple[str, Any, Any]]:
    for field in dataclasses.fields(cls):
        default = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = REQUIRED if made is dataclasses.MISSING else made()
        yield field.name, field.type, default


def _struct_fields(cls: Any) -> Iterable[tuple[str, Any, Any]]:
    import msgspec

    for field in msgspec.structs.fields(cls):
        default, made = field.default, field.default_factory
        if default is msgspec.NODEFAULT:
            default = REQUIRED if made is msgspec.NODEFAULT else made()
        yield field.name, cls.__annotations__.get(field.name, field.type), default


def _described(
    fields: Iterable[tuple[str, Any, Any]], docs: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "type": _optional(type_text(kind), default),
            "default": "required" if default is REQUIRED else _plain(default),
            "doc": _first(docs.get(name)),
        }
        for name, kind, default in sorted(fields, key=lambda field: field[0])
        if not name.startswith("_") and name not in INTERNAL
    }


def _optional(text: str, default: Any) -> str:
    """Let None stand for "not given" where it is the default."""
    optional = default is None and "None" not in text.split(" | ")
    return f"{text} | None" if optional else text


def type_text(kind: Any) -> str:  # noqa: C901, PLR0911  # one flat table of kinds
    """Write a type down as far as plain data can have it; "" for what cannot travel."""
    if isinstance(kind, str):
        return _forward(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_text(parts[0])
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(filter(None, map(type_text, parts))))
    if (origin or kind) in GENERIC:
        return _generic(origin or kind, parts)
    if getattr(kind, "__module__", "") == "numpy":
        return "list[Any]"
    if not inspect.isclass(kind) or origin is type or _is_foreign(kind):
        return ""
    if issubclass(kind, Enum):
        return "int" if issubclass(kind, int) else "str"
    return "str" if issubclass(kind, Path) else "dict[str, Any]"


def _generic(origin: Any, parts: tuple[Any, ...]) -> str:
    inner = [type_text(part) or "Any" for part in parts if part is not ...]
    name = GENERIC[origin]
    return f"{name}[{', '.join(inner or (['str', 'Any'] if name == 'dict' else ['Any']))}]"


def _forward(text: str) -> str:
    """Keep of a type that is only text what can be read without the module it stands in."""
    kept = [part for part in text.split(" | ") if not re.match(r"[A-Z]\w+$", part) or part == "Any"]
    return " | ".join(kept)


def _is_foreign(kind: Any) -> bool:
    """Tell arrays, dtypes and the like from vLLM's own configuration, which is built of data."""
    return not kind.__module__.startswith("vllm.") and not issubclass(kind, Path | Enum)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set) and all(isinstance(item, str) for item in value):
        return sorted(value)
    return {} if isinstance(value, dict) and not value else None


# Documentation.


def _attribute_docs(cls: Any) -> dict[str, str]:
    """Read the strings under attributes, which Python itself throws away."""
    from vllm.config.utils import get_attr_docs

    return dict(get_attr_docs(cls))


def _engine_docs() -> dict[str, str]:
    """Read the help of vLLM's own command, which has it from its configuration classes."""
    from vllm.engine import arg_utils
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arg_utils.NEEDS_HELP = True  # else it reads no documentation
    parser = arg_utils.AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return {action.dest: action.help or "" for action in parser._actions}  # noqa: SLF001


def _first(text: str | None) -> str:
    """Return the first sentence, on one line."""
    words = " ".join((text or "").split())
    return re.split(r"(?<=[.:])(?<!i\.e\.)(?<!e\.g\.)\s", words, maxsplit=1)[0].rstrip(":")


# Methods.


def _methods(cls: Any) -> Iterable[tuple[str, Entry]]:
    for name, method in inspect.getmembers(cls, callable):
        if name.startswith("_"):
            continue
        parameters = inspect.signature(method).parameters.values()
        yield (
            name,
            {
                "parameters": {
                    p.name: "required" if p.default is p.empty else _plain(p.default)
                    for p in parameters
                    if p.name != "self"
                },
                "doc": _first(inspect.getdoc(method)),
            },
        )


def main(say: Callable[[str], object] = print) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--output", type=Path, default=MANIFEST)
    options = parser.parse_args()
    found = manifest()
    if options.check or options.against:
        lines = changes(json.loads((options.against or MANIFEST).read_text()), found)
        say("\n".join(lines) or "nothing changed")
        return int(bool(lines) and options.check)
    options.output.write_text(text_of(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
