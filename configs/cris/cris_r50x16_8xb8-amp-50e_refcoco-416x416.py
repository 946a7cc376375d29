# The paper's neck and decoder on CLIP's largest but one ResNet.
#   bash tools/dist_train.sh configs/cris/cris_r50x16_8xb8-amp-50e_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. Compare mIoU on val with R50; not trained here.
_base_ = './cris_r50_8xb8-amp-50e_refcoco-416x416.py'
model = dict(backbone=dict(model_name='RN50x16'))
