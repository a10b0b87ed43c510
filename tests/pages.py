"""Pages of the documentation as programs: what they say, what they print, whether it is so.

A Python block prints, and what it prints stands beside it as a comment; `…` stands for anything. A
TOML block has a Python block beside it that says the same, or that is given it as `pool.toml`. A
console block has commands, each with lines that it prints.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from processes import environment

DOCS = Path(__file__).parents[1] / "docs"
MARK = "--- block"


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: "python", "toml" or "console".
        text: What is in it.
        after: Whether only white space is between it and the block before.
    """

    language: str
    text: str
    after: bool


class Page:
    """A page, with paths and names of its examples replaced by those of this machine.

    Args:
        name: Of a file in `docs/`.
        places: Text of the page → what stands for it here.
    """

    def __init__(self, name: str, places: Mapping[str, str]) -> None:
        self.text = (DOCS / name).read_text()
        text = self.text
        for place, here in places.items():
            text = text.replace(place, here)
        self.blocks: list[Block] = []
        end = -1
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            after = end >= 0 and not text[end : found.start()].strip()
            self.blocks.append(Block(found[1], found[2], after))
            end = found.end()

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield each TOML block and the Python block beside it, "" where there is none."""
        for index, block in enumerate(self.blocks):
            if block.language == "toml":
                below = self.blocks[index + 1 : index + 2]
                beside = [one for one in below if one.after and one.language == "python"]
                if block.after and self.blocks[index - 1].language == "python":
                    beside = [self.blocks[index - 1]]
                yield block.text, beside[0].text if beside else ""

    def tables(self, *columns: str) -> list[list[str]]:
        """Return the cells of the table with these headings."""
        return table(self.text, *columns)


def table(text: str, *columns: str) -> list[list[str]]:
    """Return the cells of the table with these headings."""
    start = text.index("| " + " | ".join(columns) + " |")
    lines = text[start:].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    found = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


# What a page's programs do.


def run_page(page: Page, folder: Path) -> list[str]:
    """Run all Python and console blocks in their order; return what is not as the page says."""
    parts = ["from pathlib import Path"]
    for index, block in enumerate(page.blocks):
        parts.append(f"print({f'{MARK} {index}'!r}, flush=True)")
        if block.language == "toml" and _is_given(page, block):
            parts.append(f"Path('pool.toml').write_text({block.text!r})")
        elif block.language == "python":
            parts.append(block.text)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(parts)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        cwd=folder,
        env=environment({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    printed = re.split(rf"^{MARK} \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    wrong = []
    for block, output in zip(page.blocks, printed, strict=True):
        if block.language == "python":
            wrong += _differences(expected(block.text), output.splitlines())
        elif block.language == "console":
            wrong += _console(block.text, folder)
    return wrong


def expected(program: str) -> list[str]:
    """Return what stands beside the calls of `print` in a block."""
    calls = re.findall(r"^ *print\(.*$", program, re.MULTILINE)
    assert calls, f"nothing is printed, so nothing can be told of it:\n{program}"
    beside = [call.rpartition("  # ") for call in calls]
    assert all(mark for _, mark, _ in beside), f"a print has nothing beside it:\n{program}"
    return [text for _, _, text in beside]


def _is_given(page: Page, block: Block) -> bool:
    return any("pool.toml" in python for toml, python in page.pairs() if toml == block.text)


def _differences(wanted: list[str], printed: list[str]) -> list[str]:
    pairs = [*zip(wanted, printed, strict=False)]
    wrong = [f"{line!r} is not {text!r}" for text, line in pairs if not _is(text, line)]
    if len(wanted) != len(printed) and not _repeated(wanted, printed):
        wrong.append(f"printed {printed}, not {wanted}")
    return wrong


def _repeated(wanted: list[str], printed: list[str]) -> bool:
    """Tell whether a loop printed the last line more than once."""
    more = printed[len(wanted) :]
    return len(more) > 0 and all(_is(wanted[-1], line) for line in more)


def _is(wanted: str, line: str) -> bool:
    pattern = ".*".join(map(re.escape, wanted.split("…")))
    return re.fullmatch(pattern, line.strip()) is not None


def _console(text: str, folder: Path) -> list[str]:
    wrong = []
    for part in text.split("$ ")[1:]:
        command, *wanted = part.strip().splitlines()
        done = subprocess.run(
            [sys.executable, "-m", "vllmport.pool.cli", *command.split()[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=folder,
            env=environment(),
        )
        lines = done.stdout.splitlines()
        missing = [line for line in wanted if not any(_is(line, one) for one in lines)]
        wrong += [f"{command!r} did not print {line!r}: {done.stderr}" for line in missing]
    return wrong


# Python and TOML.


def settings_of(program: str) -> dict[str, Any]:
    """Return what a Python block tells `Pool(…)` and `pool.llm(…)`, as a file would.

    Calls with `pool.llm` that have no name are not meant for a file.
    """
    settings: dict[str, Any] = {}
    for call in (node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        if called == "Pool":
            settings |= _keywords(call)
        elif called.endswith(".llm") and any(word.arg == "name" for word in call.keywords):
            given = _keywords(call)
            name = given.pop("name")
            model = {"model": ast.literal_eval(call.args[0]), **given}
            settings.setdefault("models", {})[name] = model
    return settings


def _keywords(call: ast.Call) -> dict[str, Any]:
    return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}


def parsed(toml: str) -> dict[str, Any]:
    """Read a TOML block."""
    return tomllib.loads(toml)
