# CRIS R50 on gRefCOCO (unc) that also says whether there is a referent.
#   bash tools/dist_train.sh configs/cris/cris_r50-exist_8xb8-amp-50e_grefcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. The paper has no gIoU or mIoU of this set;
# not trained here.
_base_ = './cris_r50_8xb8-amp-50e_grefcoco-416x416.py'
model = dict(decode_head=dict(existence=True))
