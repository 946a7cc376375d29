# RefCOCO+ (unc): train, val, testA, testB.
_base_ = './refcoco.py'
data_root = 'data/refcoco+'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
