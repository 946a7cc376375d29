# The small model on RefShapes; tools/quickstart.sh runs this.
#   python tools/train.py configs/cris/cris_tiny_1xb8-4e_refshapes-160x160.py \
#       --amp --max-minutes 8
# Hardware: 2 CPU cores. With bfloat16 8 minutes were 3.3 epochs or more.
# 1 x 8 images x 6 expressions = 48. Expected: val mIoU 64 to 65.
_base_ = [
    '../_base_/models/cris_tiny.py', '../_base_/datasets/refshapes.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
train_cfg = dict(max_epochs=4, val_interval=4)
auto_scale_lr = dict(num_expressions=6)
