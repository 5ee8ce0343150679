"""Configuration files in other tools' formats, written from their documented keys, and the flags they stand for."""

from __future__ import annotations

from tests.support.tool_file import ToolFile
from tests.support.v1_tool_files import LLAMA_FACTORY_V1, LLAMA_FACTORY_V1_FULL, LLAMA_FACTORY_V1_QLORA

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
    more="--gpus 4",
    says=(
        "(auto: filled in by the Trainer): gradient_accumulation_steps",
        "is not modelled): zero_optimization.overlap_comm",
    ),
)
AXOLOTL_8BIT = ToolFile(
    name="lora_8bit.yml",
    text="""
base_model: Qwen/Qwen2.5-0.5B
tokenizer_type: AutoTokenizer
load_in_8bit: true
load_in_4bit: false
strict: false
adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0
lora_target_modules:
  - q_proj
  - v_proj
datasets: [{path: some/set, type: alpaca, split: train}]
dataset_prepared_path: prepared
val_set_size: 0.05
sequence_len: 512
sample_packing: false
pad_to_sequence_len: true
micro_batch_size: 2
gradient_accumulation_steps: 1
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
bf16: auto
tf32: false
gradient_checkpointing: false
resume_from_checkpoint:
logging_steps: 1
attn_implementation: sdpa
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
use_swanlab: false
""",
    flags="--model qwen2.5-0.5b --method lora --quant int8 --rank 32 --targets q_proj,v_proj --seq 512 --bs 2 "
    "--optimizer adamw-8bit --amp --attn sdpa --clip",
    says=("axolotl's fused LoRA kernels", "no effect on memory: tokenizer_type"),
)
AXOLOTL_FSDP = ToolFile(
    name="fsdp.yml",
    text="""
base_model: meta-llama/Llama-3.2-1B
sequence_len: 512
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 1
optimizer: adamw_torch_fused
bf16: true
attn_implementation: flash_attention_2
adapter: lora
lora_r: 16
lora_target_linear: true
max_grad_norm: 0
model_config: {output_router_logits: true}
flash_attn_fuse_mlp: true
fsdp: [full_shard, auto_wrap]
fsdp_config:
  fsdp_offload_params: false
  fsdp_sharding_strategy: FULL_SHARD
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_state_dict_type: FULL_STATE_DICT
""",
    flags="--model llama3.2-1b --method lora --rank 16 --seq 512 --bs 1 --optimizer adamw-fused --amp --attn flash "
    "--shard fsdp",
    more="--gpus 4",
    says=(
        "under FSDP with bf16 weights are gathered in bf16", "flash_attn_fuse_mlp: fused kernels",
        "model_config: values in the place",
    ),
)  # fmt: skip
LLAMA_FACTORY_LORA_PLUS = ToolFile(
    name="lora_plus.yaml",
    text="""
model_name_or_path: meta-llama/Meta-Llama-3-8B
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_target: q_proj,v_proj
lora_rank: 8
lora_dropout: 0.1
loraplus_lr_ratio: 16.0
dataset: a
template: llama3
cutoff_len: 256
max_samples: 1000
packing: false
preprocessing_num_workers: 16
output_dir: saves
save_only_model: false
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
optim: adamw_torch
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
pure_bf16: false
disable_gradient_checkpointing: true
ddp_timeout: 180000000
""",
    flags="--model llama3-8b --method lora-plus --rank 8 --dropout 0.1 --targets q_proj,v_proj --seq 256 --bs 1 "
    "--accumulation 8 --amp --optimizer adamw --clip",
    says=("no effect on memory: ",),
)
TORCHTUNE_QLORA = ToolFile(
    name="qlora_single_device.yaml",
    text="""
model:
  _component_: torchtune.models.llama3_1.qlora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'k_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  lora_rank: 16
  lora_alpha: 32
  lora_dropout: 0.0
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: tokenizer.model
  max_seq_len: 512
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: here}
batch_size: 2
optimizer:
  _component_: bitsandbytes.optim.PagedAdamW8bit
  lr: 2e-5
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
gradient_accumulation_steps: 1
compile: False
dtype: bf16
enable_activation_checkpointing: False
enable_activation_offloading: False
profiler: {_component_: torchtune.training.setup_torch_profiler, enabled: False}
""",
    flags="--model llama3.1-8b --method qlora --quant nf4-dq --rank 16 --seq 512 --bs 2 --adapter-dtype bf16 "
    "--optimizer paged-adamw-8bit",
    says=("torchao's NF4 is taken as bitsandbytes'", "torchtune's loss takes logits in chunks"),
)
TRL_QLORA = ToolFile(
    name="sft_qlora.yaml",
    text="""
model_name_or_path: Qwen/Qwen2.5-1.5B
dtype: bfloat16
use_peft: true
load_in_4bit: true
use_bnb_nested_quant: true
lora_r: 16
lora_dropout: 0.0
lora_target_modules: all-linear
dataset_name: some/set
packing: true
max_length: 512
per_device_train_batch_size: 2
gradient_checkpointing: true
optim: paged_adamw_8bit
max_grad_norm: 0
loss_type: nll
""",
    flags="--model qwen2.5-1.5b --method qlora --quant nf4-dq --rank 16 --seq 512 --bs 2 --amp --adapter-dtype bf16 "
    "--checkpointing full --optimizer paged-adamw-8bit",
    says=("packing: rows are full", "TRL casts the adapters of a quantised model to bf16"),
)
VERA = ToolFile(
    name="vera_config.json",
    text='{"peft_type": "VERA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B", "r": 128, "vera_dropout": 0.0, '
    '"d_initial": 0.1, "projection_prng_key": 0, "save_projection": true, "target_modules": ["up_proj", "gate_proj"], '
    '"task_type": "CAUSAL_LM", "bias": "none", "fan_in_fan_out": false, "init_weights": true}',
    flags="--model llama3.2-1b --method vera --rank 128 --targets up_proj,gate_proj",
)
ACCELERATE_DDP = ToolFile(
    name="multi_gpu.yaml",
    text="""
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_GPU
downcast_bf16: 'no'
gpu_ids: all
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 8
rdzv_backend: static
same_network: true
use_cpu: false
""",
    flags="--gpus 8 --shard ddp --amp",
)
ACCELERATE_ZERO = ToolFile(
    name="zero3.yaml",
    text="""
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: 3
  zero3_init_flag: true
  zero3_save_16bit_model: true
  offload_optimizer_device: none
  offload_param_device: none
  gradient_accumulation_steps: 1
mixed_precision: bf16
num_processes: 8
""",
    flags="--gpus 8 --shard zero3",
    says=("under DeepSpeed there is no autocast",),
)
DEEPSPEED_PLAIN = ToolFile(
    name="ds_plain.json",
    text='{"train_batch_size": 32, "train_micro_batch_size_per_gpu": 2, "steps_per_print": 10, "gradient_clipping": 0, '
    '"bf16": {"enabled": true}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}, '
    '"activation_checkpointing": {"partition_activations": false}, "wall_clock_breakdown": false}',
    flags="--bs 2 --optimizer adamw",
    says=("over all GPUs and micro-batches", "DeepSpeed's own checkpointing"),
)
WHOLE = (
    AXOLOTL_QLORA, AXOLOTL_FULL, AXOLOTL_8BIT, AXOLOTL_FSDP, LLAMA_FACTORY, LLAMA_FACTORY_FULL,
    LLAMA_FACTORY_LORA_PLUS, LLAMA_FACTORY_V1, LLAMA_FACTORY_V1_FULL, LLAMA_FACTORY_V1_QLORA, TORCHTUNE,
    TORCHTUNE_QLORA, TRL, TRL_QLORA, ADAPTER, VERA,
)  # fmt: skip
"""Files that name a model."""
PARTS = (TRAINING_ARGUMENTS, ACCELERATE, ACCELERATE_DDP, ACCELERATE_ZERO, DEEPSPEED, DEEPSPEED_PLAIN)
"""Files that need a model, and for several GPUs how many."""
