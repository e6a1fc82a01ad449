"""The rows that no `--on_overflow` makes fit, found before anything is trained."""

from __future__ import annotations

from vlm_lora.batching.encoding import RowEncoder
from vlm_lora.batching.every_draw import EveryDraw
from vlm_lora.batching.loading import name_of
from vlm_lora.batching.order import Rows
from vlm_lora.batching.parallel_map import Measured
from vlm_lora.data.ocr.task_sampling import ONCE, Span
from vlm_lora.errors import TooLongError


def overlong_rows(
    rows: Rows,
    encoder: RowEncoder,
    *,
    span: Span = ONCE,
    workers: int = 0,
    show_progress: bool = False,
    timeout: float = 0,
) -> dict[int, str]:
    """Encode every row and return those that are too long, by index, with the reason (which names the row).

    Args:
        rows: conversations by number.
        encoder: makes the rows; its `on_overflow` has its way first.
        span: how often the run draws for each row; one draw that is too long is enough.
        workers: loader processes.
        show_progress: on one rank only.
        timeout: seconds to wait for a worker; 0 waits for ever.

    Raises:
        RenderingError, ImageError: a row cannot be encoded for another reason.
        StalledError: a worker delivers nothing, or was killed.
    """
    measured = Measured(workers=workers, show_progress=show_progress, timeout=timeout)
    found = measured.each(range(len(rows)), _Overlong(EveryDraw(rows, encoder, span)), "Row lengths", name_of(rows))
    return {index: reason for index, reason in enumerate(found) if reason is not None}


class _Overlong:
    """Says why a row is too long, or None; can be pickled into loader workers."""

    def __init__(self, draws: EveryDraw) -> None:
        self._draws = draws

    def __call__(self, index: int) -> str | None:
        try:
            for _ in self._draws.encoded(index, self._draws.conversations(index)):
                pass
        except TooLongError as error:
            return str(error)
        return None
