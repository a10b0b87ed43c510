"""Each host is a package as its language has them: what it ships, its version, its licence."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

from builds import HOSTS, ROOT, run


def npm_pack() -> set[str]:
    """Return the files of the package for npm."""
    (package,) = json.loads(run("npm", "pack", "--dry-run", "--json", cwd=HOSTS / "node"))
    return {file["path"] for file in package["files"]}


def test_the_package_for_node_holds_the_program_and_its_types(needs: Callable[[str], None]) -> None:
    needs("node")
    files = npm_pack()
    package = json.loads((HOSTS / "node" / "package.json").read_text())
    sources = [path.stem for path in (HOSTS / "node" / "src").glob("*.ts")]
    wanted = {f"dist/src/{name}{end}" for name in sources for end in (".js", ".d.ts")}
    assert files == wanted | {"package.json", "README.md", "LICENSE"}
    for entry in (package["main"], package["types"], *package["exports"]["."].values()):
        assert entry.removeprefix("./") in files


TYPED = """
import { Pool, type RequestOutput, type SamplingParams } from "vllmport";
const params: SamplingParams = { temperature: 0, max_tokens: 8 };
export async function ask(pool: Pool): Promise<string | undefined> {
  const result: RequestOutput = await (await pool.llm("tiny")).generate("Hello", params);
  return result.outputs[0]?.text;
}
// @ts-expect-error: the type knows the names of parameters
export const wrong: SamplingParams = { temprature: 0 };
"""


def test_a_typed_program_compiles_against_the_package(needs: Callable[[str], None]) -> None:
    needs("node")
    node = HOSTS / "node"
    program = node / "dist" / "typed.mts"  # in the package: it finds itself by name
    npm_pack()  # builds it
    program.write_text(TYPED)
    flags = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--types", "node")
    run("npx", "tsc", "--ignoreConfig", "--target", "es2022", *flags, program, cwd=node)
    program.unlink()


def test_the_library_for_c_is_installed_where_packagers_want_it(
    needs: Callable[[str], None], tmp_path: Path
) -> None:
    needs("c")
    run("make", "--silent", "install", f"DESTDIR={tmp_path}", "PREFIX=/usr", cwd=HOSTS / "c")
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    library = {"usr/include/vllmport.h", "usr/lib/libvllmport.a", "usr/lib/pkgconfig/vllmport.pc"}
    assert files == library
    env = {"PKG_CONFIG_PATH": str(tmp_path / "usr" / "lib" / "pkgconfig")}
    assert run("pkg-config", "--modversion", "vllmport", env=env).strip() == version_of("c")


def test_the_package_for_elixir_holds_what_it_names(needs: Callable[[str], None]) -> None:
    needs("elixir")
    show = 'IO.puts(Enum.join(Mix.Project.config()[:package][:files], " "))'
    names = run("mix", "run", "--no-start", "-e", show, cwd=HOSTS / "elixir").splitlines()[-1]
    assert {"lib", "mix.exs", "README.md", "LICENSE"} <= set(names.split())
    for name in names.split():
        assert (HOSTS / "elixir" / name).exists(), name


def version_of(host: str) -> str:
    path, pattern = {
        "node": ("package.json", r'"version": "(.*)"'),
        "elixir": ("mix.exs", r'version: "(.*)"'),
        "c": ("vllmport.c", r'#define PRODUCT "(.*)"'),
    }[host]
    (found,) = re.findall(pattern, (HOSTS / host / path).read_text())
    return str(found)


def test_all_hosts_have_the_version_and_the_licence_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for host in ("node", "elixir", "c"):
        assert version_of(host) == project["version"], host
        assert (HOSTS / host / "LICENSE").read_text() == (ROOT / "LICENSE").read_text(), host
