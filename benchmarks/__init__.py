"""What the project costs beside other tools: `python -m benchmarks` on a CPU, `python -m benchmarks.gpu` on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Models, processors and tokenizers are those of the tests, in other sizes.
for place in (ROOT / "tests", ROOT / "backends", ROOT):
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))
