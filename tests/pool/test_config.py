"""What a configuration may say, and how a wrong one is refused."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.timeouts import Timeouts
from vllmport.pool.config import (
    ModelConfig,
    PoolConfig,
    TimeoutConfig,
    load_config,
    tiny_model_path,
)
from vllmport.pool.engine_args import EngineArgs
from vllmport.pool.layers import is_secret
from vllmport.pool.plan import ModelSpec, Plan, Policy

TOML = """
python = "/usr/bin/python3"

[models.chat]
model = "org/name"
replicas = 2
v1_multiprocessing = "off"
env = { KEY = "value" }
max_model_len = 2048

[aliases]
"facebook/opt-125m" = "/models/opt"

[policy]
max_queue = 7
drain_timeout = 1.5
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "pool.toml"
    path.write_text(TOML)
    return path


def refused(source: Any = None, **overrides: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        load_config(source, overrides)
    return caught.value


def test_nothing_given_is_a_pool_without_models(run_dir: Path) -> None:
    plan = load_config(None, {}).to_plan(run_dir)
    assert plan.endpoint == f"ipc://{run_dir}/pool.sock"
    assert (plan.models, plan.policy, plan.owner_pid) == ((), Policy(), 0)
    assert plan.python == sys.executable
    assert Path(plan.log_dir).is_dir()
    assert plan.aliases == {"tiny": tiny_model_path(), "echo": "echo"}


def test_file_is_made_into_a_plan(toml: Path, run_dir: Path) -> None:
    plan = load_config(toml, {}).to_plan(run_dir, owner_pid=7)
    assert plan.models == (
        ModelSpec(
            name="chat",
            model="org/name",
            v1_multiprocessing="off",
            env={"KEY": "value"},
            replicas=2,
            engine_args={"max_model_len": 2048},
        ),
    )
    assert plan.aliases["facebook/opt-125m"] == "/models/opt"
    assert (plan.policy.max_queue, plan.policy.drain_timeout) == (7, 1.5)
    assert (plan.python, plan.owner_pid) == ("/usr/bin/python3", 7)


def test_path_may_be_text_and_a_map_may_stand_for_the_file(toml: Path) -> None:
    assert load_config(str(toml), {}) == load_config(toml, {})
    assert load_config({"policy": {"max_queue": 7}}, {}).policy.max_queue == 7


def test_overrides_are_merged_key_by_key(toml: Path) -> None:
    overrides = {"models": {"chat": {"replicas": 3}}, "policy": {"max_queue": 9}}
    config = load_config(toml, overrides)
    assert config.models["chat"].replicas == 3
    assert config.models["chat"].model == "org/name"
    assert (config.policy.max_queue, config.policy.drain_timeout) == (9, 1.5)


def test_configuration_may_be_loaded_again_with_more(toml: Path) -> None:
    once = load_config(toml, {})
    again = load_config(once, {"models": {"second": {"model": "echo"}}})
    assert again.models["chat"] == once.models["chat"]
    assert list(again.models) == ["chat", "second"]
    assert again.policy == once.policy


def test_alias_resolves_to_an_absolute_folder(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run_dir / "opt").mkdir()
    monkeypatch.chdir(run_dir)
    config = load_config(
        {"aliases": {"facebook/opt-125m": "opt"}, "models": {"a": {"model": "facebook/opt-125m"}}},
        {},
    )
    assert config.to_plan(run_dir).models[0].model == str(run_dir / "opt")


def test_bundled_model_and_echo_are_known_by_name(run_dir: Path) -> None:
    models = {"tiny": {"model": "tiny"}, "parrot": {"model": "echo", "step_delay": 0.5}}
    tiny, parrot = load_config({"models": models}, {}).to_plan(run_dir).models
    assert (tiny.model, tiny.engine, tiny.v1_multiprocessing) == (tiny_model_path(), "vllm", "off")
    assert (parrot.name, parrot.model, parrot.engine) == ("parrot", "echo", "echo")
    assert parrot.engine_args == {"step_delay": 0.5}


def test_plan_survives_the_way_to_the_supervisor(toml: Path, run_dir: Path) -> None:
    plan = load_config(toml, {}).to_plan(run_dir)
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("overrides", "where", "suggestion"),
    [
        ({"endpont": "ipc:///x"}, "endpont", "endpoint"),
        ({"policy": {"max_queu": 1}}, "policy.max_queu", "max_queue"),
        ({"polcy": {}}, "polcy", "policy"),
    ],
)
def test_unknown_key_is_named_with_a_suggestion(
    overrides: dict[str, Any], where: str, suggestion: str
) -> None:
    error = refused(**overrides)
    assert error.parameter == where
    assert f"did you mean {suggestion!r}" in str(error)


