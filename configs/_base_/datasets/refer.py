# Any folder in the REFER layout, at a small size. Data sets differ in the
# root alone: --cfg-options train_dataloader.dataset.data_root=DIR ...
_base_ = './refcoco.py'
data_root = 'data/refer'
image_size = (192, 256)  # height x width: most photographs are 4:3
train_pipeline = _base_.train_pipeline
train_pipeline[3].size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[2].size = image_size
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    drop_last=False,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path='images'),
        num_expressions=8,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path='images'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
