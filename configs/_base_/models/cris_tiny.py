# The paper's model at a size that trains from scratch on a CPU.
_base_ = './cris_r50.py'
model_image_size = 160
model = dict(
    backbone=dict(
        model_name=None,
        embed_dim=64,
        vision_cfg=dict(image_size=160, layers=[1, 1, 1, 1], width=16),
        text_cfg=dict(
            context_length=32, vocab_size=49408, width=48, heads=3,
            layers=2),
        init_cfg=None),
    neck=dict(
        out_channels=[32, 64, 128]),
    decode_head=dict(
        in_channels=64,
        num_layers=2,
        num_heads=4,
        feedforward_channels=256,
        dropout=0.0,
        threshold=0.5,
        # Dice counts small objects as much as large ones.
        loss_decode=[
            dict(type='TextToPixelContrastiveLoss'),
            dict(
                type='DiceLoss', naive_dice=True, eps=1.0, ignore_index=None)
        ],
        # A shift by a pixel or two costs much at a small size.
        align_corners=False,
        target_resize='area'),
    # A text encoder from scratch learns words faster with it.
    auxiliary_head=dict(
        type='RegionWordsHead',
        in_channels='auto',
        word_channels='auto',
        sentence_channels='auto'))