def test_unknown_key_like_no_other_is_named_with_those_there_are() -> None:
    assert "known: endpoint, " in str(refused(zzzzz=1))


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        ({"endpoint": 3}, "endpoint"),
        ({"policy": {"max_queue": "many"}}, "policy.max_queue"),
        ({"policy": {"drain_timeout": -1}}, "policy"),
        ({"models": {"a": {"model": 3}}}, "models.a.model"),
        ({"models": {"a": {}}}, "models.a.model"),
        ({"models": {"a": {"model": "m", "replicas": 0}}}, "models.a.replicas"),
        ({"models": {"a": {"model": "m", "replicas": "2"}}}, "models.a.replicas"),
        ({"models": {"a": {"model": "m", "v1_multiprocessing": "x"}}}, "models.a.v1_multiproc"),
        ({"models": {"a": {"model": "m", "env": {"A": 1}}}}, "models.a.env.A"),
        ({"models": ["a"]}, "models"),
        ({"aliases": {"a": 1}}, "aliases.a"),
    ],
    ids=str,
)
def test_value_of_a_wrong_kind_is_named(overrides: dict[str, Any], where: str) -> None:
    error = refused(**overrides)
    assert error.parameter.startswith(where)
    assert where in str(error)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path / "no.toml")
    assert (error.parameter, error.value) == ("config", str(tmp_path / "no.toml"))
    assert "No such file" in str(error)


def test_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text("models = [")
    assert "is not TOML" in str(refused(path))


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_bytes(b"\xff\xfe")
    assert "is not TOML" in str(refused(path))


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1", "pool.sock", "ipc://pool.sock"])
def test_endpoint_that_cannot_work_is_refused(run_dir: Path, endpoint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PoolConfig(endpoint=endpoint).to_plan(run_dir)
    assert caught.value.parameter == "endpoint"


def test_endpoint_in_a_folder_that_others_may_enter_is_refused(run_dir: Path) -> None:
    (run_dir / "open").mkdir()
    (run_dir / "open").chmod(0o755)
    with pytest.raises(InvalidRequest, match="chmod 700"):
        PoolConfig(endpoint=f"ipc://{run_dir}/open/pool.sock").to_plan(run_dir)


def test_own_log_folder_is_made(run_dir: Path) -> None:
    plan = load_config({"log_dir": str(run_dir / "a" / "logs")}, {}).to_plan(run_dir)
    assert plan.log_dir == str(run_dir / "a" / "logs")
    assert Path(plan.log_dir).is_dir()


# Secrets.

TOKEN = "hf_SECRET"


@pytest.mark.parametrize(
    "settings",
    [
        {"hf_tokn": TOKEN},
        {"models": {"a": {"env": {"HF_TOKEN": TOKEN}}}},
        {"models": {"a": {"model": "m", "env": {"HF_TOKEN": [TOKEN]}}}},
        {"models": {"a": {"model": "m", "env": [TOKEN]}}},
        {"models": [{"hf_token": TOKEN}]},
        {"environments": {"prod": TOKEN}},
        {"enviroments": {"prod": {"hf_token": TOKEN}}},
        {"models": {"a": {"model": "m", "hf_tokn": TOKEN}}},
        {"models": {"a": {"model": "m", "hf_token": [TOKEN]}}},
        {"models": {"a": {"model": "m", "replicas": 2000, "hf_token": TOKEN}}},
    ],
    ids=repr,
)
def test_a_refusal_tells_no_secret(settings: dict[str, Any], run_dir: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load_config(settings, {}).to_plan(run_dir)
    assert TOKEN not in str(caught.value) + repr(caught.value) + repr(caught.value.details)


def test_no_setting_is_taken_for_a_secret_by_mistake() -> None:
    settings = {*PoolConfig.model_fields, *TimeoutConfig.model_fields, *ModelConfig.model_fields}
    settings |= {*Policy.__dataclass_fields__, *EngineArgs.__annotations__}
    assert {name for name in settings if is_secret(name)} == {"hf_token"}


# Environments, layers, time-outs.


def test_an_environment_lies_on_top_of_the_file_and_below_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source: dict[str, Any] = {
        "verbose": True,
        "policy": {"max_queue": 1, "drain_timeout": 2.0},
        "environments": {"prod": {"verbose": False, "policy": {"max_queue": 3}}, "lab": {}},
    }
    config = load_config(source, {"environment": "prod"})
    assert (config.verbose, config.policy.max_queue, config.policy.drain_timeout) == (False, 3, 2.0)
    assert load_config(source, {}).verbose
    monkeypatch.setenv("VLLMPORT_ENV", "prod")
    assert load_config(source, {"policy": {"max_queue": 4}}).policy.max_queue == 4
    assert load_config({**source, "environment": "dev"}, {"environment": "test"}).verbose
    with pytest.raises(InvalidRequest, match="dev, lab, prod, test"):
        load_config(source, {"environment": "production"})


@pytest.mark.parametrize(
    ("settings", "parameter"),
    [
        ({"environments": "prod"}, "environments"),
        ({"environments": {"prod": 3}}, "environments.prod"),
        ({"environment": ["prod"]}, "environment"),
        ({"environment": 3}, "environment"),
    ],
)
def test_environments_of_a_wrong_kind_are_refused(settings: dict[str, Any], parameter: str) -> None:
    assert refused(settings).parameter == parameter


def test_log_level_and_verbosity_reach_the_plan(run_dir: Path) -> None:
    def level(**settings: Any) -> str:
        return load_config(settings, {}).to_plan(run_dir).log_level

    assert level() == "info"
    assert level(verbose=True) == "debug"
    assert level(verbose=True, log_level="warning") == "warning"
    assert level(log_level="WARNING") == "warning", "as vLLM writes it"
    assert "log_level" in str(refused(log_level=3))
    assert "log_level" in str(refused(log_level="loud"))


def test_timeout_profiles_add_and_the_librarys_may_be_another(run_dir: Path) -> None:
    given = {"profiles": {"nightly": 7200}, "library_profiles": {"vllm": "nightly"}}
    plan = load_config({"timeouts": given}, {}).to_plan(run_dir)
    timeouts = Timeouts(**Plan.from_json(plan.to_json()).timeouts)
    assert timeouts.seconds() == 7200
    assert timeouts.seconds(profile="streaming") == 1800
    assert timeouts.pauses() == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"profiles": {"x": 0}}, "timeouts.profiles.x"),
        ({"profiles": {"x": "long"}}, "timeouts.profiles.x"),
        ({"library_profiles": {"vlm": "default"}}, "timeouts.library_profiles.vlm"),
        ({"library_profiles": {"vllm": "nope"}}, "timeouts"),
        ({"first_tokens": 1}, "timeouts.first_tokens"),
    ],
)
def test_time_outs_that_cannot_be_are_refused(settings: dict[str, Any], where: str) -> None:
    assert refused(timeouts=settings).parameter.startswith(where)


