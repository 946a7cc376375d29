# The small model from scratch on any folder in the REFER layout.
#   python tools/train.py configs/cris/cris_tiny_1xb8-50e_refer-192x256.py \
#       --amp --cfg-options train_dataloader.dataset.data_root=DIR \
#       val_dataloader.dataset.data_root=DIR
# Hardware: 2 CPU cores with bfloat16, about 10 minutes for 120 pictures with
# 815 refs. 1 x 8 images x 8 expressions = 64. Expected mIoU: it depends on
# the data; 52 on 40 other street photographs.
_base_ = [
    '../_base_/models/cris_tiny.py', '../_base_/datasets/refer.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
image_size = (192, 256)  # height x width: most photographs are 4:3
train_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='LoadReferMasks'),
    dict(type='Letterbox', size=image_size, border_value=_base_.border_value),
    dict(type='TokenizeExpressions', context_length=_base_.context_length),
    dict(type='PackReferInputs')
]
test_pipeline = [
    dict(type='LoadReferImage'),
    dict(type='ChooseExpressions'),
    dict(type='Letterbox', size=image_size, border_value=_base_.border_value),
    dict(type='LoadReferMasks'),
    dict(type='TokenizeExpressions', context_length=_base_.context_length),
    dict(type='PackReferInputs')
]
train_dataloader = dict(
    num_workers=2,
    drop_last=False,
    dataset=dict(num_expressions=8, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8, num_workers=2, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
