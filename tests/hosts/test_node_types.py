"""Node's parameter types are those of the manifest."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_types_are_what_the_script_makes_of_the_manifest() -> None:
    path = ROOT / "scripts" / "node_types.py"
    spec = importlib.util.spec_from_file_location("node_types", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.render(json.loads(script.MANIFEST.read_text(encoding="utf-8")))
    assert script.TARGET.read_text(encoding="utf-8") == made, "run scripts/node_types.py"
