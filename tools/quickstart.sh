#!/usr/bin/env bash
# From a fresh clone to a trained, tested model and pictures, on CPU or GPU.
# The last line of the output is one JSON object with the scores. What is
# already there is reused; remove work_dirs/quickstart to train again.
set -euo pipefail
. "$(dirname "$0")/misc/setup_env.sh"

config=configs/cris/cris_tiny_1xb8-6e_refshapes-128x128.py
minutes=${MINUTES:-8}  # of training, at most
data=data/refshapes
work=work_dirs/quickstart
checkpoint=$work/last.pth
pictures=$work/predictions.jpg

step() { echo; echo "== $*"; }

if [ ! -f "$data/refs(unc).p" ]; then
    step "Writing RefShapes to $data"
    python tools/dataset_converters/refshapes.py --out "$data" --num-train 4000 --seed 0
fi
pictures_there=$(find "$data/images" -name 'train_*' | wc -l)
if [ "$pictures_there" != 4000 ]; then
    echo "$data has $pictures_there pictures for training, not 4000: move it away, then start again" >&2
    exit 1
fi
if [ ! -f "$data/refs(shuffled).p" ]; then
    python tools/dataset_converters/shuffle_sentences.py "$data/refs(unc).p" "$data/refs(shuffled).p"
fi

if [ ! -f "$checkpoint" ]; then
    step "Training $config ($minutes minutes at most)"
    rm -rf "$work"
    start=$SECONDS
    python tools/train.py "$config" --amp --max-minutes "$minutes" --work-dir "$work/train"
    mkdir -p "$work"
    echo $((SECONDS - start)) >"$work/train_seconds"
    cp "$(cat "$work/train/last_checkpoint")" "$checkpoint"
fi

score() { # name, further options
    [ "$work/$1.json" -nt "$checkpoint" ] && return
    step "Testing: $1"
    python tools/test.py "$config" "$checkpoint" --work-dir "$work/test" \
        --out "$work/$1.json" --cfg-options "${@:2}"
}
score val test_dataloader.dataset.split=val
score testA test_dataloader.dataset.split=testA
score testB test_dataloader.dataset.split=testB
score shuffled test_dataloader.dataset.split=val "test_dataloader.dataset.split_file=refs(shuffled).p"

if [ ! "$pictures" -nt "$checkpoint" ]; then
    step "Drawing $pictures"
    python tools/analysis_tools/draw_predictions.py "$config" "$checkpoint" "$pictures"
fi

echo
python - "$work" "$pictures" <<'PYTHON'
import json
import sys
from pathlib import Path

work = Path(sys.argv[1])
val, test_a, test_b, shuffled = (
    json.loads((work / f'{name}.json').read_text())
    for name in ('val', 'testA', 'testB', 'shuffled'))
print(json.dumps({
    'mIoU': val['mIoU'],
    'oIoU': val['oIoU'],
    'Pr@50': val['Pr@50'],
    'testA_mIoU': test_a['mIoU'],
    'testB_mIoU': test_b['mIoU'],
    'shuffled_text_mIoU': shuffled['mIoU'],
    'train_seconds': int((work / 'train_seconds').read_text()),
    'pictures': sys.argv[2],
}))
PYTHON
