"""`docs/options.md` has a row for each option that the pages show, and names tests that exist."""

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pages import DOCS, Page, parsed, table
from vllmport.bridge.removed import modern_engine_args
from vllmport.pool import LLM
from vllmport.pool.client.requests import Extras, Limits
from vllmport.pool.config import ModelConfig, PoolConfig, TimeoutConfig
from vllmport.pool.plan import Policy
from vllmport.pool.presets import PRESETS

ROOT = DOCS.parent
MANIFEST: dict[str, Any] = json.loads((ROOT / "manifest" / "vllm.json").read_text())
TEXT = (DOCS / "options.md").read_text()
PAGES = [Page("configuration.md", {}), Page("calls.md", {})]
TABLE = table(TEXT, "option", "case", "seen", "test")
TOLD = {row[0].strip("`") for row in TABLE}
REMOVED = {"swap_space", "lora_extra_vocab_size", "guided_decoding_backend"}
SETTINGS = (PoolConfig.model_fields, TimeoutConfig.model_fields, ModelConfig.model_fields)

ENGINE_ARGUMENTS = (
    *("dtype", "max_model_len", "trust_remote_code", "revision"),
    *("gpu_memory_utilization", "swap_space", "cpu_offload_gb"),
    *("tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend"),
    *("quantization", "kv_cache_dtype", "max_num_batched_tokens", "max_num_seqs"),
    *("enable_lora", "max_lora_rank", "max_loras", "lora_extra_vocab_size"),
    "guided_decoding_backend",
)
"""What people who come from older releases configure."""


def functions(folder: str) -> set[str]:
    found = [path.read_text() for path in (ROOT / folder).rglob("test_*.py")]
    return {*re.findall(r"^(?:async )?def (test_\w+)", "\n".join(found), re.MULTILINE)}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("options_table")


def test_every_engine_argument_of_old_and_of_the_pages_has_a_row() -> None:
    for name in ENGINE_ARGUMENTS:
        there = name in MANIFEST["engine"]
        assert there or (name in REMOVED and modern_engine_args({name: 1})[1]), name
    assert {*ENGINE_ARGUMENTS} <= TOLD
    assert {name for preset in PRESETS.values() for name in preset} <= TOLD


def test_every_key_of_the_files_on_the_pages_has_a_row() -> None:
    for toml, _ in (pair for page in PAGES for pair in page.pairs()):
        data = parsed(toml)
        models = [one for one in data.pop("models", {}).values() if one["model"] != "echo"]
        keys = {key for model in models for key in model} | data.pop("timeouts", {}).keys()
        keys |= data.pop("policy", {}).keys() | (data.keys() - {"environments"})
        keys |= {name for model in models for name in model.get("env", {})}
        assert keys <= TOLD


def test_every_row_is_of_something_that_there_is() -> None:
    known = {*MANIFEST["engine"], *MANIFEST["sampling"], *MANIFEST["methods"], *REMOVED}
    known |= {name for fields in SETTINGS for name in fields} | {*Policy.__dataclass_fields__}
    known |= {*Extras.__annotations__, *Limits.__annotations__, "preset", "multi_modal_data"}
    known |= {*inspect.signature(LLM.stream).parameters} | {*dir(LLM)}
    unknown = {name for name in TOLD - known if not re.fullmatch(r"[A-Z_]+", name)}
    assert unknown == set()


def test_every_test_that_a_row_names_is_there(script: Any) -> None:
    ours, theirs = functions("tests"), functions("tests/gpu")
    assert [(row.option, row.case) for row in script.ROWS] == [
        (option.strip("`"), case) for option, case, _, _ in TABLE
    ]
    for row, (_, _, seen, test) in zip(script.ROWS, TABLE, strict=True):
        assert row.test == test.strip("`")
        assert row.test in ours, row
        assert bool(row.needs) == (row.test in theirs), row
        missing = f"not run here: {row.needs}" if row.needs else "not run here"
        assert seen == missing or re.fullmatch(rf"{row.kind}, \d{{4}}-\d\d-\d\d", seen), row


RESULTS = """<testsuites><testsuite timestamp="2030-01-02T03:04:05">
<testcase name="test_passed[a]" />
<testcase name="test_passed[b]"><system-out>x</system-out></testcase>
<testcase name="test_half[a]" /><testcase name="test_half[b]"><failure /></testcase>
<testcase name="test_skipped"><skipped /></testcase>
</testsuite></testsuites>"""


def test_a_skip_or_a_failure_is_never_a_success(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.xml"
    path.write_text(RESULTS)
    names = ("test_passed", "test_half", "test_skipped", "test_absent")
    rows = [script.ROWS[0]._replace(test=name, needs="a moon") for name in names]
    monkeypatch.setattr(script, "ROWS", tuple(rows))
    written = table(script.table(script.results([path])), "option", "case", "seen", "test")
    assert [row[2] for row in written] == ["runs, 2030-01-02", *3 * ["not run here: a moon"]]


def test_the_page_says_how_many_arguments_were_not_seen(script: Any) -> None:
    told = re.search(r"Of the (\d+) engine arguments of the manifest, (\d+) have a row", TEXT)
    assert told is not None
    seen = {row.option for row in script.ROWS} & MANIFEST["engine"].keys()
    assert (int(told[1]), int(told[2])) == (len(MANIFEST["engine"]), len(seen))
