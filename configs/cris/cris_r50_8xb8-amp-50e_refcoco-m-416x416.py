# The paper's CRIS R50 on RefCOCO (unc), tested on RefCOCO-M.
#   bash tools/dist_test.sh configs/cris/cris_r50_8xb8-amp-50e_refcoco-m-416x416.py CHECKPOINT 8
# Any checkpoint of cris_r50_8xb8-amp-50e_refcoco-416x416.py fits; training is
# the same, with RefCOCO val for validation. RefCOCO-M is that val split with
# pixel-accurate masks, so test a last checkpoint rather than the best on val.
# Hardware: 8 GPUs x 8 = 64. The score is mIoU, over pairs of an image and a
# sentence. The paper has none of this set; not trained here.
_base_ = [
    '../_base_/models/cris_r50.py', '../_base_/datasets/refcoco_m.py',
    '../_base_/schedules/schedule_50e.py', '../_base_/default_runtime.py'
]
