# RefCOCO (unc): train, val, testA, testB.
# tools/*.py let image_size and context_length of a config, or of
# --cfg-options, hold for all of its pipelines (cris/engine/config.py).
image_size = 416
context_length = 17
border_value = [104.09373615, 116.7460125, 122.7709383]  # CLIP's mean, BGR

train_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'),
    dict(type='Letterbox', size=image_size, border_value=border_value),
    dict(type='TokenizeExpressions', context_length=context_length),
    dict(type='PackReferInputs')
]
# Masks that are loaded after the letterbox stay at the original size.
test_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='Letterbox', size=image_size, border_value=border_value),
    dict(type='LoadReferMasks'),
    dict(type='TokenizeExpressions', context_length=context_length),
    dict(type='PackReferInputs')
]
dataset = dict(
    type='RefCOCODataset',
    data_root='data/refcoco',
    ann_file='instances.json',
    split_file='refs(unc).p',
    data_prefix=dict(img_path='train2014'))
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,  # batch norm cannot train on a single expression
    sampler=dict(type='ResumableSampler', shuffle=True),
    dataset=dict(**dataset, split='train', pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='RefSegMetric')
test_evaluator = val_evaluator
