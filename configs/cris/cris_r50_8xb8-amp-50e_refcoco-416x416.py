# The paper's CRIS R50 on RefCOCO (unc).
#   bash tools/dist_train.sh configs/cris/cris_r50_8xb8-amp-50e_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The paper reports mIoU 69.52 / 72.72 / 64.70 on
# val / testA / testB; not trained here.
_base_ = [
    '../_base_/models/cris_r50.py', '../_base_/datasets/refcoco.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
