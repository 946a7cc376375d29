# tools/dataset_converters/refshapes.py --out data/refshapes --num-train 4000
_base_ = './refer.py'
data_root = 'data/refshapes'
image_size = 160
train_pipeline = _base_.train_pipeline
train_pipeline[3].size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[2].size = image_size
train_dataloader = dict(
    dataset=dict(
        data_root=data_root, num_expressions=6, pipeline=train_pipeline))
val_dataloader = dict(
    dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
