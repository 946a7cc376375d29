# Copyright (c) the mmseg-cris authors. Licensed under Apache-2.0.
"""Scenes of RefShapes: laid out, painted and annotated.

Coordinates are continuous: the pixel in column i covers [i, i + 1).
"""
from itertools import combinations
from typing import Any, NamedTuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils

CORNERS = {'circle': 40, 'square': 4, 'triangle': 3, 'star': 10}
SHAPES = tuple(CORNERS)
# Hue in degrees, and the ranges of saturation and value.
COLORS = {
    'red': (0, (0.82, 0.95), (0.72, 0.88)),
    'orange': (28, (0.88, 1.0), (0.88, 1.0)),
    'yellow': (54, (0.78, 0.95), (0.88, 1.0)),
    'green': (125, (0.65, 0.9), (0.45, 0.68)),
    'blue': (222, (0.72, 0.92), (0.65, 0.9)),
    'purple': (284, (0.6, 0.85), (0.5, 0.72)),
}
# Visible area as a fraction of the picture.
SIZE_BOUNDS = {'small': (0.006, 0.015), 'large': (0.03, 0.075)}
SIDE_RANGE = (192, 240)
MAX_HIDDEN, MIN_HIDDEN = 0.28, 0.06  # of the area of a covered object
MIN_DISTANCE = 0.1  # between two centres, in terms of the shorter side
MIN_AGREEMENT = 0.955  # IoU of an object as drawn and as COCO decodes it
BORDER = 4  # pixels between an object and the edge of the picture
SUPERSAMPLING = 8


class SceneObject(NamedTuple):
    """An object: its attributes and its outline, (N, 2) in pixels."""
    color: str
    shape: str
    size: str
    polygon: np.ndarray


class Scene(NamedTuple):
    """A scene that is laid out, but not painted."""
    objects: tuple[SceneObject, ...]  # later ones on top
    labels: np.ndarray  # (H, W) int32: 0 background, i + 1 objects[i]
    areas: tuple[int, ...]  # pixels of each whole object, covered or not


def sample_outline(shape: str, size: str, picture_area: int,
                   rng: np.random.Generator) -> np.ndarray:
    """Outline (N, 2) around the origin in pixels, slightly rotated."""
    corners = CORNERS[shape]
    radii = np.ones(corners)
    if shape == 'star':
        radii[1::2] = 0.45
    fan = (radii * np.roll(radii, -1)).sum() * np.sin(2 * np.pi / corners) / 2
    low, high = SIZE_BOUNDS[size]
    # Inset, so that rounding to pixels keeps within the bounds.
    area = picture_area * rng.uniform(1.06 * low, 0.95 * high)
    start = (45 if shape == 'square' else -90) + rng.uniform(-15, 15)
    angles = np.deg2rad(start) + 2 * np.pi * np.arange(corners) / corners
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    return points * (radii * np.sqrt(area / fan))[:, None]


