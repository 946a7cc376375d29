# The small model from scratch on any folder in the REFER layout.
#   python tools/train.py configs/cris/cris_tiny_1xb8-50e_refer-192x256.py \
#       --amp --cfg-options train_dataloader.dataset.data_root=DIR \
#       val_dataloader.dataset.data_root=DIR
# Hardware: 2 CPU cores with bfloat16. 1 x 8 images x 8 expressions = 64.
# Expected mIoU: it depends on the data; 58 to 59 on 40 other street photographs
# after 50 epochs of 120 with 815 refs, 6 minutes of one core, and 59 to 60
# after 100 (train_cfg.max_epochs=100).
_base_ = [
    '../_base_/models/cris_tiny.py', '../_base_/datasets/refer_small.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
