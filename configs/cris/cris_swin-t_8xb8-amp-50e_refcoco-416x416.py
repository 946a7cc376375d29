# The paper's neck and decoder on mmpretrain's Swin-T, with the text encoder of
# CLIP's RN50.
#   bash tools/dist_train.sh configs/cris/cris_swin-t_8xb8-amp-50e_refcoco-416x416.py 8
# Hardware: 8 GPUs x 8 = 64. Compare mIoU on val with R50; not trained here.
_base_ = './cris_r50_8xb8-amp-50e_refcoco-416x416.py'
model = dict(
    data_preprocessor=dict(  # ImageNet's
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        image_encoder=dict(
            type='mmpretrain.SwinTransformer',
            arch='tiny',
            out_indices=(1, 2, 3),
            pad_small_map=True,
            init_cfg=dict(
                type='Pretrained',
                prefix='backbone',
                checkpoint='https://mmassets.onedl.ai/mmclassification/'
                'v0/swin-transformer/swin_tiny_224_b16x64_300e_imagenet_'
                '20210616_090925-66df6be6.pth'))))
