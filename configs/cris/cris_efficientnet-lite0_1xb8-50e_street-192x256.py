# The small model on EfficientNet-Lite0, on street scenes: sky, road, pavement,
# building, tree, fence, car, pedestrian and cyclist, by place and size. Its
# weights come with the project:
#   cris-segment street.jpg --model street --text 'the road'
#   OMP_NUM_THREADS=1 python tools/train.py \
#       configs/cris/cris_efficientnet-lite0_1xb8-50e_street-192x256.py --amp --max-minutes 15
# Hardware: 1 CPU core. 1 x 8 images x 4 expressions = 32. Data: pictures of
# CamVid and expressions made from its masks, in the REFER layout, 120 to train
# on; they are not distributed here. Expected: mIoU 66 on 40 others.
_base_ = [
    '../_base_/models/cris_efficientnet-lite0.py',
    '../_base_/datasets/refer_small-256x352.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
dataset = dict(data_root='data/street')
train_dataloader = dict(dataset=dict(**dataset, num_expressions=4))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
# As in cris_efficientnet-lite0_1xb8-50e_refer-192x256.py.
model = dict(backbone=dict(frozen_stages=5))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone.visual': dict(lr_mult=0.5)}))
train_cfg = dict(val_interval=50)
auto_scale_lr = dict(num_expressions=4)
