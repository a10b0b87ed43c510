"""Write the table of `docs/configuration.md` from the results of the tests.

    python scripts/options_table.py RESULTS.xml…     as pytest's --junitxml writes them

A row whose test did not run, or did not pass, is "not run here": a skip is never a success.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree  # our own tests' results

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
BEGIN, END = "<!-- table -->\n", "<!-- end -->"

RUNS, REFUSED, DROPPED, ABSENT = "runs", "refused", "dropped, with a warning", "absent"

ROWS: tuple[tuple[str, str, str], ...] = (
    ("model: hub name", RUNS, "test_a_public_model_is_downloaded_from_the_hub"),
    ("model: gated, HF_TOKEN", RUNS, "test_a_gated_model_wants_its_token"),
    ("model: folder", RUNS, "test_a_folder_is_a_model"),
    ("revision", RUNS, "test_a_revision_is_a_name_or_a_commit"),
    ("dtype", RUNS, "test_dtype_decides_how_exact_the_model_computes"),
    ("max_model_len", RUNS, "test_max_model_len_refuses_one_token_more"),
    ("trust_remote_code", RUNS, "test_code_that_comes_with_a_model_runs_only_if_trusted"),
    ("gpu_memory_utilization (on a GPU)", ABSENT, "needs a GPU"),
    ("kv_cache_memory_bytes", REFUSED, "test_what_this_machine_cannot_do_is_a_typed_error"),
    ("swap_space", DROPPED, "test_the_engine_says_what_the_options_became"),
    ("cpu_offload_gb (its effect)", ABSENT, "needs a GPU"),
    ("tensor_parallel_size", RUNS, "test_tensor_parallelism_makes_two_workers"),
    ("pipeline_parallel_size (on the CPU)", REFUSED, "test_what_this_machine_cannot_do"),
    ("distributed_executor_backend=mp", RUNS, "test_tensor_parallelism_makes_two_workers"),
    ("distributed_executor_backend=ray (on the CPU)", REFUSED, "test_what_this_machine_cannot_do"),
    ("quantization=awq, gptq, fp8 (on a GPU)", ABSENT, "needs a GPU"),
    ("quantization=awq on a plain checkpoint", REFUSED, "test_what_this_machine_cannot_do"),
    ("quantization=squeezellm, bitsandbytes", REFUSED, "test_what_vllm_never_takes_is_refused"),
    ("kv_cache_dtype=fp8", RUNS, "test_a_cache_of_fp8_holds_more"),
    ("enable_lora, LoRA by name", RUNS, "test_an_adapter_is_known_by_name"),
    ("loras in the specification", RUNS, "test_an_adapter_declared_with_the_model"),
    ("max_lora_rank, max_loras", REFUSED, "test_an_adapter_of_a_higher_rank_is_refused"),
    ("lora_extra_vocab_size", DROPPED, "test_the_engine_says_what_the_options_became"),
    ("guided_decoding_backend", RUNS, "test_the_other_backends_constrain_as_well"),
    ("backend lm-format-enforcer (CPU build)", REFUSED, "test_a_backend_that_cannot_run_here"),
    ("structured outputs, old and new spelling", RUNS, "test_each_kind_of_constraint_holds"),
    ("max_num_batched_tokens", RUNS, "test_max_num_batched_tokens_cuts_a_prompt_into_steps"),
    ("max_num_seqs", RUNS, "test_max_num_seqs_of_one_never_runs_two"),
    ("priority of a call", RUNS, "test_priorities_decide_who_runs_next"),
    ("preset: throughput", RUNS, "test_a_cache_of_fp8_holds_more_and_throughput"),
    ("preset: latency", RUNS, "test_max_num_seqs_of_one_never_runs_two"),
    ("preset: memory", RUNS, "test_code_that_comes_with_a_model_runs_only_if_trusted"),
    ("timeout, timeout_profile", RUNS, "test_a_deadline_stops_the_engine"),
    ("first_token_timeout", RUNS, "test_streams_are_limited_in_their_first_token"),
    ("v1_multiprocessing, cleanup available", RUNS, "test_with_cleaning_up_each_mode"),
    ("v1_multiprocessing, process_group_kill=false", RUNS, "test_without_cleaning_up_the_engine"),
    ("v1_multiprocessing=on without cleanup", REFUSED, "test_without_cleaning_up_on_fails_fast"),
    ("VLLM_LOGGING_LEVEL, CUDA_VISIBLE_DEVICES", RUNS, "test_variables_of_a_model_reach"),
    ("VLLM_USE_MODELSCOPE without modelscope", REFUSED, "test_modelscope_without_its_package"),
    ("embed, score", RUNS, "test_embeddings_and_scores_are_the_same"),
    ("classify, cross-encoder score", RUNS, "test_classes_and_cross_encoder_scores"),
    ("generate: tokens of in-process vLLM", RUNS, "test_200_mixed_requests_give_the_same_tokens"),
    ("beam_search", RUNS, "test_beams_are_sorted_and_end_with_the_best"),
    ("reset_prefix_cache", RUNS, "test_the_prefix_cache_is_forgotten_when_told"),
    ("get_metrics", RUNS, "test_metrics_count_what_was_generated"),
    ("sleep, wake_up (on the CPU)", REFUSED, "test_sleep_says_no_where_it_would_do_nothing"),
    ("sleep, wake_up (on a GPU)", ABSENT, "needs a GPU"),
    ("images, audio, video (with a model for them)", ABSENT, "needs torchvision"),
    ("images as bytes (to a text model)", REFUSED, "test_media_reach_the_engine_as_bytes"),
    ("every method of vllm.LLM", RUNS, "test_every_public_method_of_vllms_class"),
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
                passed = not len(case) or all(child.tag == "system-out" for child in case)
                here[name] = (here.get(name, (True, ""))[0] and passed, date)
        found.update(here)
    return found


def table(found: Mapping[str, tuple[bool, str]]) -> str:
    """Write the table."""
    lines = ["| option | seen | test |", "|---|---|---|"]
    for option, kind, start in ROWS:
        names = [name for name in found if name.startswith(start)]
        passed = bool(names) and all(found[name][0] for name in names)
        seen = f"{kind}, {found[names[0]][1]}" if passed else "not run here"
        lines.append(f"| {option} | {seen} | {start if kind == ABSENT else f'`{start}…`'} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command."""
    text = DOCUMENT.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    found = results(map(Path, sys.argv[1:]))
    DOCUMENT.write_text(f"{head}{BEGIN}{table(found)}{END}{tail}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
