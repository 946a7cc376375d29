# RefCOCOg (umd): train, val, test. Its sentences are long: 22 tokens.
_base_ = './refcoco.py'
context_length = 22
train_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'),
    dict(
        type='Letterbox',
        size=_base_.image_size,
        border_value=_base_.border_value),
    dict(type='TokenizeExpressions', context_length=context_length),
    dict(type='PackReferInputs')
]
test_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(
        type='Letterbox',
        size=_base_.image_size,
        border_value=_base_.border_value),
    dict(type='LoadReferMasks'),
    dict(type='TokenizeExpressions', context_length=context_length),
    dict(type='PackReferInputs')
]
dataset = dict(
    data_root='data/refcocog',
    split_file='refs(umd).p',
    size_mismatch='resize_mask')  # of some pictures in some copies
train_dataloader = dict(dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = dict(
    dataset=dict(**dataset, split='test', pipeline=test_pipeline))
