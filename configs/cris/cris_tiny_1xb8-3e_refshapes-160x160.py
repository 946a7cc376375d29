# The small model on RefShapes; tools/quickstart.sh runs this.
#   python tools/train.py configs/cris/cris_tiny_1xb8-3e_refshapes-160x160.py --amp
# Hardware: 2 CPU cores, about 8 minutes with bfloat16 and 15 without. 1 x 8
# images x 6 expressions = 48. Expected: val mIoU 63.
_base_ = [
    '../_base_/models/cris_tiny.py', '../_base_/datasets/refshapes.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
train_cfg = dict(max_epochs=3, val_interval=3)
auto_scale_lr = dict(num_expressions=6)
