"""The models of a configuration: paths made absolute, arguments checked, and who gave each of them.

Pure but for looking whether a path is there. Paths count from the folder of the configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllmport.bridge.errors import InvalidRequest
from vllmport.bridge.removed import modern_engine_args
from vllmport.pool.plan import ECHO_MODEL, ModelSpec
from vllmport.pool.supervisor.specification import spec_from

if TYPE_CHECKING:
    from vllmport.pool.config import ModelConfig


def specs_of(
    models: "Mapping[str, ModelConfig]", aliases: Mapping[str, str], folder: Path
) -> tuple[ModelSpec, ...]:
    """Return the specifications of the models.

    Args:
        models: As configured.
        aliases: Name → what it stands for, absolute.
        folder: Where relative paths start.

    Raises:
        InvalidRequest: An engine argument is unknown, of a wrong kind, or vLLM has removed it;
            `parameter` has the whole way to it.
    """
    return tuple(_spec(name, model, aliases, folder) for name, model in models.items())


def local(path: str, folder: Path) -> str:
    """Make a path absolute if it is one: the supervisor and its workers may run elsewhere.

    What is not there may be a name on a hub, unless it is written like a path.
    """
    found = folder / Path(path).expanduser()
    return str(found.resolve()) if found.exists() or path.startswith((".", "~")) else path


def made_of_old(model: "ModelConfig") -> dict[str, str]:
    """Return which settings stand in the configuration by another name: setting → that name."""
    given = model.model_extra or {}
    found = {"env.HF_TOKEN": "hf_token"} if "hf_token" in given else {}
    if model.model != ECHO_MODEL:
        for old, value in given.items():
            modern, _ = modern_engine_args({old: value})
            found.update({new: old for new in modern if new != old})
    return found


def resolved(model: "ModelConfig", spec: ModelSpec) -> dict[str, Any]:
    """Return the settings of a model as they hold."""
    own = {name: getattr(spec, name) for name in type(model).model_fields if name != "preset"}
    return {**own, "preset": model.preset, **spec.engine_args}


def _spec(name: str, model: "ModelConfig", aliases: Mapping[str, str], folder: Path) -> ModelSpec:
    own = model.model_dump(exclude=set(model.model_extra or ()))
    if model.model not in aliases:
        own["model"] = local(model.model, folder)
    own["loras"] = {adapter: local(path, folder) for adapter, path in model.loras.items()}
    try:
        return spec_from({**own, "name": name, "engine_args": model.model_extra or {}}, aliases)
    except InvalidRequest as exc:
        where = f"models.{name}.{exc.parameter}"
        raise InvalidRequest.of(where, exc.value, f"[models.{name}] {exc.message}") from exc
