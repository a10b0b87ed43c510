"""Adapters: the names callers use → what vLLM loads; ids are given here.

Owns the table of one engine. Imports vLLM: only for workers that run it.
"""

from collections.abc import Mapping
from typing import Any

from vllm.lora.request import LoRARequest

from vllmport.bridge.errors import InvalidRequest
from vllmport.worker.engines.vllm_errors import blaming, plain, refuse_missing, unknown

_KEYS = {
    "lora_name": str,
    "lora_int_id": int,
    "lora_path": str,
    "base_model_name": str,
    "load_inplace": bool,
    "is_3d_lora_weight": bool,
}


class Adapters:
    """The adapters of one engine, by name.

    Args:
        config: The engine's configuration.
        declared: Name → folder, as the model's specification has them.
    """

    def __init__(self, config: Any, declared: Mapping[str, str]) -> None:
        self._lora = config.lora_config
        self._requests: dict[str, LoRARequest] = {}
        self._loaded: set[tuple[str, int, str]] = set()
        self._ids: dict[tuple[str, str], int] = {}
        for name, path in declared.items():
            request = self.request({"lora_name": name, "lora_path": path})
            assert request is not None, "it was given"
            self._requests[name] = request

    def request(self, given: Any) -> LoRARequest | None:
        """Build what the engine wants of the adapter that a call names, if it names one.

        Args:
            given: None, the name of an adapter known here, or a map with lora_name and lora_path.

        Raises:
            InvalidRequest: The model takes no adapters, or this one is not known or not there.
        """
        if given is None:
            return None
        if self._lora is None:
            text = "this model takes no adapters; load it with enable_lora=True"
            raise InvalidRequest.of("lora_request", plain(given), text)
        if isinstance(given, str):
            return self.named(given)
        return self._from_map(given)

    def named(self, name: Any) -> LoRARequest:
        """Return the adapter of this name.

        Raises:
            InvalidRequest: There is none.
        """
        if name in self._requests:
            return self._requests[name]
        raise unknown("adapter", str(name), name, self._requests, parameter="lora_request")

    def names(self) -> dict[str, dict[str, Any]]:
        """Return what is known, as plain data."""
        loaded = {name for name, _, _ in self._loaded}
        return {
            name: {
                "lora_int_id": request.lora_int_id,
                "lora_path": request.lora_path,
                "loaded": name in loaded,
            }
            for name, request in self._requests.items()
        }

    def is_new(self, request: LoRARequest) -> bool:
        """Tell whether the engine has not been given this adapter yet."""
        return request.load_inplace or _identity(request) not in self._loaded

    def was_loaded(self, request: LoRARequest) -> None:
        """Note that the engine took it; from here on its name means it, and its id nothing else."""
        replaced = [it for it in self._loaded if it[1] == request.lora_int_id]
        for name, number, path in replaced:
            self._loaded.discard((name, number, path))
            self._ids.pop((name, path), None)
        self._ids[request.lora_name, request.lora_path] = request.lora_int_id
        self._requests[request.lora_name] = request
        self._loaded.add(_identity(request))

    def forget(self, request: LoRARequest) -> None:
        """Forget an adapter that the engine was told to drop."""
        self._requests.pop(request.lora_name, None)
        self._ids.pop((request.lora_name, request.lora_path), None)
        self._loaded.discard(_identity(request))

    def _from_map(self, given: Any) -> LoRARequest:
        if not isinstance(given, Mapping):
            text = "lora_request is the name of an adapter, or a map with lora_name and lora_path"
            raise InvalidRequest.of("lora_request", plain(given), text)
        for key, value in given.items():
            if key not in _KEYS:
                raise unknown("key of lora_request", key, value, _KEYS)
        name = given.get("lora_name")
        known = self._requests.get(name) if isinstance(name, str) else None
        path: Any = given.get("lora_path") or (known and known.lora_path)
        number = given.get("lora_int_id") or self._number(str(name), str(path))
        full = {**given, "lora_path": path, "lora_int_id": number}
        for key, value in full.items():
            if type(value) is not _KEYS[key]:
                raise InvalidRequest.of(key, plain(value), f"lora_request needs {key!r}")
        if not isinstance(name, str):
            raise InvalidRequest.of("lora_name", plain(name), "lora_request needs 'lora_name'")
        refuse_missing("lora_path", path)
        if not given.get("load_inplace"):
            self._check_id(name, path, number)
        with blaming("lora_request"):
            request = LoRARequest(**full)
        self._ids[name, path] = number
        return request

    def _number(self, name: str, path: str) -> int:
        """Give an adapter an id: the one it has, else the next that is free."""
        return self._ids.get((name, path)) or max(self._ids.values(), default=0) + 1

    def _check_id(self, name: str, path: str, number: int) -> None:
        """Refuse one id for two adapters: vLLM would answer with the one that came first."""
        for other, taken in self._ids.items():
            loaded = (other[0], number, other[1]) in self._loaded
            if taken == number and (other[0] != name or (loaded and other[1] != path)):
                text = f"lora_int_id {number} is that of the adapter {other[0]!r} in {other[1]!r}; "
                text += "leave it out, and one is given, or replace that by load_inplace=True"
                raise InvalidRequest.of("lora_int_id", number, text)


def _identity(request: LoRARequest) -> tuple[str, int, str]:
    return (request.lora_name, request.lora_int_id, request.lora_path)
