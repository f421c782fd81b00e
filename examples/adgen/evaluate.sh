#!/usr/bin/env bash
# Scores of what train.sh trained, with the same variables; STEP is the checkpoint.
#   MODEL=chatglm2-6b DATA=AdvertiseGen STEP=3000 bash examples/adgen/evaluate.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

PRE_SEQ_LEN=${PRE_SEQ_LEN:-128}
LR=${LR:-2e-2}
MODEL=${MODEL:-examples/quickstart/base}
DATA=${DATA:-examples/adgen}
OUTPUT=${OUTPUT:-output/adgen-$(basename "$MODEL")-pt-$PRE_SEQ_LEN-$LR}
STEP=${STEP:-3000}

python predict.py \
  --test_file "$DATA/dev.json" --prompt_column content --response_column summary \
  --model_name_or_path "$MODEL" --ptuning_checkpoint "$OUTPUT/checkpoint-$STEP" \
  --max_source_length 64 --max_target_length 64 --max_new_tokens 64 \
  --per_device_eval_batch_size 8 --output_dir "$OUTPUT/predict-$STEP"