def test_removed_engine_options_in_a_file_are_translated_or_refused(run_dir: Path) -> None:
    model = {"model": "m", "swap_space": 4, "preset": "memory", "loras": {"a": "/x"}}
    (spec,) = load_config({"models": {"a": model}}, {}).to_plan(run_dir).models
    assert spec.engine_args == {"gpu_memory_utilization": 0.7, "max_model_len": 2048}
    assert "kv_offloading_size" in spec.notes[0]
    assert spec.loras == {"a": "/x"}
    error = refused({"models": {"a": {"model": "m", "quantization": "squeezellm"}}})
    assert error.parameter == "models.a.quantization"
    assert "compressed-tensors" in str(error)


@pytest.mark.parametrize(
    ("wrong", "where", "said"),
    [
        ({"max_modle_len": 9}, "max_modle_len", "did you mean 'max_model_len'"),
        ({"replcas": 2}, "replcas", "did you mean 'replicas'"),
        ({"max_num_seqs": "4"}, "max_num_seqs", "a whole number"),
        ({"preset": "throughputt"}, "preset", "throughput, latency, memory"),
        ({"dtype": "float17"}, "dtype", "one of"),
    ],
)
def test_the_whole_file_is_checked_environments_that_do_not_hold_too(
    wrong: dict[str, Any], where: str, said: str
) -> None:
    models = {"models": {"a": {"model": "m", **wrong}}}
    error = refused(models)
    assert error.parameter == f"models.a.{where}"
    assert said in str(error)
    right = {"models": {"a": {"model": "m"}}}
    error = refused({**right, "environments": {"prod": {"models": {"a": wrong}}}, "verbose": True})
    assert error.parameter == f"environments.prod.models.a.{where}"
    assert said in str(error)


def test_an_environment_that_does_not_hold_is_checked_like_the_rest() -> None:
    error = refused({"environments": {"dev": {}, "prod": {"polcy": {"max_queue": 1}}}})
    assert error.parameter == "environments.prod.polcy"
    assert "in [environments.prod]: unknown setting 'polcy'; did you mean 'policy'" in str(error)


def test_relative_paths_count_from_the_folder_of_the_file(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_dir / "conf"
    for name in ("opt", "sql", "own", "elsewhere"):
        (folder / name).mkdir(parents=True)
    (run_dir / "elsewhere" / "hub").mkdir(parents=True)
    monkeypatch.chdir(run_dir / "elsewhere")
    (folder / "pool.toml").write_text(
        """
log_dir = "logs"
aliases = { opt = "./opt", far = "hub" }
models.a = { model = "opt", loras = { sql = "sql", gone = "./gone", named = "org/lora" } }
models.b = { model = "own" }
models.c = { model = "far" }
"""
    )
    plan = load_config(folder / "pool.toml", {}).to_plan(run_dir)
    a, b, c = plan.models
    assert (a.model, b.model, c.model) == (f"{folder}/opt", f"{folder}/own", "hub")
    loras = {"sql": f"{folder}/sql", "gone": f"{folder}/gone", "named": "org/lora"}
    assert a.loras == loras
    assert plan.log_dir == f"{folder}/logs"


def test_a_pool_that_could_start_nobody_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="max_loads must be at least 1"):
        load_config({"policy": {"max_loads": 0}}, {})
