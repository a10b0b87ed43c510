"""The generated types are those of the manifest, and the manifest is in order."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from vllmport.pool.client import params
from vllmport.pool.engine_args import EngineArgs

ROOT = Path(__file__).parents[2]
MANIFEST = json.loads((ROOT / "manifest" / "vllm.json").read_text())
GENERATED = ("pool/vllmport/pool/client/params.py", "pool/vllmport/pool/engine_args.py")


@pytest.mark.parametrize("script", ["bindings.py", "api_bindings.py"])
def test_the_generated_types_are_what_the_manifest_gives(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_stay_short() -> None:
    assert sum((ROOT / path).read_text().count("\n") for path in GENERATED) < 2000


def test_every_entry_of_the_manifest_is_there_and_sorted() -> None:
    assert list(get_type_hints(EngineArgs)) == list(MANIFEST["engine"])
    assert len(MANIFEST["engine"]) > 200
    for name, section in MANIFEST.items():
        assert name == "vllm" or list(section) == sorted(section)
    fields = params.SamplingParams.__dataclass_fields__
    for name, entry in MANIFEST["sampling"].items():
        assert fields[name].default == entry["default"]
