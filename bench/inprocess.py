"""`vllm.LLM` in a process of its own, measured from inside: a contender, and the child it runs.

Commands and answers are lines of JSON on stdin and stdout; it ends with its stdin.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.children import Child
from bench.measure import rate, timed_calls
from bench.workload import (
    BATCH_PARAMS,
    BATCH_PROMPTS,
    ENGINE_ARGS,
    ENGINE_ENV,
    MODEL,
    ONE_PARAMS,
    ONE_PROMPT,
)


class InProcess:
    """Drives the child.

    Args:
        folder: For its log.
    """

    def __init__(self, folder: Path) -> None:
        env = {**ENGINE_ENV, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self.child = Child([__file__], folder / "inprocess.log", env)

    def wait(self) -> str:
        """Wait until it is loaded; return its first token."""
        return str(self._read())

    def one_token(self, count: int) -> list[float]:
        """Return how long each of `count` one-token calls took, in ms."""
        return [float(value) for value in self._ask("one_token", count)]

    def final(self, passes: int) -> list[float]:
        """Return the tokens a second of each batch."""
        return [float(value) for value in self._ask("final", passes)]

    def _ask(self, command: str, count: int) -> Any:
        self.child.stdin.write(json.dumps([command, count]).encode() + b"\n")
        self.child.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        line = self.child.stdout.readline()
        if not line:
            self.child.stop()
            self.child.check()
        return json.loads(line)


def main() -> None:
    """Load the engine and answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    from vllm import LLM, SamplingParams

    llm = LLM(MODEL, **ENGINE_ARGS)
    one, many = SamplingParams(**ONE_PARAMS), SamplingParams(**BATCH_PARAMS)

    def batch() -> int:
        outputs = llm.generate(BATCH_PROMPTS, many, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    first = llm.generate(ONE_PROMPT, one, use_tqdm=False)[0].outputs[0].text
    answers.write(json.dumps(first) + "\n")
    for line in sys.stdin:
        command, count = json.loads(line)
        if command == "one_token":
            found = timed_calls(lambda: llm.generate(ONE_PROMPT, one, use_tqdm=False), count)
        else:
            found = [rate(batch) for _ in range(count)]
        answers.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
