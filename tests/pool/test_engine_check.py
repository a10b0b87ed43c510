"""What the pool says to engine arguments before it starts a worker."""

import re
from typing import Any, get_type_hints

import pytest

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.removed import (
    REFUSED_ENGINE,
    REFUSED_QUANTIZATION,
    modern_pooling_params,
    modern_sampling_params,
)
from vllmport.pool.engine_args import EngineArgs
from vllmport.pool.engine_check import check_engine_args
from vllmport.pool.presets import PRESETS, preset
from vllmport.pool.supervisor.specification import spec_from


def refused(given: dict[str, Any]) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check_engine_args(given)
    return caught.value


def test_what_vllm_knows_passes_unchanged() -> None:
    args: dict[str, Any] = {
        "dtype": "auto",
        "max_model_len": 4096,
        "gpu_memory_utilization": 1,
        "cpu_offload_gb": 0.5,
        "enforce_eager": False,
        "max_lora_rank": 64,
        "compilation_config": 0,
        "structured_outputs_config": {"backend": "xgrammar"},
        "distributed_executor_backend": "mp",
        "kv_cache_dtype": "fp8",
        "ignore_patterns": ["a", "b"],
        "seed": 0,
        "quantization": None,
    }
    assert check_engine_args(args) == (args, [])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_modle_len": 1}, "no engine argument 'max_modle_len'; did you mean 'max_model_len'?"),
        ({"dtype": "float12"}, "dtype is one of 'auto', 'half', 'float16', 'bfloat16', 'float'"),
        ({"max_model_len": "long"}, "max_model_len is a whole number or nothing, not 'long'"),
        ({"max_num_seqs": True}, "max_num_seqs is a whole number or nothing, not True"),
        ({"enforce_eager": 1}, "enforce_eager is true or false, not 1"),
        ({"max_lora_rank": 24}, "max_lora_rank is one of 1, 8, 16, 32"),
        ({"gpu_memory_utilization": "0.9"}, "gpu_memory_utilization is a number, not '0.9'"),
        (
            {"compilation_config": "fast"},
            "compilation_config is a map or a whole number or nothing",
        ),
        ({"cudagraph_capture_sizes": [1, "2"]}, "cudagraph_capture_sizes is a list or nothing"),
        ({"distributed_executor_backend": "rya"}, "one of ray, mp, uni, external_launcher"),
    ],
)
def test_what_cannot_be_is_refused_in_words(given: dict[str, Any], text: str) -> None:
    error = refused(given)
    assert text in error.message
    assert error.parameter == next(iter(given))


@pytest.mark.parametrize(
    ("given", "becomes", "note"),
    [
        ({"swap_space": 4}, {}, "kv_offloading_size"),
        ({"lora_extra_vocab_size": 256}, {}, "cannot add tokens"),
        (
            {"guided_decoding_backend": "outlines"},
            {"structured_outputs_config": {"backend": "outlines"}},
            "structured_outputs_config={'backend': 'outlines'}",
        ),
        ({"task": "embed"}, {"runner": "pooling", "convert": "embed"}, "runner='pooling' and con"),
        ({"task": "generate"}, {"runner": "generate"}, "runner='generate'"),
        (
            {"guided_decoding_disable_any_whitespace": True},
            {"structured_outputs_config": {"disable_any_whitespace": True}},
            "'disable_any_whitespace': True",
        ),
        (
            {"guided_decoding_disable_additional_properties": True},
            {"structured_outputs_config": {"disable_additional_properties": True}},
            "structured_outputs_config",
        ),
        ({"num_redundant_experts": 2}, {"eplb_config": {"num_redundant_experts": 2}}, "eplb_con"),
        ({"eplb_window_size": 9}, {"eplb_config": {"window_size": 9}}, "eplb_config"),
        ({"O": 2}, {"optimization_level": 2}, "optimization_level=2"),
        ({"cuda_graph_sizes": [8]}, {"max_cudagraph_capture_size": 8}, "max_cudagraph"),
        ({"cuda_graph_sizes": [1, 8]}, {"cudagraph_capture_sizes": [1, 8]}, "=[1, 8]"),
        ({"cuda_graph_sizes": []}, {}, "anyway"),
        ({"disable_mm_preprocessor_cache": True}, {"mm_processor_cache_gb": 0}, "cache_gb=0"),
        ({"disable_mm_preprocessor_cache": False}, {}, "anyway"),
        (
            {"enable_multimodal_encoder_data_parallel": True},
            {"mm_encoder_tp_mode": "data"},
            "mm_encoder_tp_mode='data'",
        ),
        ({"scheduler_delay_factor": 0.0}, {}, "anyway"),
        ({"enable_lora_bias": False}, {}, "anyway"),
        ({"tokenizer_pool_size": 4}, {}, "see replicas"),
        ({"tokenizer_pool_type": "ray"}, {}, "see replicas"),
        ({"tokenizer_pool_extra_config": {}}, {}, "see replicas"),
        ({"multi_step_stream_outputs": False}, {}, "stream_interval"),
    ],
)
def test_what_vllm_removed_is_translated_with_a_note(
    given: dict[str, Any], becomes: dict[str, Any], note: str
) -> None:
    args, (told,) = check_engine_args({"seed": 1, **given})
    assert args == {"seed": 1, **becomes}
    assert next(iter(given)) in told
    assert note in told


