# Ablation: two decoder layers.
#   bash tools/dist_train.sh configs/cris/cris_r50-dec2_8xb8-amp-50e_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. Compare mIoU on val; not trained here.
_base_ = './cris_r50_8xb8-amp-50e_refcoco-416x416.py'
model = dict(decode_head=dict(num_layers=2))
