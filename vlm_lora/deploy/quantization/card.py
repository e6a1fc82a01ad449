"""The README.md of a quantized model."""

from __future__ import annotations

import math
from pathlib import Path

from jinja2 import Environment

from vlm_lora.config.version import __version__
from vlm_lora.config.whole_files import write_whole
from vlm_lora.deploy.quantization.request import QuantizeReport
from vlm_lora.model.families import Family

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [vlm-lora, compressed-tensors]
---
# {{ name }}

`{{ report.model }}`{% if report.merged %}, merged into its base,{% endif %} in {{ report.meaning }}, by vlm-lora
{{ version }} with llm-compressor {{ report.versions.llmcompressor }}. The layout is compressed-tensors', not AutoAWQ's.
Vision tower, projector and head are whole.

## Use

vLLM reads this layout. In transformers, with `compressed-tensors` installed:

```python
from transformers import {{ auto_class }}, AutoProcessor, CompressedTensorsConfig

whole = CompressedTensorsConfig(dequantize=True)
model = {{ auto_class }}.from_pretrained("{{ name }}", dtype="auto", quantization_config=whole)
processor = AutoProcessor.from_pretrained("{{ name }}")
```

## How it was proven

A process of its own loaded this folder next to the model before. {{ report.proof.layers }} layers are in fewer bits,
each weight within {{ "%.3f" | format(report.proof.largest_error) }} steps of what it was
{%- if report.proof.scaled %} times AWQ's scales{% endif %}; {{ report.proof.untouched }} other tensors are as they
were, bit for bit{% if report.proof.scaled %}, and {{ report.proof.scaled }} are divided by AWQ's scales, which were
found from {{ report.calibration_rows }} training rows and alone move a logit by
{{ "%.2g" | format(report.proof.deviation) }} of the largest{% endif %}.

| On {{ report.proof.rows }} training rows | before | after |
|---|---|---|
| Perplexity | {{ "%.4f" | format(before) }} | {{ "%.4f" | format(after) }} |
| Bytes of weights | {{ report.size_before }} | {{ report.size_after }} |
"""


def write_card(folder: Path, report: QuantizeReport, family: Family) -> None:
    """Write the card into the folder, which gets the report's name later."""
    text = Environment(autoescape=False).from_string(TEMPLATE)  # Markdown, not HTML
    card = text.render(
        report=report,
        name=Path(report.folder).name,
        version=__version__,
        auto_class=family.auto_class,
        before=math.exp(report.proof.loss_before),
        after=math.exp(report.proof.loss_after),
    )
    write_whole(folder / "README.md", card + "\n")
