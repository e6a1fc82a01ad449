"""Captured graphs, as far as optimum-habana names them: capturing runs the code."""

from typing import Any


class HPUGraph:
    """Neither captures nor replays; a use that would need it fails."""

    def replay(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: nothing was captured."""
        raise NotImplementedError("The simulated hpu cannot replay a captured graph")
