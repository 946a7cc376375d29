# The paper's CRIS R101 on RefCOCOg (google).
#   bash tools/dist_train.sh configs/cris/cris_r101_8xb8-amp-50e_refcocog-google-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The paper has no mIoU of this split;
# not trained here.
_base_ = [
    '../_base_/models/cris_r101.py', '../_base_/datasets/refcocog_google.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
