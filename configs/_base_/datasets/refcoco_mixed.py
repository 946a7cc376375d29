# Trains on RefCOCO, RefCOCO+ and RefCOCOg (umd) at once, without any image
# that is in a val or test split of any of them; evaluates on RefCOCO.
_base_ = './refcoco.py'
context_length = 22  # of RefCOCOg
train_pipeline = _base_.train_pipeline
train_pipeline[4].context_length = context_length
test_pipeline = _base_.test_pipeline
test_pipeline[4].context_length = context_length
images = dict(img_path='train2014')
refcoco = dict(
    type='RefCOCODataset', data_root='data/refcoco', data_prefix=images)
refcoco_plus = dict(
    type='RefCOCODataset', data_root='data/refcoco+', data_prefix=images)
refcocog = dict(
    type='RefCOCODataset',
    data_root='data/refcocog',
    split_file='refs(umd).p',
    data_prefix=images)
held_out = [
    dict(**refcoco, split=['val', 'testA', 'testB']),
    dict(**refcoco_plus, split=['val', 'testA', 'testB']),
    dict(**refcocog, split=['val', 'test'])
]
train = dict(split='train', exclude=held_out, pipeline=train_pipeline)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(**refcoco, **train),
            dict(**refcoco_plus, **train),
            dict(**refcocog, **train)
        ]))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
