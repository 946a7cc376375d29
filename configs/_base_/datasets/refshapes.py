# tools/dataset_converters/refshapes.py --out data/refshapes --num-train 4000
_base_ = './refer.py'
image_size = 128
train_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'),
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
    dataset=dict(
        data_root='data/refshapes',
        num_expressions=6,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(data_root='data/refshapes', pipeline=test_pipeline))
test_dataloader = val_dataloader
