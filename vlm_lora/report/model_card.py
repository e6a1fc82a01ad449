"""The README.md next to the weights: what was trained on what, how to load it, what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from vlm_lora.config.run_config import RunConfig
from vlm_lora.config.version import __version__
from vlm_lora.config.whole_files import write_whole
from vlm_lora.session import Preprocessing

TEMPLATE = """\
---
base_model: {{ run.model.model_name_or_path }}
library_name: {{ "peft" if lora else "transformers" }}
pipeline_tag: image-text-to-text
tags: [vlm-lora{{ ", lora" if lora else "" }}]
---
# {{ name }}

{{ "A LoRA adapter for" if lora else "All weights of" }} `{{ run.model.model_name_or_path }}`,
fine-tuned on `{{ run.data.dataset_name }}` with vlm-lora {{ version }}.

## Use

```python
from transformers import {{ auto_class }}, AutoProcessor
{%- if lora %}
from peft import PeftModel

base = {{ auto_class }}.from_pretrained("{{ run.model.model_name_or_path }}"{{ options }})
processor = AutoProcessor.from_pretrained("{{ name }}"{{ code }})
{%- if rows %}
# The adapter holds the rows of new tokens: the base gets as many rows as the tokenizer has tokens first.
base.resize_token_embeddings({{ rows }})
{%- if tied is not none %}
base.config.tie_word_embeddings = {{ tied }}  # as its text_config has it, which PEFT does not read
{%- endif %}
{%- endif %}
model = PeftModel.from_pretrained(base, "{{ name }}")
{%- else %}

model = {{ auto_class }}.from_pretrained("{{ name }}"{{ code }})
processor = AutoProcessor.from_pretrained("{{ name }}"{{ code }})
{%- endif %}
```

or `vlm-lora ask --model_name_or_path {{ name }} --image PICTURE --prompt "QUESTION"`.

## Results

| Figure | Value |
|---|---|
{%- for key, value in metrics.items() %}
| {{ key }} | {{ value }} |
{%- endfor %}

Perplexity counts supervised tokens only: the assistant's text and the token that ends its turn.

## Training

{% if lora -%}
LoRA rank {{ run.tuning.lora_rank }}, alpha {{ run.tuning.lora_alpha }},
dropout {{ run.tuning.lora_dropout }}, targets `{{ run.tuning.lora_targets }}`
{{- ", rank-stabilised" if run.tuning.use_rslora }}{{ ", DoRA" if run.tuning.use_dora }}
{{- ", begun " ~ run.tuning.lora_init if run.tuning.lora_init != "default" }}
{{- "; all weights of " ~ run.tuning.train_fully | join(", ") if run.tuning.train_fully }}
{{- "; the rows of new tokens" if run.tuning.new_tokens }}.
{%- else -%}
Full weights.
{%- endif %}
Learning rate {{ arguments.learning_rate }}, {{ steps }} steps of {{ batch_size }} rows, seed {{ arguments.seed }}.
`run.json` says what the run was: `vlm-lora train --from_run FOLDER` repeats it. `run_config.yaml` holds its settings.
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
    shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in sorted(metrics.items())}
    # No escaping: this is Markdown, not HTML.
    card = Environment(autoescape=False).from_string(TEMPLATE)
    code = ", trust_remote_code=True" if run.model.trust_remote_code else ""
    revision = run.model.model_revision
    text = card.render(
        run=run,
        arguments=arguments,
        metrics=shown,
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


def _tied_otherwise(config: Any) -> bool | None:
    """Return whether head and embeddings are one, where the configuration itself says otherwise than its text's."""
    whole, text = (
        getattr(part, "tie_word_embeddings", None) for part in (config, config.get_text_config())
    )  # GLM-4V's text has no such setting, and its whole one counts
    return None if text is None or text == whole else bool(text)
