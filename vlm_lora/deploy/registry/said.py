"""What was registered, in words."""

from __future__ import annotations

import os
import shlex

from vlm_lora.deploy.registry.register import Registered
from vlm_lora.deploy.registry.store import VARIABLE, default_uri
from vlm_lora.training.identity.secrets import masked


def in_words(found: Registered) -> str:
    """Return what was registered, what it needs, and what to type next, in lines."""
    needs = f", which needs its base {found.base}" if found.base else ""
    usual = found.store in (os.environ.get(VARIABLE), default_uri())
    store = [] if usual else ["--tracking_uri", masked(found.store)]
    ask = ["vlm-lora", "ask", "--model_name_or_path", found.model, *store]
    return "\n".join(
        [
            f"Registered {found.folder} as {found.model}: {_article(found.kind)} {found.kind}{needs}.",
            f"{found.files} files, settings and figures are in {masked(found.store)} (run {found.run_id}).",
            f"Next: {shlex.join(ask)} --image FILE --prompt QUESTION",
            f"      mlflow ui --backend-store-uri {shlex.quote(masked(found.store))}  (needs mlflow whole)",
        ]
    )


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"
