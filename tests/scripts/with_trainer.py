"""A training by transformers' Trainer, with accumulated batches."""

from __future__ import annotations

import tempfile

import transformers
from tiny import lora_llama, sequences


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=8,
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, seed=0, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model=lora_llama(), args=arguments, train_dataset=sequences(64))
        trainer.remove_callback(transformers.PrinterCallback)  # it tells the time
        trainer.train()
    for line in trainer.state.log_history:
        print(line.get("step"), line.get("loss"), line.get("grad_norm"))


if __name__ == "__main__":
    main()
