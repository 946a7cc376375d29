# The paper's neck and decoder on CLIP's ViT-L/14 at 336 pixels. Its patches do
# not divide 416, so that images are resized to 420; they divide 448:
# --cfg-options image_size=448.
#   bash tools/dist_train.sh configs/cris/cris_vit-l14-336_8xb8-amp-50e_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. Compare mIoU on val with R50; not trained here.
_base_ = './cris_r50_8xb8-amp-50e_refcoco-416x416.py'
model = dict(backbone=dict(model_name='ViT-L-14-336'))