def sample_attributes(rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Draw (color, shape, size) of 3 to 6 objects, with many distractors.

    An object often has the colour or the shape, or both, of an earlier one.
    """
    drawn: list[tuple[str, str, str]] = []
    for _ in range(rng.integers(3, 7)):
        color = str(rng.choice(list(COLORS)))
        shape = str(rng.choice(SHAPES))
        size = str(rng.choice(['small', 'large'], p=[0.45, 0.55]))
        if drawn:
            old_color, old_shape, _ = drawn[rng.integers(len(drawn))]
            copied = rng.random()
            if copied < 0.38:
                shape = old_shape
            if copied < 0.05 or copied > 0.72:
                color = old_color
        drawn.append((color, shape, size))
    return drawn


def rasterize(polygon: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray]:
    """Rows and columns of a window around a polygon (N, 2), and the fraction
    of each pixel in it that the polygon covers, float32."""
    left, top = np.floor(polygon.min(0)).astype(int) - 3
    right, bottom = np.ceil(polygon.max(0)).astype(int) + 3
    shape = (bottom - top, right - left)
    fine = np.zeros([side * SUPERSAMPLING for side in shape], np.uint8)
    # OpenCV counts from the centres of pixels; 4 bits after the point.
    points = (polygon - (left, top)) * SUPERSAMPLING - 0.5
    points = [np.rint(points * 16).astype(np.int32)]
    cv2.fillPoly(fine, points, 255, shift=4)
    # fillPoly fills the line of the edge, though half of it is outside.
    cv2.polylines(fine, points, True, 128, shift=4)
    cover = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA)
    window = (slice(top, bottom), slice(left, right))
    return window, cover.astype(np.float32) / 255


def mask_center(mask: np.ndarray) -> tuple[float, float]:
    """Centre (x, y) of a non-empty mask in pixels."""
    sums = cv2.moments(mask.astype(np.uint8), binaryImage=True)
    return sums['m10'] / sums['m00'] + 0.5, sums['m01'] / sums['m00'] + 0.5


def encode_outline(polygon: np.ndarray, sides: tuple[int, int]) -> dict:
    """RLE of an outline in a picture (H, W), as COCO rasterizes it."""
    return mask_utils.frPyObjects([polygon.ravel().tolist()], *sides)[0]


def is_well_visible(scene: Scene) -> bool:
    """Check the visible areas, hidden parts and distances of a scene."""
    masks = [scene.labels == i + 1 for i in range(len(scene.objects))]
    for item, mask, whole in zip(scene.objects, masks, scene.areas,
                                 strict=True):
        low, high = SIZE_BOUNDS[item.size]
        hidden = 1 - mask.sum() / whole
        if not low <= mask.mean() <= high or (
                hidden and not MIN_HIDDEN <= hidden <= MAX_HIDDEN):
            return False
    apart = [np.hypot(*np.subtract(a, b)) for a, b in combinations(
        map(mask_center, masks), 2)]
    return min(apart, default=np.inf) >= (
        MIN_DISTANCE * min(scene.labels.shape))


def try_position(scene: Scene, item: SceneObject, overlap: bool,
                 rng: np.random.Generator) -> Scene | None:
    """The scene with one more object, or None if its position is not good.

    Args:
        scene: The scene so far; it is not changed.
        item: The object, its outline around the origin.
        overlap: Whether it covers a part of one earlier object, of another
            colour, rather than standing free.
        rng: Source of the position.
    """
    low = BORDER - item.polygon.min(0)
    high = np.array(scene.labels.shape[::-1]) - BORDER - item.polygon.max(0)
    center = rng.uniform(low, high)
    if overlap:
        below = scene.objects[rng.integers(len(scene.objects))]
        center = rng.normal(rng.choice(below.polygon),
                            0.4 * np.ptp(item.polygon, 0))
        if (center < low).any() or (center > high).any():
            return None
    polygon = (item.polygon + center).round(2)
    x, y = polygon.astype(int).T
    if not overlap and scene.labels[y, x].any():  # saves time, nothing else
        return None
    window, cover = rasterize(polygon)
    inside = cover >= 0.5
    near = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) > 0
    touched = set(scene.labels[window][near].tolist()) - {0}
    covered = set(scene.labels[window][inside].tolist()) - {0}
    if touched != covered or len(covered) != overlap or any(
            scene.objects[label - 1].color == item.color
            for label in covered):
        return None
    labels = scene.labels.copy()
    labels[window][inside] = len(scene.objects) + 1
    # COCO's rounding now and then adds a row of pixels along an edge.
    coco = mask_utils.decode(encode_outline(polygon, labels.shape)) > 0
    drawn = labels == len(scene.objects) + 1
    if (coco & drawn).sum() < MIN_AGREEMENT * (coco | drawn).sum():
        return None
    larger = Scene((*scene.objects, item._replace(polygon=polygon)), labels,
                   (*scene.areas, int(inside.sum())))
    return larger if is_well_visible(larger) else None


def sample_scene(rng: np.random.Generator) -> Scene:
    """Lay out a scene of 3 to 6 objects, some of them overlapping."""
    while True:
        sides = rng.integers(SIDE_RANGE[0], SIDE_RANGE[1] + 1, 2)
        scene: Scene | None = Scene((), np.zeros(sides, np.int32), ())
        overlapping = rng.random() < 0.5
        for words in sample_attributes(rng):
            item = SceneObject(*words, sample_outline(
                *words[1:], scene.labels.size, rng))
            overlap = bool(
                scene.objects and overlapping and rng.random() < 0.5)
            tries = (try_position(scene, item, overlap, rng)
                     for _ in range(25))
            scene = next((good for good in tries if good), None)
            if scene is None:
                break
        else:
            return scene


def hsv_to_bgr(hue: float, saturation: float, value: float) -> np.ndarray:
    """Convert one colour; hue in degrees, the rest and the result 0 to 1."""
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0]


def paint_background(height: int, width: int,
                     rng: np.random.Generator) -> np.ndarray:
    """Paint a muted texture (H, W, 3), float32, BGR, 0 to 1."""
    value = rng.uniform(0.35, 0.75)
    light, dark = (
        hsv_to_bgr(rng.uniform(0, 360), rng.uniform(0.03, 0.22), level)
        for level in (value + rng.uniform(0.08, 0.2), value))
    kind = rng.choice(['clouds', 'stripes', 'checks', 'gradient'])
    rows, columns = np.ogrid[:height, :width]
    angle = rng.uniform(0, np.pi)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    wave = 2 * np.pi / rng.uniform(14, 44)
    if kind == 'clouds':
        mix = cv2.resize(rng.random(rng.integers(3, 9, 2), np.float32),
                         (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind == 'stripes':
        mix = 0.5 + np.sin(along * wave)
    elif kind == 'checks':
        mix = 0.5 + 4 * np.sin(along * wave) * np.sin(across * wave)
    else:
        mix = (along - along.min()) / np.ptp(along)
    mix = np.clip(mix, 0, 1).astype(np.float32)[..., None]
    grain = rng.standard_normal((height, width, 1), np.float32)
    return dark + (light - dark) * mix + rng.uniform(0.01, 0.035) * grain


def paint_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Paint a scene with smooth edges: (H, W, 3), uint8, BGR."""
    picture = paint_background(*scene.labels.shape, rng)
    for item in scene.objects:
        window, cover = rasterize(item.polygon)
        hue, saturations, values = COLORS[item.color]
        color = hsv_to_bgr(hue + rng.uniform(-4, 4),
                           rng.uniform(*saturations), rng.uniform(*values))
        angle = rng.uniform(0, 2 * np.pi)
        rows, columns = np.ogrid[-1:1:cover.shape[0] * 1j,
                                 -1:1:cover.shape[1] * 1j]
        shade = 1 + 0.1 * (columns * np.cos(angle) + rows * np.sin(angle))
        shade += rng.normal(0, 0.025, cover.shape)
        picture[window] += cover[..., None] * (
            color * shade[..., None] - picture[window])
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def annotate(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    """COCO annotations of a scene, with ``attributes`` as an extra key.

    The segmentation is a polygon, or an RLE where an object is partly hidden.
    """
    annotations = []
    for i, item in enumerate(scene.objects):
        mask = scene.labels == i + 1
        if mask.sum() < scene.areas[i]:
            rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
            segmentation = {'size': list(map(int, rle['size'])),
                            'counts': rle['counts'].decode()}
        else:
            segmentation = [item.polygon.ravel().tolist()]
            rle = encode_outline(item.polygon, mask.shape)
        center = mask_center(mask_utils.decode(rle))
        annotations.append({
            'id': image_id * 10 + i, 'image_id': image_id,
            'category_id': SHAPES.index(item.shape) + 1,
            'bbox': mask_utils.toBbox(rle).tolist(),
            'area': float(mask_utils.area(rle)), 'iscrowd': 0,
            'segmentation': segmentation,
            'attributes': {'color': item.color, 'shape': item.shape,
                           'size': item.size,
                           'center': [round(value, 2) for value in center]},
        })
    return annotations
