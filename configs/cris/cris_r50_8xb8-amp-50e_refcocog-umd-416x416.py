# The paper's CRIS R50 on RefCOCOg (umd).
#   bash tools/dist_train.sh configs/cris/cris_r50_8xb8-amp-50e_refcocog-umd-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The paper reports mIoU 59.35 / 59.39 on
# val / test; not trained here.
_base_ = [
    '../_base_/models/cris_r50.py', '../_base_/datasets/refcocog_umd.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
