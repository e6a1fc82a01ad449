"""Train, evaluate and ask from Python, as in a notebook: `python examples/python_api.py MODEL DATA OUTPUT_DIR`."""

import sys

from vlm_lora import UserError, ask, check, configure, evaluate, train

model, data, output = sys.argv[1:4]

try:
    # 1. What is in the data? No weights are loaded.
    report = check(configure(model_name_or_path=model, dataset_name=data))
    print({name: split.rows for name, split in report.splits.items()}, "bad rows:", len(report.bad))

    # 2. Train a LoRA adapter. Settings have the names of the flags.
    run = configure(
        model_name_or_path=model,
        dataset_name=data,
        output_dir=output,
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-4,
        save_strategy="no",
    )
    figures = train(run)
    print("loss", figures["train_loss"], "perplexity", figures["eval_perplexity"])

    # 3. Measure the adapter again, and ask it something.
    again = evaluate(configure(model_name_or_path=output, dataset_name=data, output_dir=f"{output}-eval"))
    print("perplexity", again["eval_perplexity"])
    print(ask(configure(model_name_or_path=output, max_new_tokens=8), "What is it?"))
except UserError as error:
    sys.exit(f"error: {error}")
