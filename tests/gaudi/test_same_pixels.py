"""The image backend that `auto` takes gives the same pixels on both stacks, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.stacks import GAUDI, MAIN, run_words
from support.tiny import available
from vlm_lora.model.families import FAMILIES

PIXELS = """
import hashlib, json, sys
import numpy as np
import torch
from PIL import Image
from vlm_lora.compat import image_backend
from vlm_lora.config.run_config import ModelConfig
from vlm_lora.model.loading import load_processor
out, *models = sys.argv[1:]
torch.set_num_threads(1)
generator = np.random.default_rng(0)
images = []
for width, height in ((500, 333), (21, 13), (400, 900), (150, 40)):
    coarse = Image.fromarray(generator.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    images.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
found = {}
for entry in models:
    backend, _, model = entry.partition(":")
    processor = load_processor(ModelConfig(model_name_or_path=model, image_backend=backend)).image_processor
    digest = hashlib.sha256(image_backend(processor).encode())
    for image in images:
        made = processor(images=[[image]] if "Mllama" in type(processor).__name__ else [image], return_tensors="pt")
        for name in sorted(made):
            if isinstance(made[name], torch.Tensor) and made[name].is_floating_point():
                digest.update(made[name].contiguous().numpy().tobytes())
    found[entry] = digest.hexdigest()
open(out, "w").write(json.dumps(found))
"""


def hashes(python: Path, models: list[str], folder: Path) -> Mapping[str, str]:
    script, out = folder / "pixels.py", folder / f"{python.parents[1].name}.json"
    script.write_text(PIXELS)
    done = run_words([script, out, *models], python=python, variables={"PT_HPU_LAZY_MODE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(out.read_text())
    return found


def test_equal_pixels_on_both_stacks(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    names = [name for name in available() if name != "phi3_v"]  # its own code prepares images
    faster = [name for name in names if FAMILIES[name.partition("-")[0]].image_backend == "torchvision"]
    assert {"gemma3", "paligemma", "qwen2_5_vl", "llava_next", "internvl", "mistral3"} <= set(faster)
    automatic = [f"auto:{model_folder(name)}" for name in names]
    slower = [f"pil:{model_folder(name)}" for name in faster if name != "phi4_multimodal"]
    different = [f"torchvision:{model_folder(name)}" for name in ("idefics3", "smolvlm", "llava")]
    with ThreadPoolExecutor(2) as pool:
        main, gaudi = pool.map(
            lambda python: hashes(python, [*automatic, *slower, *different], tmp_path), (MAIN, GAUDI)
        )
    assert {entry: main[entry] for entry in automatic} == {entry: gaudi[entry] for entry in automatic}
    assert not any(main[entry] == main[entry.replace("pil:", "auto:")] for entry in slower), "as pil is another"
    assert not any(main[entry] == gaudi[entry] for entry in different), "the control: why these stay with pil"
