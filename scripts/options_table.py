"""Write `docs/options.md`, the table of what was seen, from the results of the tests.

    python scripts/options_table.py RESULTS.xml…     as pytest's --junitxml writes them

A row whose test did not run, or did not pass, is "not run here": a skip is never a success.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree  # our own tests' results

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "options.md"
MANIFEST = ROOT / "manifest" / "vllm.json"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"


RUNS, REFUSED = "runs", "refused"
DROPPED, TRANSLATED = "dropped, with a warning", "translated, with a warning"
GPU, GPUS = "needs a GPU", "needs two GPUs"


class Row(NamedTuple):
    """An option, and what proves what becomes of it.

    Attributes:
        option: Its name: of an engine argument, a setting, a method, a variable, …
        case: Which values, or where.
        kind: What its test shows.
        test: The name of the test.
        needs: What this machine lacks for it, if it does.
    """

    option: str
    case: str
    kind: str
    test: str
    needs: str = ""


IMPOSSIBLE = "test_what_this_machine_cannot_do_is_a_typed_error_and_the_pool_goes_on"
BEFORE = "test_bad_engine_arguments_are_refused_before_loading"
IN_ITS_WAY = "test_an_engine_that_cannot_start_here_says_what_is_in_its_way"
NEVER = "test_what_vllm_never_takes_is_refused_before_a_worker_starts"
RESOLVED = "test_the_engine_says_what_the_options_became"
FP8 = "test_a_cache_of_fp8_holds_more_and_throughput_is_a_preset"
ONE_BY_ONE = "test_max_num_seqs_of_one_never_runs_two"
TRUSTED = "test_code_that_comes_with_a_model_runs_only_if_trusted"
QUANTIZED = "test_a_quantized_checkpoint_runs"
PARALLEL = "test_tensor_parallelism_makes_two_workers_and_leaves_no_shared_memory"
ACROSS = "test_a_model_is_spread_across_gpus"
PAGES = "test_what_the_programs_of_a_page_print_stands_beside_them"
VARIABLES = "test_variables_of_a_model_reach_its_workers_and_are_shown_to_nobody"
UNSAFE = "test_without_cleaning_up_the_engine_stays_in_the_worker"
ADAPTERS = "test_an_adapter_is_known_by_name_and_changes_only_its_own_prompts"
SLOTS = "test_prompts_without_an_adapter_are_the_models_own_when_all_slots_are_taken"
CONSTRAINED = "test_each_kind_of_constraint_holds_in_both_spellings"
BACKENDS = "test_the_other_backends_constrain_as_well"
EYES = "test_what_is_on_a_picture_decides_what_the_model_computes"
PYTHON = "test_the_python_of_the_workers"
SLEEP = "test_sleep_says_no_where_it_would_do_nothing"
TOKENIZER = "test_the_tokenizer_does_what_scripts_ask_of_it"
PAUSES = "test_streams_are_limited_in_their_first_token_and_between_tokens"

ROWS: tuple[Row, ...] = (
    Row("model", "hub name", RUNS, "test_a_public_model_is_downloaded_from_the_hub"),
    Row("model", "gated, with HF_TOKEN", RUNS, "test_a_gated_model_wants_its_token"),
    Row("model", "folder", RUNS, "test_a_folder_is_a_model"),
    Row("model", "no hub", REFUSED, "test_without_a_hub_the_error_comes_at_once"),
    Row("aliases", "hub name for a folder", RUNS, PAGES),
    Row("revision", "branch, commit", RUNS, "test_a_revision_is_a_name_or_a_commit"),
    Row("dtype", "auto, float32", RUNS, "test_dtype_decides_how_exact_the_model_computes"),
    Row("dtype", "float16", RUNS, QUANTIZED),
    Row("dtype", "bfloat16", RUNS, FP8),
    Row("dtype", "one of torch's", RUNS, "test_a_type_of_torch_is_as_good_as_its_name"),
    Row("max_model_len", "", RUNS, "test_max_model_len_refuses_one_token_more"),
    Row("trust_remote_code", "false, true", RUNS, TRUSTED),
    Row(
        "gpu_memory_utilization",
        "on the CPU: no share of main memory",
        RUNS,
        "test_gpu_memory_utilization_is_no_share_of_main_memory",
    ),
    Row("gpu_memory_utilization", "2.0", REFUSED, BEFORE),
    Row(
        "gpu_memory_utilization",
        "on a GPU",
        RUNS,
        "test_gpu_memory_utilization_decides_how_much_is_taken",
        GPU,
    ),
    Row("kv_cache_memory_bytes", "", RUNS, "test_kv_cache_memory_bytes_is_what_the_cache_takes"),
    Row("kv_cache_memory_bytes", "too little", REFUSED, IMPOSSIBLE),
    Row("swap_space", "", DROPPED, RESOLVED),
    Row("cpu_offload_gb", "0", RUNS, RESOLVED),
    Row(
        "cpu_offload_gb",
        "above 0, on a GPU",
        RUNS,
        "test_offloaded_weights_are_not_in_the_memory_of_the_gpu",
        GPU,
    ),
    Row("tensor_parallel_size", "2, on the CPU", RUNS, PARALLEL),
    Row("tensor_parallel_size", "2, on GPUs", RUNS, ACROSS, GPUS),
    Row("pipeline_parallel_size", "2, on the CPU", REFUSED, IMPOSSIBLE),
    Row("pipeline_parallel_size", "2, on GPUs", RUNS, ACROSS, GPUS),
    Row("distributed_executor_backend", "mp", RUNS, PARALLEL),
    Row("distributed_executor_backend", "ray, without Ray", REFUSED, IN_ITS_WAY),
    Row("distributed_executor_backend", "ray, on GPUs", RUNS, ACROSS, GPUS),
    Row("quantization", "awq, gptq, of four bits", RUNS, QUANTIZED),
    Row("quantization", "awq, for a plain checkpoint", REFUSED, IN_ITS_WAY),
    Row("quantization", "fp8, on the CPU", REFUSED, IN_ITS_WAY),
    Row("quantization", "fp8, on a GPU", RUNS, "test_quantization_while_loading", GPU),
    Row("quantization", "awq, on a GPU", RUNS, "test_a_checkpoint_of_four_bits_runs_on_a_gpu", GPU),
    Row("quantization", "squeezellm, bitsandbytes", REFUSED, NEVER),
    Row("kv_cache_dtype", "auto", RUNS, PAGES),
    Row("kv_cache_dtype", "fp8", RUNS, FP8),
    Row("kv_cache_dtype", "fp8, on a GPU", RUNS, "test_a_cache_of_fp8_holds_twice_as_much", GPU),
    Row("max_num_batched_tokens", "", RUNS, "test_max_num_batched_tokens_cuts_a_prompt_into_steps"),
    Row("max_num_seqs", "1", RUNS, ONE_BY_ONE),
    Row("preset", "throughput", RUNS, FP8),
    Row("preset", "latency", RUNS, ONE_BY_ONE),
    Row("preset", "memory, with AWQ", RUNS, PAGES),
    Row("enable_lora", "adapters by name", RUNS, ADAPTERS),
    Row("max_lora_rank", "8", RUNS, ADAPTERS),
    Row(
        "max_lora_rank",
        "below the adapter's rank",
        REFUSED,
        "test_an_adapter_of_a_higher_rank_is_refused",
    ),
    Row("max_loras", "1, 2", RUNS, SLOTS),
    Row("lora_extra_vocab_size", "", DROPPED, RESOLVED),
    Row("loras", "", RUNS, PAGES),
    Row("guided_decoding_backend", "outlines", TRANSLATED, BACKENDS),
    Row("structured_outputs_config", "xgrammar", RUNS, CONSTRAINED),
    Row(
        "structured_outputs_config",
        "lm-format-enforcer, CPU build",
        REFUSED,
        "test_a_backend_that_cannot_run_here_is_a_typed_error_and_the_engine_goes_on",
    ),
    Row("structured_outputs", "every kind", RUNS, CONSTRAINED),
    Row("guided_decoding_params", "and guided_… of a map", TRANSLATED, CONSTRAINED),
    Row(
        "enable_prompt_embeds",
        "",
        RUNS,
        "test_embeddings_of_a_prompt_are_answered_like_the_prompt",
    ),
    Row("tokenization_kwargs", "", RUNS, "test_how_to_tokenize_is_done_as_told"),
    Row("runner", "pooling", RUNS, "test_embeddings_and_scores_are_the_same"),
    Row("convert", "embed", RUNS, "test_embeddings_and_scores_are_the_same"),
    Row("enforce_eager", "", RUNS, RESOLVED),
    Row("disable_log_stats", "false", RUNS, "test_metrics_count_what_was_generated"),
    Row(
        "limit_mm_per_prompt",
        "",
        RUNS,
        "test_more_pictures_than_allowed_and_what_is_none_are_refused",
    ),
    Row("verbose", "", RUNS, "test_log_level_and_verbosity_reach_the_plan"),
    Row("log_level", "", RUNS, "test_variables_of_the_workers"),
    Row("environment", "and environments", RUNS, PAGES),
    Row("python", "", RUNS, PYTHON),
    Row("venv", "", RUNS, PYTHON),
    Row(
        "venv", "without a Python", REFUSED, "test_a_named_environment_without_a_python_is_an_error"
    ),
    Row("VLLMPORT_VENV", "and SNAKEBRIDGE_VENV", RUNS, PYTHON),
    Row("library_profiles", "", RUNS, "test_the_pools_own_profile_holds_where_a_call_names_none"),
    Row("profiles", "", RUNS, "test_the_pools_own_profile_holds_where_a_call_names_none"),
    Row("timeout", "", RUNS, "test_a_deadline_stops_the_engine_and_says_how_far_it_came"),
    Row("timeout_profile", "", RUNS, PAGES),
    Row("first_token_timeout", "", RUNS, PAUSES),
    Row("token_timeout", "", RUNS, PAUSES),
    Row("first_token", "", RUNS, "test_the_pauses_of_a_stream"),
    Row("between_tokens", "", RUNS, "test_a_pause_between_tokens_ends_the_stream"),
    Row(
        "load_stall_timeout",
        "",
        RUNS,
        "test_a_load_that_sleeps_is_ended_after_the_stall_timeout",
    ),
    Row("load_timeout", "", RUNS, "test_a_load_may_have_a_limit_of_its_own_for_all_of_it"),
    Row("priority", "", RUNS, "test_priorities_decide_who_runs_next"),
    Row(
        "v1_multiprocessing",
        "auto, on, off",
        RUNS,
        "test_with_cleaning_up_each_mode_is_what_was_asked_for",
    ),
    Row("process_group_kill", "false: auto, off", RUNS, UNSAFE),
    Row("process_group_kill", "false: on", REFUSED, "test_without_cleaning_up_on_fails_fast"),
    Row("env", "", RUNS, VARIABLES),
    Row("HF_TOKEN", "and shown to nobody", RUNS, VARIABLES),
    Row("CUDA_VISIBLE_DEVICES", "reaches the worker", RUNS, VARIABLES),
    Row("VLLM_LOGGING_LEVEL", "", RUNS, VARIABLES),
    Row(
        "VLLM_WORKER_MULTIPROC_METHOD",
        "the user's holds, and is told",
        RUNS,
        "test_what_was_overridden_in_the_environment_is_said",
    ),
    Row(
        "VLLM_USE_MODELSCOPE",
        "without modelscope",
        REFUSED,
        "test_modelscope_without_its_package_says_so",
    ),
    Row(
        "generate",
        "the tokens of in-process vLLM",
        RUNS,
        "test_200_mixed_requests_give_the_same_tokens",
    ),
    Row(
        "chat",
        "template, arguments, tools",
        RUNS,
        "test_a_chat_template_of_ones_own_and_its_arguments",
    ),
    Row("tokenize", "", RUNS, TOKENIZER),
    Row("detokenize", "", RUNS, "test_prompts_come_in_every_form"),
    Row("get_tokenizer", "", RUNS, TOKENIZER),
    Row("embed", "", RUNS, "test_embeddings_and_scores_are_the_same"),
    Row("score", "", RUNS, "test_embeddings_and_scores_are_the_same"),
    Row(
        "classify",
        "and cross-encoder score",
        RUNS,
        "test_classes_and_cross_encoder_scores_are_the_same",
    ),
    Row("encode", "pooling_task", RUNS, "test_pooling_verbs_and_their_refusals"),
    Row("beam_search", "", RUNS, "test_beams_are_sorted_and_end_with_the_best"),
    Row("reset_prefix_cache", "", RUNS, "test_the_prefix_cache_is_forgotten_when_told"),
    Row("reset_mm_cache", "", RUNS, "test_prepared_pictures_are_forgotten_when_told"),
    Row("get_metrics", "", RUNS, "test_metrics_count_what_was_generated"),
    Row("collective_rpc", "", RUNS, "test_a_method_of_the_workers_is_called_by_name"),
    Row("sleep", "and wake_up, on the CPU", REFUSED, SLEEP),
    Row(
        "sleep",
        "and wake_up, on a GPU",
        RUNS,
        "test_sleep_gives_memory_back_and_wake_up_takes_it_again",
        GPU,
    ),
    Row("multi_modal_data", "images, BLIP-2", RUNS, EYES),
    Row(
        "multi_modal_data",
        "images, to a text model",
        REFUSED,
        "test_media_reach_the_engine_as_bytes",
    ),
    Row(
        "multi_modal_data",
        "audio, CPU build",
        REFUSED,
        "test_audio_has_no_decoder_in_the_cpu_build",
    ),
    Row(
        "apply_model",
        "and others of vllm.LLM that cannot travel",
        REFUSED,
        "test_every_public_method_of_vllms_class_is_there_or_says_why_not",
    ),
)


def results(paths: Iterable[Path]) -> dict[str, tuple[bool, str]]:
    """Read from pytest's results: name of a test → whether all of it passed, and when.

    What a later file says of a test counts.
    """
    found: dict[str, tuple[bool, str]] = {}
    for path in paths:
        here: dict[str, tuple[bool, str]] = {}
        for suite in ElementTree.parse(path).iter("testsuite"):  # noqa: S314
            date = suite.get("timestamp", "")[:10]
            for case in suite.iter("testcase"):
                name = case.get("name", "").partition("[")[0]
                passed = all(child.tag.startswith("system-") for child in case)
                here[name] = (here.get(name, (True, ""))[0] and passed, date)
        found.update(here)
    return found


def table(found: Mapping[str, tuple[bool, str]]) -> str:
    """Write the table."""
    lines = ["| option | case | seen | test |", "|---|---|---|---|"]
    for option, case, kind, test, needs in ROWS:
        passed, date = found.get(test, (False, ""))
        missing = "not run here" + (f": {needs}" if needs else "")
        seen = f"{kind}, {date}" if passed else missing
        lines.append(f"| `{option}` | {case} | {seen} | `{test}` |")
    return "\n".join(lines) + "\n"


def rest() -> str:
    """Say how many engine arguments have no row."""
    known = json.loads(MANIFEST.read_text())["engine"]
    seen = {row.option for row in ROWS} & known.keys()
    return (
        f"\nOf the {len(known)} engine arguments of the manifest, {len(seen)} have a row. The "
        "others are checked by name and kind, and passed\non to vLLM: what they do there was not "
        "seen.\n"
    )


def main() -> int:
    """Run the command."""
    head, after = DOCUMENT.read_text().split(BEGIN)
    tail = after.split(END)[1]
    found = results(map(Path, sys.argv[1:]))
    DOCUMENT.write_text(f"{head}{BEGIN}{table(found)}{rest()}{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
