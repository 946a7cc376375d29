# The small model on RefShapes; tools/quickstart.sh runs this.
#   OMP_NUM_THREADS=1 python tools/train.py \
#       configs/cris/cris_tiny_1xb8-6e_refshapes-128x128.py --amp --max-minutes 15
# Hardware: 1 CPU core. With bfloat16 15 minutes were about 4 epochs.
# 1 x 8 images x 6 expressions = 48. Expected: val mIoU 81 to 85.
_base_ = [
    '../_base_/models/cris_tiny-fine.py',
    '../_base_/datasets/refshapes.py',
    '../_base_/schedules/schedule_scratch.py',
    '../_base_/default_runtime.py'
]
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.95)))
train_cfg = dict(max_epochs=6, val_interval=6)
auto_scale_lr = dict(num_expressions=6)
