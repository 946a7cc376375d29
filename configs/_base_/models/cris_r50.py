# The paper's CRIS R50. To train in less memory, compute the largest maps again
# in the backward pass: about 0.16 GB an image in place of 0.35 (416 pixels,
# half precision), for about 12 % more time:
#   --cfg-options model.backbone.with_cp=True model.decode_head.with_cp=True
model_image_size = 416  # a very different image_size is warned of
mean = [122.7709383, 116.7460125, 104.09373615]  # CLIP's, of 255
std = [68.5005327, 66.6321579, 70.32316305]
model = dict(
    type='CRIS',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=mean,
        std=std,
        bgr_to_rgb=True,
        size_divisor=1,
        seg_pad_val=0),
    backbone=dict(
        type='CLIPBackbone',
        model_name='RN50',
        with_cp=False,
        # CLIP's weights, fetched when training starts; or a file of them.
        init_cfg=dict(type='Pretrained', checkpoint='openai')),
    neck=dict(
        type='CrossModalFPN',
        in_channels='auto',  # the backbone's: R50's are 512, 1024, 1024
        out_channels=[256, 512, 1024],
        sentence_channels='auto'),
    decode_head=dict(
        type='VisionLanguageDecoderHead',
        in_channels=512,
        word_channels='auto',
        sentence_channels='auto',
        num_layers=3,
        num_heads=8,
        feedforward_channels=2048,
        dropout=0.1,
        with_cp=False,
        kernel_size=3,
        threshold=0.35,
        loss_decode=dict(type='TextToPixelContrastiveLoss', loss_weight=1.0)))
