"""The same tiny model, engine, sampling and prompts, behind everything that can serve them.

The pool, `vllm.LLM` in a process, vLLM's OpenAI server, and SMG in front of that server. Engine
processes off and on, where there is a choice. All are loaded at once and take turns.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.children import Child, family
from bench.contender import Contender, Failed
from bench.engines.work import EMBED_ARGS
from bench.environment import BENCH_PYTHON
from bench.job import Job
from bench.peers.http_flight import HOST, free_port, wait_for
from bench.progress import say
from bench.results import Section
from bench.server import server_command
from bench.workload import ENGINE_ARGS, ENGINE_ENV, ROOT

ENGINES: Final = ROOT / "bench" / "engines"
START_TIMEOUT: Final = 240.0

HOW: Final = {
    "pool, off": "blocking client for calls, asyncio client for streams; engine in the worker",
    "pool, on": "the same; engine in a process of its own, in the worker's group",
    "LLM, off": "vllm.LLM, VLLM_ENABLE_V1_MULTIPROCESSING=0",
    "LLM, on": "vllm.LLM, VLLM_ENABLE_V1_MULTIPROCESSING=1",
    "server": "vLLM's OpenAI server; kept connections, bodies of streams not parsed",
    "SMG": "SMG before that same server; the same client",
}

ORDERS: Final[tuple[tuple[str, str, str, tuple[Any, ...]], ...]] = (
    ("one_token", "one-token call, after the other", "ms", ("one_token", 100)),
    ("final", "64 x 64 tokens, final", "tok/s", ("final", 64)),
    ("streamed", "64 x 64 tokens, streamed", "tok/s", ("streamed", 64)),
    ("streamed256", "256 x 64 tokens, streamed", "tok/s", ("streamed", 256)),
    ("ttft", "first token of a stream while 32 others run", "ms", ("ttft", 40)),
)
EMBED: Final = ("embed", "1,000 embeddings", "embeddings/s", ("embed",))


class InferenceBench:
    """The contenders of this section.

    Args:
        job: What is to be done.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.section = job.section("inference", HOW)
        self._up: dict[str, Contender] = {}
        self._servers: list[Child] = []

    def run(self) -> Section:
        """Measure everything so many times."""
        for task, orders in (("generate", ORDERS), ("embed", (EMBED,))):
            with ExitStack() as stack:
                stack.callback(self._up.clear)
                stack.callback(self._servers.clear)
                self._start_all(task, stack)
                self._warm_up(orders)
                for _ in range(self._job.rounds):
                    self._round(orders)
        return self.section

    def _round(self, orders: tuple[Any, ...]) -> None:
        for key, what, unit, order in orders:
            measure = self.section.measure(key, what, unit, less_is_better=unit == "ms")
            for name, contender in self._up.items():
                self._turn(measure, name, contender, order)
            say(f"{what}: done")
        if "pool, off" in self._up and len(orders) > 1:
            self._watch_supervisor(self._up["pool, off"])

    def _turn(self, measure: Any, name: str, contender: Contender, order: tuple[Any, ...]) -> None:
        if name in measure.failed:
            return
        try:
            found = self._job.turns.take(lambda: contender.do(*order), self._pids)
        except Failed as exc:
            measure.fail(name, str(exc))
        else:
            measure.add(name, found.value, found.cpu)

    def _watch_supervisor(self, pool: Contender) -> None:
        """See what the supervisor uses at the highest rate of tokens there is."""
        for width in (64, 256):
            found = self._job.turns.take(partial(pool.do, "watched", width), self._pids).value
            share = self.section.measure(
                f"supervisor_cpu{width}",
                f"supervisor's CPU at {width} x 64 tokens streamed",
                "share of a core",
                less_is_better=True,
            )
            share.add("pool, off", found["cpu"])
            memory = self.section.measure(
                "supervisor_rss", "supervisor's memory then", "MB", less_is_better=True
            )
            memory.add("pool, off", found["rss"])

    def _pids(self) -> list[int]:
        pids = [pid for contender in self._up.values() for pid in contender.pids]
        return pids + [pid for server in self._servers for pid in family(server.pid)]

    # Starting.

    def _start_all(self, task: str, stack: ExitStack) -> None:
        port = self._begin_server(task, stack)  # it loads meanwhile
        for name in self.section.contenders:
            kind, _, mode = name.partition(", ")
            if mode:
                script = "pooled.py" if kind == "pool" else "in_process.py"
                self._start(name, partial(list, (script, mode, task)), stack)
        if "server" in self.section.contenders:
            self._start("server", lambda: self._before_server(port, task), stack)
        if "SMG" in self.section.contenders and task == "generate":
            self._start("SMG", lambda: self._before_smg(port, stack), stack)

    def _start(self, name: str, command: Callable[[], list[str]], stack: ExitStack) -> None:
        try:
            script, *arguments = command()
            contender = Contender(name, [str(ENGINES / script), *arguments], self._job.folder)
            self._up[name] = stack.enter_context(contender)
        except (Failed, OSError, RuntimeError) as exc:
            self.section.absent[name] = " ".join(str(exc).split())[-300:]
            say(f"{name} takes no part: {self.section.absent[name]}")
        else:
            say(f"{name} is up")

    def _begin_server(self, task: str, stack: ExitStack) -> int:
        port = free_port()
        if {"server", "SMG"}.intersection(self.section.contenders):
            self._servers.append(stack.enter_context(start_server(port, task, self._job.folder)))
        return port

    def _before_server(self, port: int, task: str) -> list[str]:
        wait_for(port, "/health", START_TIMEOUT).close()
        return ["http_client.py", str(port), task]

    def _before_smg(self, server: int, stack: ExitStack) -> list[str]:
        wait_for(server, "/health", START_TIMEOUT).close()
        port = free_port()
        command = ["-m", "smg.cli", "launch", "--host", HOST, "--port", str(port)]
        command += ["--worker-urls", f"http://{HOST}:{server}", "--log-level", "error"]
        command += ["--prometheus-port", str(free_port())]
        gateway = Child(command, self._job.folder / "smg.log", python=BENCH_PYTHON)
        self._servers.append(stack.enter_context(gateway))
        wait_for(port, "/readiness", 60).close()
        return ["http_client.py", str(port), "generate"]

    def _warm_up(self, orders: tuple[Any, ...]) -> None:
        """Let each do everything once; and all have to say the same."""
        said = {}
        for name, contender in self._up.items():
            for key, _, _, (verb, *arguments) in orders:
                try:
                    contender.do(verb, *(min(count, 64) for count in arguments))
                except Failed as exc:
                    measure = self.section.measure(key, "", "")
                    measure.fail(name, str(exc))
            contender.look()
            if len(orders) > 1:
                said[name] = contender.do("first").value
        if len(set(said.values())) > 1:
            raise Failed(f"the contenders do not say the same: {said}")


def start_server(port: int, task: str, folder: Path) -> Child:
    """Start vLLM's own server, and do not wait for it."""
    command = server_command(port, EMBED_ARGS if task == "embed" else ENGINE_ARGS)
    return Child(command, folder / "server.log", ENGINE_ENV)


def run(job: Job) -> Section:
    """Run this section."""
    return InferenceBench(job).run()
