# Own data: images/, train.json and val.json in COCO form (docs/en/data.md).
_base_ = './refer.py'
dataset = dict(
    _delete_=True,
    type='ReferCOCODataset',
    data_root='data/own',
    data_prefix=dict(img_path='images'))
train_dataloader = dict(
    dataset=dict(
        **dataset, num_expressions=8, pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
