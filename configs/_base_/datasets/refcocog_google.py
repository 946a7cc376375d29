# RefCOCOg (google): train and val; no test was released.
_base_ = './refcocog_umd.py'
split_file = 'refs(google).p'
train_dataloader = dict(dataset=dict(split_file=split_file))
val_dataloader = dict(dataset=dict(split_file=split_file))
test_dataloader = dict(dataset=dict(split_file=split_file, split='val'))
