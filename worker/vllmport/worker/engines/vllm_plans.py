"""Calls that are more than one request to the engine, or not one for text: pooling and beams.

A plan is a generator: it yields what the engine is to do next, gets the outputs of all of it, and
returns the result of the call. Imports vLLM: only for workers that run it.
"""

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from vllm.entrypoints.generate.beam_search.utils import (
    BeamSearchInstance,
    BeamSearchSequence,
    create_sort_beams_key_function,
)
from vllm.entrypoints.pooling.factories import init_pooling_io_processors
from vllm.entrypoints.pooling.typing import (
    OfflineEncodeInputsContext,
    OfflineOutputsContext,
    OfflineScoringInputsContext,
)
from vllm.outputs import (
    ClassificationOutput,
    EmbeddingOutput,
    PoolingRequestOutput,
    ScoringOutput,
)
from vllm.renderers.chat_utils import ChatTemplateConfig
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tasks import SCORE_TYPE_MAP

from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines import vllm_requests as requests
from vllmport.worker.engines import vllm_results as results
from vllmport.worker.engines.vllm_errors import blaming, plain
from vllmport.worker.engines.vllm_prompts import completion_prompt


class Part(NamedTuple):
    """One request to the engine."""

    prompt: Any
    params: Any
    lora: Any


Plan = Generator[list[Part], list[Any], dict[str, Any] | list[dict[str, Any]]]


class Pooling:
    """Embeds, classifies and scores with vLLM's own preparation of inputs.

    Args:
        engine: An LLMEngine or an AsyncLLM.
        tasks: What the loaded model can do.
    """

    def __init__(self, engine: Any, tasks: tuple[Any, ...]) -> None:
        self._config = engine.model_config
        self._is_pooling = self._config.runner_type == "pooling"
        self._task = self._config.get_pooling_task(tasks) if self._is_pooling else None
        self._processors = (
            init_pooling_io_processors(
                tasks, engine.vllm_config, engine.renderer, ChatTemplateConfig()
            )
            if self._is_pooling
            else {}
        )

    def embed(self, args: Mapping[str, Any], lora: Any) -> Plan:
        """Plan an embedding of one prompt."""
        return self._encoded("embed", args, lora, _embedding)

    def classify(self, args: Mapping[str, Any], lora: Any) -> Plan:
        """Plan a classification of one prompt."""
        return self._encoded("classify", args, lora, _classes)

    def pool(self, args: Mapping[str, Any], lora: Any) -> Plan:
        """Plan any pooling task of one prompt."""
        return self._encoded(args["pooling_task"], args, lora, _data)

    def score(self, args: Mapping[str, Any], lora: Any) -> Plan:
        """Plan the scores of pairs: one with one, one with many, or many with as many."""
        self._require("score", self._task)
        kind = SCORE_TYPE_MAP.get(self._task)
        processor: Any = self._processors.get(kind)
        labels = getattr(self._config.hf_config, "num_labels", 0)
        if processor is None or (kind == "cross-encoder" and labels != 1):
            text = "this model cannot score: it needs embeddings, or one single class"
            raise InvalidRequest.of("verb", "score", text)
        params, notes = requests.pooling_params(args.get("pooling_params"))
        with blaming("data_1"):
            data = processor.valid_inputs(args["data_1"], args["data_2"])
            params.task = processor.pooling_task
            context = OfflineScoringInputsContext(
                processor.pooling_task,
                args.get("tokenization_kwargs"),
                None,
                None,
                scoring_data=data,
                chat_template=args.get("chat_template"),
                pooling_params=params,
            )
            parts = self._parts(processor, context, lora)
        outputs = yield parts
        after = OfflineOutputsContext(outputs=outputs, n_queries=len(data.data_1))
        return [_pooled(scored, _score, notes) for scored in processor.post_process_offline(after)]

    def _encoded(
        self, task: Any, args: Mapping[str, Any], lora: Any, convert: Callable[[Any], Any]
    ) -> Plan:
        self._require(task, task)
        processor = self._processors[task]
        params, notes = requests.pooling_params(args.get("pooling_params"))
        with blaming("prompt"):
            context = OfflineEncodeInputsContext(
                task, args.get("tokenization_kwargs"), None, None, [args["prompt"]], params
            )
            parts = self._parts(processor, context, lora)
        with blaming("pooling_params"):
            for part in parts:
                part.params.verify(self._config)
        outputs = yield parts
        (output,) = processor.post_process_offline(OfflineOutputsContext(outputs=outputs))
        return _pooled(output, convert, notes)

    def _parts(self, processor: Any, context: Any, lora: Any) -> list[Part]:
        factory, _ = processor.get_request_factory_offline(context)
        prepared = [processor.render(request) for request in factory()]
        return [Part(one["prompts"], one["params"], lora) for one in prepared]

    def _require(self, verb: Any, task: Any) -> None:
        if not self._is_pooling:
            text = f"this model generates text; load it with runner='pooling' for {plain(verb)}"
            raise InvalidRequest.of("verb", plain(verb), text)
        if task not in self._processors and task != self._task:
            text = f"this model does {self._task!r}, not {plain(task)!r}; "
            text += "load it with another convert= or pooler_config={'task': …}"
            raise InvalidRequest.of("pooling_task", plain(task), text)


