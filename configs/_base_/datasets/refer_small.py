# The data of refer.py at a size for small models on CPUs, 8 expressions of an
# image.
_base_ = './refcoco.py'
dataset = dict(data_root='data/refer', data_prefix=dict(img_path='images'))
image_size = (192, 256)  # height x width: most photographs are 4:3
train_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'),
    dict(type='RandomReferCrop'),
    dict(type='RandomReferFlip'),
    # Brighter, darker, paler; colours keep their names.
    dict(
        type='PhotoMetricDistortion', saturation_range=(0.7, 1.3),
        hue_delta=1),
    dict(type='Letterbox', size=image_size, border_value=_base_.border_value),
    dict(type='TokenizeExpressions', context_length=_base_.context_length),
    dict(type='PackReferInputs')
]
test_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='Letterbox', size=image_size, border_value=_base_.border_value),
    dict(type='LoadReferMasks'),
    dict(type='TokenizeExpressions', context_length=_base_.context_length),
    dict(type='PackReferInputs')
]
train_dataloader = dict(
    num_workers=2,
    drop_last=False,
    dataset=dict(**dataset, num_expressions=8, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
