# Longer sentences than in RefCOCO; test_dataloader.dataset.split=test is there.
_base_ = './refcoco.py'
data_root = 'data/refcocog'
split_file = 'refs(umd).p'
context_length = 22
train_pipeline = _base_.train_pipeline
train_pipeline[4].context_length = context_length
test_pipeline = _base_.test_pipeline
test_pipeline[4].context_length = context_length
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, split_file=split_file, pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(
        data_root=data_root, split_file=split_file, pipeline=test_pipeline))
test_dataloader = val_dataloader
