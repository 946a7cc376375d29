# Your own data: data/own/train.jsonl, val.jsonl, images/ and masks/
# (docs/en/data.md).
_base_ = './refcoco.py'
dataset = dict(
    _delete_=True,
    type='ReferJSONLDataset',
    data_root='data/own',
    data_prefix=dict(img_path='images', mask_path='masks'))
train_dataloader = dict(
    dataset=dict(**dataset, split='train', pipeline=_base_.train_pipeline))
val_dataloader = dict(
    dataset=dict(
        **dataset, split='val', test_mode=True, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
