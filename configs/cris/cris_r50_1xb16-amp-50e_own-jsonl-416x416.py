# Fine-tunes R50 with CLIP's weights on your own data in JSON lines.
#   python tools/train.py configs/cris/cris_r50_1xb16-amp-50e_own-jsonl-416x416.py
# Data: data/own (or a link) with images/, masks/, train.jsonl and val.jsonl.
# Hardware: 1 GPU with 12 GB; on an H100 a step in bf16 took 8.2 GB at most and
# 0.12 s, so 8 s for an epoch of 1000 refs.
# Expected mIoU: it depends on the data. Pictures are not augmented; how to, and
# what else helps with little data, is in docs/en/fine_tune.md.
_base_ = [
    '../_base_/models/cris_r50.py', '../_base_/datasets/own_jsonl.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=1e-4 * 16 / 64))  # 2.5e-5; CLIP 2.5e-6
auto_scale_lr = dict(base_batch_size=16)  # 1 GPU x 16
train_cfg = dict(val_interval=5)  # an epoch of few pictures takes seconds,
default_hooks = dict(checkpoint=dict(interval=5))  # a checkpoint 1.8 GB
