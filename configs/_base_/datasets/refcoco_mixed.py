# Trains on RefCOCO, RefCOCO+ and RefCOCOg (umd) together, without the images
# of their val and test splits; evaluates on RefCOCO. 22 tokens, as RefCOCOg.
_base_ = './refcocog_umd.py'
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
train = dict(split='train', exclude=held_out, pipeline=_base_.train_pipeline)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(**refcoco, **train),
            dict(**refcoco_plus, **train),
            dict(**refcocog, **train)
        ]))
val_dataloader = dict(
    dataset=dict(data_root='data/refcoco', split_file='refs(unc).p'))
test_dataloader = dict(
    dataset=dict(
        data_root='data/refcoco', split_file='refs(unc).p', split='val'))
