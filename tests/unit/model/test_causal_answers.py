"""No answer token sees the ones behind it, where images or prompts are read in both directions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.tiny.folders import available
from vlm_lora.batching.encoded import IGNORE_INDEX
from vlm_lora.config.run_config import ModelConfig, RunConfig
from vlm_lora.data.conversation import Conversation, ImageRef, RowSource, Text, Turn
from vlm_lora.model.families import FAMILIES
from vlm_lora.model.loading import load_model
from vlm_lora.session import open_preprocessing

BOTH = [name for name in available() if name in FAMILIES and FAMILIES[name].both_directions]


@pytest.mark.parametrize("name", BOTH)
def test_logits_of_an_answer_do_not_depend_on_its_later_tokens(name: str, model_folder: Callable[[str], Path]) -> None:
    """As training calls the model, without labels; an earlier token changes what comes behind it (the control)."""
    config = ModelConfig(model_name_or_path=str(model_folder(name)))
    tools = open_preprocessing(RunConfig(model=config))
    model = load_model(config, model_kwargs={"torch_dtype": torch.float32})
    picture = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    question = Turn(role="user", parts=(ImageRef(source=picture), Text(text="What is it?")))
    answer = Turn(role="assistant", parts=(Text(text="the large red one on the left"),))
    batch = tools.collator([Conversation(turns=(question, answer), source=RowSource(file="rows.jsonl", row=1))])
    (answered,) = batch.pop("labels").ne(IGNORE_INDEX).nonzero(as_tuple=True)[1:]
    del batch["supervised_positions"]
    changed = int(answered[len(answered) // 2])
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][0, changed] = batch["input_ids"][0, int(answered[0])]
    assert not torch.equal(other["input_ids"], batch["input_ids"])
    with torch.no_grad():
        logits, moved = model(**batch).logits[0], model(**other).logits[0]
    torch.testing.assert_close(moved[:changed], logits[:changed], rtol=1e-5, atol=1e-6)
    assert (moved[changed:] - logits[changed:]).abs().max() > 1e-3