def beam_search(engine: Any, args: Mapping[str, Any], lora: Any) -> Plan:
    """Plan a search: each wave asks for one more token of every beam."""
    params = requests.beam_params(args["params"])
    prompt = completion_prompt(engine, args["prompt"])
    tokenizer = engine.get_tokenizer()
    eos = tokenizer.eos_token_id
    key = create_sort_beams_key_function(eos, params.length_penalty)
    step = SamplingParams(
        logprobs=2 * params.beam_width,  # twice the width, so that ended beams leave enough others
        max_tokens=1,
        temperature=params.temperature,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    search = BeamSearchInstance(prompt, lora_request=lora)
    for _ in range(params.max_tokens):
        if not search.beams:
            break
        outputs = yield [Part(beam.get_prompt(), step.clone(), lora) for beam in search.beams]
        grown = [
            after
            for beam, output in zip(search.beams, outputs, strict=True)
            for after in _grown(beam, output)
        ]
        ended = [] if params.ignore_eos else [beam for beam in grown if beam.tokens[-1] == eos]
        search.completed += ended
        open_ones = [beam for beam in grown if params.ignore_eos or beam.tokens[-1] != eos]
        search.beams = sorted(open_ones, key=key, reverse=True)[: params.beam_width]
    best = sorted(search.completed + search.beams, key=key, reverse=True)[: params.beam_width]
    return {
        "sequences": [
            {
                "text": tokenizer.decode(
                    beam.tokens, skip_special_tokens=params.skip_special_tokens
                ),
                "tokens": list(beam.tokens),
                "cum_logprob": beam.cum_logprob,
                "logprobs": results.positions(beam.logprobs),
                "finish_reason": beam.finish_reason,
                "stop_reason": beam.stop_reason,
            }
            for beam in best
        ]
    }


def _grown(beam: BeamSearchSequence, output: Any) -> list[BeamSearchSequence]:
    """Return what a beam may go on with."""
    (logprobs,) = output.outputs[0].logprobs
    return [
        BeamSearchSequence(
            beam.orig_prompt,
            tokens=[*beam.tokens, token],
            logprobs=[*beam.logprobs, logprobs],
            lora_request=beam.lora_request,
            cum_logprob=beam.cum_logprob + found.logprob,
        )
        for token, found in logprobs.items()
    ]


def _pooled(
    output: PoolingRequestOutput, convert: Callable[[Any], Any], notes: list[str]
) -> dict[str, Any]:
    return {
        "prompt_token_ids": list(output.prompt_token_ids),
        "num_cached_tokens": output.num_cached_tokens,
        "finished": output.finished,
        "outputs": convert(output.outputs),
        "usage": {"prompt_tokens": len(output.prompt_token_ids)},
        **({"notes": notes} if notes else {}),
    }


def _embedding(output: Any) -> dict[str, Any]:
    EmbeddingOutput.from_base(output)  # says what is wrong with it
    return {"embedding": output.data.float().numpy()}


def _classes(output: Any) -> dict[str, Any]:
    ClassificationOutput.from_base(output)
    return {"probs": output.data.float().numpy()}


def _score(output: Any) -> dict[str, Any]:
    return {"score": float(ScoringOutput.from_base(output).score)}


def _data(output: Any) -> dict[str, Any]:
    return {"data": output.data.float().numpy()}
