# refer_small.py with larger pictures in evaluation. RandomReferCrop enlarges
# things, so they suit what was learnt on smaller ones (arXiv 1906.06423).
_base_ = './refer_small.py'
image_size = (256, 352)
train_image_size = (192, 256)
test_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='Letterbox', size=image_size, border_value=_base_.border_value),
    dict(type='LoadReferMasks'),
    dict(type='TokenizeExpressions', context_length=_base_.context_length),
    dict(type='PackReferInputs')
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
