"""Write types of what universal calls take, for hosts: the fields of vLLM's parameter classes.

From the manifest of the public API, for Elixir and TypeScript. Everything else of the manifest is
reached by its name. `--check` writes nothing, but fails if the files are not what it would write.
"""

import ast
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "worker/vllmport/worker/universal/api.json"
NODE = ROOT / "hosts/node/src/api.ts"
ELIXIR = ROOT / "hosts/elixir/lib/vllm/api.ex"

MODULES = ("vllm.lora.request", "vllm.pooling_params", "vllm.sampling_params")
"""Where the classes are that callers make to say what they want."""

SUFFIXES = ("Params", "Request")

TYPESCRIPT = {
    "str": "string",
    "int": "number",
    "float": "number",
    "bool": "boolean",
    "None": "null",
    "list": "unknown[]",
    "dict": "Record<string, unknown>",
}
TYPESPECS = {
    "str": "String.t()",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "None": "nil",
    "list": "list",
    "dict": "map",
}


def wanted(manifest: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the parameter classes: (module, name) → what the manifest says."""
    found = {}
    for module in MODULES:
        for name, target in manifest["modules"][module]["names"].items():
            if name.endswith(SUFFIXES) and target in manifest["classes"]:
                found[module, name] = manifest["classes"][target]
    return found


def host_type(text: str, names: Mapping[str, str], anything: str) -> str:
    """Turn a Python type into a host's; what has no counterpart is anything."""
    try:
        parts = list(dict.fromkeys(_parts(ast.parse(text, mode="eval").body, names)))
    except (SyntaxError, KeyError):
        return anything
    return " | ".join(parts)


def _parts(node: ast.expr, names: Mapping[str, str]) -> list[str]:
    match node:
        case ast.BinOp(left, ast.BitOr(), right):
            return [*_parts(left, names), *_parts(right, names)]
        case ast.Constant(None):
            return [names["None"]]
        case ast.Name(name):
            return [names[name]]
        case ast.Subscript(ast.Name(name), _):
            return [names[name]]
    raise KeyError


def parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a class takes by name."""
    return {
        name: about
        for name, about in sorted((entry["parameters"] or {}).items())
        if not about["kind"].startswith("var_") and not name.startswith("_")
    }


def typescript(manifest: Mapping[str, Any]) -> str:
    """Write the types of the Node host."""
    lines = [
        f"// Made by scripts/api_bindings.py from the public API of vLLM {manifest['vllm']}.",
        "// Do not edit.",
        "",
        "/** What universal calls of these classes take: module → class → named arguments. */",
        "export interface Arguments {",
    ]
    for module in MODULES:
        lines.append(f'  "{module}": {{')
        for (home, name), entry in wanted(manifest).items():
            if home != module:
                continue
            lines.append(f"    /** {entry['doc']} */" if entry["doc"] else f"    /** {name}. */")
            lines.append(f"    {name}: {{")
            for parameter, about in parameters(entry).items():
                kind = host_type(about["type"], TYPESCRIPT, "unknown")
                mark = "?" if "default" in about else ""
                lines.append(f"      {parameter}{mark}: {kind};")
            lines.append("    };")
        lines.append("  };")
    return "\n".join([*lines, "}", ""])


def elixir(manifest: Mapping[str, Any]) -> str:
    """Write the module of the Elixir host."""
    lines = [
        "# Made by scripts/api_bindings.py from the public API of vLLM "
        f"{manifest['vllm']}. Do not edit.",
        "",
        "defmodule VLLM.Api do",
        '  @moduledoc "Makes objects of vLLM\'s parameter classes; see `VLLM.Runtime`."',
        "",
        "  alias VLLM.{LLM, Ref, Runtime}",
        "",
        "  @type result :: {:ok, Ref.t()} | {:error, VLLM.Error.t()}",
    ]
    for (module, name), entry in wanted(manifest).items():
        function = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("lo_ra", "lora")
        options = [
            f"          {parameter}: {host_type(about['type'], TYPESPECS, 'term')}"
            for parameter, about in parameters(entry).items()
        ]
        doc = entry["doc"].replace("\\", "\\\\").replace('"', "'") or name
        lines += [
            "",
            f"  @type {function} :: [",
            ",\n".join(options),
            "        ]",
            "",
            f'  @doc "{doc}"',
            f"  @spec {function}(LLM.t(), {function}, keyword) :: result",
            f"  def {function}(%LLM{{}} = llm, kwargs \\\\ [], opts \\\\ []),",
            f'    do: Runtime.call(llm, "{module}", "{name}", [], kwargs, opts)',
        ]
    return "\n".join([*lines, "end", ""])


def main(say: Callable[[str], object] = print) -> int:
    """Run the command."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    made = {NODE: typescript(manifest), ELIXIR: elixir(manifest)}
    if "--check" in sys.argv[1:]:
        stale = [path for path, text in made.items() if path.read_text(encoding="utf-8") != text]
        for path in stale:
            say(f"{path.relative_to(ROOT)} is not what `make bindings` writes")
        return int(bool(stale))
    for path, text in made.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