@pytest.mark.parametrize(
    ("given", "parameter"),
    [
        ({"quantization": "squeezellm"}, "quantization"),
        ({"quantization": "bitsandbytes"}, "quantization"),
        ({"load_format": "bitsandbytes"}, "load_format"),
        ({"task": "translate"}, "task"),
        ({"scheduler_delay_factor": 0.5}, "scheduler_delay_factor"),
        ({"enable_lora_bias": True}, "enable_lora_bias"),
        ({"O": 2, "optimization_level": 3}, "O"),
        ({"task": "embed", "runner": "generate"}, "task"),
        (
            {
                "guided_decoding_backend": "outlines",
                "structured_outputs_config": {"backend": "guidance"},
            },
            "guided_decoding_backend",
        ),
    ],
)
def test_what_has_no_heir_is_refused(given: dict[str, Any], parameter: str) -> None:
    assert refused(given).parameter == parameter


def test_old_names_of_parts_of_one_map_come_together() -> None:
    args, notes = check_engine_args(
        {
            "guided_decoding_backend": "guidance",
            "guided_decoding_disable_any_whitespace": True,
            "structured_outputs_config": {"enable_in_reasoning": True},
        }
    )
    assert args["structured_outputs_config"] == {
        "backend": "guidance",
        "disable_any_whitespace": True,
        "enable_in_reasoning": True,
    }
    assert len(notes) == 2


OLD_NAMES = re.findall(
    r"\w+",
    """
O calculate_kv_scales cuda_graph_sizes device disable_async_output_proc disable_image_processor
disable_log_requests disable_logprobs_during_spec_decoding disable_mm_preprocessor_cache
enable_lora_bias enable_multimodal_encoder_data_parallel enable_prompt_adapter enable_reasoning
engine_use_ray eplb_log_balancedness eplb_step_interval eplb_window_size full_cuda_graph
guided_decoding_backend guided_decoding_disable_additional_properties
guided_decoding_disable_any_whitespace guided_decoding_disable_fallback image_feature_size
image_input_shape image_input_type image_token_id intial_incremental_detokenization_offset
logits_processor_pattern long_lora_scaling_factors lora_extra_vocab_size
max_context_len_to_capture max_long_partial_prefills max_num_partial_prefills max_paddings
max_prompt_adapter_token max_prompt_adapters max_seq_len_to_capture multi_step_stream_outputs
ngram_prompt_lookup_max ngram_prompt_lookup_min num_lookahead_slots num_redundant_experts
num_scheduler_steps num_speculative_tokens override_attention_dtype override_neuron_config
override_pooler_config preemption_mode qlora_adapter_name_or_path quantization_param_path
rope_scaling rope_theta scheduler_delay_factor sliding_window spec_decoding_acceptance_method
speculative_disable_by_batch_size speculative_disable_mqa_scorer
speculative_draft_tensor_parallel_size speculative_max_model_len speculative_model
speculative_model_quantization swap_space task tokenizer_pool_extra_config tokenizer_pool_size
tokenizer_pool_type typical_acceptance_sampler_posterior_alpha
typical_acceptance_sampler_posterior_threshold use_v2_block_manager worker_use_ray
""",
)
"""What vLLM 0.2 to 0.11 documented and no longer takes."""


@pytest.mark.parametrize("name", OLD_NAMES)
def test_what_older_releases_took_is_told_from_a_misspelt_name(name: str) -> None:
    def said() -> str:
        try:
            return check_engine_args({name: [8] if name == "cuda_graph_sizes" else 1})[1][0]
        except InvalidRequest as exc:
            return exc.message

    assert "vLLM has removed" in said()
    assert name in said()


@pytest.mark.parametrize("name", REFUSED_ENGINE)
def test_every_removed_argument_is_refused_with_what_to_use(name: str) -> None:
    error = refused({name: 1})
    assert error.parameter == name
    assert REFUSED_ENGINE[name] in error.message
    assert name not in get_type_hints(EngineArgs)


