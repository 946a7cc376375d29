# RefCOCO, google splits: train, val, test. Train shares images with val and test.
_base_ = './refcoco.py'
split_file = 'refs(google).p'
train_dataloader = dict(dataset=dict(split_file=split_file))
val_dataloader = dict(dataset=dict(split_file=split_file))
test_dataloader = dict(dataset=dict(split_file=split_file, split='test'))
