"""`make demo`: a real vLLM worker answers, is killed in front of you, and answers again."""

import os
import signal
import sys
import time

from vllmport.bridge.errors import DeadlineExceeded, WorkerLost
from vllmport.pool.client.llm import LLM
from vllmport.pool.client.params import SamplingParams
from vllmport.pool.client.pool import Pool

GREEDY = SamplingParams(temperature=0, max_tokens=16)
ENDLESS = SamplingParams(temperature=0, max_tokens=8000, ignore_eos=True)


def say(text: str, end: str = "\n") -> None:
    """Print without delay."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def check(what: str, got: str, wanted: str) -> None:
    """Show an answer and stop the demonstration if it is not the right one.

    Raises:
        SystemExit: It is another one.
    """
    if wanted not in got:
        raise SystemExit(f"FAILED: {what}: wanted {wanted!r} in {got!r}")
    say(f"  {what}{got}    [checked]")


def ask(llm: LLM) -> None:
    """Generate, chat and stream, and check what comes."""
    france = llm.generate("The capital of France is", GREEDY)[0]
    check("The capital of France is", france.outputs[0].text, " Paris.")
    question = "What is the capital of Japan?"
    japan = llm.chat([{"role": "user", "content": question}], GREEDY)[0]
    check(f"{question}", japan.outputs[0].text, "Tokyo")
    say("  streamed: 1 2 3 4 5", end="")
    for delta in llm.stream("1 2 3 4 5", GREEDY):
        say(delta.text, end="")
    say("")


def miss_a_deadline(llm: LLM) -> None:
    """Give a long generation half a second."""
    start = time.monotonic()
    try:
        llm.generate("1 2 3", ENDLESS, timeout=0.5)
    except DeadlineExceeded as exc:
        took = time.monotonic() - start
        say(f"  a call with timeout=0.5 was stopped after {took:.2f} s and {exc.tokens} tokens")


def cancel(pool: Pool, llm: LLM) -> None:
    """Leave a stream early and look whether the engine has let go."""
    with llm.stream("1 2 3", ENDLESS) as stream:
        first = [next(stream).text for _ in range(3)]
    time.sleep(0.2)
    worker = pool.status()["workers"][0]
    say(
        f"  a stream was left after {first!r}; requests still in the engine: {worker['unfinished']}"
    )


def kill(pool: Pool, llm: LLM) -> None:
    """SIGKILL the worker in the middle of a call; ask again."""
    pid = pool.status()["workers"][0]["pid"]
    stream = llm.stream("1 2 3", ENDLESS)
    next(stream)
    say(f"  kill -9 {pid}, in the middle of a call …")
    os.kill(pid, signal.SIGKILL)
    start = time.monotonic()
    try:
        for _ in stream:
            pass
    except WorkerLost as exc:
        say(
            f"  … after {(time.monotonic() - start) * 1000:.0f} ms the caller got "
            f"{type(exc).__name__}: {exc}"
        )
    answer = llm.generate("The capital of France is", GREEDY)[0].outputs[0].text
    check(f"{time.monotonic() - start:.1f} s later: The capital of France is", answer, " Paris.")


def main() -> None:
    """Run the demonstration from start to end."""
    start = time.monotonic()
    say("Starting a supervisor and a real vLLM worker with the bundled tiny model …")
    with Pool() as pool:
        llm = pool.llm(v1_multiprocessing="off")
        say(f"  ready after {time.monotonic() - start:.1f} s")
        worker = pool.status()["workers"][0]
        say(
            f"  supervisor {pool.status()['supervisor']['pid']}, worker {worker['pid']}, "
            "which leads its own process group"
        )
        ask(llm)
        miss_a_deadline(llm)
        cancel(pool, llm)
        kill(pool, llm)
        say("Closing the pool …")
    say(f"Nothing of it is left. {time.monotonic() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
