"""Write down the public API of the installed vLLM: what universal calls may reach.

Without options it writes the manifest into the worker's package; `--check` fails if it differs from
the one that is there.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

MANIFEST = Path(__file__).parents[1] / "worker/vllmport/worker/universal/api.json"


def main(say: Callable[[str], object] = print) -> int:
    """Run the command."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllmport.worker.universal.introspect import describe, text_of

    text = text_of(describe())
    if "--check" in sys.argv[1:]:
        same = MANIFEST.exists() and MANIFEST.read_text(encoding="utf-8") == text
        say("nothing changed" if same else "the API is another one: run `make bindings`")
        return int(not same)
    MANIFEST.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
