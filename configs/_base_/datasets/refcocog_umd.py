# RefCOCOg (umd): train, val, test. Its sentences are long: 22 tokens.
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
test_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        split_file=split_file,
        split='test',
        pipeline=test_pipeline))
