"""Write `hosts/node/src/params.ts` from `manifest/vllm.json`: vLLM's parameters as types."""

import ast
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "manifest" / "vllm.json"
TARGET = ROOT / "hosts" / "node" / "src" / "params.ts"

INTERFACES = {
    "SamplingParams": "sampling",
    "StructuredOutputs": "structured_outputs",
    "LoRARequest": "lora",
    "EngineArgs": "engine",
}
"""Interface → section of the manifest."""

NAMES = {
    "str": "string",
    "int": "number",
    "float": "number",
    "bool": "boolean",
    "None": "null",
    "Any": "unknown",
    "list": "unknown[]",
    "dict": "Record<string, unknown>",
}

SET_BY_LOAD = {"model"}
"""Engine arguments that have a place of their own in `load`."""


def typescript(node: ast.expr) -> str:  # noqa: PLR0911  # one flat table of forms
    """Turn a Python type into one of TypeScript; what has no counterpart becomes unknown."""
    match node:
        case ast.Constant(None):
            return "null"
        case ast.Name(name):
            return NAMES.get(name, "unknown")
        case ast.BinOp(left, ast.BitOr(), right):
            return f"{typescript(left)} | {typescript(right)}"
        case ast.Subscript(ast.Name("Literal"), values):
            items = values.elts if isinstance(values, ast.Tuple) else [values]
            return " | ".join(json.dumps(ast.literal_eval(item)) for item in items)
        case ast.Subscript(ast.Name("list" | "set" | "Sequence"), item):
            inner = typescript(item)
            return f"({inner})[]" if "|" in inner else f"{inner}[]"
        case ast.Subscript(ast.Name("dict" | "Mapping"), ast.Tuple([_, value])):
            return f"Record<string, {typescript(value)}>"
    return "unknown"


def flat(union: str) -> str:
    """Drop what says nothing beside `unknown`, and what is said twice."""
    parts = list(dict.fromkeys(union.split(" | ")))
    return "unknown" if "unknown" in parts else " | ".join(parts)


def interface(name: str, parameters: dict[str, dict[str, Any]]) -> str:
    """Write one interface."""
    lines = [f"export interface {name} {{"]
    for parameter, about in parameters.items():
        if name == "EngineArgs" and parameter in SET_BY_LOAD:
            continue
        if about["doc"]:
            lines.append(f"  /** {about['doc'].replace('*/', '* /')} */")
        required = "" if about["default"] == "required" else "?"
        kind = flat(typescript(ast.parse(about["type"], mode="eval").body))
        lines.append(f"  {parameter}{required}: {kind};")
    return "\n".join([*lines, "}"])


def render(manifest: dict[str, Any]) -> str:
    """Write the whole file."""
    head = (
        f"// Made by scripts/node_types.py from manifest/vllm.json, vLLM {manifest['vllm']}.\n"
        "// Do not edit."
    )
    parts = [interface(name, manifest[section]) for name, section in INTERFACES.items()]
    return "\n\n".join([head, *parts]) + "\n"


def main() -> None:
    """Write the file."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    TARGET.write_text(render(manifest), encoding="utf-8")


if __name__ == "__main__":
    main()
