# The paper's CRIS R101 on RefCOCO+ (unc).
#   bash tools/dist_train.sh configs/cris/cris_r101_8xb8-amp-50e_refcoco-plus-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The paper reports mIoU 62.27 / 68.08 / 53.68 on
# val / testA / testB; not trained here.
_base_ = [
    '../_base_/models/cris_r101.py', '../_base_/datasets/refcoco_plus.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
