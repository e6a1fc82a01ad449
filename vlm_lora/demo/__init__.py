"""A self-contained demonstration: a tiny vision-language model of ours and a chart task for it.

Nothing in this package is imported by the rest of ``vlm_lora``; it exists so that the whole tool
can be shown working on a laptop, without a download.
"""
