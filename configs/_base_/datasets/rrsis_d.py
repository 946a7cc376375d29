# RRSIS-D, remote sensing in the REFER layout: train, val, test.
_base_ = './refcoco.py'
dataset = dict(
    data_root='data/rrsisd',
    size_mismatch='resize_image',  # some are not 800 x 800, as annotated
    data_prefix=dict(img_path='images/rrsisd/JPEGImages'))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dict(**dataset, split='test'))
