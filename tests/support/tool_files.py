"""Configuration files in other tools' formats, written from their documented keys, and the flags they stand for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ToolFile:
    name: str
    text: str
    flags: str
    """What the command line would be told in its place."""
    says: tuple[str, ...] = ()
    """Parts of lines that have to be said about it."""


AXOLOTL_QLORA = ToolFile(
    name="qlora.yml",
    text="""
base_model: meta-llama/Llama-3.2-1B
model_type: LlamaForCausalLM
load_in_4bit: true
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 2048
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
optimizer: paged_adamw_8bit
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: true
flash_attention: true
datasets:
  - path: some/set
    type: alpaca
wandb_project:
special_tokens:
  pad_token: "<pad>"
""",
    flags="--model llama3.2-1b --method qlora --quant nf4-dq --rank 16 --dropout 0.05 --targets all-linear --seq 2048 "
    "--bs 2 --accumulation 4 --optimizer paged-adamw-8bit --amp --attn flash --checkpointing full --clip",
    says=(
        "sample_packing: rows are full",
        "reentrant checkpointing",
        "clip on",
        "no effect on memory: model_type, lora_alpha, learning_rate",
    ),
)
AXOLOTL_FULL = ToolFile(
    name="full.yml",
    text="""
base_model: meta-llama/Llama-3.2-1B
sequence_len: 1024
micro_batch_size: 1
optimizer: adamw_torch
bfloat16: true
bf16: false
attn_implementation: eager
max_grad_norm: 0
lora_r: 8
""",
    flags="--model llama3.2-1b --method full --seq 1024 --bs 1 --optimizer adamw --amp --attn eager",
    says=("not used (there is no adapter): lora_r",),
)
LLAMA_FACTORY = ToolFile(
    name="llama_factory.yaml",
    text="""
model_name_or_path: Qwen/Qwen2.5-0.5B
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all
quantization_bit: 4
cutoff_len: 512
template: qwen
dataset: a,b
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
optim: adamw_torch
bf16: true
flash_attn: fa2
report_to: none
""",
    flags="--model qwen2.5-0.5b --method qlora --quant nf4-dq --rank 16 --seq 512 --bs 2 --accumulation 8 --amp "
    "--attn flash --checkpointing full --optimizer adamw --clip",
    says=("defaults of LLaMA-Factory: ", "no effect on memory: "),
)
LLAMA_FACTORY_FULL = ToolFile(
    name="sft.json",
    text='{"model_name_or_path": "Qwen/Qwen2.5-0.5B", "finetuning_type": "full", "cutoff_len": 256, "bf16": true, '
    '"disable_gradient_checkpointing": true, "per_device_train_batch_size": 1, "max_grad_norm": 0.0}',
    flags="--model qwen2.5-0.5b --method full --dtype fp32 --amp --seq 256 --bs 1 --optimizer adamw-fused",
    says=("casts what is trained to fp32",),
)
TORCHTUNE = ToolFile(
    name="recipe.yaml",
    text="""
output_dir: out
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: tokenizer.model
  max_seq_len: 2048
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: False
batch_size: 4
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  lr: 3e-4
loss:
  _component_: torchtune.modules.loss.LinearCrossEntropyLoss
epochs: 1
gradient_accumulation_steps: 8
clip_grad_norm: null
compile: False
dtype: bf16
enable_activation_checkpointing: True
enable_activation_offloading: False
""",
    flags="--model llama3.2-1b --method lora --rank 8 --targets q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj "
    "--seq 2048 --bs 4 --optimizer adamw-fused --accumulation 8 --adapter-dtype bf16 --checkpointing full",
    says=("torchtune's loss takes logits in chunks", "the step is that of transformers and PEFT"),
)
TRL = ToolFile(
    name="sft.yaml",
    text="""
model_name_or_path: Qwen/Qwen3-0.6B
dtype: bfloat16
attn_implementation: sdpa
use_peft: true
lora_r: 32
lora_target_modules: [q_proj, v_proj]
dataset_name: some/set
max_length: 768
per_device_train_batch_size: 4
gradient_accumulation_steps: 2
gradient_checkpointing: false
optim: adafactor
learning_rate: 1.0e-4
loss_type: nll
""",
    flags="--model qwen3-0.6b --method lora --rank 32 --dropout 0.05 --targets q_proj,v_proj --seq 768 "
    "--bs 4 --accumulation 2 --amp --optimizer adafactor --clip",
    says=("defaults of TRL or transformers: ",),
)
TRAINING_ARGUMENTS = ToolFile(
    name="arguments.json",
    text='{"output_dir": "out", "per_device_train_batch_size": 2, "optim": "sgd", "bf16": true, "num_train_epochs": 1, '
    '"activation_checkpointing": true, "use_liger_kernel": true, "max_grad_norm": 0}',
    flags="--bs 2 --optimizer sgd --amp --checkpointing full --loss fused",
    says=("use_liger_kernel: Liger's norms",),
)
ADAPTER = ToolFile(
    name="adapter_config.json",
    text='{"base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "peft_type": "LORA", "task_type": "CAUSAL_LM", '
    '"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], '
    '"use_dora": true, "bias": "none", "layers_to_transform": [31, 30], "modules_to_save": null, '
    '"inference_mode": true, "init_lora_weights": true}',
    flags="--model llama2-7b --method dora --rank 4 --dropout 0.1 --targets q_proj,v_proj --layers 30,31",
)
ACCELERATE = ToolFile(
    name="accelerate.yaml",
    text="""
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: 'no'
num_processes: 4
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_offload_params: false
  fsdp_activation_checkpointing: true
""",
    flags="--gpus 4 --shard fsdp --checkpointing full",
)
DEEPSPEED = ToolFile(
    name="ds_config.json",
    text='{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": "auto", '
    '"gradient_clipping": "auto", "bf16": {"enabled": true}, "zero_allow_untested_optimizer": true, '
    '"zero_optimization": {"stage": 2, "overlap_comm": true, "offload_optimizer": {"device": "none"}}}',
    flags="--bs 4 --shard zero2",
    says=(
        "(auto: filled in by the Trainer): gradient_accumulation_steps",
        "is not modelled): zero_optimization.overlap_comm",
    ),
)
WHOLE = (AXOLOTL_QLORA, AXOLOTL_FULL, LLAMA_FACTORY, LLAMA_FACTORY_FULL, TORCHTUNE, TRL, ADAPTER)
"""Files that name a model."""
PARTS = (TRAINING_ARGUMENTS, ACCELERATE, DEEPSPEED)
"""Files that need a model, and for several GPUs how many."""