def test_advice_names_only_what_exists() -> None:
    known = get_type_hints(EngineArgs)
    for advice in REFUSED_ENGINE.values():
        named = re.search(r"(?:see|use) ([a-z]+_[a-z_]+)", advice)
        assert named is None or named[1] in known, advice
    assert REFUSED_QUANTIZATION.keys().isdisjoint({"awq", "gptq", "fp8"})


def test_a_specification_keeps_the_notes_but_is_not_another_one_for_them() -> None:
    old = spec_from({"model": "m", "engine_args": {"swap_space": 4}}, {})
    assert len(old.notes) == 1
    assert old == spec_from({"model": "m"}, {})


def test_a_token_travels_where_it_is_shown_to_nobody() -> None:
    spec = spec_from({"model": "m", "env": {"A": "b"}, "engine_args": {"hf_token": "secret"}}, {})
    assert spec.env == {"A": "b", "HF_TOKEN": "secret"}
    assert spec.engine_args == {}
    assert spec_from({"model": "m", "engine_args": {"hf_token": True}}, {}).engine_args


def test_presets_are_those_of_the_guide_and_give_way_to_arguments() -> None:
    spec = spec_from({"model": "m", "preset": "throughput"}, {})
    assert spec.engine_args == {
        "gpu_memory_utilization": 0.95,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 256,
    }
    args = {"max_num_seqs": 4, "dtype": "auto"}
    spec = spec_from({"model": "m", "preset": "latency", "engine_args": args}, {})
    assert spec.engine_args == {"gpu_memory_utilization": 0.8, **args}
    for name, engine_args in PRESETS.items():
        assert check_engine_args(engine_args) == (engine_args, []), name
    with pytest.raises(InvalidRequest, match="throughput, latency, memory"):
        spec_from({"model": "m", "preset": "speed"}, {})


# Parameters of calls.


@pytest.mark.parametrize(
    ("given", "structured"),
    [
        ({"guided_decoding": {"regex": "a+"}}, {"regex": "a+"}),
        ({"guided_decoding": {"json": {}, "choice": None}}, {"json": {}}),
        ({"guided_choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"guided_grammar": "root ::= x"}, {"grammar": "root ::= x"}),
        (
            {"guided_json": {}, "guided_whitespace_pattern": " "},
            {"json": {}, "whitespace_pattern": " "},
        ),
    ],
)
def test_old_constraints_become_structured_outputs(
    given: dict[str, Any], structured: dict[str, Any]
) -> None:
    params, notes = modern_sampling_params({"n": 1, **given})
    assert params == {"n": 1, "structured_outputs": structured}
    assert notes


def test_two_spellings_of_different_constraints_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="guided_decoding means"):
        modern_sampling_params({"guided_regex": "a", "structured_outputs": {"regex": "b"}})
    with pytest.raises(InvalidRequest, match="structured_outputs_config"):
        modern_sampling_params({"guided_decoding": {"regex": "a", "backend": "outlines"}})
    with pytest.raises(InvalidRequest, match="is a map"):
        modern_sampling_params({"guided_decoding": "regex"})


def test_old_sampling_parameters_are_refused_unless_they_say_nothing() -> None:
    assert modern_sampling_params({"best_of": None})[0] == {}
    with pytest.raises(InvalidRequest, match="cumulative_logprob"):
        modern_sampling_params({"best_of": 4})


def test_old_pooling_parameters() -> None:
    assert modern_pooling_params({"normalize": False})[0] == {"use_activation": False}
    with pytest.raises(InvalidRequest, match="extra_kwargs"):
        modern_pooling_params({"additional_data": {}})
    with pytest.raises(InvalidRequest, match="softmax means"):
        modern_pooling_params({"softmax": True, "use_activation": False})


@pytest.mark.parametrize("name", ["quantization", "load_format", "task"])
@pytest.mark.parametrize("value", [["x"], {"a": 1}, 3], ids=repr)
def test_what_is_looked_up_by_name_has_to_be_text(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_engine_args({name: value})
    assert caught.value.parameter == name
    with pytest.raises(InvalidRequest) as caught:
        preset(value)
    assert caught.value.parameter == "preset"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("replica", "replicas"), ("v1_multiprocesing", "v1_multiprocessing"), ("preest", "preset")],
)
def test_a_misspelt_option_of_ours_is_recognized(name: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in str(refused({name: 1}))


@pytest.mark.parametrize("name", ["task", "swap_space", "guided_decoding_backend"])
def test_what_says_nothing_needs_no_note(name: str) -> None:
    assert check_engine_args({name: None}) == ({}, [])


def test_a_task_that_is_the_default_is_noted_in_words() -> None:
    args, (note,) = check_engine_args({"task": "auto"})
    assert args == {}
    assert note == "vLLM has removed task: it is what vLLM does anyway"
