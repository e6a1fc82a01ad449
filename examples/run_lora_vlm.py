"""LoRA on a vision-language model, by the flags of the reference script. `--help` lists them.

python run_lora_vlm.py --model_name_or_path google/gemma-3-4b-it --dataset_name HuggingFaceM4/ChartQA \
    --do_train --do_eval --bf16 --gradient_checkpointing --output_dir ./output_gemma3
"""

import sys

from vlm_lora.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script())
