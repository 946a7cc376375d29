# Your own data in the REFER layout: data/refer/instances.json, refs(unc).p and
# images/ (docs/en/data.md). Splits: train, val.
_base_ = './refcoco.py'
dataset = dict(data_root='data/refer', data_prefix=dict(img_path='images'))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
