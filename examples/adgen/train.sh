#!/usr/bin/env bash
# Advertisements from features: P-Tuning v2 as the official script does it. Without MODEL and DATA: the embedded tiny
# base and a small made-up sample, so that this runs anywhere; MAX_STEPS=20 makes it a matter of seconds.
#   MODEL=chatglm2-6b DATA=AdvertiseGen bash examples/adgen/train.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

PRE_SEQ_LEN=${PRE_SEQ_LEN:-128}
LR=${LR:-2e-2}
NUM_GPUS=${NUM_GPUS:-1}
MODEL=${MODEL:-examples/quickstart/base}
DATA=${DATA:-examples/adgen}
MAX_STEPS=${MAX_STEPS:-3000}
OUTPUT=${OUTPUT:-output/adgen-$(basename "$MODEL")-pt-$PRE_SEQ_LEN-$LR}

torchrun --standalone --nnodes=1 --nproc-per-node="$NUM_GPUS" train.py \
  --config examples/configs/adgen_ptuning.yaml \
  --train_file "$DATA/train.json" --validation_file "$DATA/dev.json" \
  --model_name_or_path "$MODEL" --output_dir "$OUTPUT" \
  --pre_seq_len "$PRE_SEQ_LEN" --learning_rate "$LR" --max_steps "$MAX_STEPS"
