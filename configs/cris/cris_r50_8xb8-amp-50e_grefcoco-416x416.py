# The paper's CRIS R50 on gRefCOCO (unc).
#   bash tools/dist_train.sh configs/cris/cris_r50_8xb8-amp-50e_grefcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The paper has no gIoU or mIoU of this set;
# not trained here.
_base_ = [
    '../_base_/models/cris_r50.py', '../_base_/datasets/grefcoco.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
# mIoU leaves out expressions without a target; gIoU counts them.
default_hooks = dict(checkpoint=dict(save_best='gIoU'))
