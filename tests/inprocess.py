"""vLLM itself, in a process of its own and without this project: what answers are compared with.

Run as a program with a description on standard input; see `in_process`.
"""

import json
import os
import subprocess
import sys
from typing import Any

Call = tuple[str, list[Any]]


def in_process(*engines: tuple[dict[str, Any], list[Call]]) -> list[list[Any]]:
    """Build a `vllm.LLM` after the other and make calls, one after the other.

    Args:
        *engines: Arguments for `vllm.LLM`, and calls, which are method and arguments:
            ("generate", [prompts, maps of sampling parameters]), ("embed", [prompts]),
            ("classify", [prompts]), ("score", [one, other]), ("beam_search", [prompts, a map]).

    Returns:
        For each call of each engine: token ids, embeddings, probabilities, scores, or tokens of
        the beams.
    """
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(engines),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _answer(llm: Any, method: str, args: list[Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import BeamSearchParams

    match method:
        case "generate":
            prompts, params = args
            outputs = llm.generate(prompts, [SamplingParams(**p) for p in params], use_tqdm=False)
            return [[list(one.token_ids) for one in output.outputs] for output in outputs]
        case "beam_search":
            prompts, params = args
            texts = [{"prompt": prompt} for prompt in prompts]
            outputs = llm.beam_search(texts, BeamSearchParams(**params))
            return [[beam.tokens for beam in output.sequences] for output in outputs]
        case "embed":
            return [one.outputs.embedding for one in llm.embed(*args, use_tqdm=False)]
        case "classify":
            return [one.outputs.probs for one in llm.classify(*args, use_tqdm=False)]
        case "score":
            return [one.outputs.score for one in llm.score(*args, use_tqdm=False)]
    raise AssertionError(method)


def _main() -> None:
    from vllm import LLM

    found = []
    for engine_args, calls in json.load(sys.stdin):
        llm = LLM(**engine_args)
        found.append([_answer(llm, method, args) for method, args in calls])
        del llm
    json.dump(found, sys.stdout)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
