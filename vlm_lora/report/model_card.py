"""The README.md next to the weights: what was trained on what, how to load it, what it scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.version import __version__
from vlm_lora.config.whole_files import read_json, write_whole
from vlm_lora.model.loading import base_config
from vlm_lora.report.card_facts import data_rows, hub_id, licence_of, score_rows
from vlm_lora.session import Preprocessing

TEMPLATE = """\
---
{% if hub_base -%}
base_model: {{ hub_base }}
{% endif -%}
{% if licence -%}
license: {{ licence }}
{% endif -%}
library_name: {{ "peft" if lora else "transformers" }}
pipeline_tag: image-text-to-text
tags: [vlm-lora{{ ", lora" if lora else "" }}]
---
# {{ name }}

{{ "A LoRA adapter for" if lora else "All weights of" }} `{{ base }}`
{{- ", begun as the adapter `" ~ run.model.model_name_or_path ~ "`" if base != run.model.model_name_or_path }},
fine-tuned on `{{ run.data.dataset_name }}` with vlm-lora {{ version }}.

## Use

```python
{%- if lora %}
from peft import PeftModel
{%- endif %}
from PIL import Image
from transformers import {{ auto_class }}, AutoProcessor

processor = AutoProcessor.from_pretrained("{{ name }}"{{ code }})
{%- if template_of_tokenizer %}
processor.chat_template = processor.tokenizer.chat_template
{%- endif %}
{%- if lora %}
base = {{ auto_class }}.from_pretrained("{{ base }}"{{ options }})
{%- if rows %}
# The adapter holds the rows of new tokens: the base gets as many rows as the tokenizer has tokens first.
base.resize_token_embeddings({{ rows }})
{%- if tied is not none %}
base.config.tie_word_embeddings = {{ tied }}  # as its text_config has it, which PEFT does not read
{%- endif %}
{%- endif %}
model = PeftModel.from_pretrained(base, "{{ name }}").eval()
{%- else %}
model = {{ auto_class }}.from_pretrained("{{ name }}"{{ code }}).eval()
{%- endif %}
{%- if chats %}

image = Image.open("image.png").convert("RGB")
content = [{"type": "image", "image": image}, {"type": "text", "text": "QUESTION"}]
messages = [{{ system }}{"role": "user", "content": content}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
output = model.generate(**inputs, max_new_tokens={{ run.generation.max_new_tokens }}, do_sample=False)
print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
{%- endif %}
```

or `vlm-lora ask --model_name_or_path {{ name }} --image image.png --prompt "QUESTION"`
{{- "" if chats else ", which writes the prompt as it was trained: this model has no chat template" }}.

## Results

| Figure | Value | 95 % interval |
|---|---|---|
{%- for row in scores %}
| {{ row | join(" | ") }} |
{%- endfor %}

Perplexity counts supervised tokens only: the assistant's text and the token that ends its turn.

## Data

{% if data -%}
| Split | Rows | Bad | Duplicates | Images | Tokens of a row | Supervised |
|---|---|---|---|---|---|---|
{%- for row in data %}
| {{ row | join(" | ") }} |
{%- endfor %}

`data_report.json` has all figures of it.
{%- else -%}
The rows were not read before training (`--skip_check` or `--streaming`), so there is no report on them.
{%- endif %}

## Training

{% if lora -%}
LoRA rank {{ run.tuning.lora_rank }}, alpha {{ run.tuning.lora_alpha }},
dropout {{ run.tuning.lora_dropout }}, targets `{{ run.tuning.lora_targets }}`
{{- ", rank-stabilised" if run.tuning.use_rslora }}{{ ", DoRA" if run.tuning.use_dora }}
{{- ", begun " ~ run.tuning.lora_init if run.tuning.lora_init != "default" }}
{{- " (the file has twice the rank: a frozen half holds the beginning)" if run.tuning.begins_with_weights }}
{{- "; all weights of " ~ run.tuning.train_fully | join(", ") if run.tuning.train_fully }}
{{- "; the rows of new tokens" if run.tuning.new_tokens }}.
{%- else -%}
Full weights.
{%- endif %}
Learning rate {{ arguments.learning_rate }}, {{ steps }} steps of {{ batch_size }} rows, seed {{ arguments.seed }}.
`run.json` says what the run was: `vlm-lora train --from_run FOLDER` repeats it. `run_config.yaml` holds its settings.

## Licence

{{ about_licence }}
"""


def write_model_card(
    folder: Path,
    run: RunConfig,
    arguments: Any,
    metrics: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    steps: int,
) -> None:
    """Write `README.md`. Figures are those of this run; nothing is filled in by hand."""
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    base = str(base_config(run.model).model_name_or_path)
    licence, about_licence = licence_of(base)
    own, tokenizers = (
        bool(getattr(part, "chat_template", None)) for part in (preprocessing.processor, preprocessing.tokenizer)
    )
    code = ", trust_remote_code=True" if run.model.trust_remote_code else ""
    revision = run.model.model_revision
    text = _card().render(
        run=run,
        base=base,
        arguments=arguments,
        scores=score_rows(metrics),
        data=data_rows(read_json(folder / "data_report.json")),
        hub_base=hub_id(base),
        licence=licence,
        about_licence=about_licence,
        chats=own or tokenizers,
        template_of_tokenizer=tokenizers and not own,
        system=_system_turn(run.data.system_prompt),
        name=folder.name,
        lora=run.tuning.peft_method == "lora",
        version=__version__,
        batch_size=batch,
        steps=steps,
        rows=preprocessing.rows,
        tied=_tied_otherwise(preprocessing.config),
        auto_class=preprocessing.family.auto_class,
        code=code,
        options=code + (f', revision="{revision}"' if revision != "main" else ""),
    )
    write_whole(folder / "README.md", text + "\n")


@cache
def _card() -> Template:
    # No escaping: this is Markdown, not HTML.
    return Environment(autoescape=False).from_string(TEMPLATE)


def _system_turn(prompt: str | None) -> str:
    """Return the turn before the user's as Python has it, with a comma behind; empty where there is none."""
    if prompt is None:
        return ""
    return f'{{"role": "system", "content": [{{"type": "text", "text": {json.dumps(prompt)}}}]}}, '


def _tied_otherwise(config: Any) -> bool | None:
    """Return whether head and embeddings are one, where the configuration itself says otherwise than its text's."""
    whole, text = (
        getattr(part, "tie_word_embeddings", None) for part in (config, config.get_text_config())
    )  # GLM-4V's text has no such setting, and its whole one counts
    return None if text is None or text == whole else bool(text)
