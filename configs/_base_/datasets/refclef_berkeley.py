# RefClef (berkeley): train, val, test.
_base_ = './refclef_unc.py'
split_file = 'refs(berkeley).p'
train_dataloader = dict(dataset=dict(split_file=split_file))
val_dataloader = dict(dataset=dict(split_file=split_file))
test_dataloader = dict(dataset=dict(split_file=split_file, split='test'))
