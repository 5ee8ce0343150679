"""Configuration files of LLaMA-Factory's v1, written from its arguments, and the flags they stand for."""

from __future__ import annotations

from tests.support.tool_file import ToolFile

LLAMA_FACTORY_V1 = ToolFile(
    name="v1_lora.yaml",
    text="""
model: Qwen/Qwen2.5-1.5B
model_class: llm
trust_remote_code: true
flash_attn: flash_attention_2
peft_config:
  name: lora
  r: 32
  lora_alpha: 64
  lora_dropout: 0.1
  target_modules: [q_proj, v_proj]
kernel_config: {name: auto}
dist_config:
  name: fsdp2
  reshard_after_forward: true
  dcp_path: null
init_config: {name: init_on_rank0}
train_dataset: data/mine.yaml
output_dir: out
micro_batch_size: 2
global_batch_size: 8
dp_size: 4
cutoff_len: 512
batching_strategy: padding_free
enable_activation_checkpointing: false
learning_rate: 1.0e-4
max_steps: 10
sample_backend: hf
max_new_tokens: 64
""",
    flags="--model qwen2.5-1.5b --method lora --rank 32 --dropout 0.1 --targets q_proj,v_proj --seq 512 --bs 2 --amp "
    "--attn flash --gpus 4 --shard fsdp --optimizer adamw",
    says=(
        "LLaMA-Factory v1: model ", "under FSDP with bf16 weights are gathered in bf16",
        "each matrix of an adapter is gathered alone", "clipping, which is the tool's default, is not counted",
        "(auto: none on NVIDIA's cards): kernel_config.name", "it makes one row of a batch's tokens",
        "no effect on memory: peft_config.lora_alpha",
    ),
)  # fmt: skip
LLAMA_FACTORY_V1_FULL = ToolFile(
    name="v1_full.json",
    text='{"model": "Qwen/Qwen2.5-0.5B", "train_dataset": "some/set", "micro_batch_size": 2, "global_batch_size": 2, '
    '"cutoff_len": 256, "bf16": true, "max_grad_norm": 0.5, "kernel_config": {"name": "auto, liger_kernel"}}',
    flags="--model qwen2.5-0.5b --method full --dtype fp32 --seq 256 --bs 2 --checkpointing full --optimizer adamw "
    "--attn sdpa --clip",
    says=(
        "(without dist_config nothing reads it: computed is in the weights' dtype): bf16",
        "liger_kernel: fused kernels",
        "casts a model to fp32 that is trained whole", "up to 8 bytes a logit more", "taken as sft",
    ),
)  # fmt: skip
LLAMA_FACTORY_V1_QLORA = ToolFile(
    name="v1_qlora.yaml",
    text="""
model: meta-llama/Llama-3.2-1B
peft_config: {name: lora, target_modules: all}
quant_config: {name: bnb, quantization_bit: 4}
train_dataset: some/set
micro_batch_size: 1
cutoff_len: 1024
seed: 1
""",
    flags="--model llama3.2-1b --method qlora --quant nf4-dq --rank 8 --dropout 0.05 --targets all-linear --seq 1024 "
    "--bs 1 --checkpointing full --optimizer adamw --attn sdpa --clip",
    says=("products in float16: casts to it and back", "defaults of LLaMA-Factory v1: "),
)
