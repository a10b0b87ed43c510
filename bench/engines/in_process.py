"""`vllm.LLM` in this process: no streams, and whatever it does to the process. A contender.

Usage: in_process.py off|on generate|embed
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from bench.engines.work import EMBED_ARGS, TEXTS, prompts, timed
from bench.measure import timed_calls
from bench.peers.harness import NotOffered, serve
from bench.workload import BATCH_PARAMS, ENGINE_ARGS, ENGINE_ENV, MODEL, ONE_PARAMS, ONE_PROMPT


def make(mode: str, task: str) -> dict[str, Callable[..., Any]]:
    """Load the engine; return what it can do."""
    os.environ.update(ENGINE_ENV)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if mode == "on" else "0"
    from vllm import LLM, SamplingParams

    if task == "embed":
        embedder = LLM(MODEL, **EMBED_ARGS)
        embedder.embed(TEXTS[:8], use_tqdm=False)

        def embed() -> float:
            took, found = timed(lambda: embedder.embed(TEXTS, use_tqdm=False))
            return len(found) / float(took)

        return {"embed": embed}

    llm = LLM(MODEL, **ENGINE_ARGS)
    one, many = SamplingParams(**ONE_PARAMS), SamplingParams(**BATCH_PARAMS)

    def final(count: int) -> float:
        took, found = timed(lambda: llm.generate(prompts(count), many, use_tqdm=False))
        return sum(len(output.outputs[0].token_ids) for output in found) / float(took)

    def no_streams(*_: int) -> float:
        raise NotOffered("LLM.generate has no streams")

    def first_token() -> str:
        return str(llm.generate(ONE_PROMPT, one, use_tqdm=False)[0].outputs[0].text)

    return {
        "close": llm.llm_engine.engine_core.shutdown,
        "first": first_token,
        "one_token": lambda count: timed_calls(first_token, count),
        "final": final,
        "streamed": no_streams,
        "ttft": no_streams,
    }


if __name__ == "__main__":
    serve(lambda: make(*sys.argv[1:]))
