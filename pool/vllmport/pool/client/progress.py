"""Progress bars: a batch that is answered, a model that loads. Nothing unless asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int], object]


@contextmanager
def batch_bar(total: int, wanted: bool | Callable[..., Any]) -> Iterator[Advance]:  # noqa: FBT001
    """Show how many of `total` prompts are answered; `wanted` may be a tqdm class of one's own."""
    if not wanted:
        yield lambda _: None
        return
    bar_class: Callable[..., Any]
    if callable(wanted):
        bar_class = wanted
    else:
        from tqdm import tqdm

        bar_class = tqdm
    with bar_class(total=total, desc="Prompts", unit="prompt", dynamic_ncols=True) as bar:
        yield bar.update


@contextmanager
def load_line(name: str, wanted: bool) -> Iterator[Callable[[dict[str, Any]], None]]:  # noqa: FBT001
    """Show on one line of a terminal which stage the workers of a model have reached."""
    if not wanted or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(
        total=None, desc=f"Loading {name}", bar_format="{desc} {elapsed} {postfix}", leave=False
    ) as bar:
        yield lambda value: bar.set_postfix_str(f"{value['worker']}: {value['stage']}")
