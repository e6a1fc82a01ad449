"""The README.md of a merged model."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment

from vlm_lora.config.version import __version__
from vlm_lora.config.whole_files import write_whole
from vlm_lora.deploy.merge_report import MergeReport
from vlm_lora.model.families import Family

TEMPLATE = """\
---
base_model: {{ report.base }}
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vlm-lora, merged]
---
# {{ name }}

`{{ report.base }}` with the LoRA adapter of `{{ report.adapter }}` merged into its weights ({{ report.dtype }}), by
vlm-lora {{ version }}.

## Use

```python
from transformers import {{ auto_class }}, AutoProcessor

model = {{ auto_class }}.from_pretrained("{{ name }}", dtype="auto")
processor = AutoProcessor.from_pretrained("{{ name }}")
```

or `vlm-lora ask --model_name_or_path {{ name }} --image FILE --prompt "QUESTION"`.

## How it was proven

{{ report.folded.layers | length }} layers were changed, {{ report.folded.recomputed }} of them computed a second time.
All {{ report.tensors }} tensors were read back from this folder and are those that were merged, bit for bit.
{% if report.deviation -%}
On {{ report.deviation.rows }} rows the logits lie up to {{ "%.3g" | format(report.deviation.largest) }} from the
adapter's (the largest is {{ "%.3g" | format(report.deviation.size) }}
{%- if report.deviation.rounding is not none %}; one rounding error in each weight moves them by
{{ "%.2g" | format(report.deviation.rounding) }}{% endif %}), and {{ report.deviation.equal_answers }} greedy answers
are the same.
{%- else -%}
No rows were asked.
{%- endif %}
{%- if report.quantized %}

The adapter was trained on the base in 4 bits, and is merged onto the base in {{ report.dtype }}.
{%- endif %}
"""


def write_card(folder: Path, report: MergeReport, family: Family) -> None:
    """Write the card into the folder, which gets the report's name later."""
    text = Environment(autoescape=False).from_string(TEMPLATE)  # Markdown, not HTML
    card = text.render(report=report, name=Path(report.folder).name, version=__version__, auto_class=family.auto_class)
    write_whole(folder / "README.md", card + "\n")
