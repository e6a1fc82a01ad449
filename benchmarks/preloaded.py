"""What contenders' processes have imported before they are forked: seconds each would spend by itself."""

import contextlib

import benchmarks  # noqa: F401  (the paths)

with contextlib.suppress(ImportError):
    import vlm_lora.pipeline
    import vlm_lora.training.trainer  # noqa: F401
