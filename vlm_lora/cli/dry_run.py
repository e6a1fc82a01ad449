"""`vlm-lora train --dry_run`: the first training rows as training would see them; nothing is trained."""

from __future__ import annotations

from pathlib import Path

from vlm_lora.cli.setup import rank
from vlm_lora.config.run_config import RunConfig
from vlm_lora.data.wording import counted
from vlm_lora.errors import ConfigError


def dry_run(run: RunConfig) -> None:
    """Show the rows in the terminal and write `dry_run.html` into the output folder, nothing else.

    Of several processes only the first works.
    """
    if rank() != 0:
        return
    folder = Path(str(run.raw["output_dir"]))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output_dir {folder} is a file; name a folder.")
    from rich.console import Console

    from vlm_lora import pipeline
    from vlm_lora.report.page import write_page
    from vlm_lora.report.preview import print_figures, print_row

    shown = pipeline.dry_run(run)
    console = Console(highlight=False, soft_wrap=True)
    for one in shown:
        print_row(one.row, one.tokenizer, console)
        print_figures(one, console)
    page = folder / "dry_run.html"
    title = f"Dry run: {run.data.dataset_name} as {run.model.model_name_or_path} sees it"
    write_page(page, shown, title=title, images=run.reporting.report_images)
    print(f"{counted(len(shown), 'row')}, nothing was trained. Written to {page}")
