# The small model for small objects: two of the image's three maps are taken
# one stage earlier, so that the decoder works at stride 8 and the logits are
# at stride 2.
_base_ = './cris_tiny.py'
model_image_size = 128
model = dict(
    backbone=dict(strides=(4, 8, 32)),
    decode_head=dict(num_layers=1, num_heads=2, feedforward_channels=128))
